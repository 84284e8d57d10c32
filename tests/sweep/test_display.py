"""Display of a sweep: drawn into a window of any size, or printed in lines; and its time left."""

from __future__ import annotations

import codecs
import fcntl
import io
import json
import math
import os
import pty
import re
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rich.console import Console
from rich.text import Text

from pipeline.sweep.display.console import Display
from pipeline.sweep.display.eta import Rung, TrialProgress, estimate_eta
from pipeline.sweep.display.live_table import Column, Priority, SweepStatus, fit, short_names
from pipeline.sweep.display.tables import draw_seeds, draw_trials
from pipeline.tracking.summary import TERMINAL_STATUSES, SweepSummary, TrialRecord
from pipeline.tracking.trial_steps import TrialSteps

STEPS = TrialSteps.of_training(100)
REPOSITORY = Path(__file__).resolve().parents[2]
MANY = settings(deadline=None, derandomize=True, max_examples=80, suppress_health_check=list(HealthCheck))

NUMBERS = st.floats(allow_nan=True, allow_infinity=True) | st.integers(0, 10**12)
METRICS = st.dictionaries(
    st.sampled_from(
        ["fid_base", "fid_gebm", "base_steps_per_second", "images_per_second", "fraction_of_peak", "seconds_left"]
    ),
    NUMBERS,
)
PARAMS = st.dictionaries(
    st.sampled_from(["train.base_lr", "sampler.step_size", "train.negatives.step_size", "model.networks"]),
    st.floats(allow_nan=False) | st.text(max_size=40) | st.integers(),
)


@st.composite
def trials(draw) -> list[TrialRecord]:
    found = []
    for index in range(draw(st.integers(0, 40))):
        record = TrialRecord(
            f"{index:03d}", draw(PARAMS), draw(st.sampled_from(["pending", "running", *TERMINAL_STATUSES]))
        )
        if record.status != "pending":
            record.metrics = {**draw(METRICS), "base_step": draw(st.integers(0, 200))}
            record.best_metrics = draw(st.just({}) | METRICS)
            record.seconds = draw(st.floats(0, 1e6))
        found.append(record)
    return found


def standing(
    found: list[TrialRecord], more: int = 0, name: str = "digits", steps: TrialSteps = STEPS, **values
) -> SweepStatus:
    records = SweepSummary(
        "out", metric="fid_gebm", mode="min", shown=("fid_base", "fid_gebm"), facts={}, trials=found, steps=steps
    )
    return SweepStatus(records, name, trials=len(found) + more, **values)


def drawn(what: SweepStatus, width: int, height: int) -> list[str]:
    console = Console(file=io.StringIO(), width=width, height=height, force_terminal=True, record=True)
    console.print(what)
    return console.export_text().splitlines()


@MANY
@given(
    found=trials(),
    more=st.integers(0, 2000),
    width=st.integers(1, 200),
    height=st.integers(2, 60),
    name=st.sampled_from(["digits", "an experiment with a very long name of its own"]),
)
def test_it_never_overflows_a_window_and_counts_add_up(found, more, width, height, name):
    what = standing(found, more, name)
    lines = drawn(what, width, height)
    assert 1 <= len(lines) <= height - 1  # with the line of the cursor, the window is full and does not scroll
    assert all(Text(line).cell_len <= width for line in lines)
    counts = what.counts()
    assert sum(counts.values()) == len(found) + more
    for status in ("running", *TERMINAL_STATUSES):
        assert counts[status] == sum(record.status == status for record in found)
    if width >= 80:
        numbers = [int(number) for number in re.findall(r"(\d+) (?:running|waiting|finished|pruned|failed)", lines[0])]
        assert int(lines[0].split()[0]) == sum(numbers) == len(found) + more


