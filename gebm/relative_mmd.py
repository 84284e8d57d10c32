"""The relative similarity test of three samples, and the learning-rate schedule that is built on it."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

__all__ = ["PlateauDecay", "RelativeMMD", "relative_mmd_test"]


class RelativeMMD(NamedTuple):
    """The outcome of a relative MMD test.

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


class _Within(NamedTuple):
    """A sample's kernel with itself: mean off the diagonal, what each point adds (n,), variance of the interaction."""

    mean: Tensor
    effect: Tensor
    interaction: Tensor


class _Between(NamedTuple):
    """The kernel between two samples: mean, effects of the points (n,) and (m,), variance of the interaction."""

    mean: Tensor
    row_effect: Tensor
    column_effect: Tensor
    interaction: Tensor


def _kernel(x: Tensor, y: Tensor) -> Tensor:
    """KID's cubic polynomial kernel `(x . y / d + 1)^3` of Binkowski et al., ICLR 2018: (n, d), (m, d) to (n, m)."""
    return (x @ y.T / x.shape[1] + 1).pow(3)


def _within(x: Tensor) -> _Within:
    gram = _kernel(x, x).fill_diagonal_(0)
    n = len(x)
    # U-centring (Szekely and Rizzo 2014): with these denominators, in place of n - 1 and n (n - 1), the effects have
    # no bias and the squares of the residuals sum to n (n - 3) times the variance they estimate.
    effect = gram.sum(1) / (n - 2)
    total = gram.sum()
    residual = (gram - effect[:, None] - effect + total / ((n - 1) * (n - 2))).fill_diagonal_(0)
    return _Within(total / (n * (n - 1)), effect, residual.square().sum() / (n * (n - 3)))


def _between(x: Tensor, y: Tensor) -> _Between:
    gram = _kernel(x, y)
    row_effect, column_effect, mean = gram.mean(1), gram.mean(0), gram.mean()
    residual = gram - row_effect[:, None] - column_effect + mean
    return _Between(mean, row_effect, column_effect, residual.square().sum() / ((len(x) - 1) * (len(y) - 1)))


class _Measured(NamedTuple):
    """All that the test asks of a sample: its kernel with itself, and with the reference."""

    within: _Within
    between: _Between


def _measure(reference: Tensor, sample: Tensor) -> _Measured:
    # The difference of two samples is of order 1/n next to kernel values of order one, too close to float32's rounding.
    x, y = reference.to(torch.float64), sample.to(torch.float64)
    return _Measured(_within(y), _between(x, y))


def _difference_variance(
    reference_candidate: _Between, reference_incumbent: _Between, candidate: _Within, incumbent: _Within
) -> Tensor:
    """Variance of the difference of the two unbiased MMD^2 estimates, covariance through the shared reference and all.

    The difference is `K_yy - K_zz - 2 K_xy + 2 K_xz`: the reference's own term cancels. By Hoeffding's decomposition
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
    """Tests whether one sample is closer to a reference than another is.

    The null hypothesis is that the candidate is no closer: `MMD(reference, incumbent) <= MMD(reference, candidate)`.
    The alternative is that the candidate is strictly closer, and a small p-value speaks for it. This is the relative
    similarity test of Bounliphone, Belilovsky, Blaschko, Antonoglou and Gretton, ICLR 2016: the difference of two
    unbiased estimates of the squared MMD is asymptotically normal, with a variance that accounts for their covariance
    through the shared reference. The kernel is KID's. The variance is estimated without bias for finite samples too.

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
    _check(reference=reference, candidate=candidate, incumbent=incumbent)
    within = _within(reference.to(torch.float64)).mean
    return _compare(within, _measure(reference, candidate), _measure(reference, incumbent))


def _check(**samples: Tensor) -> None:
    width = samples["reference"].shape[-1]
    for name, sample in samples.items():
        if sample.ndim != 2 or len(sample) < 4:
            raise ValueError(f"{name} must be features (n, d) of at least 4 samples, not {tuple(sample.shape)}")
        if sample.shape[1] != width:
            raise ValueError(f"{name} has {sample.shape[1]} features, the reference {width}: use the same")


def _compare(reference: Tensor, candidate: _Measured, incumbent: _Measured) -> RelativeMMD:
    """The test on what was measured; of the reference alone it needs the mean of its kernel."""
    yy, xy, zz, xz = *candidate, *incumbent
    mmd2_candidate = float(reference + yy.mean - 2 * xy.mean)
    mmd2_incumbent = float(reference + zz.mean - 2 * xz.mean)
    # Two collapsed samples have no variance; what differs then below rounding is no difference.
    rounding = torch.finfo(torch.float64).eps * float(reference.abs() + yy.mean.abs() + zz.mean.abs())
    deviation = max(math.sqrt(float(_difference_variance(xy, xz, yy, zz))), 100 * rounding)
    p_value = math.erfc((mmd2_incumbent - mmd2_candidate) / deviation / math.sqrt(2)) / 2
    return RelativeMMD(p_value, mmd2_candidate, mmd2_incumbent)


