"""Whenever a process is killed, what is learnt is what no interruption gives, bit for bit."""

from __future__ import annotations

import dataclasses
import itertools
import json
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from hypothesis import Phase, example, given, settings
from hypothesis import strategies as st

from pipeline import tasks
from pipeline.config import Config, apply, from_dict, to_dict
from pipeline.training.checkpoints import Checkpoints, read
from tests.helpers.chaos import Moment, computed, forks, live, read_ahead, save

# Twelve steps with everything in them that a checkpoint has to hold.
TRIAL = {
    "train.base_steps": 12,
    "train.batch_size": 60,
    "train.energy_steps": 2,
    "train.warmup_energy_steps": 3,
    "train.warmup_every": 5,
    "train.log_partition_samples": 60,
    "train.penalty_every": 2,
    "train.schedule": "cosine",
    "train.ema_decay": 0.9,
    "train.report_every": 4,
    "train.learning_rate_decay.every": 2,
    "train.learning_rate_decay.lag": 4,
    "train.learning_rate_decay.patience": 1,
    "train.learning_rate_decay.num_samples": 40,
    "evaluation.every": 6,
    "evaluation.extractor": "classifier",
    "evaluation.num_samples": 40,
    "evaluation.batch_size": 40,
    "evaluation.chain_points": 2,
    "evaluation.grid": 4,
    "sampler.num_steps": 4,
    "checkpoints.every": 2,
    "data.held_out": 60,
    "train.final_energy_steps": 6,
    "train.final_phase.check_every": 2,
    "train.final_phase.patience": 2,
    "train.final_phase.before_evaluations": True,
}
# Of a report, what depends on the clock and the machine, and means since the report before, which may be a notice's.
LEFT_OUT = (
    "second",
    "system",
    "figures",
    "start_figures",
    "checkpoint",
    "energy_loss",
    "base_loss",
    "warnings",
    "report_number",
)


@pytest.fixture(scope="module")
def trial(digits, classifier, tmp_path_factory):
    """A trial's config, and the folder that its lives lie in."""
    values = {
        "name": "killed",
        "data": {"store": digits.url, "resolution": 8, "channels": 1, "source": {"kind": "digits"}},
        "model": {"networks": "dcgan", "latent_dim": 4, "width": 8},
    }
    config = apply(from_dict(values), TRIAL)
    tasks.make(config).prepare(digits, torch.device("cpu"))
    return config, tmp_path_factory.mktemp("lives")


@dataclass(frozen=True)
class Result:
    """What a trial comes to.

    Attributes:
        state: of its last checkpoint; checksums stand for the tensors.
        kept: the folders of its checkpoints.
        evaluations: base step to what was measured, of all that was reported.
    """

    state: dict[str, Any]
    kept: set[str]
    evaluations: dict[int, list[dict[str, Any]]]


def lived(trial: tuple[Config, Path], name: str, world_size: int, hold: bool, deaths: list[Moment]) -> Result:
    """The result of a trial after so many deaths, and a last life without."""
    config, home = trial
    output = home / name
    output.mkdir()
    config = apply(config, {"data.device_resident": hold, "output": str(output)})
    url, journal = output / "trials/000", output / "journal"
    journal.touch()
    for death in [*deaths, None]:
        end = live({"config": to_dict(config), "url": str(url), "lr_scale": 1.0}, journal, world_size, death)
        if end.startswith("preempted"):
            present = read(Checkpoints(str(url)).last).state["base_step"]
            assert f"base step {present} is in a checkpoint" in end
    assert end == "finished"
    state = read(Checkpoints(str(url)).last).state
    state["config"]["output"] = state["config"]["data"]["device_resident"] = None
    state["report"] = comparable(state["report"])
    kept = {path.name for path in (url / "checkpoints").iterdir() if path.is_dir()}
    evaluations: dict[int, list[dict[str, Any]]] = {}
    for report in map(json.loads, journal.read_text().splitlines()):
        if config.sweep.metric in report:
            evaluations.setdefault(report["base_step"], []).append(comparable(report))
    return Result(state, kept, evaluations)


