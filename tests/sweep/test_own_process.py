"""One worker in the trial's own process: what it learns does not depend on the trials that the process had before."""

from __future__ import annotations

import gc
import itertools
import threading
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.optim.optimizer import register_optimizer_step_post_hook

from gebm import GEBM, Trainer
from gebm.replay.compiled import trace
from pipeline import config as schema
from pipeline.runtime.errors import NonFiniteLoss, UserError
from pipeline.runtime.watchdog import Watchdog
from pipeline.sweep import own_process, trainable
from pipeline.sweep.own_process import train_here
from pipeline.tracking.trial_reports import missed_reports
from pipeline.training.checkpoints import Checkpoints, read
from pipeline.training.loop import TrialRun
from pipeline.training.session import Stopped
from tests.training.test_sampler_trials import TIMES, toy_config

# What trials of one sweep may differ in, and what changes a process: threads, networks, objectives, how they end.
TRIALS: list[dict[str, Any]] = [
    {"train.energy_lr": 1e-3},
    {"train.energy_lr": 3e-4, "train.objective": "gan"},
    {"train.penalty": 1.0, "sampler.name": "hmc"},
    {"train.precision": "bfloat16"},
    {"train.base_lr": 1e30},  # it diverges
    {"train.base_steps": 3, "evaluation.every": 1},
]


def work_of(config: schema.Config, url: Path) -> dict[str, Any]:
    return {"config": schema.to_dict(config), "url": str(url), "lr_scale": 1.0}


def trained(config: schema.Config, url: Path) -> tuple[list[dict[str, Any]], dict[str, torch.Tensor]]:
    """Train a trial in this process; its reports without times, and its last weights."""
    reports: list[dict[str, Any]] = []
    try:
        train_here(work_of(config, url), reports.append, lambda: False, threading.Event(), gpus=0)
    except NonFiniteLoss as error:
        reports.append({"error": str(error)})
    kept = [
        {key: value for key, value in report.items() if key not in TIMES and "second" not in key} for report in reports
    ]
    model = read(reports[-1]["checkpoint"]).model if reports[-1].get("checkpoint") else {}
    return kept, model


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> schema.Config:
    return toy_config(tmp_path_factory.mktemp("own-process"))


@settings(max_examples=3, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.sampled_from(TRIALS), min_size=1, max_size=2), st.sampled_from(TRIALS))
def test_a_trial_learns_the_same_whatever_the_process_had_before(config, tmp_path_factory, before, last):
    folder = tmp_path_factory.mktemp("trials")
    first, weights = trained(schema.apply(config, last), folder / "first")
    for number, keys in enumerate(before):
        trained(schema.apply(config, keys), folder / f"before-{number}")
    second, again = trained(schema.apply(config, last), folder / "second")
    assert str(second).replace("/second/", "/first/") == str(first)
    assert weights.keys() == again.keys() and all(torch.equal(weights[key], again[key]) for key in weights)


@pytest.mark.parametrize("keys", [TRIALS[0], TRIALS[4]])
def test_nothing_of_a_trial_that_has_ended_stays_in_memory(config, tmp_path, keys):
    """A GPU would have the models of all trials so far, or of the attempt that diverged."""
    trained(schema.apply(config, keys), tmp_path / "first")
    gc.collect()
    assert not [one for one in gc.get_objects() if type(one) in (TrialRun, GEBM)]


def graph_modules() -> list[weakref.ref[torch.fx.GraphModule]]:
    gc.collect()
    return [weakref.ref(one) for one in gc.get_objects() if issubclass(type(one), torch.fx.GraphModule)]


def test_what_a_trial_has_compiled_does_not_outlast_it(config, tmp_path):
    before = {id(graph()) for graph in graph_modules()}
    graph, outside = trace(lambda: [torch.ones(3).sin().cos()])
    # Torch keeps a graph whatever makes kernels of it, and none are made here, which would take seconds.
    torch.compile(graph, backend="eager", fullgraph=True)(*outside)
    del graph, outside
    compiled = [graph for graph in graph_modules() if id(graph()) not in before]
    assert compiled
    trained(config, tmp_path / "next")
    assert not [graph for graph in compiled if graph() is not None]