@pytest.mark.parametrize(("running", "waiting"), [(2, 4), (0, 6), (6, 0)])
def test_where_nothing_is_done_it_says_so(running, waiting):
    lines = drawn(standing([TrialRecord(f"{i:03d}", {}, "running") for i in range(running)], waiting), 100, 24)
    assert " 0%, 0:00 elapsed" in lines[1]


@MANY
@given(found=trials(), height=st.integers(12, 60))
def test_who_runs_is_shown_first_and_the_best_of_who_has_ended_next(found, height):
    what = standing(found)
    lines = drawn(what, 80, height)
    body = lines[1 + next((i for i, line in enumerate(lines) if line.startswith("trial ")), len(lines)) :]
    names = [line.split()[0] for line in body]
    running = [record.name for record in found if record.status == "running"]
    ended = [record.name for record in what.records.ranking() if record.status in TERMINAL_STATUSES]
    more = re.fullmatch(r"and (\d+) more that run *", body[-1]) if body else None
    if more:
        assert running[: len(names) - 1] == names[:-1] and int(more[1]) == len(running) - len(names) + 1
    else:
        assert names == (running + ended)[: len(names)]
        assert len(names) == len(running + ended) or len(lines) == height - 1


def test_numbers_stand_below_one_another_and_names_are_at_the_head():
    found = []
    for index in range(4):
        record = TrialRecord(f"{index:03d}", {"train.base_lr": 10.0**-index}, "running" if index % 2 else "finished")
        record.metrics = {"base_step": 10**index, "images_per_second": 10.0**index, "seconds_left": 5.0 * 30**index}
        record.metrics |= {"fid_base": 3.0 * 10**index, "fid_gebm": 2.0 * 10**index, "base_steps_per_second": 0.5}
        record.best_metrics = dict(record.metrics)
        found.append(record)
    for width in (80, 100, 160):
        lines = drawn(standing(found), width, 24)
        heading = next(line for line in lines if line.startswith("trial"))
        rows = [line for line in lines if re.match(r"00\d ", line)]
        assert len(rows) == 4
        for name in ("base step", "steps/s", "samples/s", "left", "fid_base", "fid_gebm"):
            end = heading.index(name) + len(name)
            for row in rows:
                assert (row[end : end + 1] in ("", " ") and row[end - 1] != " ") or not row[end - 6 : end].strip(), name
        assert ("base_lr" in heading) == (width >= 100)


KEYS = st.lists(st.from_regex(r"[a-c]{1,2}(\.[a-c]{1,2}){0,2}", fullmatch=True), unique=True, max_size=12)


@given(KEYS)
@settings(deadline=None, derandomize=True)
def test_no_two_keys_are_called_the_same(keys):
    names = short_names(keys)
    assert list(names) == keys and len(set(names.values())) == len(keys)
    for key, name in names.items():
        assert key == name or key.endswith(f".{name}")
        _, dot, shorter = name.partition(".")
        # A name with one part less would be that of another key, too.
        assert not dot or sum(one == shorter or one.endswith(f".{shorter}") for one in keys) > 1


@MANY
@given(KEYS, st.booleans(), st.booleans())
def test_the_heads_of_every_table_are_distinct(keys, warned, colder):
    found = []
    for index in range(2):
        record = TrialRecord(f"{index:03d}", {f"train.{key}": 0.5 for key in keys} | {"seed": index}, "finished")
        record.params |= {f"train.{name}": 0.5 for name in ("trial", "status", "warnings", "beta", "left", "seeds")}
        record.best_metrics = {"fid_base": 2.0, "fid_gebm": 1.0, "beta": 2.0 if colder and index else 1.0}
        record.warnings = ["KALE is negative"] if warned else []
        found.append(record)
    what = standing(found)
    for table in (draw_trials(what.records), draw_seeds(what.records)):
        heads = [column.header for column in table.columns]
        assert len(set(heads)) == len(heads) >= len(keys) + 6
    heads = [column.heading for column in what._columns(found)]
    assert len(set(heads)) == len(heads) >= len(keys) + 6


