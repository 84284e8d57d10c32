"""Trainer: the alternation of energy steps and base steps (Arbel, Zhou and Gretton, ICLR 2021, algorithm 1).

Modes matter. The energy learns to reweight the very distribution that is sampled later, so in an energy step the base
runs in evaluation mode (running batch-norm statistics) and without gradients. In a base step the base trains, and the
energy is fixed: evaluation mode (its power iteration does not advance), no gradients of its parameters.

With an exponential moving average of the base, the energy is trained against *the average*, and the average is what
``Trainer.sampling_model`` returns: an energy reweights the distribution it was trained against and no other. The price
is a feedback that lags by about ``1 / (1 - ema_decay)`` base steps; keep that well below the steps in which the base
changes much, or the base overshoots before the energy sees it. An energy that is written relative to the base is so to
whichever base it meets: to the average in an energy step, and in a base step to the base whose samples it weighs.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from gebm.distributed import all_gather_rows, broadcast_module, draw_local_rows, rank_and_world_size
from gebm.folding import folded_base
from gebm.model import GEBM, Density
from gebm.objectives import Objective
from gebm.objectives.losses import BaseLoss, EnergyLoss, EnergyTerms
from gebm.objectives.negatives import Negatives
from gebm.objectives.penalties import GradientPenalty, Penalty
from gebm.partition import log_partition_monte_carlo
from gebm.training.gradient_guard import GradientGuard, NoGuard
from gebm.training.optimizers import Schedule

__all__ = ["Alternation", "StepInfo", "Trainer", "initialize_log_partition"]


@dataclass(frozen=True)
class Alternation:
    """Numbers of energy steps before each base step (Arbel, Zhou and Gretton, ICLR 2021, algorithm 1).

    Args:
        energy_steps: ``n_e``, energy steps per base step; zero for none.
        warmup_energy_steps: ``n_e`` of the base steps named below.
        warmup_base_steps: Number of base steps at the beginning that have the warm-up's ``n_e``.
        warmup_every: Period, in base steps, of the later ones.

    Raises:
        ValueError: If a number of steps is negative or the period is below 1.

    Example:
        >>> alternation = Alternation()
        >>> [alternation.energy_steps_at(step) for step in (0, 1, 2, 499, 500, 501)]
        [100, 100, 5, 5, 100, 5]
    """

    energy_steps: int = 5
    warmup_energy_steps: int = 100
    warmup_base_steps: int = 2
    warmup_every: int = 500

    def __post_init__(self) -> None:
        if min(self.energy_steps, self.warmup_energy_steps, self.warmup_base_steps) < 0 or self.warmup_every < 1:
            raise ValueError(f"{self}: numbers of steps cannot be negative, and the period is at least 1")

    def energy_steps_at(self, base_step: int) -> int:
        """Return how many energy steps come before this base step.

        Args:
            base_step: Base steps done before.

        Returns:
            The number of energy steps.
        """
        warm = base_step < self.warmup_base_steps or base_step % self.warmup_every == 0
        return self.warmup_energy_steps if warm else self.energy_steps

    def energy_steps_before(self, base_step: int) -> int:
        """Return how many energy steps a run has taken when it comes to this base step's own.

        Args:
            base_step: Base steps done before.

        Returns:
            The sum of :meth:`energy_steps_at` over them.

        Example:
            >>> Alternation().energy_steps_before(3), Alternation().energy_steps_before(501)
            (205, 2790)
        """
        first = min(self.warmup_base_steps, base_step)
        later = max(0, -(-base_step // self.warmup_every) - -(-self.warmup_base_steps // self.warmup_every))
        warm = first + later
        return warm * self.warmup_energy_steps + (base_step - warm) * self.energy_steps


class StepInfo(NamedTuple):
    """Measurements of a base step and the energy steps before it: 0-dim tensors without a graph, this process's own.

    Nothing here waits for the device; reading a value does. A value is not a number where there was no such step.

    Attributes:
        energy_loss: Loss of the last energy step, penalty included; for KALE, minus the lower bound plus the penalty.
        largest_energy_loss: The largest loss of these energy steps.
        base_loss: Loss of the base step.
        penalty: Penalty in the last energy step; zero if it was not due.
        energy_data: Mean energy of data in the last energy step.
        energy_base: Mean energy of negatives in the last energy step: of base samples, unless they come from chains.
        log_partition: ``c`` after the step.
        num_nonfinite: Number of losses that were infinite or not a number; zero in a healthy run.
        energy_steps: Number of energy steps that were taken; a plain integer.
    """

    energy_loss: Tensor
    largest_energy_loss: Tensor
    base_loss: Tensor
    penalty: Tensor
    energy_data: Tensor
    energy_base: Tensor
    log_partition: Tensor
    num_nonfinite: Tensor
    energy_steps: int


class Trainer:
    """Algorithm 1 of Arbel, Zhou and Gretton (ICLR 2021): energy steps and base steps in turn.

    Args:
        gebm: The model, already on its device. Data are laid out as its weights are: after
            ``gebm.to(memory_format=torch.channels_last)`` convolutions are faster, on most hardware.
        objective: The pair of losses, from :mod:`gebm.objectives`.
        penalty: The regularizer of the energy, from :mod:`gebm.objectives.penalties` (default: the paper's gradient
            penalty).
        energy_optimizer: Owns the energy's parameters and the log-partition; may be left out if the objective trains
            no energy.
        base_optimizer: Owns the base's parameters; may be left out if the base is not trained.
        alternation: Numbers of energy steps per base step.
        schedule: Decay of both learning rates (default: constant).
        ema_decay: Decay per base step of the moving average of the base, in (0, 1) (default: no average). See the
            top of this module for which base the energy is then trained against.
        latent_batch_size: Number of base samples that a step draws (default: that of the data batch).
        precision: float32, or bfloat16 for autocast inside the networks.
        parallel: Wraps the two loss modules, for example in ``DistributedDataParallel``.
        train_base: Whether there are base steps. A base that is not trained stays in evaluation mode, and the
            alternation runs without it.
        negatives: Source of the energy's negatives, from :mod:`gebm.objectives.negatives` (default: the objective's
            own).
        gradient_guard: Bound of the energy's gradients before its optimizer's step, from
            :mod:`gebm.training.gradient_guard` (default: none).

    Raises:
        ValueError: If the optimizers do not own what they should, a setting is out of range, nothing is left to
            train, or the objective needs a density that the base does not have.

    Example:
        >>> import itertools
        >>> from gebm import KALE, StandardNormal, adam, networks
        >>> base, energy = networks.make("mlp", resolution=0, channels=2, latent_dim=2, width=8)
        >>> model = GEBM(base, energy, StandardNormal(2))
        >>> trainer = Trainer(
        ...     model,
        ...     objective=KALE(),
        ...     energy_optimizer=adam([*model.energy.parameters(), model.log_partition], lr=1e-3),
        ...     base_optimizer=adam(model.base.parameters(), lr=1e-3),
        ...     alternation=Alternation(energy_steps=1, warmup_energy_steps=3),
        ... )
        >>> trainer.step(itertools.repeat(torch.zeros(8, 2)), torch.Generator().manual_seed(0)).energy_steps
        3
    """

    def __init__(
        self,
        gebm: GEBM,
        *,
        objective: Objective,
        penalty: Penalty | None = None,
        energy_optimizer: Optimizer | None = None,
        base_optimizer: Optimizer | None = None,
        alternation: Alternation | None = None,
        schedule: Schedule | None = None,
        ema_decay: float | None = None,
        latent_batch_size: int | None = None,
        precision: torch.dtype = torch.float32,
        parallel: Callable[[nn.Module], nn.Module] = lambda module: module,
        train_base: bool = True,
        negatives: Negatives | None = None,
        gradient_guard: GradientGuard | None = None,
    ) -> None:
        self.gebm = gebm
        self.objective = objective
        self.alternation = Alternation() if alternation is None else alternation
        self.schedule = Schedule() if schedule is None else schedule
        self.ema_decay = ema_decay
        self.latent_batch_size = latent_batch_size
        self.train_base = train_base
        self.negatives = objective.negatives if negatives is None else negatives
        self.gradient_guard = NoGuard() if gradient_guard is None else gradient_guard
        self._precision = precision
        self._check_arguments()
        self._energy_optimizer = energy_optimizer
        self._base_optimizer = base_optimizer
        self._check_optimizers()
        self.base_step = 0
        self.energy_step = 0
        # Positions of persistent chains (W N, D), of all W processes in turn: each can then save the whole state.
        self.chains: Tensor | None = None
        last = any(_is_channels_last(parameter) for parameter in gebm.parameters())
        self._memory_format = torch.channels_last if last else torch.contiguous_format
        self.average = None if ema_decay is None else copy.deepcopy(gebm.base).eval().requires_grad_(False)
        self._sampled = gebm if self.average is None else gebm.with_base(self.average)
        # The module itself, in addition to the one that data parallelism may wrap around it: it owns the penalty.
        self._energy_terms = EnergyLoss(
            self._sampled, objective, GradientPenalty() if penalty is None else penalty, precision
        )
        self._energy_loss, self._base_loss = self._wrap_losses(parallel)
        if self.average is not None:
            self.average.load_state_dict(gebm.base.state_dict())
        for optimizer in self._optimizers().values():
            for group in optimizer.param_groups:
                # What the schedule starts from.
                group["peak_lr"] = group["lr"]

    def _check_arguments(self) -> None:
        """Raise a ValueError if a setting is out of range or the parts do not go together."""
        decay, size = self.ema_decay, self.latent_batch_size
        if self._precision not in (torch.float32, torch.bfloat16):
            raise ValueError(f"no training in {self._precision}: choose torch.float32 or torch.bfloat16")
        if decay is not None and not 0 < decay < 1:
            raise ValueError(f"the average's decay is {decay}: choose a number between 0 and 1, or none")
        if size is not None and size < 1:
            raise ValueError(f"the latent batch size is {size}: choose at least 1, or none")
        if not (self.train_base or self.objective.trains_energy):
            raise ValueError(f"{self.objective} trains no energy, and train_base is off: nothing is left to train")
        needs_density = self._learns_from_data or self.negatives.needs_density
        base = self.gebm.base
        if needs_density and not isinstance(base, Density):
            raise ValueError(f"{self.objective} needs a base with a density, not {type(base).__name__}: use a flow")

    def _check_optimizers(self) -> None:
        """Raise a ValueError unless each optimizer owns the parameters of its part."""
        if self._energy_optimizer is not None or self.objective.trains_energy:
            parameters = [*self.gebm.energy.parameters(), self.gebm.log_partition]
            _check_owner(self._energy_optimizer, parameters, "the energy and log_partition")
        if self._base_optimizer is not None or self.train_base:
            _check_owner(self._base_optimizer, list(self.gebm.base.parameters()), "the base")

    def _wrap_losses(self, parallel: Callable[[nn.Module], nn.Module]) -> tuple[nn.Module, nn.Module]:
        """Return the losses of the energy and of the base, wrapped for data parallelism where they are trained.

        Data parallelism refuses a module that has nothing to learn. Such a module gets the first process's weights.
        """
        base_loss = BaseLoss(self.gebm, self.objective, self._precision)
        return (
            (parallel if self.objective.trains_energy else broadcast_module)(self._energy_terms),
            (parallel if self.train_base else broadcast_module)(base_loss),
        )

    @property
    def energy_optimizer(self) -> Optimizer:
        """The optimizer of the energy and the log-partition.

        Raises:
            ValueError: If there is none, as for an objective that trains no energy.
        """
        if self._energy_optimizer is None:
            raise ValueError(f"{self.objective} trains no energy: this trainer has no optimizer for it")
        return self._energy_optimizer

    @property
    def base_optimizer(self) -> Optimizer:
        """The optimizer of the base.

        Raises:
            ValueError: If there is none, as where the base is not trained.
        """
        if self._base_optimizer is None:
            raise ValueError("the base is not trained: this trainer has no optimizer for it")
        return self._base_optimizer

    @property
    def _learns_from_data(self) -> bool:
        """Whether base steps learn from data."""
        return self.train_base and self.objective.base_learns_from == "data"

    def step(self, batches: Iterator[Tensor], generator: torch.Generator) -> StepInfo:
        """Take the energy steps that are due, then one base step.

        Args:
            batches: Yields data (N, ...), images in [-1, 1]; one batch is taken per energy step. A base that learns
                from data learns from the last of them; without energy steps, one batch is taken for the base step.
            generator: Source of every random number; best on the model's device. Of several processes, each has one in
                the same state, draws for all of them and keeps its own rows: the result does not depend on their
                number.

        Returns:
            Measurements, without waiting for the device.
        """
        self._schedule_learning_rates()
        energy_steps = self.alternation.energy_steps_at(self.base_step) if self.objective.trains_energy else 0
        info, x_data = self._take_energy_steps(batches, generator, energy_steps)
        if self.train_base:
            base_loss = self._step_base(self._base_inputs(batches, x_data, generator))
            info = info._replace(base_loss=base_loss, num_nonfinite=info.num_nonfinite + ~base_loss.isfinite())
        self.base_step += 1
        return info

    def train_energy(
        self,
        batches: Iterator[Tensor],
        generator: torch.Generator,
        num_steps: int,
        *,
        learning_rate: float | None = None,
    ) -> StepInfo:
        """Take energy steps alone: the base is fixed, and ``base_step`` does not count them.

        Args:
            batches: As :meth:`step` takes them, one for each step.
            generator: As :meth:`step` takes it.
            num_steps: Number of energy steps.
            learning_rate: Learning rate in these steps (default: the energy's before the schedule's factor, which is
                zero at the end of some schedules).

        Returns:
            Measurements, without waiting for the device.

        Raises:
            ValueError: If the objective trains no energy.
        """
        if not self.objective.trains_energy:
            raise ValueError(f"{self.objective} trains no energy: choose another objective")
        for group in self.energy_optimizer.param_groups:
            group["lr"] = group["peak_lr"] if learning_rate is None else learning_rate
        try:
            return self._take_energy_steps(batches, generator, num_steps)[0]
        finally:
            self._schedule_learning_rates()

    def _take_energy_steps(
        self, batches: Iterator[Tensor], generator: torch.Generator, num_steps: int
    ) -> tuple[StepInfo, Tensor | None]:
        """Take energy steps, and return their measurements and the last batch, if there was one."""
        device = self.gebm.log_partition.device
        missing = torch.full((), float("nan"), device=device)
        terms, largest, x_data = EnergyTerms(missing, missing, missing, missing), missing, None
        num_nonfinite = torch.zeros((), dtype=torch.int64, device=device)
        # The base is fixed until its own step: it is folded once, and draws faster.
        source = self._source() if num_steps else self._sampled
        for _ in range(num_steps):
            x_data = self._to_device(next(batches))
            terms = self._step_energy(x_data, source, generator)
            loss = terms.loss.detach()
            largest = torch.fmax(largest, loss)
            num_nonfinite += ~loss.isfinite()
        info = StepInfo(
            energy_loss=terms.loss.detach(),
            largest_energy_loss=largest,
            base_loss=missing,
            penalty=terms.penalty,
            energy_data=terms.energy_data,
            energy_base=terms.energy_base,
            log_partition=self.gebm.log_partition.detach().clone(),
            num_nonfinite=num_nonfinite,
            energy_steps=num_steps,
        )
        return info, x_data

    def sampling_model(self) -> GEBM:
        """Return the model to sample: the one whose base the energy was trained against.

        Returns:
            The model with the averaged base where there is one; parameters are shared, not copied.
        """
        return self._sampled

    @property
    def penalty(self) -> Penalty:
        """The regularizer of the energy; another may be set between two steps."""
        return self._energy_terms.penalty

    @penalty.setter
    def penalty(self, penalty: Penalty) -> None:
        self._energy_terms.penalty = penalty

    def energy_second_moment(self) -> Tensor:
        """Return the root mean square of the energy's gradients as Adam remembers it: a scalar on the device.

        One that has jumped by orders of magnitude says that a single batch has knocked the energy out. Zero before the
        first step, or where the optimizer keeps no second moment.
        """
        moments = [
            entry["exp_avg_sq"] for entry in self.energy_optimizer.state.values() if entry.get("exp_avg_sq") is not None
        ]
        if not moments:
            return torch.zeros((), device=self.gebm.log_partition.device)
        return (torch.stack([moment.sum() for moment in moments]).sum() / sum(m.numel() for m in moments)).sqrt()

    def energy_state(self) -> dict[str, Any]:
        """Return a copy of all that energy steps change, for :meth:`load_energy_state`."""
        return {
            "energy": {name: tensor.clone() for name, tensor in self.gebm.energy.state_dict().items()},
            "log_partition": self.gebm.log_partition.detach().clone(),
            "optimizer": copy.deepcopy(self.energy_optimizer.state_dict()),
            "energy_step": self.energy_step,
            "chains": None if self.chains is None else self.chains.clone(),
        }

    def load_energy_state(self, state: dict[str, Any]) -> None:
        """Restore the energy, ``c``, their optimizer and chains.

        Args:
            state: Result of :meth:`energy_state`.
        """
        self.gebm.energy.load_state_dict(state["energy"])
        with torch.no_grad():
            self.gebm.log_partition.copy_(state["log_partition"])
        self.energy_optimizer.load_state_dict(copy.deepcopy(state["optimizer"]))
        self.energy_step = state["energy_step"]
        self.chains = state["chains"]

    def scale_learning_rates(self, energy: float, base: float) -> None:
        """Multiply the learning rates, including those that the schedule starts from.

        Args:
            energy: Factor of the energy's learning rate; the paper's, when a model stops improving, is 0.8.
            base: Factor of the base's learning rate.
        """
        factors = {"energy_optimizer": energy, "base_optimizer": base}
        for part, optimizer in self._optimizers().items():
            for group in optimizer.param_groups:
                group["peak_lr"] *= factors[part]
        self._schedule_learning_rates()

    def state_dict(self) -> dict[str, dict[str, Any]]:
        """Return what a resumed run needs in addition to ``gebm.state_dict()`` and the generator's state.

        Returns:
            Two flat dictionaries: ``"tensors"``, by name, and ``"values"``, which JSON can hold.
        """
        tensors: dict[str, Tensor] = {}
        values: dict[str, Any] = {"base_step": self.base_step, "energy_step": self.energy_step}
        for part, optimizer in self._optimizers().items():
            state = optimizer.state_dict()
            values[f"{part}.learning_rates"] = [group["peak_lr"] for group in state["param_groups"]]
            for index, entries in state["state"].items():
                for name, entry in entries.items():
                    tensors[f"{part}.{index}.{name}"] = entry
        if self.average is not None:
            tensors |= {f"average.{name}": tensor for name, tensor in self.average.state_dict().items()}
        if self.chains is not None:
            tensors["chains"] = self.chains
            values["chains"] = type(self.negatives).__name__
        return {"tensors": tensors, "values": values}

    def load_state_dict(self, state: dict[str, dict[str, Any]]) -> None:
        """Resume from the state of another trainer with the same settings.

        Args:
            state: Result of :meth:`state_dict`.

        Raises:
            ValueError: If one of the two trainers averages the base and the other does not.
        """
        tensors, values = state["tensors"], state["values"]
        average = {name.removeprefix("average."): t for name, t in tensors.items() if name.startswith("average.")}
        if (self.average is None) != (not average):
            raise ValueError("only one of checkpoint and settings has an average of the base: set ema_decay as it was")
        if self.average is not None:
            self.average.load_state_dict(average)
        for part, optimizer in self._optimizers().items():
            entries: dict[int, dict[str, Tensor]] = {}
            for key, tensor in tensors.items():
                if key.startswith(f"{part}."):
                    _, index, name = key.split(".")
                    entries.setdefault(int(index), {})[name] = self._laid_out(tensor.clone())
            groups = optimizer.state_dict()["param_groups"]
            for group, learning_rate in zip(groups, values[f"{part}.learning_rates"], strict=True):
                group["peak_lr"] = learning_rate
            optimizer.load_state_dict({"state": entries, "param_groups": groups})
        # Latents are not data: chains of negatives of another kind start afresh.
        kind = type(self.negatives).__name__
        ours = (
            "chains" in tensors and values.get("chains", kind) == kind and getattr(self.negatives, "persistent", False)
        )
        self.chains = tensors["chains"].to(self.gebm.log_partition.device, copy=True) if ours else None
        self.base_step = values["base_step"]
        # States written before penalties could be lazy have no such entry.
        self.energy_step = values.get("energy_step", 0)
        self._schedule_learning_rates()

    def _schedule_learning_rates(self) -> None:
        """Set the learning rates that the schedule has for the next base step."""
        for optimizer in self._optimizers().values():
            for group in optimizer.param_groups:
                group["lr"] = group["peak_lr"] * self.schedule(self.base_step)

    def _to_device(self, batch: Tensor) -> Tensor:
        return self._laid_out(batch.to(self.gebm.log_partition.device, non_blocking=True))

    def _laid_out(self, tensor: Tensor) -> Tensor:
        """Return a tensor of four dimensions, such as images, in the memory format of the model's weights."""
        return tensor.contiguous(memory_format=self._memory_format) if tensor.dim() == 4 else tensor

    def _step_energy(self, x_data: Tensor, source: GEBM, generator: torch.Generator) -> EnergyTerms:
        """Take an energy step: one ascent step of the KALE estimate, or of another objective, and its penalty."""
        num_negatives = self.latent_batch_size or len(x_data)
        x_base = self._draw_negatives(source, num_negatives, x_data, generator)
        rank, world_size = rank_and_world_size()
        n = min(len(x_data), num_negatives)
        position = self.penalty.draw(world_size * n, generator, self.energy_step)
        position = None if position is None else position[rank * n : (rank + 1) * n]
        self._sampled.energy.train()
        terms = self._energy_loss(x_data, x_base, None if position is None else position.to(x_data.device))
        self.energy_optimizer.zero_grad(set_to_none=True)
        terms.loss.backward()
        self.gradient_guard(self.gebm.energy.parameters(), self.gebm.log_partition)
        self.energy_optimizer.step()
        self.energy_step += 1
        return terms

    def _source(self) -> GEBM:
        """Return the model whose base the energy steps draw from, folded for speed."""
        half = self._precision == torch.bfloat16
        base = folded_base(self._sampled.base, torch.bfloat16 if half else None)
        return self._sampled if base is self._sampled.base else self._sampled.with_base(base)

    def _draw_negatives(self, source: GEBM, n: int, x_data: Tensor, generator: torch.Generator) -> Tensor:
        """Draw ``n`` negatives, and record where persistent chains have moved."""
        rank, world_size = rank_and_world_size()
        positions = None if self.chains is None else self.chains[rank * n : (rank + 1) * n]
        # Empty if fewer processes wrote this state than there are now.
        if positions is not None and len(positions) == 0:
            positions = None
        # Only the networks' own forward passes run in half precision: potentials turn autocast off.
        with (
            torch.no_grad(),
            torch.autocast(x_data.device.type, dtype=torch.bfloat16, enabled=self._precision == torch.bfloat16),
        ):
            draw = self.negatives.draw(source, n, generator, x_data, positions)
        if draw.positions is not None:
            moved = all_gather_rows(draw.positions)
            # A smaller batch moves some of the chains; the others wait where they are.
            waiting = moved[:0] if self.chains is None else self.chains[world_size * n :]
            self.chains = torch.cat([moved, waiting])
        return draw.x

    def _base_inputs(self, batches: Iterator[Tensor], x_data: Tensor | None, generator: torch.Generator) -> Tensor:
        """Return what the base learns from: the last batch of data, or latents, by default of the same number."""
        if self._learns_from_data:
            return self._to_device(next(batches)) if x_data is None else x_data
        n = self.latent_batch_size
        if n is None:
            n = len(self._to_device(next(batches)) if x_data is None else x_data)
        return draw_local_rows(n, lambda total: self.gebm.prior.sample(total, generator))

    def _step_base(self, inputs: Tensor) -> Tensor:
        """Take a base step: one descent step of ``-log mean exp(-E(B(z)))``, or of another objective's loss."""
        self.gebm.base.train()
        loss = self._base_loss(inputs)
        self.base_optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.base_optimizer.step()
        if self.average is not None and self.ema_decay is not None:
            # The window grows from ten steps on: the random initial weights must not stay in it.
            _blend(self.average, self.gebm.base, min(self.ema_decay, (1 + self.base_step) / (10 + self.base_step)))
        return loss.detach()

    def _optimizers(self) -> dict[str, Optimizer]:
        parts = {"energy_optimizer": self._energy_optimizer, "base_optimizer": self._base_optimizer}
        return {part: optimizer for part, optimizer in parts.items() if optimizer is not None}


