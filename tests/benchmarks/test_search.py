"""Processor time of a command by kind of process, and the tables of searches that are made of it."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks import harness, process_cpu, search
from benchmarks.speed_page import table

# Each of the two processes takes a number of seconds of processor time, and prints it at its end.
BUSY = """
import json, subprocess, sys, time
def work(seconds):
    while time.process_time() < seconds:
        pass
child = subprocess.Popen([sys.executable, "-c", sys.argv[1], "", "0.8"]) if sys.argv[1] else None
work(float(sys.argv[2]))
if child: child.wait()
print(json.dumps(time.process_time()))
time.sleep(0.6)
"""


def test_the_processor_time_of_a_command_and_its_children_is_what_they_took(tmp_path: Path) -> None:
    usage = process_cpu.measure([sys.executable, "-c", BUSY, BUSY, "0.5"], tmp_path)
    child, parent = map(json.loads, (tmp_path / "log").read_text().split())
    assert usage.processes == {"driver": 1, "other": 1}
    # The system counts in hundredths of a second.
    assert usage.total == pytest.approx({"driver": parent, "other": child}, abs=0.1)
    assert usage.wall >= 0.6 and usage.between(usage.times[0], usage.times[-1]) == pytest.approx(usage.total)


def test_a_command_that_fails_ends_the_benchmark_with_its_output(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="no such store"):
        process_cpu.measure([sys.executable, "-c", "import sys; sys.exit('no such store')"], tmp_path)


kinds = st.sampled_from(["driver", "raylet", "other", "ImplicitFunc", "TrainController"])


@st.composite
def usages(draw: st.DrawFn) -> process_cpu.Usage:
    times = sorted(draw(st.lists(st.integers(0, 1000), min_size=2, max_size=20, unique=True)))
    taken = st.lists(st.floats(0, 5), min_size=len(times), max_size=len(times))
    series = {"driver": draw(taken)} | draw(st.dictionaries(kinds, taken, max_size=3))
    grown = {kind: [sum(steps[: at + 1]) for at in range(len(steps))] for kind, steps in series.items()}
    return process_cpu.Usage([float(time) for time in times], grown, dict.fromkeys(grown, 1))


@given(usages(), st.integers(1, 3), st.integers(3, 20), st.data())
def test_what_further_settings_and_the_rest_take_is_what_the_command_took(
    usage: process_cpu.Usage, slots: int, rounds: int, data: st.DataObject
) -> None:
    bare = data.draw(st.lists(st.floats(0, 9), min_size=2, max_size=5))
    # The last round may be cut short.
    count = rounds * slots + data.draw(st.integers(0, slots - 1))
    moments = st.floats(usage.times[0], usage.times[-1])
    ends = sorted(data.draw(st.lists(moments, min_size=count, max_size=count)))
    found = search.Found(usage, ends, {}, bare, slots)
    assert found.further == (rounds - 1) * slots
    setting, processes = search.tables("toy", {"trial": found, "warm": found}).values()
    taken = sum(usage.total.values())
    within = sum(usage.between(ends[slots - 1], ends[rounds * slots - 1]).values())
    assert sum(row["warm, CPU s a setting"] for row in processes) * found.further == pytest.approx(within)
    assert sum(row["trial, CPU s in all"] for row in processes) == pytest.approx(taken)
    for row in setting:
        assert row["settings"] == count and row["once, CPU s"] + within == pytest.approx(taken)
        further, beyond = row["a further setting, CPU s"], row["beyond, CPU s"]
        assert beyond.mean == pytest.approx(further.mean - sum(bare) / len(bare))
        assert beyond.error >= max(further.error, harness.Mean.of(bare).error)


def test_the_error_of_a_further_setting_is_that_of_the_mean_over_rounds() -> None:
    rng = np.random.default_rng(0)
    errors, means = [], []
    for _ in range(400):
        taken = np.concatenate([[50.0], rng.normal(3.0, 1.0, 20)]).cumsum()
        usage = process_cpu.Usage(list(range(21)), {"driver": taken.tolist()}, {"driver": 1})
        mean = search.Found(usage, [float(at) for at in range(21)], {}, [0.0], 1).further_cpu()
        means.append(mean.mean), errors.append(mean.error)
    assert np.mean(means) == pytest.approx(3.0, abs=0.05)
    assert np.mean(np.square(errors)) == pytest.approx(np.var(means), rel=0.2)


@given(st.integers(2, 200), st.integers(0, 9))
def test_settings_are_spread_evenly_in_an_order_of_their_own(count: int, seed: int) -> None:
    steps = search._step_sizes(count, seed)
    assert len(set(steps)) == count and steps == search._step_sizes(count, seed)
    assert min(steps) == pytest.approx(1e-4) and max(steps) == pytest.approx(1e-2)


def test_a_mean_is_on_the_page_with_its_standard_error_and_alone_where_it_has_none() -> None:
    rows = [{"a": value.to_json()} for value in (harness.Mean.of([3.0, 4.0, 5.0]), harness.Mean.of([2.5]))]
    assert table(json.loads(json.dumps(rows))).splitlines()[2:] == ["| 4 ± 0.58 |", "| 2.5 |"]
