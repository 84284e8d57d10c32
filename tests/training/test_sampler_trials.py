"""Settings of a sampler in one warm process: each has the scores and the report that a trial of its own gives."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from pipeline import config as schema
from pipeline.config.warm_up import with_found
from pipeline.runtime.errors import UserError
from pipeline.runtime.system_metrics import SystemMetrics
from pipeline.tasks.open_store import ensure_store
from pipeline.tracking.trial_reports import missed_reports
from pipeline.training import loop
from pipeline.training.loop import train_loop
from pipeline.training.sampler_trials import NUM_DRAWN, SamplerTrials
from pipeline.training.session import Session
from pipeline.training.worker import Worker

CPU = torch.device("cpu")
SMALL = {
    "train.base_steps": 2,
    "train.warmup_energy_steps": 1,
    "train.batch_size": 32,
    "train.ema_decay": 0.5,  # what is sampled is the average
    "train.log_partition_samples": 16,
    "model.width": 8,
    "evaluation.num_samples": 60,
    "evaluation.batch_size": 25,
    "evaluation.chain_points": 3,
    "evaluation.grid": 10,
    "sampler.num_steps": 4,
    "scale.use_gpu": False,
}
SETTINGS = [
    {"sampler.name": "mala", "sampler.step_size": 0.01, "sampler.num_steps": 6},
    {"sampler.name": "kla", "sampler.step_size": 0.1, "sampler.friction": 2.0, "sampler.num_steps": 5},
    {"sampler.name": "ula", "sampler.step_size": 0.02, "sampler.beta": 3.0},
    {"sampler.name": "hmc", "sampler.step_size": 0.1, "sampler.num_steps": 1},
]
TIMES = ("evaluation_seconds", "seconds_since_first_step", "chain_steps_per_second", "ess_per_second", "system")


class Trial:
    """A trial in this process, which has no driver: what it reports, at most so often."""

    def __init__(self, config: schema.Config, url: Path, report_seconds: float = 0.0) -> None:
        self.reports: list[dict[str, Any]] = []
        session, keys = Session(self.reports.append, is_preempted=lambda: False), schema.to_dict(config)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(loop, "REPORT_SECONDS", report_seconds)
            train_loop({"config": keys, "url": str(url), "lr_scale": 1.0}, Worker.alone(0), session)


def toy_config(folder: Path, keys: dict[str, Any] | None = None) -> schema.Config:
    """The config of a small trial on points, whose store and output are in a folder."""
    values = yaml.safe_load((schema.config_root() / "conf" / "toy.yaml").read_text())
    config = schema.apply(schema.from_dict(values), SMALL | {"data.store": str(folder / "toy")} | (keys or {}))
    config.output, config.data.split_seed = str(folder), config.seed
    ensure_store(config)
    return config


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> schema.Config:
    """The config of a search over a model of points that a trial has trained."""
    folder = tmp_path_factory.mktemp("sampler-trials")
    config = toy_config(folder)
    config.checkpoint = Trial(config, folder / "trained").reports[-1]["checkpoint"]
    # As a search does, on other latents than those of the trial.
    config.evaluation.seed = 1
    return config


def comparable(report: dict[str, Any]) -> dict[str, Any]:
    """A report without times, and without the paths of the pictures."""
    return {
        key: value for key, value in report.items() if key not in (*TIMES, "figures", "start_figures", "report_number")
    }


def test_each_setting_has_the_report_of_a_trial_of_its_own(model, tmp_path):
    before = {path: path.read_bytes() for path in Path(model.checkpoint).iterdir()}
    trials = SamplerTrials(model, None, Worker.alone(0))
    for number, params in enumerate(SETTINGS):
        found = trials.run(params, str(tmp_path / f"warm-{number}"))
        [expected] = Trial(schema.apply(model, params), tmp_path / f"cold-{number}").reports
        # And is the last point of its chain.
        end = {"chain_step": found["chain_step"], "chain_score": found[model.sweep.metric]}
        assert comparable(found) == comparable(expected) | end
        assert found["system"].keys() == SystemMetrics(CPU).sample().keys()
        assert found["chain_step"] == schema.apply(model, params).sampler.num_steps
        written = [json.loads(line) for line in (tmp_path / f"warm-{number}" / "reports.jsonl").open()]
        assert [line["number"] for line in written] == [found["report_number"]] == [1]
    assert {path: path.read_bytes() for path in Path(model.checkpoint).iterdir()} == before


@pytest.mark.parametrize(("finalists", "undrawn"), [(0, [4, 5, 7]), (4, [7])])
def test_pictures_are_of_the_best_so_far_alone(finalists, undrawn, model, tmp_path, monkeypatch):
    trials = SamplerTrials(schema.apply(model, {"sweep.finalists": finalists}), None, Worker.alone(0))
    scores = [5.0, 6.0, 9.0, 7.0, 8.0, 7.0, 4.0, float("nan")]
    evaluate = trials._task.evaluate

    def scored(*arguments, **more):
        evaluation = evaluate(*arguments, **more)
        evaluation.scores[model.sweep.metric] = next(left)
        evaluation.draw = lambda evaluation: {"one.png": b"picture"}
        return evaluation

    left = iter(scores)
    monkeypatch.setattr(trials._task, "with_sampler", lambda sampler: trials._task)
    monkeypatch.setattr(trials._task, "evaluate", scored)
    drawn = [bool(trials.run({}, str(tmp_path / f"{number}"))["figures"]) for number in range(len(scores))]
    assert drawn == [number not in undrawn for number in range(len(scores))] and NUM_DRAWN == 3


def test_points_along_the_chain_are_reported_and_a_setting_can_be_given_up_there(model, tmp_path):
    class Pruned(BaseException):  # as Tune ends a thread
        pass

    def prune(report: dict[str, Any]) -> None:
        raise Pruned

    trials, points = SamplerTrials(model, None, Worker.alone(0)), []
    with pytest.raises(Pruned):
        trials.run(SETTINGS[0], str(tmp_path / "pruned"), prune)
    found = trials.run(SETTINGS[0], str(tmp_path / "whole"), points.append)
    assert [point["chain_step"] for point in points] == [2, 4] and found["chain_step"] == 6
    # Pruned by the validation points, as trials are ranked: the test points of the chain's curve choose nothing.
    assert found["chain_score"] == found[model.sweep.metric] != found["chain"]["6"][0]
    assert len({point["chain_score"] for point in points} | {score for score, _ in found["chain"].values()}) == 6
    assert [point["report_number"] for point in points] == [1, 2] and found["report_number"] == 3
    [expected] = Trial(schema.apply(model, SETTINGS[0]), tmp_path / "cold").reports
    assert comparable(found).items() >= comparable(expected).items()


def test_a_setting_that_diverges_says_so_and_leaves_the_next_one_alone(model, tmp_path):
    trials = SamplerTrials(model, None, Worker.alone(0))
    with pytest.raises(UserError, match=r"all 25 chains diverged: lower sampler\.step_size"):
        trials.run({"sampler.name": "ula", "sampler.step_size": 1e30}, str(tmp_path / "diverged"))
    assert trials.run(SETTINGS[1], str(tmp_path / "next"))["base_step"] == 2


def test_what_a_warm_up_has_found_is_in_the_report_and_makes_the_kernel_again(model, tmp_path):
    params = {"sampler.name": "hmc", "sampler.step_size": 1e-3, "sampler.warm_up_steps": 20, "sampler.num_steps": 3}
    report = SamplerTrials(model, None, Worker.alone(0)).run(params, str(tmp_path / "warm"))
    found = report["found_kernel"]
    assert found["step_size"] == report["warm_up_step_size"] != 1e-3
    assert max(found["inverse_mass"]) == report["warm_up_largest_variance"]
    [(_, written)] = missed_reports(str(tmp_path / "warm"), after=0)
    assert written["found_kernel"] == found
    # Sampled with what was found, the scores are the same without a warm-up.
    sampler = with_found(schema.apply(model, params).sampler, found)
    again = {"sampler.step_size": sampler.step_size, "sampler.settings": sampler.settings, "sampler.warm_up_steps": 0}
    scores = SamplerTrials(model, None, Worker.alone(0)).run(params | again, str(tmp_path / "again"))
    assert scores["distance_gebm"] == report["distance_gebm"] and "found_kernel" not in scores
