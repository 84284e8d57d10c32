"""``python -m benchmarks.differences``: the figures of ``docs/differences.md``.

What the authors' code does differently is written here as a formula, in as few lines as it takes, on problems whose
answer is known from a closed form. Everything runs on the CPU in seconds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from statistics import NormalDist

import numpy as np
import torch
from torch import Tensor

from gebm import Alternation, networks, samplers
from gebm.samplers.discriminator_ot import estimate_lipschitz

__all__ = ["main", "measurements"]

_CHAINS, _DIM = 4_000, 4


def measurements() -> dict[str, str]:
    """Return each figure by its name, as the page has it."""
    return dict(_measure())


def _measure() -> Iterator[tuple[str, str]]:
    counts = authors_energy_steps(20_000)
    warm = [counts[step] for step in range(500, 20_000, 500)]
    usual = [count for step, count in enumerate(counts) if step > 2 and step % 500 > 1]
    assert set(usual) == {Alternation().energy_steps}
    yield "energy steps of a later warm-up", f"{min(warm)} to {max(warm)}, {sum(warm) / len(warm):.0f} on average"
    yield "all decays without a test", f"{0.8**15:.3f}"
    yield "all decays without tests at all", f"{0.8**30:.4f}"
    deviation = math.sqrt(1e-5)
    yield "least deviation of the test", f"{deviation:.4f}"
    yield "least difference that is an improvement", f"{deviation * NormalDist().inv_cdf(0.9):.4f}"
    yield "variance by MALA as theirs", f"{mala_variance(divide=False):.2f}"
    yield "variance by MALA as it should be", f"{mala_variance(divide=True):.2f}"
    yield "variance by MALA here", f"{_variance(samplers.MALA(0.6)):.2f}"
    yield "variance by HMC as theirs", f"{hmc_variance(stale=True):.2f}"
    yield "variance by HMC as it should be", f"{hmc_variance(stale=False):.2f}"
    yield "variance by HMC here", f"{_variance(samplers.HMC(1.2, num_leapfrog_steps=2)):.2f}"
    z = torch.randn(2_000, 100, generator=torch.Generator().manual_seed(0))
    yield "radial factor of the projection", f"{float((1 - z.square().sum(1) / 10).mean()):.1f}"
    steepest = (
        float(z[:500].norm(dim=1).max()),
        float(estimate_lipschitz(z[:256], z[:256].square().sum(1) / 2)),
    )
    yield "steepest gradient against steepest slope", f"{steepest[0] / steepest[1]:.0f}"
    start = math.log((1 + 12_800 * math.exp(-9)) / 12_800)
    yield "initial log-partition of a constant energy of 9", f"{start:.2f}"
    ours, theirs = (
        networks.make(name, resolution=32, channels=3, latent_dim=100)[0]
        for name in ("sngan_resnet", "sngan_resnet_arbel")
    )
    difference = sum(p.numel() for p in ours.parameters()) - sum(p.numel() for p in theirs.parameters())
    yield "weights of the shortcuts", f"{difference:,}"
    yield "levels between the two ways to resize", f"{resize_difference():.1f}"


def authors_energy_steps(base_steps: int) -> list[int]:
    """Return the energy steps before each base step, where one counter of all steps decides by its remainder."""
    counts, steps, since = [], 0, 0
    while len(counts) < base_steps:
        steps += 1
        period = 101 if len(counts) < 2 or len(counts) % 500 == 0 else 6
        if steps % period == 0 and steps > 100:
            counts.append(since)
            since = 0
        else:
            since += 1
    return counts


def _half_square(z: Tensor) -> Tensor:
    return z.square().sum(1) / 2


def _variance(kernel: samplers.Kernel, num_steps: int = 60) -> float:
    """Return the variance of chains that should be standard normal."""
    z = torch.randn(_CHAINS, _DIM, generator=torch.Generator().manual_seed(1))
    generator = torch.Generator().manual_seed(2)
    return float(samplers.run(kernel, _half_square, z, num_steps, generator=generator).z.var())


def _chains_variance(step: Callable[[Tensor, torch.Generator], tuple[Tensor, Tensor]], num_steps: int = 60) -> float:
    """Return the variance where ``step`` proposes positions and their log-acceptance."""
    generator = torch.Generator().manual_seed(2)
    z = torch.randn(_CHAINS, _DIM, generator=torch.Generator().manual_seed(1))
    for _ in range(num_steps):
        proposal, log_acceptance = step(z, generator)
        accepted = torch.rand(_CHAINS, generator=generator).log() < log_acceptance
        z = torch.where(accepted[:, None], proposal, z)
    return float(z.var())


def mala_variance(*, divide: bool, h: float = 0.6) -> float:
    """Return the variance by MALA, the reverse proposal's exponent divided by ``4 h``, or times ``h / 4`` as theirs."""

    def step(z: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        noise = torch.randn(z.shape, generator=generator)
        # The gradient of the potential is z itself.
        proposal = z - h * z + math.sqrt(2 * h) * noise
        reverse = (z - proposal + h * proposal).square().sum(1)
        correction = noise.square().sum(1) / 2 - (reverse / (4 * h) if divide else reverse * h / 4)
        return proposal, _half_square(z) - _half_square(proposal) + correction

    return _chains_variance(step)


def hmc_variance(*, stale: bool, h: float = 1.2) -> float:
    """Return the variance by HMC, the first gradient that of the position, or that of the last proposal as theirs."""
    kept: list[Tensor] = []

    def step(z: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        start = velocity = torch.randn(z.shape, generator=generator)
        proposal, gradient = z, kept[-1] if stale and kept else z
        for _ in range(2):
            velocity = velocity - h / 2 * gradient
            proposal = proposal + h * velocity
            gradient = proposal
            velocity = velocity - h / 2 * gradient
        kept[:] = [gradient]
        energies = _half_square(z) + _half_square(start) - _half_square(proposal) - _half_square(velocity)
        return proposal, energies

    return _chains_variance(step)


def resize_difference() -> float:
    """Return the root mean square difference, in levels of 255, of a photograph at 32x32 by the two filters."""
    from PIL import Image
    from sklearn.datasets import load_sample_image

    from pipeline.data.image_codec import resize_center_crop

    picture = load_sample_image("china.jpg")
    height, width = picture.shape[:2]
    # The shorter side to 32 by a bilinear filter, and then the middle of the longer one.
    size = (32 * width // height, 32)
    resized = np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.BILINEAR), dtype=np.float64)
    left = round((size[0] - 32) / 2)
    ours = resize_center_crop(picture, resolution=32, channels=3).transpose(1, 2, 0).astype(np.float64)
    return float(np.sqrt(np.square(resized[:, left : left + 32] - ours).mean()))


def main() -> None:
    """Print the figures."""
    for name, value in _measure():
        print(f"{name}: {value}")


if __name__ == "__main__":
    main()
