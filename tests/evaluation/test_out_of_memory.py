"""Chains that do not fit: split until they do, and then what the smaller batch would have given from the start."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gebm import GEBM, StandardNormal
from gebm.networks.dcgan import DCGANEnergy
from pipeline.config import Config, from_dict, to_dict
from pipeline.evaluation.base import EvaluationRun
from pipeline.evaluation.evaluator import Evaluation, evaluate
from pipeline.evaluation.metrics.subsets import evenly_spaced_rows
from pipeline.evaluation.out_of_memory import halve_batch_on_oom
from pipeline.evaluation.shared_results import on_first_rank
from pipeline.runtime.errors import UserError
from pipeline.training.build_model import build_model
from pipeline.training.checkpoints import Checkpoints
from tests.helpers.processes import run_in_processes


@dataclasses.dataclass
class Device:
    """Memory for a number of rows at once, and for fewer after a number of calls: another process uses it."""

    rows: float = math.inf
    calls: float = math.inf
    rows_then: float = math.inf

    def __deepcopy__(self, memo: dict) -> Device:
        return self  # a copy of a network is on the same device

    def take(self, rows: int) -> None:
        self.calls -= 1
        if self.calls < 0:
            self.rows = min(self.rows, self.rows_then)
        if rows > self.rows:
            raise torch.OutOfMemoryError(f"{rows} rows do not fit, {self.rows} do")


class OnDevice(torch.nn.Module):
    def __init__(self, network: torch.nn.Module, device: Device) -> None:
        super().__init__()
        self.network, self.device = network, device

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.device.take(len(x))
        return self.network(x)


def model_on(base: Device, energy: Device) -> GEBM:
    torch.manual_seed(0)
    layers = torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1))
    return GEBM(OnDevice(torch.nn.Linear(2, 3), base), OnDevice(layers, energy), StandardNormal(2)).eval()


class Moments:
    """A judge of the samples themselves."""

    primary = "spread"

    def kept_rows(self, total: int) -> torch.Tensor:
        return torch.zeros(total, dtype=torch.bool)

    def show(self, samples: torch.Tensor) -> torch.Tensor:
        return samples

    def features(self, shown: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"x": shown}

    def score(self, features: dict[str, torch.Tensor], *, end: bool) -> dict[str, float]:
        return {"spread": float(features["x"].double().square().mean())}


def config_of(num_samples: int, batch_size: int, num_steps: int = 5, name: str = "ula") -> Config:
    return from_dict(
        {
            "name": "fitting",
            "task": "points",
            "data": {"store": "toy", "source": {"kind": "toy"}},
            "model": {"networks": "mlp", "latent_dim": 2},
            "sampler": {"name": name, "step_size": 0.1, "num_steps": num_steps},
            "evaluation": {"num_samples": num_samples, "batch_size": batch_size, "chain_points": 3, "grid": 7},
        }
    )


def assert_the_same(found: Evaluation, expected: Evaluation) -> None:
    """Bit for bit, but for what is a time."""
    assert found.chain == expected.chain
    assert found.frames.keys() == expected.frames.keys()
    assert all(torch.equal(found.frames[step], expected.frames[step]) for step in found.frames)
    assert found.scores.keys() == expected.scores.keys()
    timed = ("ess_per_second", "chain_steps_per_second")
    assert all(found.scores[name] == expected.scores[name] for name in found.scores if name not in timed)


@settings(max_examples=6)
@given(
    num_samples=st.integers(2, 40),
    batch_size=st.integers(1, 60),
    base=st.integers(1, 50),
    energy=st.integers(1, 50),
    later=st.integers(1, 50),
    calls=st.integers(0, 60),
    name=st.sampled_from(["ula", "mala"]),
)
# The base is the narrower one; the energy; memory that another process takes in the middle of a chain.
@example(num_samples=20, batch_size=16, base=5, energy=50, later=50, calls=60, name="ula")
@example(num_samples=13, batch_size=12, base=50, energy=7, later=2, calls=9, name="mala")
def test_chains_that_do_not_fit_give_what_smaller_batches_give(
    num_samples, batch_size, base, energy, later, calls, name
):
    asked = min(batch_size, num_samples)
    steps: list[int] = []
    limited = model_on(Device(rows=base), Device(energy, calls, later))
    found = evaluate(limited, config_of(num_samples, batch_size, name=name), Moments(), EvaluationRun(steps.append))
    assert sum(steps) == num_samples * 5  # what was in vain is taken back
    if not found.notes:
        assert asked <= min(base, energy)
        size = batch_size
    else:
        [note] = found.notes
        assert "\n" not in note and note.startswith(f"{asked} chains")
        size = int(note.rpartition("evaluation.batch_size=")[2])
        halves = [asked // 2**power for power in range(1, 7)]
        assert size in halves and size <= min(base, energy)
        assert 2 * size + 1 > min(base, energy, later)  # and no smaller than it has to be
    unlimited = model_on(Device(), Device())
    assert_the_same(found, evaluate(unlimited, config_of(num_samples, size, name=name), Moments()))


@pytest.mark.parametrize("num_samples, batch_size", [(20, 8), (1, 1)])
def test_where_not_even_one_chain_fits_one_line_says_what_to_lower(num_samples, batch_size):
    with pytest.raises(UserError, match=r"not even one chain .*lower model\.width") as refusal:
        evaluate(model_on(Device(), Device(rows=0)), config_of(num_samples, batch_size), Moments())
    assert "\n" not in str(refusal.value)


def test_other_errors_are_no_reason_to_split():
    def work(size: int, advance: object) -> None:
        raise RuntimeError(f"{size} rows")

    with pytest.raises(RuntimeError, match="16 rows"):
        halve_batch_on_oom(work, 100, 16, advance=print, notify=print)


class Keeping(Moments):
    """A judge of a few of the samples as well, as they are shown, at the ends of the chains."""

    scored = 0

    def kept_rows(self, total: int) -> torch.Tensor:
        return evenly_spaced_rows(total, 5)

    def score(self, features: dict[str, torch.Tensor], *, end: bool) -> dict[str, float]:
        self.scored += 1
        assert ("images" in features) == end
        weights = torch.arange(1.0, 6.0)[:, None]
        own = {"kept": float((features["images"] * weights).double().sum())} if end else {}
        return super().score(features, end=end) | own


def refuse() -> float:
    raise UserError("some features are not finite")


def evaluate_on_rank(rank: int, folder: Path, limits: list[int]) -> None:
    """One of two workers, each with a device of its own."""
    dist.init_process_group("gloo", init_method=f"file://{folder / 'meet'}", rank=rank, world_size=len(limits))
    model, scorer = model_on(Device(), Device(rows=limits[rank])), Keeping()
    found = evaluate(model, config_of(23, 12), scorer, rank=rank, world_size=len(limits))
    payload = {"scores": found.scores, "chain": found.chain, "notes": found.notes, "scored": scorer.scored}
    with pytest.raises((UserError, RuntimeError)) as error:
        on_first_rank(refuse, rank, len(limits))
    payload["error"] = str(error.value)
    (folder / f"{rank}.json").write_text(json.dumps(payload))
    dist.destroy_process_group()


def test_workers_may_split_differently_and_find_the_same(tmp_path):
    run_in_processes(evaluate_on_rank, (tmp_path, [3, 7]), 2)
    one, other = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1))
    assert "evaluation.batch_size=3" in one["notes"][0] and "evaluation.batch_size=6" in other["notes"][0]
    assert one["chain"] == other["chain"]
    # The first computes the scores, and what it cannot compute is an error on both.
    assert one["scored"] > 0 and other["scored"] == 0
    assert one["error"] == other["error"] == "some features are not finite"
    alone = evaluate(model_on(Device(), Device()), config_of(23, 12), Keeping())
    for name in ("spread_base", "spread_gebm", "kept_base", "kept_gebm"):
        assert one["scores"][name] == other["scores"][name] == pytest.approx(alone.scores[name], rel=1e-5)


@pytest.mark.parametrize("rows", [1, 3, 7])
def test_drawn_samples_are_those_of_the_smaller_batch(call, small, tmp_path, monkeypatch, rows):
    config = small(sampler={"num_steps": 3, "num_samples": 13}, evaluation={"batch_size": 10})
    url = Checkpoints(str(tmp_path / "trial")).save(
        1,
        model=build_model(config).state_dict(),
        training={"trainer": {"tensors": {}, "values": {}}},
        state={"config": to_dict(config)},
        score=0.0,
    )
    device, forward = Device(rows=rows), DCGANEnergy.forward

    def limited(energy: DCGANEnergy, x: torch.Tensor) -> torch.Tensor:
        device.take(len(x))
        return forward(energy, x)

    size = next(size for size in (10, 5, 2, 1) if size <= rows)
    monkeypatch.setattr(DCGANEnergy, "forward", limited)
    drawn = {}
    for name, asked in (("split", 10), ("small", size)):
        words = [f"checkpoint={url}", f"output={tmp_path / name}", f"evaluation.batch_size={asked}"]
        status, printed, errors = call("sample", *words)
        assert status == 0, errors
        assert (f"set evaluation.batch_size={size}" in " ".join(printed.split())) is (asked > size)
        drawn[name] = np.load(tmp_path / name / "samples.npy")
    assert len(drawn["split"]) == 13 and np.array_equal(drawn["split"], drawn["small"])