@torch.no_grad()
def initialize_log_partition(gebm: GEBM, num_samples: int, generator: torch.Generator | None = None) -> None:
    """Set ``c`` by Monte Carlo over the base, before training or after it with an objective that does not train ``c``.

    Args:
        gebm: The model, changed in place.
        num_samples: Number of base samples.
        generator: Source of every random number.

    Example:
        >>> from gebm import StandardNormal
        >>> model = GEBM(nn.Identity(), nn.Linear(2, 1), StandardNormal(2))
        >>> _ = nn.init.zeros_(model.energy.network.weight), nn.init.ones_(model.energy.network.bias)
        >>> initialize_log_partition(model, 16)
        >>> model.log_partition.item()
        -1.0
    """
    estimate, _ = log_partition_monte_carlo(gebm, num_samples, generator)
    gebm.log_partition.copy_(estimate)


def _is_channels_last(tensor: Tensor) -> bool:
    return tensor.dim() == 4 and tensor.is_contiguous(memory_format=torch.channels_last) and not tensor.is_contiguous()


def _check_owner(optimizer: Optimizer | None, parameters: list[nn.Parameter], name: str) -> None:
    if optimizer is None:
        raise ValueError(f"no optimizer for {name}: give the one that owns its parameters")
    owned = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    if owned != {id(parameter) for parameter in parameters}:
        raise ValueError(f"an optimizer does not own exactly the parameters of {name}: build it from those")


@torch.no_grad()
def _blend(average: nn.Module, module: nn.Module, decay: float) -> None:
    """Move parameters and running statistics of the average towards the module's; counters are copied."""
    # state_dict's tensors share the modules' storage and come in the same order.
    for averaged, current in zip(average.state_dict().values(), module.state_dict().values(), strict=True):
        if averaged.is_floating_point():
            averaged.lerp_(current, 1 - decay)
        else:
            averaged.copy_(current)
