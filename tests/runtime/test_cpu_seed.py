"""Random numbers of a block: those of its seed, and the generators are as before afterwards."""

from __future__ import annotations

import contextlib

import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.runtime.cpu_seed import cpu_seed


def gpu_seeds() -> list[object]:
    """The state of the GPU's generator, or the seeds that torch keeps for it until its first use."""
    if torch.cuda.is_initialized():
        return torch.cuda.get_rng_state().tolist()
    return list(torch.cuda._lazy_seed_tracker.get_calls())


@given(st.integers(0, 2**63 - 1), st.booleans())
def test_a_block_draws_the_numbers_of_its_seed_and_changes_no_generator(seed, fails):
    torch.manual_seed(5)
    before = torch.get_rng_state(), gpu_seeds()
    with contextlib.suppress(ValueError), cpu_seed(seed):
        drawn = torch.randn(3)
        if fails:
            raise ValueError
    assert torch.equal(drawn, torch.randn(3, generator=torch.Generator().manual_seed(seed)))
    assert torch.equal(torch.get_rng_state(), before[0]) and gpu_seeds() == before[1]
