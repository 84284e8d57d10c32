"""A trial on an imported pair: the base stays as it came, the energy learns, and a resumed trial is the same.

A sweep of such trials has the pair in its folder, and is read there wherever the folder is.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from gebm import networks
from pipeline import config as schema
from pipeline.config.own_choices import keep_choices
from pipeline.sweep.driver import Sweep
from pipeline.sweep.plan import SweepPlan, _resumed_config
from pipeline.tasks.open_store import ensure_store
from pipeline.tracking.locations import imported_start
from pipeline.tracking.summary import SweepSummary, read_summary
from pipeline.training.build_model import make_trainer, model_to_train
from pipeline.training.checkpoints import read
from pipeline.training.import_weights import forget_files, read_pair
from pipeline.training.load_trainer import load_trainer
from pipeline.training.sampler_trials import SamplerTrials
from pipeline.training.worker import Worker
from tests.training.test_sampler_trials import CPU, Trial, toy_config

STEPS = 4


@pytest.fixture(scope="module")
def imported(tmp_path_factory) -> schema.Config:
    """The config of trials on a base of points whose weights came from a file, and an energy from scratch."""
    folder = tmp_path_factory.mktemp("imported")
    keys = {"train.train_base": False, "train.base_steps": STEPS, "train.report_every": 1}
    config = toy_config(folder, keys | {"model.energy": "none", "model.base": str(folder / "base.safetensors")})
    torch.manual_seed(7)
    base, _ = networks.make(
        config.model.networks, resolution=0, channels=config.data.channels, latent_dim=config.model.latent_dim, width=8
    )
    save_file(base.state_dict(), folder / "base.safetensors")
    pair = read_pair(config)
    forget_files(config)
    pair.write(f"{folder}/imported", config, ensure_store(config))
    config.checkpoint = f"{folder}/imported"
    return config


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return read(str(folder)).model


def test_the_base_stays_and_the_energy_learns_from_a_log_partition_of_its_own(imported, tmp_path):
    Trial(imported, tmp_path / "whole")
    before, after = weights(imported.checkpoint), weights(tmp_path / "whole")
    assert before.keys() == after.keys()
    changed = {name.partition(".")[0] for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"energy", "log_partition"}

    # Of no training at all there are the scores of what came.
    reports = Trial(schema.apply(imported, {"train.base_steps": 0}), tmp_path / "sampled").reports
    assert [report["base_step"] for report in reports] == [0]
    assert {"distance_base", "distance_gebm"} <= reports[0].keys()


def test_the_log_partition_is_an_estimate_before_the_first_step(imported):
    model = model_to_train(imported, CPU)
    trainer = make_trainer(model, imported, CPU)
    load_trainer(trainer, model, read(str(imported.checkpoint)), imported, Worker(0, 1, CPU))
    assert model.log_partition.item() != 0 and trainer.base_step == 0


def test_a_trial_on_it_is_resumed_bit_for_bit(imported, tmp_path):
    Trial(imported, tmp_path / "whole")
    # It ends after half of its steps, and the next one finds its checkpoint.
    Trial(schema.apply(imported, {"train.base_steps": STEPS // 2}), tmp_path / "parts")
    reports = Trial(imported, tmp_path / "parts").reports
    assert reports[-1]["base_step"] == STEPS
    whole, parts = weights(tmp_path / "whole"), weights(tmp_path / "parts")
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


@pytest.mark.parametrize("move", [None, shutil.move, shutil.copytree], ids=["stays", "moved", "copied"])
@pytest.mark.parametrize("params", [{}, {"sampler.beta": 2.0}], ids=["no base steps", "sampler search"])
def test_a_sweep_that_only_samples_is_read_and_resumed_wherever_its_folder_is(imported, tmp_path, params, move):
    old, new = tmp_path / "old", tmp_path / "elsewhere" / "new"
    shutil.copytree(imported_start(str(imported.output)), imported_start(str(old)))
    new.parent.mkdir()
    config = schema.apply(imported, {"train.base_steps": 0, "output": str(old)})
    config.checkpoint = imported_start(str(old))
    config.sweep.space = {key: {"choice": [1.0, value]} for key, value in params.items()}
    if params:
        report = SamplerTrials(config, None, Worker.alone(0)).run(params, f"{old}/trials/000")
    else:
        [report] = Trial(config, old / "trials" / "000").reports
    records = SweepSummary(str(old), metric="distance_gebm", mode="min", shown=("distance_gebm",), facts={})
    numbers = {name: value for name, value in report.items() if isinstance(value, int | float)}
    records.evaluated(records.add("000", params), numbers, report["checkpoint"])
    records.write()
    keep_choices(str(old), config)
    nothing: Any = None
    tracker: Any = SimpleNamespace(log_files=lambda *_: None)
    Sweep(SweepPlan(config, {}, nothing, [], ""), "sweep", records, nothing, tracker, nothing, "me")._write_config()
    assert str(old) not in (old / "summary.json").read_text()

    if move is None:
        new = old
    else:
        move(old, new)
    [trial] = read_summary(str(new))[1]
    start = imported_start(str(new))
    assert [trial.checkpoint, trial.best_checkpoint] == [start, start]
    assert read(start).state["base_step"] == 0
    again = schema.apply(schema.from_dict(schema.to_dict(imported)), {"resume": str(new)})
    # The store is the user's to name where the folder is new; the model is in it.
    keys = {} if move is None else {"data.store": config.data.store, "tracking.uri": "sqlite:///mlflow.db"}
    resumed, [kept], _ = _resumed_config(again, {"resume": str(new), **keys})
    assert (resumed.checkpoint, kept.best_checkpoint) == (start, start)
    # Written again for there.
    SweepSummary(str(new), metric="distance_gebm", mode="min", shown=(), facts={}, trials=[kept]).write()
    keep_choices(str(new), resumed)
    assert read_summary(str(new))[1] == [kept] and str(new) not in (new / "summary.json").read_text()
