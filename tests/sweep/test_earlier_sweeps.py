"""Expected time of a sweep, before its first trial has reported."""

from __future__ import annotations

import os

import pytest
import yaml

from pipeline.config import Config, from_dict
from pipeline.sweep.earlier_sweeps import expected_seconds
from tests.helpers.compared import write_sweep


def set_times(folder: str, seconds: float, ended: float = 1_700_000_000.0) -> None:
    """Set the times of a sweep's files to those of one that took ``seconds``."""
    os.utime(f"{folder}/config.yaml", (ended - seconds, ended - seconds))
    os.utime(f"{folder}/summary.json", (ended, ended))


@pytest.fixture
def config(tmp_path) -> Config:
    """The config of a sweep that ended: three trials of half an hour each, two at a time."""
    folder = write_sweep(tmp_path / "old", [{"train.base_lr": rate} for rate in (1e-4, 2e-4, 3e-4)])
    set_times(folder, 3700.0)
    with open(f"{folder}/config.yaml") as file:
        values = from_dict(yaml.safe_load(file))
    values.output = str(tmp_path / "new")
    return values


def test_a_sweep_takes_as_long_as_the_last_one_of_its_config(config, tmp_path):
    assert expected_seconds(config) == 3700.0
    newer = write_sweep(tmp_path / "newer", [{}, {}])
    set_times(newer, 2000.0, ended=1_800_000_000.0)
    assert expected_seconds(config) == 2000.0
    # Times that no sweep of these trials can have, as those of copied files.
    for seconds in (-5.0, 0.0, 1700.0, 10_000.0):
        set_times(newer, seconds, ended=1_800_000_000.0)
        assert expected_seconds(config) == 3700.0


def test_a_sweep_of_another_config_or_one_that_has_not_ended_is_passed_over(config, tmp_path):
    config.train.base_steps += 1
    assert expected_seconds(config) is None
    config.train.base_steps -= 1
    # Its seed and its tracker do not change the time that it takes.
    config.tracking.uri, config.seed = "http://elsewhere", 5
    assert expected_seconds(config) is not None

    def running(trial):
        trial.status = "running"

    set_times(write_sweep(tmp_path / "old", finish=running), 1800.0)
    assert expected_seconds(config) is None


def test_a_sweep_that_was_resumed_has_the_time_of_its_last_part_and_is_passed_over(config, tmp_path):
    def late(trial):
        trial.evaluations[-1]["sweep_seconds"] = 3600.0 if trial.name == "002" else 1800.0

    resumed = write_sweep(tmp_path / "resumed", [{}, {}, {}], finish=late)
    set_times(resumed, 2000.0, ended=1_800_000_000.0)
    assert expected_seconds(config) == 3700.0
    set_times(resumed, 3600.0, ended=1_800_000_000.0)
    assert expected_seconds(config) == 3600.0


@pytest.mark.parametrize("name", ["summary.json", "config.yaml"])
@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff", b"- " * 100_000])
def test_a_folder_that_cannot_be_read_is_passed_over(config, tmp_path, name, content):
    (tmp_path / "old" / name).write_bytes(content)
    assert expected_seconds(config) is None


@pytest.mark.parametrize("output", ["memory://sweeps/new", "/nowhere/at/all/new"])
def test_without_a_local_folder_no_time_is_expected(config, output):
    config.output = output
    assert expected_seconds(config) is None