def comparable(report: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in report.items() if not any(word in key for word in LEFT_OUT)}


@pytest.fixture(scope="module")
def undisturbed(trial):
    """What one worker and two of them end with, if nothing disturbs them."""
    return {world_size: lived(trial, f"of-{world_size}", world_size, True, []) for world_size in (1, 2)}


HUNDREDTHS = st.integers(0, 100).map(lambda number: number / 100)
DEATHS = st.one_of(
    st.builds(Moment, operation=st.integers(0, 80)),
    st.builds(Moment, seconds=HUNDREDTHS, rank=st.integers(0, 1)),
    st.builds(Moment, signal=st.just(signal.SIGTERM), seconds=HUNDREDTHS),
)
# While it evaluates; with an evaluation in a checkpoint, not yet reported; and when all is done, not yet reported.
TELLING = [
    Moment(operation=4, about="figures/step-00000006"),
    Moment(operation=0, about="rmdir"),
    Moment(operation=0, about="rmtree"),
]
NAMES = itertools.count()


@example(world_size=1, hold=True, deaths=TELLING)
@given(st.sampled_from([1, 2]), st.booleans(), st.lists(DEATHS, min_size=3, max_size=4))
@settings(max_examples=2, phases=[Phase.explicit, Phase.generate])
def test_killed_at_any_moments_it_learns_what_it_learns_undisturbed(trial, undisturbed, world_size, hold, deaths):
    deaths = [dataclasses.replace(death, rank=death.rank % world_size) for death in deaths]
    found, expected = lived(trial, f"killed-{next(NAMES)}", world_size, hold, deaths), undisturbed[world_size]
    assert found.state == expected.state
    # Each evaluation has been reported, perhaps more than once, and always the same.
    assert found.evaluations.keys() == expected.evaluations.keys()
    for base_step, [report] in expected.evaluations.items():
        assert all(again == report for again in found.evaluations[base_step]), base_step
    # What the dead have left takes no room, but for what the last save of all was killed before it removed.
    assert expected.kept <= found.kept and len(found.kept - expected.kept) <= 2


def test_killed_at_any_operation_of_a_save_there_is_a_whole_checkpoint_and_nothing_stays_behind(tmp_path):
    """The save takes the place of the last one, and of the best."""
    for operation in itertools.count():
        folder = str(tmp_path / str(operation))
        for base_step, score in ((10, 2.0), (20, None)):
            save(folder, base_step, score)
        process = forks().Process(target=save, args=(folder, 30, 1.0, operation))
        process.start()
        process.join()
        last = read(Checkpoints(folder).last)
        assert last.state["base_step"] in (20, 30) and last.model["w"][0] == last.state["base_step"]
        assert read(Checkpoints(folder).best).state["base_step"] in (10, 30)
        save(folder, 40, None)
        kept = Checkpoints(folder)
        assert {f"{path}" for path in (tmp_path / str(operation) / "checkpoints").iterdir() if path.is_dir()} == {
            kept.last,
            kept.best,
        }
        if process.exitcode == 0:
            break
        assert process.exitcode == -signal.SIGKILL
    assert operation > 20 and kept.best.endswith("30")


def test_a_loader_worker_whose_reader_is_killed_while_it_starts_ends_as_well(digits):
    process = forks().Process(target=read_ahead, args=(digits.url,))
    process.start()
    loaders = []
    while not (loaders and computed(loaders[0].pid) > 0.3):  # it is importing, and looks for its parent afterwards
        assert process.exitcode is None
        loaders = psutil.Process(process.pid).children()
        time.sleep(0.01)
    process.kill()
    process.join()
    assert not psutil.wait_procs(loaders, timeout=120)[1]
