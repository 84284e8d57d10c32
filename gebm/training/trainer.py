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
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from gebm import inputs
from gebm.classes import as_labeled_batch
from gebm.distributed import all_gather_rows, broadcast_module, draw_local_rows, rank_and_world_size
from gebm.folding import folded_base
from gebm.model import GEBM
from gebm.objectives import Objective
from gebm.objectives.losses import BaseLoss, EnergyLoss, EnergyTerms
from gebm.objectives.negatives import Negatives
from gebm.objectives.penalties import GradientPenalty, Penalty
from gebm.precision import arithmetic, as_precision
from gebm.replay.tape import draw_to
from gebm.training.alternation import Alternation, StepInfo
from gebm.training.gradient_guard import GradientGuard, NoGuard
from gebm.training.learning_rates import LearningRates
from gebm.training.moving_average import average_of, average_weight, update_average
from gebm.training.optimizer_state import load_optimizer_state, optimizer_state
from gebm.training.optimizers import Schedule
from gebm.training.replayed_training import ReplayedTraining
from gebm.training.trainer_arguments import as_decay, require_kinds, require_optimizers, require_parts_that_fit

__all__ = ["Trainer"]


class Trainer:
    """Algorithm 1 of Arbel, Zhou and Gretton (ICLR 2021): energy steps and base steps in turn.

    Args:
        gebm: The model, already on its device. Data are laid out as its weights are: after
            ``gebm.to(memory_format=torch.channels_last)`` convolutions are faster, on most hardware.
        objective: The pair of losses, from :mod:`gebm.objectives`.
        penalty: The regularizer of the energy, from :mod:`gebm.objectives.penalties` (default: the paper's gradient
            penalty).
        energy_optimizer: Owns the energy's trainable parameters and, where the objective trains it, the log-partition;
            may be left out if the objective trains no energy. Frozen parameters may be left out of it.
        base_optimizer: Owns the base's trainable parameters; may be left out if the base is not trained.
        alternation: Numbers of energy steps per base step.
        schedule: Decay of both learning rates (default: constant). Under a constant one a scheduler of torch's may
            move the optimizers' rates instead.
        ema_decay: Decay per base step of the moving average of the base, in (0, 1) (default: no average). See the
            top of this module for which base the energy is then trained against.
        latent_batch_size: Number of base samples that a step draws (default: that of the data batch).
        precision: A precision of :mod:`gebm.precision`, by name or as torch's type: float32, which is IEEE's on a GPU
            as well; tf32; or bfloat16 for autocast inside the networks.
        parallel: Wraps the two loss modules, for example in ``DistributedDataParallel``.
        train_base: Whether there are base steps. A base that is not trained stays in evaluation mode, and the
            alternation runs without it.
        negatives: Source of the energy's negatives, from :mod:`gebm.objectives.negatives` (default: the objective's
            own). Chains are for contrastive divergence alone.
        gradient_guard: Bound of the energy's gradients before its optimizer's step, from
            :mod:`gebm.training.gradient_guard` (default: none).
        cuda_graphs: Whether steps are recorded once and replayed: "auto", on a GPU where that is faster; "true",
            wherever a replay agrees with the plain step; "false". See :mod:`gebm.replay`.
        compiled: Whether recorded steps are compiled, likewise, which takes a minute or more for each kind of step;
            "true" prefers that to other replays. See :mod:`gebm.replay.compiled`.

    Attributes:
        replayed: The recordings of steps, and messages on them.

    Raises:
        TypeError: If an argument is of another kind.
        ValueError: If the optimizers do not own what they should, a setting is out of range, nothing is left to
            train, the networks do not fit each other, the objective needs a density that the base does not have, or
            it learns from samples of the base and is given chains.

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
        precision: str | torch.dtype = "float32",
        parallel: Callable[[nn.Module], nn.Module] = lambda module: module,
        train_base: bool = True,
        negatives: Negatives | None = None,
        gradient_guard: GradientGuard | None = None,
        cuda_graphs: str = "false",
        compiled: str = "false",
    ) -> None:
        alternation = Alternation() if alternation is None else alternation
        gradient_guard = NoGuard() if gradient_guard is None else gradient_guard
        penalty = GradientPenalty() if penalty is None else penalty
        schedule = Schedule() if schedule is None else schedule
        require_kinds(
            gebm=gebm,
            objective=objective,
            penalty=penalty,
            alternation=alternation,
            schedule=schedule,
            gradient_guard=gradient_guard,
        )
        negatives = objective.negatives if negatives is None else negatives
        require_kinds(negatives=negatives)
        self.precision = as_precision(precision)
        self.ema_decay = as_decay(ema_decay)
        self.latent_batch_size = (
            None if latent_batch_size is None else inputs.as_count("latent_batch_size", latent_batch_size)
        )
        require_parts_that_fit(gebm.base, objective, negatives, train_base)
        require_optimizers(gebm, objective, train_base, energy_optimizer, base_optimizer)
        self.gebm = gebm
        self.objective = objective
        self.alternation = alternation
        self.gradient_guard = gradient_guard
        self.negatives = negatives
        self.train_base = train_base
        self._energy_optimizer = energy_optimizer
        self._base_optimizer = base_optimizer
        # A base that learns from data alone may map no latents at all.
        samples = objective.trains_energy or not self._learns_from_data
        self._sample_shape = gebm.sample_shape() if samples else None
        self.base_step = 0
        self.energy_step = 0
        # Positions of persistent chains (W N, D), of all W processes in turn: each can then save the whole state.
        self.chains: Tensor | None = None
        last = any(_is_channels_last(parameter) for parameter in gebm.parameters())
        self._memory_format = torch.channels_last if last else torch.contiguous_format
        self.average = None if ema_decay is None else average_of(gebm.base)
        self._sampled = gebm if self.average is None else gebm.with_base(self.average)
        # The module itself, in addition to the one that data parallelism may wrap around it: it owns the penalty.
        self._energy_terms = EnergyLoss(self._sampled, objective, penalty, self._networks_dtype)
        self._energy_loss, self._base_loss = self._wrap_losses(parallel)
        if self.average is not None:
            self.average.load_state_dict(gebm.base.state_dict())
        self._rates = LearningRates(self._optimizers(), schedule)
        modules: dict[str, nn.Module] = {"model": gebm} | ({} if self.average is None else {"average": self.average})
        self.replayed = ReplayedTraining(
            cuda_graphs, compiled, self.precision, modules, self._optimizers(), self._fold_base, lambda: self.chains
        )

    def _wrap_losses(self, parallel: Callable[[nn.Module], nn.Module]) -> tuple[nn.Module, nn.Module]:
        """Return the losses of the energy and of the base, wrapped for data parallelism where they are trained.

        Data parallelism refuses a module that has nothing to learn. Such a module gets the first process's weights.
        """
        base_loss = BaseLoss(self.gebm, self.objective, self._networks_dtype)
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

    # A step differentiates, wherever it is called.
    @torch.inference_mode(False)
    @torch.enable_grad()
    def step(self, batches: Iterator[Any], generator: torch.Generator) -> StepInfo:
        """Take the energy steps that are due, then one base step.

        Args:
            batches: Yields data (N, ...), images in [-1, 1], or what :mod:`gebm.inputs` makes such data of; for a model
                with classes ``(images, labels)``. One batch is taken per energy step. A base that learns from data
                learns from the last of them; without energy steps, one batch is taken for the base step.
            generator: Source of every random number; best on the CPU, where a seed means the same numbers whatever
                device the model is on, and nothing is waited for. Of several processes, each has one in the same state,
                draws for all of them and keeps its own rows: the result does not depend on their number.

        Returns:
            Measurements, without waiting for the device.

        Raises:
            TypeError: If ``batches`` is no iterator, or yields no data.
            ValueError: If a batch is not of the base's shape, empty or not finite, or the iterator has ended.
        """
        inputs.require_generator(generator)
        self._rates.set(self.base_step)
        energy_steps = self.alternation.energy_steps_at(self.base_step) if self.objective.trains_energy else 0
        with arithmetic(self.precision):
            info, x_data = self._take_energy_steps(batches, generator, energy_steps)
            if self.train_base:
                base_loss = self._step_base(self._base_inputs(batches, x_data, generator))
                info = info._replace(base_loss=base_loss, num_nonfinite=info.num_nonfinite + ~base_loss.isfinite())
        self.base_step += 1
        return info

    @torch.inference_mode(False)
    @torch.enable_grad()
    def train_energy(
        self,
        batches: Iterator[Any],
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
            TypeError: As for :meth:`step`.
            ValueError: As for :meth:`step`; if the objective trains no energy, or a number is out of range.
        """
        if not self.objective.trains_energy:
            raise ValueError(f"{self.objective} trains no energy: choose another objective")
        num_steps = inputs.as_count("num_steps", num_steps, minimum=0)
        inputs.require_generator(generator)
        if learning_rate is not None and not learning_rate > 0:
            raise ValueError(f"the learning rate is {learning_rate}: choose a positive one")
        self._rates.override("energy_optimizer", learning_rate)
        try:
            with arithmetic(self.precision):
                return self._take_energy_steps(batches, generator, num_steps)[0]
        finally:
            self._rates.set(self.base_step)

    def _take_energy_steps(
        self, batches: Iterator[Any], generator: torch.Generator, num_steps: int
    ) -> tuple[StepInfo, Tensor | None]:
        """Take energy steps, and return their measurements and the last batch, if there was one."""
        device = self.gebm.log_partition.device
        missing = torch.full((), float("nan"), device=device)
        terms, largest, x_data = EnergyTerms(missing, missing, missing, missing), missing, None
        num_nonfinite = torch.zeros((), dtype=torch.int64, device=device)
        # Between two alternations tensors may have been replaced, by a state that was loaded.
        self.replayed.replays.refresh()
        # The base is fixed until its own step: it is folded once, and draws faster.
        source = self._source() if num_steps else self._sampled
        for index in range(num_steps):
            x_data = self._next_data(batches, f"{index} of the {num_steps} energy steps at base step {self.base_step}")
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

    @property
    def _networks_dtype(self) -> torch.dtype:
        """The type that networks compute in: in TF32 they are in float32 to all but a GPU's products."""
        return torch.bfloat16 if self.precision == "bfloat16" else torch.float32

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
        self.chains = None if state["chains"] is None else state["chains"].clone()

    def scale_learning_rates(self, energy: float, base: float) -> None:
        """Multiply the learning rates, including those that the schedule starts from.

        Args:
            energy: Factor of the energy's learning rate; the paper's, when a model stops improving, is 0.8.
            base: Factor of the base's learning rate.
        """
        self._rates.scale({"energy_optimizer": energy, "base_optimizer": base}, self.base_step)

    def state_dict(self) -> dict[str, dict[str, Any]]:
        """Return what a resumed run needs in addition to ``gebm.state_dict()`` and the generator's state.

        Returns:
            Two flat dictionaries: ``"tensors"``, by name, and ``"values"``, which JSON can hold.
        """
        tensors: dict[str, Tensor] = {}
        values: dict[str, Any] = {"base_step": self.base_step, "energy_step": self.energy_step}
        for part, optimizer in self._optimizers().items():
            values[f"{part}.learning_rates"] = self._rates.starts(part)
            tensors |= optimizer_state(optimizer, part)
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
            ValueError: If the state is another network's or no state, or only one of the two trainers averages the
                base.
        """
        if lacking := [key for key in ("tensors", "values") if key not in state]:
            raise ValueError(f"the state lacks {', '.join(lacking)}: give what state_dict returned")
        tensors, values = state["tensors"], state["values"]
        average = {name.removeprefix("average."): t for name, t in tensors.items() if name.startswith("average.")}
        if (self.average is None) != (not average):
            raise ValueError("only one of checkpoint and settings has an average of the base: set ema_decay as it was")
        for part, optimizer in self._optimizers().items():
            if f"{part}.learning_rates" not in values:
                raise ValueError(f"the state has nothing of {part}: give what a trainer of the same settings returned")
            load_optimizer_state(optimizer, tensors, part, self._laid_out)
            self._rates.load(part, values[f"{part}.learning_rates"], values["base_step"])
        if self.average is not None:
            self.average.load_state_dict(average)
        # Latents are not data: chains of negatives of another kind start afresh.
        kind = type(self.negatives).__name__
        ours = (
            "chains" in tensors and values.get("chains", kind) == kind and getattr(self.negatives, "persistent", False)
        )
        self.chains = tensors["chains"].to(self.gebm.log_partition.device, copy=True) if ours else None
        self.base_step = values["base_step"]
        # States written before penalties could be lazy have no such entry.
        self.energy_step = values.get("energy_step", 0)

    def _next_data(self, batches: Iterator[Any], before: str) -> Tensor:
        """Return the next batch as the networks take it."""
        dtype = inputs.network_dtype(self.gebm.energy) or inputs.network_dtype(self.gebm.base) or torch.float32
        batch, device = inputs.next_batch(batches, before), self.gebm.log_partition.device
        if num_classes := self.gebm.num_classes:
            shape = self._sample_shape or self.gebm.sample_shape()
            return self._laid_out(as_labeled_batch(batch, shape, num_classes, dtype, device))
        return self._laid_out(inputs.as_batch(batch, self._sample_shape, dtype, device))

    def _laid_out(self, tensor: Tensor) -> Tensor:
        """Return a tensor of four dimensions, such as images, in the memory format of the model's weights."""
        return tensor.contiguous(memory_format=self._memory_format) if tensor.dim() == 4 else tensor

    @property
    def _is_replayed(self) -> bool:
        return self.replayed.is_wanted_on(self.gebm.log_partition.device)

    def _step_energy(self, x_data: Tensor, source: GEBM, generator: torch.Generator) -> EnergyTerms:
        """Take an energy step: one ascent step of the KALE estimate, or of another objective, and its penalty."""
        if self._is_replayed:
            terms = self.replayed.energy_step(
                lambda x, random: self._update_energy(x, source, random),
                x_data,
                generator,
                penalty=self.penalty,
                energy_step=self.energy_step,
            )
            self._sampled.energy.train()
        else:
            terms = self._update_energy(x_data, source, generator)
        self.energy_step += 1
        return terms

    def _update_energy(self, x_data: Tensor, source: GEBM, generator: torch.Generator) -> EnergyTerms:
        """Take an energy step, a function of tensors, the generator, and whether a penalty is due."""
        num_negatives = self.latent_batch_size or len(x_data)
        x_base = self._draw_negatives(source, num_negatives, x_data, generator)
        position = self._draw_positions(min(len(x_data), num_negatives), generator, x_data.device)
        self._sampled.energy.train()
        terms = self._energy_loss(x_data, x_base, position)
        self.energy_optimizer.zero_grad(set_to_none=True)
        terms.loss.backward()
        self.gradient_guard(self.gebm.energy.parameters(), self.gebm.log_partition)
        self.energy_optimizer.step()
        return terms

    def _draw_positions(self, n: int, generator: torch.Generator, device: torch.device) -> Tensor | None:
        """Return the penalty's positions of this process's ``n`` points, or ``None`` if no penalty is due."""
        rank, world_size = rank_and_world_size()

        def draw(source: torch.Generator | None) -> Tensor:
            drawn = self.penalty.draw(world_size * n, source, self.energy_step)
            return torch.empty(0) if drawn is None else drawn[rank * n : (rank + 1) * n]

        positions = draw_to(device, generator, draw)
        return positions if len(positions) else None

    def _fold_base(self) -> nn.Module:
        """Return the base that is sampled, folded for speed."""
        half = self._networks_dtype == torch.bfloat16
        return folded_base(self._sampled.base, torch.bfloat16 if half else None)

    def _source(self) -> GEBM:
        """Return the model whose base the energy steps draw from."""
        base = self.replayed.source() if self._is_replayed else self._fold_base()
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
            torch.autocast(x_data.device.type, dtype=torch.bfloat16, enabled=self._networks_dtype == torch.bfloat16),
        ):
            draw = self.negatives.draw(source, n, generator, x_data, positions)
        if draw.positions is not None:
            moved = all_gather_rows(draw.positions)
            # A smaller batch moves some of the chains; the others wait where they are.
            waiting = moved[:0] if self.chains is None else self.chains[world_size * n :]
            chains = torch.cat([moved, waiting])
            # In place, where a replay looks for them.
            if self.chains is not None and self.chains.shape == chains.shape:
                self.chains.copy_(chains)
            else:
                self.chains = chains
        # A base in an autocast region may end in half precision; penalties mix its samples with the data.
        return draw.x.to(x_data.dtype)

    def _base_inputs(self, batches: Iterator[Any], x_data: Tensor | None, generator: torch.Generator) -> Tensor:
        """Return what the base learns from: the last batch of data, or latents, by default of the same number."""
        n = self.latent_batch_size
        if x_data is None and (n is None or self._learns_from_data):
            x_data = self._next_data(batches, f"no energy step, before base step {self.base_step}")
        if self._learns_from_data:
            assert x_data is not None
            return x_data
        if n is None:
            assert x_data is not None
            n = len(x_data)
        return draw_local_rows(n, lambda total: self.gebm.sample_latents(total, generator))

    def _step_base(self, inputs: Tensor) -> Tensor:
        """Take a base step: one descent step of ``-log mean exp(-E(B(z)))``, or of another objective's loss."""
        weight = average_weight(self.base_step, self.ema_decay)
        if not self._is_replayed:
            return self._update_base(inputs, weight)
        loss = self.replayed.base_step(self._update_base, inputs, weight)
        self.gebm.base.train()
        return loss

    def _update_base(self, inputs: Tensor, weight: float | Tensor) -> Tensor:
        """Take a base step, and move the average of the base by a weight."""
        self.gebm.base.train()
        loss = self._base_loss(inputs)
        self.base_optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.base_optimizer.step()
        if self.average is not None:
            update_average(self.average, self.gebm.base, weight)
        return loss.detach()

    def _optimizers(self) -> dict[str, Optimizer]:
        parts = {"energy_optimizer": self._energy_optimizer, "base_optimizer": self._base_optimizer}
        return {part: optimizer for part, optimizer in parts.items() if optimizer is not None}


def _is_channels_last(tensor: Tensor) -> bool:
    return tensor.dim() == 4 and tensor.is_contiguous(memory_format=torch.channels_last) and not tensor.is_contiguous()