@MANY
@given(KEYS, st.integers(40, 200), st.sampled_from([draw_trials, draw_seeds]))
def test_columns_of_the_results_are_shown_whole_or_not_at_all(keys, width, draw):
    found = []
    for seed in range(2):
        record = TrialRecord(f"{seed:03d}", {f"train.{key}": 0.5 for key in keys} | {"seed": seed}, "finished")
        record.best_metrics = {"fid_base": 2.0, "fid_gebm": 1.0, "fid_gebm_standard_error": 0.1}
        found.append(record)
    records = standing(found).records
    everything, table = draw(records), draw(records, width)
    heads = [str(column.header) for column in table.columns]
    assert "fid_gebm" in heads and (draw is draw_seeds or heads[:2] == ["trial", "status"])
    console = Console(file=io.StringIO(), width=width)
    console.print(table)
    printed = console.file.getvalue()
    assert "…" not in printed and all(head in printed for head in heads)
    assert ("left out" in " ".join(printed.split())) == (len(heads) < len(everything.columns))
    # One column more would not fit.
    room = Console(width=10_000).measure(everything).maximum
    assert (room > width) == (len(heads) < len(everything.columns))


@given(st.lists(st.tuples(st.sampled_from(Priority), st.integers(1, 30)), min_size=1, max_size=12), st.integers(1, 120))
def test_columns_get_room_by_their_priority_and_keep_their_order(sizes, width):
    columns = [Column(str(index), priority, size, ()) for index, (priority, size) in enumerate(sizes)]
    fitting = fit(columns, width)
    order = [int(column.heading) for column in fitting]
    assert order == sorted(order)
    ranked = sorted(range(len(columns)), key=lambda index: columns[index].priority)
    assert set(order) == set(ranked[: len(order)])
    room = sum(columns[index].width for index in order) + 2 * (len(order) - 1)
    assert room <= width or len(order) == 1
    if len(order) < len(columns):
        assert room + 2 + columns[ranked[len(order)]].width > width


# How long a sweep takes.


@pytest.mark.parametrize("last", [1.0, 0.25])
@pytest.mark.parametrize(("slots", "waves"), [(1, 1), (1, 7), (4, 3), (32, 4)])
def test_where_all_trials_are_alike_the_time_left_is_exact(slots, waves, last):
    # The last round may have room for more trials than are left.
    more = math.ceil(last * slots)
    whole = 120.0
    for wave in range(waves):
        for fraction in (0.1, 0.5, 0.95):
            courses = [TrialProgress(1.0, whole, True)] * (wave * slots) + [
                TrialProgress(fraction, fraction * whole, False)
            ] * slots
            left = estimate_eta(courses, (waves - wave - 1) * slots + more, slots)
            true = (waves + 1 - wave - fraction) * whole
            assert left.seconds == pytest.approx(true)
            assert left.done == pytest.approx((wave + fraction) / (waves + more / slots))


def test_a_trials_start_up_and_warm_up_are_not_taken_for_the_pace_of_the_rest():
    # Twenty of its forty seconds until the first step, and a warm-up since: half of its time is left and not 31/32.
    metrics = {"base_step": 25, "seconds_left": 40.0}
    first = [TrialRecord("000", {}, "running", metrics=metrics, seconds=40.0)]
    assert standing(first, more=3).remaining().seconds == pytest.approx(40.0 + 3 * 80.0)
    # Of one that has ended well nothing is left, whatever it said last.
    last = [TrialRecord("000", {}, "finished", metrics={"base_step": 100, "seconds_left": 20.0}, seconds=100.0)]
    assert standing(last, more=3).remaining().seconds == pytest.approx(300.0)


