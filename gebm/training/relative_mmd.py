"""The relative similarity test of three samples."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = [
    "Between",
    "Measurement",
    "RelativeMMD",
    "Within",
    "check_features",
    "compare",
    "measure",
    "measure_within",
    "relative_mmd_test",
]


class RelativeMMD(NamedTuple):
    """Result of a relative MMD test.

    Attributes:
        p_value: How likely a difference as large would be if the incumbent were as close to the reference as the
            candidate; small where the candidate is significantly closer.
        mmd2_candidate: Unbiased squared MMD between reference and candidate (the KID, where the features are
            Inception's). It may be negative.
        mmd2_incumbent: The same between reference and incumbent.
    """

    p_value: float
    mmd2_candidate: float
    mmd2_incumbent: float


class Within(NamedTuple):
    """A sample's kernel with itself: mean off the diagonal, effects of the points (n,), variance of the interaction."""

    mean: Tensor
    effect: Tensor
    interaction: Tensor


class Between(NamedTuple):
    """The kernel between two samples: mean, effects of the points (n,) and (m,), variance of the interaction."""

    mean: Tensor
    row_effect: Tensor
    column_effect: Tensor
    interaction: Tensor


def _kernel(x: Tensor, y: Tensor) -> Tensor:
    """KID's cubic polynomial kernel ``(x . y / d + 1)^3`` of Binkowski et al., ICLR 2018: (n, d), (m, d) to (n, m)."""
    return (x @ y.T / x.shape[1] + 1).pow(3)


def measure_within(x: Tensor) -> Within:
    """Measure the kernel of a sample (n, d) with itself."""
    gram = _kernel(x, x).fill_diagonal_(0)
    n = len(x)
    # U-centering (Szekely and Rizzo 2014): with these denominators, in place of n - 1 and n (n - 1), the effects have
    # no bias and the squares of the residuals sum to n (n - 3) times the variance they estimate.
    effect = gram.sum(1) / (n - 2)
    total = gram.sum()
    residual = (gram - effect[:, None] - effect + total / ((n - 1) * (n - 2))).fill_diagonal_(0)
    return Within(total / (n * (n - 1)), effect, residual.square().sum() / (n * (n - 3)))


def _between(x: Tensor, y: Tensor) -> Between:
    gram = _kernel(x, y)
    row_effect, column_effect, mean = gram.mean(1), gram.mean(0), gram.mean()
    residual = gram - row_effect[:, None] - column_effect + mean
    return Between(mean, row_effect, column_effect, residual.square().sum() / ((len(x) - 1) * (len(y) - 1)))


class Measurement(NamedTuple):
    """Measurements of a sample for the test: its kernel with itself, and with the reference."""

    within: Within
    between: Between


def measure(reference: Tensor, sample: Tensor) -> Measurement:
    """Measure a sample (m, d) against the reference (n, d), in float64."""
    # The difference of two samples is of order 1/n next to kernel values of order one, too close to float32's rounding.
    x, y = reference.to(torch.float64), sample.to(torch.float64)
    return Measurement(measure_within(y), _between(x, y))


def _difference_variance(
    reference_candidate: Between, reference_incumbent: Between, candidate: Within, incumbent: Within
) -> Tensor:
    """Variance of the difference of the two unbiased MMD^2 estimates, covariance through the shared reference and all.

    The difference is ``K_yy - K_zz - 2 K_xy + 2 K_xz``: the reference's own term cancels. By Hoeffding's decomposition
    its variance is a sum over uncorrelated parts: one for what each point of each sample adds alone (of order 1/n, the
    asymptotic variance of Bounliphone et al.), and one for each interaction of two points (of order 1/n^2). The second
    is all there is when the three laws are equal. There the statistic is no longer normal, and the test is cautious: at
    the 5 % level it rejects two or three times in a hundred.
    """
    xy, xz, yy, zz = reference_candidate, reference_incumbent, candidate, incumbent
    n, m, r = len(xy.row_effect), len(yy.effect), len(zz.effect)
    effects = (
        (2 * (xy.row_effect - xz.row_effect)).var() / n
        + (2 * (yy.effect - xy.column_effect)).var() / m
        + (2 * (zz.effect - xz.column_effect)).var() / r
    )
    # Effects are measured as averages over interactions, and so vary more than the effects do.
    noise = (
        4 * (xy.interaction / m + xz.interaction / r) / n
        + 4 * (yy.interaction / (m - 2) + xy.interaction / n) / m
        + 4 * (zz.interaction / (r - 2) + xz.interaction / n) / r
    )
    interactions = (
        2 * yy.interaction / (m * (m - 1))
        + 2 * zz.interaction / (r * (r - 1))
        + 4 * xy.interaction / (n * m)
        + 4 * xz.interaction / (n * r)
    )
    return (effects - noise).clamp_min(0) + interactions


@torch.no_grad()
def relative_mmd_test(reference: Tensor, candidate: Tensor, incumbent: Tensor) -> RelativeMMD:
    """Test whether one sample is closer to a reference than another is.

    The null hypothesis is that the candidate is no closer: ``MMD(reference, incumbent) <= MMD(reference, candidate)``.
    The alternative is that the candidate is strictly closer, and a small p-value speaks for it. This is the relative
    similarity test of Bounliphone, Belilovsky, Blaschko, Antonoglou and Gretton, ICLR 2016: the difference of two
    unbiased estimates of the squared MMD is asymptotically normal, with a variance that accounts for their covariance
    through the shared reference. The kernel is KID's. The variance is estimated without bias for finite samples too,
    but for a floor at zero, by which it is too large where the laws are equal, by about a third.

    Args:
        reference: Features of the data (n, d).
        candidate: Features of the model that would be better (m, d).
        incumbent: Features of the model to beat (r, d).

    Returns:
        The p-value and both estimates of the squared MMD. Costs memory for a matrix of the two largest sizes.

    Raises:
        ValueError: If a sample is not a matrix of at least four rows, or the widths differ.

    Example:
        >>> g = torch.Generator().manual_seed(0)
        >>> data, near, far = (torch.randn(200, 4, generator=g) + shift for shift in (0.0, 0.1, 1.0))
        >>> relative_mmd_test(data, candidate=near, incumbent=far).p_value < 0.01
        True
        >>> relative_mmd_test(data, candidate=far, incumbent=near).p_value > 0.99
        True
    """
    check_features(reference=reference, candidate=candidate, incumbent=incumbent)
    within = measure_within(reference.to(torch.float64)).mean
    return compare(within, measure(reference, candidate), measure(reference, incumbent))


def check_features(**samples: Tensor) -> None:
    """Raise a ValueError unless the samples are features (n, d) of at least 4 rows, as wide as the reference."""
    width = samples["reference"].shape[-1]
    for name, sample in samples.items():
        if sample.ndim != 2 or len(sample) < 4:
            raise ValueError(f"{name} must be features (n, d) of at least 4 samples, not {tuple(sample.shape)}")
        if sample.shape[1] != width:
            raise ValueError(f"{name} has {sample.shape[1]} features, the reference {width}: use the same")


def compare(reference: Tensor, candidate: Measurement, incumbent: Measurement) -> RelativeMMD:
    """Return the result of the test from measurements; of the reference it needs the mean of its kernel alone."""
    yy, xy = candidate
    zz, xz = incumbent
    mmd2_candidate = float(reference + yy.mean - 2 * xy.mean)
    mmd2_incumbent = float(reference + zz.mean - 2 * xz.mean)
    # Two collapsed samples have no variance; what differs then below rounding is no difference.
    rounding = torch.finfo(torch.float64).eps * float(reference.abs() + yy.mean.abs() + zz.mean.abs())
    deviation = max(math.sqrt(float(_difference_variance(xy, xz, yy, zz))), 100 * rounding)
    p_value = math.erfc((mmd2_incumbent - mmd2_candidate) / deviation / math.sqrt(2)) / 2
    return RelativeMMD(p_value, mmd2_candidate, mmd2_incumbent)
