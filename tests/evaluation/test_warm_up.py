"""A warm-up finds step size and masses by chains of its own: the same whatever the batch, and logged."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from gebm import GEBM, StandardNormal, samplers
from pipeline.config import from_dict
from pipeline.config.validation import validate_rules
from pipeline.evaluation.chains import ChainBatch, find_kernel, make_kernel
from pipeline.runtime.errors import UserError


class Stretched(nn.Module):
    """Energy of rows whose first coordinate is much narrower than the second."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x.square() @ torch.tensor([50.0, 0.0]))[:, None]


def config(**sampler):
    values = {"name": "x", "data": {"store": "s", "source": {"kind": "digits"}}, "model": {"networks": "dcgan"}}
    return from_dict({**values, "sampler": {"name": "mala", "step_size": 1e-6, **sampler}})


@pytest.fixture
def model() -> GEBM:
    return GEBM(nn.Identity(), Stretched(), StandardNormal(2), energy_floor=-float("inf")).eval()


@pytest.mark.parametrize("name", ["mala", "hmc"])
def test_a_step_size_that_is_a_thousand_times_too_small_is_found(model, name):
    settings = {"num_leapfrog_steps": 3} if name == "hmc" else {}
    sampler = config(name=name, warm_up_steps=150, settings=settings).sampler
    kernel, found = find_kernel(sampler, model, seed=3)
    assert found["warm_up_step_size"] == kernel.step_size > 1e-2
    assert abs(found["warm_up_acceptance"] - kernel.target_acceptance) < 0.2
    # Variances 1 / 101 and 1.
    assert found["warm_up_least_variance"] < 0.1 < 0.4 < found["warm_up_largest_variance"] < 2
    assert getattr(kernel, "num_leapfrog_steps", 3) == 3
    again, _ = find_kernel(sampler, model, seed=3)
    assert again == kernel and find_kernel(sampler, model, seed=4)[0] != kernel


def test_a_chain_after_a_warm_up_is_the_same_in_any_batch(model):
    sampler = config(warm_up_steps=30).sampler
    kernel, _ = find_kernel(sampler, model, seed=0)
    z = torch.randn(4, 2, generator=torch.Generator().manual_seed(0))
    whole = ChainBatch(model, sampler, z, seed=1, kernel=kernel).run(3, lambda *_: None).z
    parts = [
        ChainBatch(model, sampler, z[at : at + 2], seed=1, first_chain=at, kernel=kernel).run(3, lambda *_: None).z
        for at in (0, 2)
    ]
    assert torch.equal(whole, torch.cat(parts))


def test_without_steps_there_is_no_warm_up(model):
    sampler = config().sampler
    assert find_kernel(sampler, model, seed=0) == (make_kernel(sampler, model), {})


@pytest.mark.parametrize("name", ["ula", "tempering", "dot"])
def test_a_sampler_that_accepts_everything_cannot_be_warmed_up(name):
    with pytest.raises(UserError, match=f"sampler.name={name} has no acceptance rate .* mala, hmc, rwm have"):
        validate_rules(config(name=name, warm_up_steps=10))
    assert not hasattr(samplers.NAMES[name], "target_acceptance")
