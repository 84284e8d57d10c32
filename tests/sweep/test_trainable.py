"""A trial whose workers fail: what is tried again, how often, and at which learning rates."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from pipeline import config as schema
from pipeline.runtime.errors import NonFiniteLoss, Preempted
from pipeline.sweep import trainable as module


@pytest.fixture
def trial(monkeypatch, small, tmp_path) -> Callable[..., tuple[list[str], list[dict[str, Any]]]]:
    """Runs a trial without workers, of which each attempt ends as it is told to: kinds of reports, and attempts."""
    reports: list[dict[str, Any]] = []
    attempts: list[dict[str, Any]] = []
    tune = SimpleNamespace(
        get_context=lambda: SimpleNamespace(get_trial_name=lambda: "000"),
        get_checkpoint=lambda: None,
        report=reports.append,
    )
    monkeypatch.setattr(module, "set_environment", lambda timeout: None)
    monkeypatch.setattr(module, "tune", tune)
    monkeypatch.setattr(module, "Queue", lambda **_: None)

    def run(*ends: Exception | None, **groups: object) -> tuple[list[str], list[dict[str, Any]]]:
        left = iter(ends)

        def train(config: object, work: dict[str, Any], *_: object) -> SimpleNamespace | None:
            attempts.append(work)
            end = next(left)
            return None if end is None else SimpleNamespace(worker_failures={0: end})

        monkeypatch.setattr(module, "_train", train)
        config = small(output=str(tmp_path), **groups)
        module.trainable(
            {module.TRIAL_NAME_KEY: "000"}, {"config": schema.to_dict(config), "owner": None, "plugins": []}
        )
        return [report["reported"][0] for report in reports], attempts

    return run


@pytest.mark.parametrize("restarts", [0, 2])
def test_a_trial_restarts_as_often_as_it_may(trial, restarts):
    reports, attempts = trial(*[OSError("a node was lost")] * 5, scale={"max_restarts": restarts})
    assert reports == ["restart"] * restarts + ["error"] and len(attempts) == restarts + 1
    assert {work["lr_scale"] for work in attempts} == {1.0}


def test_a_trial_that_diverges_is_retried_with_half_the_learning_rates(trial):
    reports, attempts = trial(*[NonFiniteLoss("nan")] * 5, train={"max_nonfinite_restarts": 2})
    assert reports == ["restart", "restart", "error"]
    assert [work["lr_scale"] for work in attempts] == [1.0, 0.5, 0.25]


def test_a_machine_that_is_taken_away_costs_no_restart(trial):
    reports, attempts = trial(*[Preempted("a notice")] * 3, None, scale={"max_restarts": 0})
    assert reports == ["restart"] * 3 and len(attempts) == 4
