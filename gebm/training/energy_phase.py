"""The final phase: the energy trained alone, on a base that is fixed, until it stops improving on held-out data.

In the alternation of Arbel, Zhou and Gretton (ICLR 2021, algorithm 1) the energy follows a base that moves after every
few steps, and ends a little behind it. Some more energy steps on the base as it ended bring ``L(E)``, the generalized
log-likelihood (their section 3), closer to its supremum, which is what the samples are reweighted by. Too many of them
fit the training data alone, and that is seen on data that were held out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gebm.freezing import frozen
from gebm.inputs import as_count
from gebm.log_partition import PartitionEstimate
from gebm.model import GEBM
from gebm.objectives.penalties import Penalty
from gebm.precision import arithmetic
from gebm.training.trainer import Trainer

__all__ = ["EnergyPhase", "EnergyQuality", "PhaseResult", "energies_of", "energy_quality"]

_BATCH_SIZE = 1000


class EnergyQuality(NamedTuple):
    """Measures of an energy, on data and base samples that it was not trained on.

    Attributes:
        kale: ``-E_P[E] - log E_B[exp(-E)]``, an estimate of a lower bound of ``KL(P || B)``, in nats: too high on
            average, more so where ``weights_ess`` is small, as the logarithm of a mean of samples is too low on
            average. Near zero the energy is nearly flat; below zero its model is worse than the base.
        energy_data: Mean energy of data, in nats.
        energy_base: Mean energy of base samples, in nats. Data should lie lower.
        spread: Standard deviation of the energies of base samples, in nats.
        weights_ess: Effective sample size of the weights ``exp(-E)`` as a share of the base samples, in (0, 1]: one of
            a flat energy, small where few samples carry all the weight.
        floor_share: Share of the data's energies that lie at the energy's floor, where no gradient passes.
    """

    kale: float
    energy_data: float
    energy_base: float
    spread: float
    weights_ess: float
    floor_share: float

    @classmethod
    def of(cls, energy_data: Tensor, energy_base: Tensor, floor: float) -> EnergyQuality:
        """Return the measures of energies of data (M,) and of base samples (N,), on one device; this waits for it.

        Args:
            energy_data: Energies of data, in nats.
            energy_base: Energies of base samples, in nats.
            floor: The least energy; minus infinity for none.
        """
        partition = PartitionEstimate.of(-energy_base)
        # The bound is rounded to the energies' own type, float32 at least: in float64 it may lie below all of them.
        at_floor = energy_data.float() <= energy_data.new_tensor(floor, dtype=torch.float32)
        measures = torch.stack(
            [
                -energy_data.mean() - partition.log_partition,
                energy_data.mean(),
                energy_base.mean(),
                energy_base.std(),
                partition.effective_sample_size / len(energy_base),
                at_floor.double().mean(),
            ]
        )
        return cls(*measures.tolist())


@arithmetic("float32")
@torch.no_grad()
def energies_of(model: GEBM, x: Tensor, batch_size: int = _BATCH_SIZE) -> Tensor:
    """Return the energies of samples (N, ...), in nats: (N,), float64, on the model's device.

    Computed in float32 even inside an autocast region, as a potential is.

    Args:
        model: The model.
        x: Samples, as the networks take them.
        batch_size: How many are on the device at once.

    Raises:
        TypeError: If ``x`` is no floating-point tensor.
    """
    if not isinstance(x, Tensor) or not x.is_floating_point():
        kind = x.dtype if isinstance(x, Tensor) else type(x).__name__
        raise TypeError(f"energies are those of a floating-point tensor (N, ...), not of {kind}: images in [-1, 1]")
    device, batch_size = model.log_partition.device, as_count("batch_size", batch_size)
    with frozen(model.energy), torch.autocast(device.type, enabled=False):
        return torch.cat([model.energy(part.to(device)) for part in x.split(batch_size)]).double()


def energy_quality(model: GEBM, data: Tensor, samples: Tensor) -> EnergyQuality:
    """Measure the energy on data that were held out.

    Args:
        model: The model.
        data: Held-out data (M, ...), as the networks take them.
        samples: Base samples (N, ...), from :meth:`gebm.GEBM.sample_base`.

    Returns:
        The measures, as Python numbers: this waits for the device once.

    Raises:
        ValueError: If there are no data, or fewer than two samples.

    Example:
        >>> from torch import nn
        >>> from gebm import StandardNormal
        >>> model = GEBM(nn.Identity(), nn.Linear(2, 1), StandardNormal(2))
        >>> _ = nn.init.zeros_(model.energy.network.weight), nn.init.zeros_(model.energy.network.bias)
        >>> quality = energy_quality(model, torch.zeros(8, 2), model.sample_base(16))
        >>> round(abs(quality.kale), 6), round(quality.weights_ess, 6)
        (0.0, 1.0)
    """
    if len(data) == 0:
        raise ValueError("no data are held out: hold some out, for example with data.held_out")
    if len(samples) < 2:
        raise ValueError(f"an energy is measured on {len(samples)} base samples: give at least 2")
    return EnergyQuality.of(energies_of(model, data), energies_of(model, samples), model.energy.floor)


class PhaseResult(NamedTuple):
    """Result of a phase.

    Attributes:
        steps: Energy steps after which the energy was best; what the energy is now.
        steps_taken: Energy steps that were taken until it had stopped improving.
        history: Held-out and training quality after each number of steps, from zero on.
    """

    steps: int
    steps_taken: int
    history: list[tuple[int, EnergyQuality, EnergyQuality | None]]


class EnergyPhase:
    """Train the energy alone, and keep what was best on held-out data.

    The phase is a function of the model it begins with, so a run that is interrupted in it begins it again from the
    last checkpoint and comes to the same bits.

    Args:
        num_steps: Energy steps at most.
        learning_rate: Constant learning rate of the energy in this phase (default: the trainer's before its
            schedule's factor).
        penalty: Regularizer of the energy in this phase (default: the trainer's own).
        check_every: Energy steps between two looks at the held-out data.
        patience: Looks in a row without a better one after which the phase ends; 0 takes all steps, keeps the last,
            and needs no held-out data.
        num_samples: Base samples at each look, from the same latents each time.

    Raises:
        ValueError: If a number is out of range.

    Example:
        >>> import itertools
        >>> from gebm import KALE, StandardNormal, adam, networks
        >>> _ = torch.manual_seed(0)
        >>> base, energy = networks.make("mlp", resolution=0, channels=2, latent_dim=2, width=8)
        >>> model = GEBM(base, energy, StandardNormal(2))
        >>> trainer = Trainer(
        ...     model,
        ...     objective=KALE(),
        ...     energy_optimizer=adam([*model.energy.parameters(), model.log_partition], lr=1e-3),
        ...     base_optimizer=adam(model.base.parameters(), lr=1e-3),
        ... )
        >>> phase = EnergyPhase(num_steps=20, check_every=10)
        >>> data = torch.randn(64, 2, generator=torch.Generator().manual_seed(0)) * 0.5
        >>> result = phase.run(
        ...     trainer, itertools.repeat(data), lambda step: torch.Generator().manual_seed(step), held_out=data
        ... )
        >>> result.steps_taken, trainer.base_step
        (20, 0)
    """

    def __init__(
        self,
        num_steps: int,
        *,
        learning_rate: float | None = None,
        penalty: Penalty | None = None,
        check_every: int = 25,
        patience: int = 3,
        num_samples: int = 4096,
    ) -> None:
        if num_steps < 0 or check_every < 1 or patience < 0 or num_samples < 2:
            raise ValueError(
                f"a phase of {num_steps} steps, with a look every {check_every} at {num_samples} samples and a "
                f"patience of {patience}: steps and patience are 0 or more, the period 1 or more, samples 2 or more"
            )
        if learning_rate is not None and not learning_rate > 0:
            raise ValueError(f"the phase's learning rate is {learning_rate}: choose a positive one")
        self.num_steps = num_steps
        self.learning_rate = learning_rate
        self.penalty = penalty
        self.check_every = check_every
        self.patience = patience
        self.num_samples = num_samples

    def run(
        self,
        trainer: Trainer,
        batches: Iterator[Any],
        generator_at: Callable[[int], torch.Generator],
        *,
        held_out: Tensor | None = None,
        seen: Tensor | None = None,
        agree: Callable[[float], float] = lambda value: value,
        advance: Callable[[int], None] = lambda steps: None,
    ) -> PhaseResult:
        """Take the steps; the trainer's energy, its optimizer and ``c`` are changed in place.

        Args:
            trainer: What trains the energy.
            batches: As :meth:`gebm.Trainer.step` takes them.
            generator_at: The random numbers from an energy step on, as a function of its number.
            held_out: Data (M, ...) that no step sees.
            seen: Data of the training set (M, ...), measured likewise for comparison (default: none).
            agree: Makes one number of several processes' own, which may differ in their last bits.
            advance: Called with the energy steps taken since the last call.

        Returns:
            How it went.

        Raises:
            ValueError: If the objective trains no energy, or held-out data are needed and missing.
        """
        if self.patience and (held_out is None or len(held_out) == 0):
            raise ValueError("no data are held out, and the phase stops by them: hold some out, or set patience to 0")
        look, history = self._looks(trainer.sampling_model(), held_out, seen), []
        best, penalty, first, taken = _Best(self.patience), trainer.penalty, trainer.energy_step, 0
        try:
            trainer.penalty = penalty if self.penalty is None else self.penalty
            while True:
                if look is not None:
                    unseen, trained_on = look()
                    history.append((taken, unseen, trained_on))
                    best.update(trainer, taken, agree(unseen.kale))
                if taken >= self.num_steps or best.is_over:
                    break
                count = min(self.check_every, self.num_steps - taken)
                trainer.train_energy(batches, generator_at(first + taken), count, learning_rate=self.learning_rate)
                taken += count
                advance(count)
        finally:
            trainer.penalty = penalty
        return PhaseResult(best.restore(trainer, taken), taken, history)

    def _looks(
        self, model: GEBM, held_out: Tensor | None, seen: Tensor | None
    ) -> Callable[[], tuple[EnergyQuality, EnergyQuality | None]] | None:
        """Return what measures the energy as it is at that moment; ``None`` without held-out data.

        The base is fixed, so its samples are drawn once.
        """
        if held_out is None or len(held_out) == 0:
            return None
        generator = torch.Generator().manual_seed(0)
        samples = model.sample_base(self.num_samples, generator, batch_size=_BATCH_SIZE)

        def look() -> tuple[EnergyQuality, EnergyQuality | None]:
            energy_base, floor = energies_of(model, samples), model.energy.floor
            unseen = EnergyQuality.of(energies_of(model, held_out), energy_base, floor)
            return unseen, None if seen is None else EnergyQuality.of(energies_of(model, seen), energy_base, floor)

        return look


class _Best:
    """Early stopping: the best energy so far, by held-out KALE, and the looks since then."""

    def __init__(self, patience: int) -> None:
        self._patience = patience
        self._state: dict[str, Any] | None = None
        self._steps, self._kale, self._failures = 0, float("-inf"), 0

    @property
    def is_over(self) -> bool:
        """Whether the patience is at its end; without patience it never is."""
        return 0 < self._patience <= self._failures

    def update(self, trainer: Trainer, steps: int, kale: float) -> None:
        """Keep the energy if it is the best so far."""
        if not self._patience:
            return
        if kale > self._kale:
            self._state, self._steps, self._kale, self._failures = trainer.energy_state(), steps, kale, 0
        else:
            self._failures += 1

    def restore(self, trainer: Trainer, taken: int) -> int:
        """Give the trainer the best energy back, and return its number of steps; without patience the last is kept."""
        if self._state is None:
            return taken
        if self._steps != taken:
            trainer.load_energy_state(self._state)
        return self._steps