def test_only_a_process_that_had_no_trial_says_that_the_batch_is_too_large(config, tmp_path, monkeypatch):
    """In another one the memory may be missing that earlier trials have left: Tune tries in a new process."""

    def step(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr(Trainer, "step", step)
    monkeypatch.setattr(own_process, "_attempts", itertools.count())
    for number, error in enumerate((UserError, torch.OutOfMemoryError)):
        with pytest.raises(error):
            trained(config, tmp_path / str(number))


def test_a_trial_that_is_stopped_takes_no_further_step_and_its_watchdog_is_off(config, tmp_path):
    stopped, reports = threading.Event(), []

    def report(entries: dict[str, Any]) -> None:
        reports.append(entries)
        stopped.set()

    # The first trial of a process imports what would take longer than this timeout.
    trained(config, tmp_path / "before")
    longer = schema.apply(config, {"train.base_steps": 1000, "train.report_every": 1, "scale.timeout": 5.0})
    with pytest.raises(Stopped):
        train_here(work_of(longer, tmp_path), report, lambda: False, stopped, gpus=0)
    assert [entries["base_step"] for entries in reports] == [1]
    # This process would end in five seconds otherwise, in the midst of the next trial.
    trained(config, tmp_path / "next")


@pytest.mark.parametrize("last", [1, 6, 8, 9, 12])
def test_a_stop_waits_for_one_step_of_an_optimizer_at_most(config, tmp_path, last):
    """Whether it comes among the eight energy steps before a base step, or after them."""
    stopped, taken = threading.Event(), []

    def count(*_: object) -> None:
        taken.append(stopped.is_set())
        if len(taken) == last:
            stopped.set()

    longer = schema.apply(config, {"train.energy_steps": 8, "train.warmup_energy_steps": 8, "train.base_steps": 50})
    counting = register_optimizer_step_post_hook(count)
    try:
        with pytest.raises(Stopped):
            train_here(work_of(longer, tmp_path), lambda report: None, lambda: False, stopped, gpus=0)
    finally:
        counting.remove()
    assert sum(taken) == (last == 8)


@pytest.mark.parametrize("stopped_at", [1, 3])
def test_a_trial_does_not_overtake_the_decision_on_its_last_report(config, tmp_path, monkeypatch, stopped_at):
    """However long the driver takes: the checkpoint of the report that it is stopped at is the last one."""
    reports = []

    def report(entries: dict[str, Any], checkpoint: object) -> None:
        reports.append(entries)
        time.sleep(1.0)
        if len(reports) == stopped_at:
            raise SystemExit

    monkeypatch.setattr(trainable.tune, "report", report)
    keys = {"train.base_steps": 1000, "evaluation.every": 1}
    longer = schema.apply(config, keys)
    with pytest.raises(SystemExit):
        trainable._train_alone(longer, work_of(longer, tmp_path), "000", {"worker": {"CPU": 1.0}})
    assert [entries["base_step"] for entries in reports] == list(range(1, stopped_at + 1))
    assert [report["base_step"] for _, report in missed_reports(str(tmp_path), after=0)] == [*range(1, stopped_at + 1)]
    assert Checkpoints(str(tmp_path)).last == reports[-1]["checkpoint"]


def test_a_trial_that_waits_for_the_sweep_does_not_count_as_hung(config, tmp_path, monkeypatch):
    beats, waits = [], iter([True, True, False])

    def is_behind() -> bool:
        beats.append(0)
        return next(waits, False)

    def beat(self: Watchdog) -> None:
        if beats:
            beats[-1] += 1

    monkeypatch.setattr(Watchdog, "heartbeat", beat)
    train_here(work_of(config, tmp_path), lambda report: None, is_behind, threading.Event(), gpus=0)
    assert len(beats) >= 3 and all(beats[:2])


def test_a_notice_is_an_answer_of_ray_and_no_answer_is_waited_out(monkeypatch):
    def fails() -> set[str]:
        raise ConnectionError("the GCS does not answer")

    answers: list[Callable[[], set[str]]] = [lambda: {"here"}, fails, lambda: {"there"}]
    monkeypatch.setattr(own_process.ray, "is_initialized", lambda: True)
    monkeypatch.setattr(own_process.ray, "get_runtime_context", lambda: SimpleNamespace(get_node_id=lambda: "here"))
    monkeypatch.setattr(own_process, "_POLL_SECONDS", 0.0)
    ask = iter(answers)
    monkeypatch.setattr(own_process.state, "get_draining_nodes", lambda: next(ask)())
    assert [own_process.is_preempted() for _ in answers] == [True, False, False]
    ask = iter(answers)
    own_process.wait_until_taken_away()
    assert next(ask, None) is None


def test_a_process_without_ray_starts_none_to_hear_of_its_machine(monkeypatch):
    asked: list[bool] = []
    monkeypatch.setattr(own_process.ray, "is_initialized", lambda: False)
    monkeypatch.setattr(own_process.ray, "get_runtime_context", lambda: asked.append(True))
    assert not own_process.is_preempted() and not asked
