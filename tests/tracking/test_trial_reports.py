"""Reports that Ray lost are in the trial's folder, and are taken in from there, each once."""

from __future__ import annotations

import io
import json
import math
import os
from types import SimpleNamespace

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from rich.console import Console

from pipeline.config import from_dict
from pipeline.sweep.callback import SweepCallback
from pipeline.sweep.display.console import Display
from pipeline.tracking.summary import SweepSummary, read_summary
from pipeline.tracking.trial_reports import TrialReports, missed_reports
from pipeline.training.trial_folder import TrialFolder
from tests.helpers.untrusted import JSON


class Tracker:
    """A tracker that remembers the steps whose metrics it was given."""

    def __init__(self) -> None:
        self.steps: list[int] = []

    def log_metrics(self, trial, metrics, step) -> None:
        self.steps.append(step)

    def trial_run_id(self, trial) -> None:
        return None

    def __getattr__(self, name):
        return lambda *_, **__: None


class Trial(SimpleNamespace):
    """A trial, as Tune has it."""

    def __str__(self) -> str:
        return "000"


def report(folder: str, step: int) -> dict:
    """An evaluation at every second step."""
    progress = {"base_step": step, "energy_loss": 1.0, "system": {"cpu": 1.0}}
    if step % 2:
        return progress
    scores = {"fid_base": 2.0, "fid_gebm": 1.0 / step, "chain": {"0": 2.0}, "figures": []}
    return {**progress, **scores, "checkpoint": f"{folder}/trials/000/checkpoints/step-{step:08d}"}


def watch(config, records, tracker) -> SweepCallback:
    return SweepCallback(config, records, tracker, Display(records, "small", Console(file=io.StringIO())))


def summary(folder: str, trials=None) -> SweepSummary:
    return SweepSummary(folder, metric="fid_gebm", mode="min", shown=(), facts={}, trials=trials)


@pytest.mark.parametrize("end", ["error", "restart", "died", "interrupted", "driver died"])
def test_whatever_ray_loses_each_report_is_taken_in_once_and_in_order(tmp_path_factory, small, end):
    home = tmp_path_factory.mktemp("reports")

    @example([False] * 6)
    @example([True, False, False, True, False, False])
    @settings(max_examples=15)
    @given(st.lists(st.booleans(), min_size=6, max_size=6))
    def law(arrives):
        folder = str(home / os.urandom(8).hex())
        config = small(output=folder)
        tracker, records, trial = Tracker(), summary(folder), Trial(config={})
        driver, worker = watch(config, records, tracker), TrialFolder(config, f"{folder}/trials/000")
        driver.on_trial_start(0, [], trial)
        for step, arrived in enumerate(arrives, start=1):
            handed_over = worker.write_report(report(folder, step))
            if arrived:
                driver.on_trial_result(0, [], trial, {**handed_over, "reported": list(handed_over)})
        if end in ("error", "restart"):
            driver.on_trial_result(0, [], trial, {end: "lost", "reported": [end]})
        elif end == "died":
            driver.on_trial_error(0, [], trial)
        elif end == "interrupted":
            driver.on_experiment_end([])
        else:
            records.write()
            trials = read_summary(folder)[1]
            trials[0].status = "pending"
            records = summary(folder, trials)
            watch(config, records, tracker).on_trial_start(0, [], trial)
        [record] = records.trials
        assert tracker.steps == [1, 2, 3, 4, 5, 6]
        assert [entry["base_step"] for entry in record.evaluations] == [2, 4, 6] and record.reports == 6
        assert record.best_checkpoint == f"{folder}/trials/000/checkpoints/step-00000006"

    law()


@given(
    st.lists(st.tuples(st.integers(1, 4), st.floats(0, 10) | st.just(math.nan)), min_size=1, max_size=8),
    st.sampled_from(["min", "max"]),
)
def test_the_tracker_shows_the_best_score_of_a_trial_though_its_steps_go_back(evaluations, mode):
    """In population-based training a trial repeats a step, with another score and over the same checkpoint."""
    folder, trial, logged = "memory://best/sweep", Trial(config={}), []
    records = SweepSummary(folder, metric="fid_gebm", mode=mode, shown=("fid_gebm",), facts={})
    data, model = {"store": "digits-8", "source": {"kind": "digits"}}, {"networks": "dcgan"}
    config = from_dict({"name": "x", "data": data, "model": model, "output": folder, "sweep": {"mode": mode}})

    class BestTracker(Tracker):
        def log_best(self, name, scores, step) -> None:
            logged.append((step, scores["fid_gebm"]))

    driver, record = watch(config, records, BestTracker()), records.add("000", {})
    for step, score in evaluations:
        before = len(logged)
        evaluated = {**report(folder, 2 * step), "fid_gebm": score}
        driver.on_trial_result(0, [], trial, {**evaluated, "reported": list(evaluated)})
        # Only where this evaluation is the best now.
        assert len(logged) == before or record.best_checkpoint == evaluated["checkpoint"]
        best = record.best_metrics.get("fid_gebm", math.nan)
        # MLflow shows the value of the largest step, and of several there the newest.
        if logged:
            _, (_, shown) = max(enumerate(logged), key=lambda entry: (entry[1][0], entry[0]))
            assert shown == best or (math.isnan(shown) and math.isnan(best))
    assert [step for step, _ in logged] == sorted(step for step, _ in logged)


