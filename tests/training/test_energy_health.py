"""A run whose energy is knocked out says so; a healthy one says nothing."""

from __future__ import annotations

import math

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gebm import KALE, NonSaturating
from gebm.training import StepInfo
from pipeline.training.energy_health import EnergyHealth


def steps(count: int, *, loss: float = -0.2, largest: float = 0.5, gap: float = -0.4, seed: int = 0) -> list[StepInfo]:
    noise = torch.randn(count, generator=torch.Generator().manual_seed(seed)) * 0.1
    zero = torch.zeros(())
    return [StepInfo(zero + loss + n, zero + largest, zero, zero, zero + gap + n, zero, zero, zero, 5) for n in noise]


def judge(health: EnergyHealth, *windows: tuple[list[StepInfo], float]) -> list[str]:
    warnings = []
    for number, (infos, moment) in enumerate(windows, start=1):
        warnings += health.judge_steps(infos, torch.tensor(moment), number * len(infos))
    return warnings


def watched(guard: str = "none", objective=None) -> EnergyHealth:
    return EnergyHealth(objective or KALE(), guard, 0.999)


@settings(deadline=None)
@given(st.integers(0, 1000), st.integers(1, 60), st.sampled_from(["none", "clip", "arbel"]))
def test_a_healthy_run_says_nothing(seed, window, guard):
    health = watched(guard)
    assert judge(health, *[(steps(window, seed=seed + i), 0.04) for i in range(12)]) == []


def test_a_second_moment_that_jumps_is_said_once_with_what_to_do():
    health = watched()
    calm = [(steps(25), 0.04)] * 4
    [warning] = judge(health, *calm, (steps(25), 2.7), (steps(25), 2.6))
    assert "second moment 68-fold" in warning and "train.gradient_guard=clip" in warning
    assert "next 1,000 energy steps" in warning


def test_a_loss_that_jumps_is_said_without_a_guard_and_harmless_with_one():
    for guard, expected in (("none", 1), ("clip", 0)):
        warnings = judge(watched(guard), *[(steps(25), 0.04)] * 4, (steps(25, largest=945.0), 0.05))
        assert len(warnings) == expected
        assert all("945" in warning for warning in warnings)


def test_negative_kale_and_data_above_base_are_said_after_many_steps():
    bad = steps(50, loss=0.4, gap=0.6)
    health = watched()
    assert judge(health, (bad, 0.04)) == []
    warnings = judge(health, (bad, 0.04))
    assert any("KALE is negative" in warning for warning in warnings)
    assert any("data have higher energies" in warning for warning in warnings)
    assert judge(health, (bad, 0.04)) == []  # until it has been well again
    judge(health, *[(steps(50), 0.04)] * 3)
    assert len(judge(health, *[(bad, 0.04)] * 3)) == 2


def test_a_loss_of_another_objective_is_no_kale():
    warnings = judge(watched(objective=NonSaturating()), *[(steps(50, loss=1.3), 0.04)] * 3)
    assert warnings == []


def test_steps_that_never_were_are_no_warning():
    assert judge(watched(), *[(steps(50, loss=math.nan, largest=math.nan, gap=math.nan), 0.0)] * 4) == []


def test_held_out_quality_is_judged():
    assert watched().judge_quality(kale=0.2, floor_share=0.1, base_step=5) == []
    assert "below zero" in watched().judge_quality(kale=-0.1, floor_share=0.1, base_step=5)[0]
    assert "floor" in watched().judge_quality(kale=0.1, floor_share=0.8, base_step=5)[0]
