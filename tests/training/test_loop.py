"""Reports of a trial: the time that is left, and its notes; and where its random numbers come from."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gebm import Alternation
from gebm.samplers.replayed import BLOCK
from pipeline.runtime.watchdog import Watchdog
from pipeline.training import loop
from pipeline.training.progress import evaluation_due, evaluations_left, steps_between
from pipeline.training.step_generator import step_generator
from tests.training.test_sampler_trials import Trial, toy_config


@settings(deadline=None)
@given(st.integers(1, 40), st.integers(1, 50), st.integers(0, 60))
def test_evaluations_left_are_those_that_will_be_due(every, base_steps, base_step):
    config = SimpleNamespace(train=SimpleNamespace(base_steps=base_steps), evaluation=SimpleNamespace(every=every))
    later = range(base_step + 1, base_steps + 1)
    assert evaluations_left(config, base_step) == sum(evaluation_due(config, step) for step in later)


@settings(deadline=None)
@given(st.integers(0, 5), st.integers(0, 9), st.integers(0, 30), st.integers(0, 30), st.booleans(), st.booleans())
def test_steps_are_those_that_are_taken(energy_steps, warm, start, more, trains_base, trains_energy):
    alternation = Alternation(energy_steps, warm, warmup_base_steps=2, warmup_every=7)
    trainer = SimpleNamespace(
        alternation=alternation, train_base=trains_base, objective=SimpleNamespace(trains_energy=trains_energy)
    )
    taken = sum(trains_base + trains_energy * alternation.energy_steps_at(step) for step in range(start, start + more))
    assert steps_between(trainer, start, start + more) == taken


def test_each_step_of_each_purpose_and_seed_has_numbers_of_its_own():
    def drawn() -> list[float]:
        return [
            torch.rand((), generator=step_generator(SimpleNamespace(seed=seed), purpose, step)).item()
            for seed in range(3)
            for purpose in ("step", "log-partition", "final-phase")
            for step in range(5)
        ]

    assert len(set(drawn())) == 45 and drawn() == drawn()


def test_the_watchdog_watches_while_the_data_are_opened_and_no_longer(small, monkeypatch, tmp_path):
    seen: list[str] = []

    class Watching(Watchdog):
        def __init__(self, seconds: float) -> None:
            seen.append(f"watches for {seconds:g} s")
            super().__init__(seconds)

        def stop(self) -> None:
            seen.append("is off")
            super().stop()

    def opened(*_: object) -> None:
        seen.append("opens")
        raise OSError("the storage does not answer")

    monkeypatch.setattr(loop, "Watchdog", Watching)
    monkeypatch.setattr(loop.tasks, "make", lambda config: SimpleNamespace(open=opened))
    with pytest.raises(OSError, match="does not answer"):
        Trial(small(scale={"timeout": 500.0}), tmp_path)
    assert seen == ["watches for 500 s", "opens", "is off"]


def test_a_report_has_the_notes_of_training_in_addition_to_those_of_its_evaluation(tmp_path):
    keys = {"train.cuda_graphs": True, "sampler.cuda_graphs": True, "sampler.num_steps": 2 * BLOCK}
    # Equal batches of chains, and blocks between their points: each kind of step occurs again.
    keys |= {"train.base_steps": 6, "evaluation.chain_points": 2, "evaluation.batch_size": 20}
    report = Trial(toy_config(tmp_path, keys), tmp_path / "trial").reports[-1]
    assert report["base_step"] == 6 and "distance_gebm" in report
    # Whether they are replayed is a matter of time, and a note says it either way.
    for name in ("training steps", "steps of chains"):
        assert [note for note in report["notes"] if note.startswith(f"{name} are")]
