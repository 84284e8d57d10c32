"""A search over the sampler alone: what is refused, on what it runs, and which settings are pruned along the chain."""

from __future__ import annotations

import time
from types import SimpleNamespace

import psutil
import pytest
import ray
from ray.tune.schedulers import TrialScheduler

from pipeline.config import apply, from_dict
from pipeline.sweep import cluster, search
from pipeline.sweep.display.eta import duration
from pipeline.sweep.search_space import parse_space
from pipeline.tracking.summary import TrialRecord
from pipeline.tracking.trial_reports import TrialReports
from tests.sweep.test_warnings import Driver
from tests.training.test_export import trained

SPACE = {"sampler.step_size": {"log_uniform": [1e-3, 1e-1]}}


def searched(output: str = "out", **sweep: object):
    return from_dict(
        {
            "name": "small",
            "data": {"store": "digits-8", "resolution": 8, "channels": 1, "source": {"kind": "digits"}},
            "model": {"networks": "dcgan", "latent_dim": 4, "width": 8},
            "sampler": {"num_steps": 80},
            "evaluation": {"chain_points": 8},
            "sweep": {"space": SPACE, **sweep},
            "output": output,
            "checkpoint": "trial",
        }
    )


@pytest.fixture
def checkpoint(small, tmp_path) -> str:
    return trained(small(), tmp_path / "trial")


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["sweep.scheduler=pbt"], "sweep.scheduler=pbt: a search over the sampler alone trains nothing"),
        (
            ["sweep.scheduler=asha", "sweep.metric=fid_base"],
            "sweep.metric=fid_base is the same at each point of a chain",
        ),
        (["sweep.scheduler=asha", "evaluation.chain_points=1"], "evaluation.chain_points=1 leaves no point before"),
        (["conf=toy"], "conf=toy, which is about points, does not go with the model in"),
        (["task=points"], "task=points does not go with the model in"),
    ],
)
def test_what_a_search_cannot_be_about_is_refused_before_anything_starts(refused, checkpoint, words, line):
    space = "++sweep.space={sampler.beta:{choice:[1.0,2.0]}}"
    assert line in refused("sweep", "sweeps=mcmc", space, f"checkpoint={checkpoint}", *words)


@pytest.mark.parametrize("words", [[], ["conf=lsun"]])
def test_the_experiment_is_the_models_own_where_none_of_another_task_is_named(refused, checkpoint, words, monkeypatch):
    monkeypatch.setenv("GEBM_STORES", "/nowhere/at/all")
    # What is refused comes after: the default experiment is no choice, and one of the same task is none either.
    line = refused("sweep", "sweeps=mcmc", f"checkpoint={checkpoint}", *words, "sweep.num_trials=0")
    assert "sweep.num_trials=0" in line


@pytest.mark.parametrize(
    ("space", "slots", "workers"), [(SPACE, 8, 1), ({"train.base_lr": {"uniform": [1e-4, 1e-3]}}, 2, 4)]
)
def test_a_slot_is_one_worker_where_nothing_is_trained(space, slots, workers, monkeypatch):
    monkeypatch.setattr(ray, "nodes", lambda: [{"Alive": True, "Resources": {"CPU": 8.0}}])
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    config = apply(searched(space=space), {"scale.num_workers": 4, "scale.min_workers": 3})
    [capacity] = cluster._capacity(config, ours=True)
    assert (capacity.concurrent_trials, capacity.num_workers) == (slots, workers)
    assert capacity.worker == {"CPU": 1.0}


def decision(scheduler, name: str, step: int, score: float) -> str:
    trial = SimpleNamespace(trial_id=name)
    scheduler.on_trial_add(None, trial)
    report = {"base_step": 500, "chain_step": step, "chain_score": score}
    return scheduler.on_trial_result(None, trial, report)


def test_a_setting_that_falls_behind_along_the_chain_is_pruned_also_after_a_resume(tmp_path):
    config = searched(str(tmp_path), scheduler="asha", grace_steps=20)
    space = parse_space(config)
    records = [TrialRecord(f"{index:03d}", {"sampler.step_size": 1e-2}, "finished") for index in range(5)]
    for index, record in enumerate(records):
        reports = TrialReports(f"{tmp_path}/trials/{record.name}")
        reports.add({"base_step": 500, "chain_step": 20, "chain_score": 5.0 + index})
        # Of a search without pruning: its curve is not by the score that trials are ranked by.
        reports.add({"base_step": 500, "chain": {"40": 1.0}})
    fresh = search.make_scheduler(config, space, [])
    assert decision(fresh, "first", 10, 99.0) == TrialScheduler.CONTINUE  # before the grace is over
    assert decision(fresh, "first", 20, 99.0) == TrialScheduler.CONTINUE
    assert decision(search.make_scheduler(config, space, records), "new", 20, 99.0) == TrialScheduler.STOP
    assert decision(search.make_scheduler(config, space, records), "new", 20, 4.0) == TrialScheduler.CONTINUE
    assert decision(search.make_scheduler(config, space, records), "new", 80, 4.0) == TrialScheduler.STOP  # its end