@MANY
@given(st.lists(st.floats(0.01, 1.0), min_size=1, max_size=50), st.integers(1, 100), st.integers(1, 8))
def test_of_trials_that_have_all_ended_it_is_their_mean_with_one_whole_trial_more(fractions, waiting, slots):
    """Kaplan and Meier's estimate is then the mean; the one that is added went to its end."""
    courses = [TrialProgress(fraction, 100 * fraction, True) for fraction in fractions]
    mean = (sum(fractions) + 1) / (len(fractions) + 1)
    assert estimate_eta(courses, waiting, slots).seconds == pytest.approx(100 * mean * math.ceil(waiting / slots))


# In whole steps and milliseconds, as trials report them.
FRACTIONS = st.integers(0, 10**6).map(lambda steps: steps / 10**6)
SECONDS = st.integers(0, 10**8).map(lambda milliseconds: milliseconds / 1000)


@MANY
@given(
    st.lists(st.builds(TrialProgress, FRACTIONS, SECONDS, st.booleans()), max_size=40),
    st.integers(0, 100),
    st.integers(1, 8),
    st.lists(st.builds(Rung, st.floats(0.01, 0.99), st.floats(1.5, 4.0)), max_size=3).map(sorted),
)
def test_it_is_never_more_than_if_none_were_pruned(courses, waiting, slots, rungs):
    left = estimate_eta(courses, waiting, slots, rungs)
    if left is None:
        assert not sum(course.fraction for course in courses) or not sum(course.seconds for course in courses)
        return
    # Where none is pruned, all that run so far do so to the end.
    longest = [course for course in courses if not course.ended]
    whole = sum(course.seconds for course in courses) / sum(course.fraction for course in courses)
    rests = [(1 - each.fraction) * (each.seconds + (1 - each.fraction) * whole) for each in longest]
    most = (sum(rests) + waiting * whole) / slots + max([*rests, whole if waiting else 0.0])
    assert 0 <= left.earliest <= left.latest
    assert left.seconds <= most * (1 + 1e-9)
    assert 0 < left.done <= 1 and (left.done == 1) <= (left.seconds <= 1e-9 * max(most, whole))


@pytest.mark.parametrize("steps", [TrialSteps.of_training(100), TrialSteps.of_chains(100)])
def test_a_trial_is_as_far_as_its_own_steps_are(steps):
    # Base steps of a model that is only sampled are those of its training, and all done.
    counts = {"base_step": 500, steps.metric: 20}
    found = [
        TrialRecord("000", {}, "running", counts, seconds=10.0),
        TrialRecord("001", {steps.key: 40}, "running", counts, seconds=10.0),
        TrialRecord("002", {}, "finished", {"base_step": 500} | ({steps.metric: 100} if "base" in steps.unit else {})),
    ]
    status = standing(found, steps=steps)
    assert [steps.fraction(record) for record in found] == [0.2, 0.5, 1.0]
    assert status.remaining() == estimate_eta(
        [TrialProgress(0.2, 10.0, False), TrialProgress(0.5, 10.0, False), TrialProgress(1.0, 0.0, True)], 0, 1
    )
    assert all(steps.unit in line for line in drawn(status, 200, 20) if "progress" in line)
    assert f"20/40 {steps.unit}s" in Display(status.records, "digits")._cells(found[1])
    heads = [column.header for column in draw_trials(status.records).columns]
    assert f"{steps.unit}s" in heads


@pytest.mark.parametrize("value", [None, True, math.nan, math.inf, -3, "many"])
def test_a_number_of_steps_that_is_none_counts_as_no_report(value):
    steps = TrialSteps.of_chains(100)
    record = TrialRecord("000", {"sampler.num_steps": value}, "running", {"chain_step": value})
    assert (steps.done(record), steps.planned(record), steps.fraction(record)) == (0, 100, 0.0)


# On a terminal, and elsewhere.

