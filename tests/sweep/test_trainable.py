"""A trial that fails: what is tried again, how often, where, and at which learning rates; and one that is stopped."""

from __future__ import annotations

import contextlib
import threading
import time
import weakref
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from ray.train import WorkerGroupError

from pipeline import config as schema
from pipeline.runtime.errors import NonFiniteLoss, Preempted, UserError
from pipeline.sweep import trainable as module
from pipeline.sweep.own_reports import OwnReports
from pipeline.training.session import Stopped


@pytest.fixture
def trial(monkeypatch, small, tmp_path) -> Callable[..., tuple[list[str], list[dict[str, Any]]]]:
    """Runs a trial without workers, whose attempts end as given: kinds of reports, and attempts."""
    reports: list[dict[str, Any]] = []
    attempts: list[dict[str, Any]] = []
    tune = SimpleNamespace(
        get_context=lambda: SimpleNamespace(get_trial_name=lambda: "000"),
        get_checkpoint=lambda: None,
        report=reports.append,
    )
    monkeypatch.setattr(module, "tune", tune)
    monkeypatch.setattr(module, "wait_until_taken_away", lambda: None)

    def run(
        *ends: Exception | None, is_alone: bool = False, attempt: Callable[..., object] | None = None, **groups: object
    ) -> tuple[list[str], list[dict[str, Any]]]:
        left = iter(ends)

        def train(config: object, work: dict[str, Any], *_: object) -> Exception | None:
            attempts.append(work)
            end = next(left)
            return end if end is None or is_alone else WorkerGroupError("", {0: end})

        monkeypatch.setattr(module, "_train_alone" if is_alone else "_train_on_workers", attempt or train)
        config = small(output=str(tmp_path), **groups)
        settings = {"config": schema.to_dict(config), "owner": None, "plugins": [], "is_alone": is_alone}
        with contextlib.suppress(OSError):
            module.trainable({module.TRIAL_NAME_KEY: "000"}, settings)
        return [report["reported"][0] for report in reports], attempts

    return run


def test_a_worker_that_is_alone_leaves_the_restart_to_tune_and_another_process(trial):
    reports, attempts = trial(OSError("the device answers no more"), is_alone=True)
    assert reports == ["failure"] and len(attempts) == 1


@pytest.mark.parametrize(
    ("error", "kind"), [(OSError("the node is\n full"), "failure"), (UserError("no such file"), "error")]
)
@pytest.mark.parametrize("place", ["install", "_train_alone", "_train_on_workers"])
def test_a_trial_that_cannot_start_says_why(trial, monkeypatch, error, kind, place):
    """Not all of it is training: plugins are loaded, and workers are asked for."""

    def fails(*_: object) -> None:
        raise error

    if place == "install":
        monkeypatch.setattr(module, "install", fails)
    reports, attempts = trial(is_alone=place != "_train_on_workers", attempt=fails)
    assert reports == [kind] and not attempts


@pytest.mark.parametrize("restarts", [0, 2])
def test_a_trial_restarts_as_often_as_it_may(trial, restarts):
    reports, attempts = trial(*[OSError("a node was lost")] * 5, scale={"max_restarts": restarts})
    assert reports == ["restart"] * restarts + ["error"] and len(attempts) == restarts + 1
    assert {work["lr_scale"] for work in attempts} == {1.0}


@pytest.mark.parametrize("is_alone", [False, True])
def test_a_trial_that_diverges_is_retried_with_half_the_learning_rates(trial, is_alone):
    reports, attempts = trial(*[NonFiniteLoss("nan")] * 5, is_alone=is_alone, train={"max_nonfinite_restarts": 2})
    assert reports == ["restart", "restart", "error"]
    assert [work["lr_scale"] for work in attempts] == [1.0, 0.5, 0.25]


@pytest.mark.parametrize("is_alone", [False, True])
def test_a_machine_that_is_taken_away_costs_no_restart(trial, is_alone):
    reports, attempts = trial(*[Preempted("a notice")] * 3, None, is_alone=is_alone, scale={"max_restarts": 0})
    assert reports == ["restart"] * 3 and len(attempts) == 4


def test_an_attempt_that_diverged_is_forgotten_before_the_next_one(trial):
    """Its traceback has the model, of which there would be two on the device."""
    alive: list[bool] = []
    diverged: list[weakref.ref[Exception]] = []

    def train(*_: object) -> Exception:
        alive.append(any(error() is not None for error in diverged))
        error = NonFiniteLoss("nan")
        diverged.append(weakref.ref(error))
        return error

    trial(is_alone=True, attempt=train, train={"max_nonfinite_restarts": 2})
    assert alive == [False] * 3


def test_a_trial_that_is_stopped_gives_its_thread_up_before_the_next_has_the_process(small, monkeypatch):
    """Tune stops a trial where it has reported, by what ends the thread that reports."""
    stopped, given_up = threading.Event(), []
    reports = OwnReports()

    def train() -> None:
        reports.put({"base_step": 1})
        while not stopped.wait(0.01):
            pass
        time.sleep(0.1)  # the step that it is in
        given_up.append(True)
        raise Stopped

    def report(*_: object, **__: object) -> None:
        raise SystemExit

    monkeypatch.setattr(module.tune, "report", report)
    with pytest.raises(SystemExit):
        module._pass_on(small(), reports, reports.end, train, stopped)
    assert given_up


def test_reports_are_passed_on_in_their_order_before_the_failure(small, monkeypatch):
    passed_on: list[int] = []
    reports = OwnReports()

    def train() -> None:
        for step in range(50):
            reports.put({"base_step": step})
        raise NonFiniteLoss("at the end")

    monkeypatch.setattr(module.tune, "report", lambda report, checkpoint=None: passed_on.append(report["base_step"]))
    error = module._pass_on(small(), reports, reports.end, train, threading.Event())
    assert passed_on == list(range(50)) and isinstance(error, NonFiniteLoss)


class PanicException(BaseException):
    """As a library in Rust raises it."""


@pytest.mark.parametrize("end", [SystemExit(), SystemExit(0), SystemExit("no licence"), PanicException("index 3")])
def test_whatever_ends_the_training_fails_the_trial(small, end):
    reports = OwnReports()

    def train() -> None:
        raise end

    error = module._pass_on(small(), reports, reports.end, train, threading.Event())
    assert isinstance(error, Exception)
    kind, cause = module._cause(error)
    assert kind is Exception and type(end).__name__ in cause and str(end) in cause and "\n" not in cause
