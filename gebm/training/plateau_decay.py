"""Decay of learning rates when the base has stopped improving, by the relative similarity test."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gebm.training.relative_mmd import (
    Between,
    Measurement,
    RelativeMMD,
    Within,
    check_features,
    compare,
    measure,
    measure_within,
)

__all__ = ["PlateauDecay"]


class PlateauDecay:
    """The learning-rate schedule of the paper: decay when the model has stopped improving.

    Every ``every`` base steps the features of the model's samples are compared with those of ``lag`` base steps ago. If
    the test does not find them significantly closer to the data's, that is a failure; ``patience`` failures in a row
    are the time to decay, and the buffer is then filled anew. Used for GANs by Binkowski et al., ICLR 2018, and for
    GEBMs by Arbel, Zhou and Gretton, ICLR 2021, section 6. The object only decides: the owner of the optimizers
    multiplies their learning rates by ``factor``.

    The buffer holds no features, but the test's measurements of them: thousands of numbers instead of millions.

    Args:
        reference: Features of the data (n, d). They are not part of the state.
        factor: Factor of the learning rates at a decay, in (0, 1).
        every: Base steps between two comparisons.
        lag: Base steps between the features that are compared, a multiple of ``every``.
        patience: Failures in a row that make a decay.
        significance: Level of the test, in (0, 1).
        unconditional_every: Base steps between decays that no test decides; ``None`` for none. At a base step with a
            test, the test decides. The authors' code has 5,000, next to tests every 2,000: a decay at each odd
            multiple of 5,000.

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
        unconditional_every: int | None = None,
    ) -> None:
        for name, fraction in (("factor", factor), ("significance", significance)):
            if not 0 < fraction < 1:
                raise ValueError(f"{name} must lie between 0 and 1, not {fraction}")
        counts = {"every": every, "lag": lag, "patience": patience, "unconditional_every": unconditional_every}
        for name, count in counts.items():
            if count is not None and count < 1:
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
        self.unconditional_every = unconditional_every
        self.failures = 0
        self.decays = 0
        self.latest: RelativeMMD | None = None
        # Mean of the reference's kernel with itself, computed when it is first needed.
        self._reference_mean: Tensor | None = None
        self._buffer: dict[int, Measurement] = {}

    def __repr__(self) -> str:
        return (
            f"PlateauDecay(factor={self.factor}, every={self.every}, lag={self.lag}, patience={self.patience}, "
            f"significance={self.significance}, unconditional_every={self.unconditional_every})"
        )

    def due(self, base_step: int) -> bool:
        """Return whether ``update`` expects features at this base step.

        Args:
            base_step: Number of base steps taken.

        Returns:
            Whether ``base_step`` is a multiple of ``every``.
        """
        return base_step % self.every == 0

    def is_unconditional(self, base_step: int) -> bool:
        """Return whether the learning rates decay at this base step without a test.

        Args:
            base_step: Number of base steps taken.

        Returns:
            Whether it is a multiple of ``unconditional_every`` at which no features are due.
        """
        if not self.unconditional_every or base_step < 1 or self.due(base_step):
            return False
        return base_step % self.unconditional_every == 0

    @torch.no_grad()
    def update(self, base_step: int, features: Tensor) -> bool:
        """Record the model's features and decide whether to decay.

        Args:
            base_step: Number of base steps taken, a multiple of ``every``.
            features: Features of the model's samples now (m, d).

        Returns:
            True if the learning rates are to be multiplied by ``factor`` now.

        Raises:
            ValueError: If no features are due at ``base_step``, or they do not fit the reference.
        """
        if not self.due(base_step):
            raise ValueError(f"features are compared every {self.every} base steps, and {base_step} is no multiple")
        check_features(reference=self.reference, candidate=features)
        reference = self.reference.to(features.device)
        measurement = measure(reference, features)
        self._buffer[base_step] = measurement
        # Measurements older than the lag will not be compared any more.
        self._buffer = {step: measured for step, measured in self._buffer.items() if step >= base_step - self.lag}
        if base_step - self.lag not in self._buffer:
            return False
        if self._reference_mean is None:
            self._reference_mean = measure_within(reference.to(torch.float64)).mean
        old = _to(self._buffer[base_step - self.lag], features.device)
        self.latest = compare(self._reference_mean.to(features.device), measurement, old)
        self.failures = self.failures + 1 if self.latest.p_value > self.significance else 0
        if self.failures < self.patience:
            return False
        self.failures = 0
        self.decays += 1
        self._buffer = {base_step: measurement}
        return True

    def state_dict(self) -> dict[str, Tensor]:
        """Return the tensors that a resumed schedule needs in addition to its settings and the reference.

        Returns:
            The counts of failures and decays, the measurements at each base step still in the buffer, and the
            reference's shape and sum, by which it is recognized.
        """
        state = {"failures": torch.tensor(self.failures), "decays": torch.tensor(self.decays)}
        state["reference"] = self._fingerprint()
        for step, measured in self._buffer.items():
            for kind, part in measured._asdict().items():
                state |= {f"{step}.{kind}.{name}": tensor for name, tensor in part._asdict().items()}
        return state

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Resume from the state of another schedule.

        Args:
            state: Result of ``state_dict``. Where it was measured against another reference, the buffer is filled anew.
        """
        self.failures = int(state["failures"])
        self.decays = int(state["decays"])
        steps = sorted({int(name.split(".")[0]) for name in state if "." in name})
        # Not bit for bit: another machine may add the features up in another order.
        if not torch.allclose(state["reference"].cpu(), self._fingerprint(), rtol=1e-6):
            steps = []

        def part(kind: type, prefix: str) -> Any:
            return kind(*(state[f"{prefix}.{name}"].clone() for name in kind._fields))

        self._buffer = {
            step: Measurement(part(Within, f"{step}.within"), part(Between, f"{step}.between")) for step in steps
        }

    def _fingerprint(self) -> Tensor:
        return torch.tensor(
            [*self.reference.shape, float(self.reference.sum(dtype=torch.float64))], dtype=torch.float64
        )


def _to(measurement: Measurement, device: torch.device) -> Measurement:
    within, between = measurement
    return Measurement(
        Within(*(tensor.to(device) for tensor in within)), Between(*(tensor.to(device) for tensor in between))
    )