DRIVE = """
import logging, sys, time
from pipeline.sweep.display.console import Display
from pipeline.sweep.display.tables import draw_seeds, draw_trials
from pipeline.tracking.summary import SweepSummary, TrialRecord
from pipeline.tracking.trial_steps import TrialSteps
log = logging.getLogger("pipeline.drive")
records = SweepSummary(
    "out", metric="fid_gebm", mode="min", shown=("fid_base", "fid_gebm"), facts={}, steps=TrialSteps.of_training(100)
)
display = Display(records, "digits", event_log=sys.argv[1] or None)
with display:
    log.info("before")
    with display.sweep(30, 30):
        for step in (10, 60, 100):
            for index in range(30):
                name = f"{index:03d}"
                record = records.get(name) or records.add(name, {"train.base_lr": 0.1 / (index + 1)})
                record.status, record.seconds = "running", step / 10
                if step == 10:
                    display.update(record)
                report = {"base_step": step, "fid_base": 9.0 + index, "fid_gebm": 8.0 + index, "images_per_second": 5e3}
                records.evaluated(record, report, "checkpoint") if step > 10 else record.metrics.update(report)
                display.update(record, report, evaluated=step > 10)
                if step == 100:
                    record.status = "finished"
                    display.update(record)
            log.info(f"all are at {step}, " + "a long line " * 12)
            time.sleep(float(sys.argv[2]))
    log.info("after")
"""


class Screen:
    """As much of a terminal as rich makes use of. What leaves it at the top is in ``gone``."""

    def __init__(self, width: int, height: int) -> None:
        self.width, self.height, self.gone = width, height, []
        self.lines, self.row, self.column, self.cursor = [""], 0, 0, True
        self.decode, self.rest = codecs.getincrementaldecoder("utf-8")().decode, ""

    def feed(self, content: bytes) -> None:
        parts = re.findall(r"\x1b\[[?]?[0-9;]*[A-Za-z]|[^\x1b]|\x1b[^A-Za-z]*$", self.rest + self.decode(content))
        self.rest = parts.pop() if parts and re.fullmatch(r"\x1b[^A-Za-z]*", parts[-1]) else ""
        for part in parts:
            if part == "\n":
                self.row += 1
                if self.row == len(self.lines):
                    self.lines.append("")
                if len(self.lines) > self.height:
                    self.gone.append(self.lines.pop(0))
                    self.row -= 1
            elif part == "\r":
                self.column = 0
            elif len(part) > 1:
                self.control(part)
            else:
                assert self.column < self.width, f"a line is wider than the window: {self.lines[self.row]!r}"
                line = self.lines[self.row].ljust(self.column)
                self.lines[self.row] = line[: self.column] + part + line[self.column + 1 :]
                self.column += 1

    def control(self, part: str) -> None:
        if part.endswith("A"):
            up = int(part[2:-1] or 1)
            assert up <= self.row, "the cursor leaves the window: what was drawn before stays"
            self.row -= up
        elif part == "\x1b[2K":
            self.lines[self.row] = ""
        elif part in ("\x1b[?25l", "\x1b[?25h"):
            self.cursor = part.endswith("h")
        else:
            assert part.endswith("m"), f"it clears or moves what it need not: {part!r}"


def on_a_terminal(command: list[str], width: int, height: int) -> tuple[Screen, list[list[str]], int]:
    """Run a command on a terminal; what it left there, what there was each time it paused, and its exit status."""
    leader, follower = pty.openpty()
    fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", height, width, 0, 0))
    variables = {**os.environ, "TERM": "xterm-256color", "PYTHONPATH": str(REPOSITORY)}
    for name in ("COLUMNS", "LINES", "NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE", "CI"):
        variables.pop(name, None)
    process = subprocess.Popen(command, stdin=follower, stdout=follower, stderr=follower, env=variables)
    os.close(follower)
    screen, seen = Screen(width, height), []
    while True:
        try:
            screen.feed(os.read(leader, 65536))
        except OSError:  # no process writes to it any more
            break
        seen.append([line for line in screen.lines if line.strip()])
    os.close(leader)
    return screen, seen, process.wait(timeout=60)


