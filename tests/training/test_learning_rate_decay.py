"""When the learning rates of a trial fall: by a test, and, where that is asked for, without one."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from pipeline.config import from_dict
from pipeline.training.learning_rate_decay import LearningRateDecay

CONFIG = {"name": "x", "data": {"store": "s", "source": {"kind": "digits"}}, "model": {"networks": "dcgan"}}


def decays(train: dict, last: int) -> list[int]:
    """The base steps after which the rates of a base that never moves are lowered."""
    schedule = {"every": 4, "lag": 4, "patience": 1, "num_samples": 8} | train.pop("decay", {})
    config = from_dict({**CONFIG, "train": {**train, "learning_rate_decay": schedule}})
    features = torch.randn(8, 3, generator=torch.Generator().manual_seed(0))
    lowered: list[int] = []
    trainer = SimpleNamespace(
        base_step=0,
        scale_learning_rates=lambda *factors: lowered.append(trainer.base_step) if factors == (0.5, 0.5) else None,
        sampling_model=lambda: SimpleNamespace(sample_base=lambda n, *args, **kwargs: features[:n]),
    )
    task = SimpleNamespace(reference=features, features=lambda samples: samples)
    worker = SimpleNamespace(is_first=True, device=torch.device("cpu"), from_first=lambda value: value)
    decay = LearningRateDecay(config, task, trainer, worker)
    for trainer.base_step in range(1, last + 1):
        decay.update()
    return lowered


def test_a_base_that_does_not_improve_fails_each_test():
    assert decays({"decay": {"factor": 0.5}}, 20) == [8, 12, 16, 20]


def test_unconditional_decays_are_between_the_tests_and_the_tests_are_as_they_were():
    both = {"decay": {"factor": 0.5, "unconditional_every": 6}}
    assert decays(both, 31) == [6, 8, 12, 16, 18, 20, 24, 28, 30]
    # A test that never fails: what is left are the decays without one.
    calm = {"decay": {"factor": 0.5, "unconditional_every": 6, "patience": 100}}
    assert decays(calm, 31) == [6, 18, 30]


def test_a_base_that_is_not_trained_has_neither():
    assert decays({"train_base": False, "decay": {"factor": 0.5, "unconditional_every": 3}}, 20) == []


@pytest.mark.parametrize(("level", "expected"), [(0.9, []), (0.1, [8])])
def test_a_p_value_above_the_level_is_a_failure(level, expected):
    # Two times the same samples: the p-value is one half.
    assert decays({"decay": {"factor": 0.5, "significance": level}}, 8) == expected
