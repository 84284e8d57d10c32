"""R-hat of a warm-up: it says when the chains have not mixed, whatever their acceptance."""

from __future__ import annotations

import warnings

import pytest
import torch

from gebm import diagnostics, samplers
from tests.helpers.kernels import rng

SCALES = torch.tensor([1.0, 10.0])


def gaussian(z: torch.Tensor) -> torch.Tensor:
    return (z / SCALES).square().sum(1) / 2


def warm_up(kernel: samplers.Kernel, num_steps: int, chains: int = 32) -> tuple[samplers.WarmUp, list[str]]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        z0 = torch.randn(chains, 2, generator=rng(0))
        warm = samplers.warm_up(kernel, gaussian, z0, num_steps, generator=rng(1))
    return warm, [str(warning.message) for warning in caught]


@pytest.mark.parametrize(("kernel", "steps"), [(samplers.MALA(0.1), 300), (samplers.HMC(0.1, 3), 200)])
def test_chains_that_have_mixed_are_said_to_and_nothing_is_warned_of(kernel, steps):
    warm, messages = warm_up(kernel, steps)
    assert warm.converged is True and messages == []
    assert warm.r_hat.shape == (2,) and warm.r_hat.max() <= 1.1
    # What the warm-up says of itself, the chain after it confirms.
    seen = []
    samplers.run(
        warm.kernel,
        gaussian,
        None,
        100,
        generator=rng(2),
        state=warm.state,
        every=1,
        callback=lambda step, state: seen.append(state.z),
    )
    assert diagnostics.r_hat(torch.stack(seen)).max() < 1.1


def test_a_warm_up_that_meets_its_acceptance_too_early_warns_and_names_more_steps():
    warm, messages = warm_up(samplers.MALA(0.1), 50)
    assert abs(float(warm.history.acceptance[25:].mean()) - samplers.MALA(0.1).target_acceptance) < 0.1
    assert warm.converged is False and warm.r_hat[1] > 1.5 > 1.1 > warm.r_hat[0]
    (message,) = messages
    assert message.startswith("the warm-up of 50 steps was too short: R-hat is 2") and "such as 100" in message
    assert "\n" not in message


def test_a_single_chain_is_compared_with_itself():
    assert warm_up(samplers.HMC(0.3, 3), 200, chains=1)[0].converged
    short, messages = warm_up(samplers.RandomWalkMetropolis(0.1), 60, chains=1)
    assert not short.converged and len(messages) == 1


@pytest.mark.parametrize("steps", [1, 3, 6])
@pytest.mark.parametrize("chains", [1, 4])
def test_too_few_steps_to_say_are_no_convergence(steps, chains):
    warm, messages = warm_up(samplers.MALA(0.1), steps, chains)
    assert warm.r_hat.isnan().all() and warm.converged is False
    assert "R-hat cannot be measured" in messages[0] and len(messages) == 1