def test_optuna_learns_from_a_pruned_setting_by_its_last_point():
    told = []
    proposer = SimpleNamespace(propose=None, end=lambda proposed, score: told.append((proposed, score)))
    config = searched(search="optuna", scheduler="asha")
    searcher = search.ResumableSearcher([], [], parse_space(config), config.sweep.metric, proposer)
    searcher._proposed = {"a": 0, "b": 1, "c": 2}
    searcher.on_trial_complete("a", {"fid_gebm": 3.0, "chain_score": 3.0})
    searcher.on_trial_complete("b", {"chain_score": 7.0})
    searcher.on_trial_complete("c", {"base_step": 500})
    assert told == [(0, 3.0), (1, 7.0), (2, None)]


@pytest.fixture
def driver(small, tmp_path) -> Driver:
    config = small(train={"base_steps": 8}, sampler={"num_steps": 80}, sweep={"space": SPACE, "scheduler": "asha"})
    return Driver(config, tmp_path)


def test_a_setting_is_finished_where_its_chains_have_ended_and_else_pruned(driver):
    for name in ("000", "001"):
        driver.start(name)
        driver.report(name, base_step=8, chain_step=20, chain_score=9.0)
    driver.evaluate("000", 5.0, chain_step=80, chain_score=5.0)
    for name in ("000", "001"):
        driver.end(name)
    assert [record.status for record in driver.records.trials] == ["finished", "pruned"]
    assert driver.records.trials[1].metrics["chain_score"] == 9.0 and driver.records.best().name == "000"


def test_the_reason_of_a_failure_is_printed_and_kept(driver):
    driver.start("000")
    trial = driver.trial("000")
    driver.report("000", failure="RuntimeError: device-side assert")
    driver.watch.on_trial_recover(1, [], trial)
    driver.watch.on_trial_recover(2, [], trial)  # now its process died without a word
    driver.report("000", failure="RuntimeError: once more")
    driver.watch.on_trial_error(3, [], trial)
    lines = [line for line in driver.lines if "restarts" in line]
    assert lines[0].endswith("checkpoint: RuntimeError: device-side assert") and "its process died" in lines[1]
    [record] = driver.records.trials
    assert record.status == "failed" and record.error.startswith("RuntimeError: once more; Ray's logs are under")


@pytest.mark.parametrize("begun_before", [False, True])
def test_a_trial_whose_process_dies_before_it_begins_is_left_for_a_resumed_sweep(driver, begun_before):
    """As it does where the trial before it hangs there: Tune calls these two, and then gives the trial up."""
    trial = driver.trial("000")
    if begun_before:
        driver.start("000")
        driver.watch.on_trial_recover(1, [], trial)
    driver.watch.on_trial_recover(2, [], trial)
    driver.watch.on_trial_error(3, [], trial)
    [record] = driver.records.trials
    assert record.status == "pending" and record.error is None
    assert f"resume={driver.records.output}" in driver.lines[-1]
    searcher, count = search.make_searcher(driver.config, parse_space(driver.config), [record])
    assert count >= 1 and searcher.suggest("a")["trial"] == "000"


@pytest.mark.parametrize("space", [SPACE, {"train.base_lr": {"uniform": [1e-4, 1e-3]}}])
@pytest.mark.parametrize(
    ("system", "words"), [({"gpu_0_peak_memory_percentage": 18.0}, "peak memory 18 %"), ({}, "no GPU")]
)
def test_the_first_evaluation_of_any_search_says_once_which_share_of_a_gpu_fits(space, system, words, small, tmp_path):
    scale = {"num_workers": 4, "gpus_per_worker": "auto"}
    driver = Driver(small(scale=scale, sweep={"space": space}), tmp_path)
    driver.start("000")
    driver.evaluate("000", 5.0, system=system)
    driver.evaluate("000", 4.0, system=system)
    lines = [line for line in driver.printed.getvalue().splitlines() if "scale.gpus_per_worker=" in line]
    assert len(lines) == 1 and words in lines[0]


@pytest.mark.parametrize("since", [0.0, 7.25, 40.5])
def test_a_sweep_says_once_how_long_the_command_took_to_the_first_step(driver, since):
    for name in ("000", "001"):
        driver.start(name)
    driver.report("000", base_step=8, chain_step=20, chain_score=9.0)
    earliest = time.time() - psutil.Process().create_time() - since
    driver.report("000", base_step=8, chain_step=40, chain_score=9.0, seconds_since_first_step=since)
    latest = time.time() - psutil.Process().create_time() - since
    driver.report("001", base_step=8, chain_step=20, chain_score=9.0, seconds_since_first_step=since + 60)
    [line] = [line for line in driver.lines if "the first step was" in line]
    said = line.removeprefix("the first step was ").removesuffix(" after the start of the command")
    assert said in {duration(earliest), duration(latest)}
    # It is nothing that trials are compared by.
    assert not any("first_step" in key for record in driver.records.trials for key in record.metrics)