def test_the_summary_says_the_beta_of_each_score(tmp_path, small):
    folder, trial = str(tmp_path), Trial(config={"sampler.beta": 2.0})
    records = summary(folder)
    driver = watch(small(output=folder, sampler={"beta": 4.0}), records, Tracker())
    driver.on_trial_start(0, [], trial)
    evaluated = report(folder, 2)
    driver.on_trial_result(0, [], trial, {**evaluated, "reported": list(evaluated)})
    records.write()
    assert read_summary(folder)[0]["best"]["metrics"]["beta"] == 2.0


def test_a_report_that_cannot_be_written_down_is_on_its_way_all_the_same(tmp_path, small):
    """As on a full disk; here a file is where the trial's folder would be."""
    (tmp_path / "trials").write_text("in the way")
    worker = TrialFolder(small(output=str(tmp_path)), f"{tmp_path}/trials/000")
    assert [worker.write_report({"base_step": step})["report_number"] for step in (1, 2)] == [1, 2]
    assert missed_reports(f"{tmp_path}/trials/000", after=0) == []


@pytest.mark.parametrize("scheme", ["file", "memory"])
def test_reports_continue_where_an_earlier_worker_was_killed_in_the_middle_of_a_line(tmp_path, scheme):
    url = str(tmp_path) if scheme == "file" else f"memory://reports/{tmp_path.name}"
    TrialReports(url).add({"base_step": 1, "checkpoint": "x"})
    if scheme == "file":
        with (tmp_path / "reports.jsonl").open("a") as file:
            file.write('{"number": 2, "rep')
    assert TrialReports(url).add({"base_step": 3, "checkpoint": "y"}) == 2
    assert [(number, one["base_step"]) for number, one in missed_reports(url, after=0)] == [(1, 1), (2, 3)]


LINES = st.one_of(
    st.binary(max_size=60),
    JSON.map(lambda value: json.dumps(value).encode()),
    st.builds(
        lambda number, step, key, value: json.dumps(
            {"number": number, "report": {"base_step": step, "fid_gebm": 1.0, key: value}}
        ).encode(),
        JSON | st.integers(1, 9),
        JSON | st.integers(1, 9),
        st.sampled_from(["checkpoint", "chain", "figures", "notes", "warnings", "system", "extractor", "fid_gebm"]),
        JSON,
    ),
)


def test_whatever_a_stranger_has_written_ends_no_driver_and_names_no_checkpoint_elsewhere(tmp_path_factory, small):
    home = tmp_path_factory.mktemp("untrusted")

    @example([b'{"number": 1, "report": {"base_step": 1, "fid_gebm": 0.0, "checkpoint": "/etc/passwd"}}'])
    @example([b'{"number": 1, "report": {"base_step": 1, "fid_gebm": 0.0, "checkpoint": "../../x"}}'])
    @settings(max_examples=60)
    @given(st.lists(LINES, max_size=4))
    def law(lines):
        folder = home / os.urandom(8).hex()
        (folder / "trials/000").mkdir(parents=True)
        (folder / "trials/000/reports.jsonl").write_bytes(b"\n".join(lines))
        records = summary(str(folder))
        watch(small(output=str(folder)), records, Tracker()).on_trial_start(0, [], Trial(config={}))
        for url in (records.trials[0].checkpoint, records.trials[0].best_checkpoint):
            assert url is None or url.startswith(f"{folder}/trials/000/checkpoints/")
        records.write()
        read_summary(str(folder))

    law()


@pytest.mark.parametrize("kind", ["link", "pipe"])
def test_reports_are_read_and_written_through_no_link(tmp_path, kind):
    theirs = tmp_path / "theirs"
    theirs.write_text("")
    folder = tmp_path / "trial"
    folder.mkdir()
    place = folder / "reports.jsonl"
    place.symlink_to(theirs) if kind == "link" else os.mkfifo(place)
    with pytest.raises(OSError):
        TrialReports(str(folder)).add({"base_step": 1})
    with pytest.raises(OSError):
        missed_reports(str(folder), after=0)
    assert theirs.read_text() == ""