class PlateauDecay:
    """The learning-rate schedule of the paper: decay when the model has stopped improving.

    Every `every` base steps the features of the model's samples are compared with those of `lag` base steps ago. If
    the test does not find them significantly closer to the data's, that is a failure; `patience` failures in a row
    are the time to decay, and the buffer is then filled anew. Used for GANs by Binkowski et al., ICLR 2018, and for
    GEBMs by Arbel, Zhou and Gretton, ICLR 2021, section 6. The object only decides: who holds the optimisers
    multiplies their learning rates by `factor`.

    The buffer has no features, but what the test computes of them: thousands of numbers, where those are millions.

    Args:
        reference: Features of the data (n, d). They are not part of the state.
        factor: What the learning rates are to be multiplied by, in (0, 1).
        every: Base steps between two comparisons.
        lag: Base steps between the features that are compared, a multiple of `every`.
        patience: Failures in a row that make a decay.
        significance: Level of the test, in (0, 1).

    Raises:
        ValueError: If a setting is out of range.

    Example:
        >>> g = torch.Generator().manual_seed(0)
        >>> plateau = PlateauDecay(torch.randn(100, 4, generator=g), every=1, lag=2, patience=2)
        >>> [plateau.update(step, torch.randn(100, 4, generator=g) + 1) for step in range(6)]
        [False, False, False, True, False, False]
    """

    def __init__(
        self,
        reference: Tensor,
        factor: float = 0.8,
        every: int = 2_000,
        lag: int = 20_000,
        patience: int = 3,
        significance: float = 0.05,
    ) -> None:
        for name, fraction in (("factor", factor), ("significance", significance)):
            if not 0 < fraction < 1:
                raise ValueError(f"{name} must lie between 0 and 1, not {fraction}")
        for name, count in (("every", every), ("lag", lag), ("patience", patience)):
            if count < 1:
                raise ValueError(f"{name} must be at least 1, not {count}")
        if len(reference) < 4:
            raise ValueError(f"reference must be features (n, d) of at least 4 samples, not {tuple(reference.shape)}")
        if lag % every:
            raise ValueError(f"lag must be a multiple of every for there to be features that old, not {lag} of {every}")
        self.reference = reference
        self.factor = factor
        self.every = every
        self.lag = lag
        self.patience = patience
        self.significance = significance
        self.failures = 0
        self.decays = 0
        self.latest: RelativeMMD | None = None
        self._reference_mean: Tensor | None = None  # of its kernel with itself, computed when it is first needed
        self._buffer: dict[int, _Measured] = {}

    def __repr__(self) -> str:
        return (
            f"PlateauDecay(factor={self.factor}, every={self.every}, lag={self.lag}, patience={self.patience}, "
            f"significance={self.significance})"
        )

    def due(self, base_step: int) -> bool:
        """Says whether `update` expects features at this base step.

        Args:
            base_step: Number of base steps taken.

        Returns:
            Whether `base_step` is a multiple of `every`.
        """
        return base_step % self.every == 0

    @torch.no_grad()
    def update(self, base_step: int, features: Tensor) -> bool:
        """Takes note of the model's features and decides whether to decay.

        Args:
            base_step: Number of base steps taken, a multiple of `every`.
            features: Features of the model's samples now (m, d).

        Returns:
            True if the learning rates are to be multiplied by `factor` now.

        Raises:
            ValueError: If no features are due at `base_step`, or they do not fit the reference.
        """
        if not self.due(base_step):
            raise ValueError(f"features are compared every {self.every} base steps, and {base_step} is no multiple")
        _check(reference=self.reference, candidate=features)
        reference = self.reference.to(features.device)
        measured = _measure(reference, features)
        self._buffer[base_step] = measured
        # Whoever skips a comparison misses its partner later; what is older than the lag is of no use any more.
        self._buffer = {step: kept for step, kept in self._buffer.items() if step >= base_step - self.lag}
        if base_step - self.lag not in self._buffer:
            return False
        if self._reference_mean is None:
            self._reference_mean = _within(reference.to(torch.float64)).mean
        old = _moved(self._buffer[base_step - self.lag], features.device)
        self.latest = _compare(self._reference_mean.to(features.device), measured, old)
        self.failures = self.failures + 1 if self.latest.p_value > self.significance else 0
        if self.failures < self.patience:
            return False
        self.failures = 0
        self.decays += 1
        self._buffer = {base_step: measured}
        return True

    def state_dict(self) -> dict[str, Tensor]:
        """Gives all that a resumed schedule needs besides its settings and the reference, as tensors.

        Returns:
            The counts of failures and decays, what was measured at each base step still in the buffer, and the
            reference's shape and sum, by which it is known again.
        """
        state = {"failures": torch.tensor(self.failures), "decays": torch.tensor(self.decays)}
        state["reference"] = self._known_by()
        for step, measured in self._buffer.items():
            for kind, part in measured._asdict().items():
                state |= {f"{step}.{kind}.{name}": tensor for name, tensor in part._asdict().items()}
        return state

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Takes up where the schedule that gave `state` stood.

        Args:
            state: What `state_dict` gave. Where it was measured against another reference, the buffer is filled anew.
        """
        self.failures = int(state["failures"])
        self.decays = int(state["decays"])
        steps = sorted({int(name.split(".")[0]) for name in state if "." in name})
        # Not bit for bit: another machine may add the features up in another order.
        if not torch.allclose(state["reference"].cpu(), self._known_by(), rtol=1e-6):
            steps = []

        def part(kind: type, prefix: str) -> Any:
            return kind(*(state[f"{prefix}.{name}"].clone() for name in kind._fields))

        self._buffer = {
            step: _Measured(part(_Within, f"{step}.within"), part(_Between, f"{step}.between")) for step in steps
        }

    def _known_by(self) -> Tensor:
        return torch.tensor(
            [*self.reference.shape, float(self.reference.sum(dtype=torch.float64))], dtype=torch.float64
        )


def _moved(measured: _Measured, device: torch.device) -> _Measured:
    within, between = measured
    return _Measured(
        _Within(*(tensor.to(device) for tensor in within)), _Between(*(tensor.to(device) for tensor in between))
    )