@pytest.mark.parametrize(("width", "height"), [(80, 24), (60, 10)])
def test_it_is_redrawn_in_place_and_leaves_the_terminal_as_it_was(width, height):
    screen, seen, status = on_a_terminal([sys.executable, "-c", DRIVE, "", "0.6"], width, height)
    assert status == 0 and screen.cursor
    heads = [line for frame in seen for line in frame if re.match(r"30 trials\b", line)]
    assert any("30 running" in line for line in heads)
    if width == 80:
        assert any("30 finished" in line for line in heads)
        assert any("best: trial 000, fid_base 9.000, fid_gebm 8.000" in line for frame in seen for line in frame)
    # What was said is all there in the end, and nothing of the table, drawn over and over, is among it.
    left = " ".join(" ".join([*screen.gone, *screen.lines]).split())
    said = ["before", *(f"all are at {step}, {'a long line ' * 12}".strip() for step in (10, 60, 100)), "after"]
    assert left == " ".join(said)


def driven(log: str) -> subprocess.CompletedProcess:
    """The program, where there is no terminal."""
    return subprocess.run(
        [sys.executable, "-c", DRIVE, log, "0"],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        check=True,
    )


def test_elsewhere_it_is_lines_with_the_time_and_few_of_them():
    ran = driven("")
    lines = ran.stdout.splitlines()
    assert ran.stderr == "" and "\x1b" not in ran.stdout
    assert all(re.match(r"\d\d:\d\d:\d\d  \S", line) for line in lines)
    assert any(line[10:].startswith("all are at 60, a long line") and len(line) > 150 for line in lines)  # not folded
    assert "30 of 30 trials have ended" in lines[-2] and "best is trial 000 with fid_base 9.000" in lines[-2]
    assert "trial 029  finished  100/100 base steps  fid_base 38.00  fid_gebm 37.00" in ran.stdout


def test_with_the_log_on_standard_output_the_lines_go_elsewhere():
    ran = driven("-")
    events = [json.loads(line) for line in ran.stdout.splitlines()]
    assert "trial 029  finished" in ran.stderr and "trial 029  finished" not in ran.stdout
    kinds = [entry["event"] for entry in events]
    assert kinds[:2] == ["note", "sweep_started"] and kinds[-2:] == ["sweep_ended", "note"]
    count = {kind: kinds.count(kind) for kind in set(kinds)}
    assert count == {
        "note": 5,
        "sweep_started": 1,
        "trial_started": 30,
        "progress": 30,
        "evaluated": 60,
        "trial_ended": 30,
        "sweep_ended": 1,
    }
    of_one = [entry["event"] for entry in events if entry["trial"] == "007"]
    assert of_one == ["trial_started", "progress", "evaluated", "evaluated", "trial_ended"]
    assert events[-2]["values"]["finished"] == 30 and events[-2]["values"]["best"] == "000"


def test_on_a_terminal_that_has_the_log_nothing_is_drawn_into_it():
    screen, _, status = on_a_terminal([sys.executable, "-c", DRIVE, "-", "0"], 400, 50)
    assert status == 0
    for line in [*screen.gone, *screen.lines]:
        assert not line or re.match(r"\d\d:\d\d:\d\d  \S", line) or json.loads(line)["event"]


def test_many_trials_at_once_do_not_flood_a_log(monkeypatch, capsys):
    """A line of each every ten seconds would be 100 a second of a thousand."""
    found = [TrialRecord(f"{index:03d}", {}, "running", {"base_step": 1}) for index in range(1000)]
    display = Display(standing(found).records, "digits")
    now = time.monotonic()
    seconds = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now + seconds)
    with display:
        for _ in range(30):
            seconds += 20.0
            for record in found[::10]:
                display.update(record, {"base_step": 1})
    printed = capsys.readouterr().out.splitlines()
    assert 100 < len(printed) <= 100 + 600 / 2 + 600 / 60 + 1
