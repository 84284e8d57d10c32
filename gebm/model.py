"""The model: a base, an energy, and the log-partition function that ties them together."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from gebm import samplers
from gebm.classes import (
    ChainPotential,
    as_frequencies,
    as_labels,
    draw_labels,
    one_hot,
)
from gebm.energies import BoundedEnergy, Density, RelativeEnergy, log_density
from gebm.freezing import frozen
from gebm.inputs import (
    as_beta,
    as_count,
    cast_to,
    explained,
    one_per_sample,
    require_generator,
    require_methods,
    require_module,
    require_same_dimension,
)
from gebm.precision import arithmetic, unless_chosen
from gebm.priors import LatentPrior

__all__ = ["GEBM"]


class GEBM(nn.Module):
    """A generalized energy-based model ``Q(dx) = exp(-E(x)) B(dx) / Z`` (Arbel, Zhou and Gretton, ICLR 2021).

    Args:
        base: Maps latents (N, D) to samples (N, ...).
        energy: Maps samples (N, ...) to (N,) or (N, 1); wrapped in :class:`BoundedEnergy` unless it is one already.
            A :class:`RelativeEnergy` is made relative to this base.
        prior: Distribution of the latents: ``dim``, ``log_prob``, ``from_noise`` and ``sample``
            as :class:`StandardNormal` has them.
        energy_floor: The least energy (default: the paper's -10); but no floor under a :class:`RelativeEnergy`: it is
            far below -10 wherever the base has next to no mass, and would stop learning there.
        class_frequencies: Frequencies or counts (K,) of the classes of the data, for conditional networks, whose
            latents and samples carry their class (see :mod:`gebm.classes`). ``None`` (default) for a model without
            classes.

    Raises:
        TypeError: If base or energy is no module, or the prior lacks a method.
        ValueError: If base and prior both have a ``dim``, as a flow has, and not the same; if the floor is no number;
            if the frequencies are none.

    Attributes:
        base: The base network.
        energy: The bounded energy.
        prior: The latent prior.
        log_partition: The ``c`` of KALE's Fenchel form, a trained estimate of ``log Z``; a 0-dim parameter.
        class_frequencies: Frequencies of the classes (K,); ``None`` without classes.

    Example:
        >>> from gebm.priors import StandardNormal
        >>> model = GEBM(nn.Linear(2, 3), nn.Linear(3, 1), StandardNormal(2))
        >>> model.sample_base(4).shape
        torch.Size([4, 3])
        >>> model.potential(torch.zeros(4, 2)).shape
        torch.Size([4])
    """

    base: nn.Module
    energy: BoundedEnergy
    prior: LatentPrior
    log_partition: nn.Parameter
    class_frequencies: Tensor | None

    def __init__(
        self,
        base: nn.Module,
        energy: nn.Module,
        prior: LatentPrior,
        energy_floor: float | None = None,
        class_frequencies: Sequence[float] | Tensor | None = None,
    ) -> None:
        super().__init__()
        require_module("base", base)
        methods = ("dim", "log_prob", "from_noise", "sample")
        require_methods("prior", prior, methods, "gebm.StandardNormal(100)")
        require_same_dimension("base", base, "prior", prior)
        self.base = base
        if not isinstance(energy, BoundedEnergy):
            if energy_floor is None:
                energy_floor = -math.inf if isinstance(energy, RelativeEnergy) else -10.0
            energy = BoundedEnergy(energy, energy_floor)
        if isinstance(energy.network, RelativeEnergy) and energy.network.base is not base:
            energy = BoundedEnergy(energy.network.with_base(base), energy.floor).train(energy.training)
        self.energy = energy
        self.prior = prior
        self.log_partition = nn.Parameter(torch.zeros(()))
        frequencies = None if class_frequencies is None else as_frequencies(class_frequencies)
        # Those of the data, given by the caller; no weights.
        self.register_buffer("class_frequencies", frequencies, persistent=False)

    @property
    def num_classes(self) -> int:
        """Number of classes ``K``; zero without classes."""
        return 0 if self.class_frequencies is None else len(self.class_frequencies)

    @property
    def known_log_partition(self) -> Tensor | None:
        """The true ``log Z``, a scalar in nats, where it is known: if ``exp(-E) dB`` is a density times a constant.

        Example:
            >>> from gebm.priors import StandardNormal
            >>> from gebm import networks
            >>> base, energy = networks.make("gaussian", resolution=0, channels=2, latent_dim=2, offset=0.5)
            >>> GEBM(base, energy, StandardNormal(2)).known_log_partition
            tensor(-0.5000)
        """
        network = self.energy.network
        if not isinstance(network, RelativeEnergy) or self.energy.floor != -math.inf:
            return None
        return getattr(network.network, "known_log_partition", None)

    def with_base(self, base: nn.Module) -> GEBM:
        """Return the model with another base; energy, prior and log-partition are shared, not copied.

        A :class:`RelativeEnergy` becomes relative to the new base: the weights of its ``D`` are what is shared.

        Args:
            base: Maps latents (N, D) to samples (N, ...), such as a moving average of this model's base.

        Returns:
            The new model.

        Example:
            >>> from gebm.priors import StandardNormal
            >>> model = GEBM(nn.Linear(2, 3), nn.Linear(3, 1), StandardNormal(2))
            >>> model.with_base(nn.Linear(2, 3)).energy is model.energy
            True
        """
        other = GEBM(base, self.energy, self.prior)
        other.log_partition = self.log_partition
        # Checked where they came in; on a GPU the host would wait for a second check.
        other.class_frequencies = self.class_frequencies
        return other

    def decode(self, z: Tensor) -> Tensor:
        """Map latents to samples by the base, whose weights may be of another type than the latents.

        Args:
            z: Latents (N, D).

        Returns:
            Samples (N, ...), with the base's modes and gradients as they are.

        Raises:
            TypeError: If the base returns no tensor.
            ValueError: If it does not return one sample for each latent.

        Example:
            >>> from gebm.priors import StandardNormal
            >>> model = GEBM(nn.Linear(2, 3), nn.Linear(3, 1), StandardNormal(2)).double()
            >>> model.decode(torch.zeros(4, 2)).dtype
            torch.float64
        """
        x = self.base(cast_to(self.base, z))
        if not isinstance(x, Tensor):
            raise TypeError(f"the base returned {type(x).__name__}: make it return a tensor (N, ...)")
        if x.dim() < 2 or len(x) != len(z):
            raise ValueError(
                f"the base returned {tuple(x.shape)} for latents {tuple(z.shape)}: make it return ({len(z)}, ...)"
            )
        return x

    @torch.no_grad()
    def sample_shape(self) -> tuple[int, ...]:
        """Return the shape of one sample, from the way of one latent through both networks.

        Returns:
            What comes after N in the shape of samples.

        Raises:
            TypeError: If a network returns no tensor.
            ValueError: If base, energy and prior do not fit each other.

        Example:
            >>> from gebm.priors import StandardNormal
            >>> GEBM(nn.Linear(2, 3), nn.Linear(3, 1), StandardNormal(2)).sample_shape()
            (3,)
        """
        weight = next(self.base.parameters(), self.log_partition)
        z = torch.zeros(1, self.prior.dim, device=weight.device)
        # The global random state is what it was, should a network draw from it.
        devices = [weight.device] if weight.device.type == "cuda" else []
        with torch.random.fork_rng(devices), unless_chosen(), frozen(self.base, self.energy):
            z = self._with_classes(self.prior.from_noise(z), torch.zeros(1, dtype=torch.int64, device=z.device))
            x = explained(lambda: self.decode(z), f"the base takes no latents {tuple(z.shape)}")
            explained(lambda: self.energy(x), f"the energy takes no samples {tuple(x.shape)} of the base")
        return tuple(x.shape[1:])

    @contextmanager
    def _explaining_errors(self) -> Iterator[None]:
        """Raise a line that names the network, where torch's error says that shapes, types or devices do not fit."""
        try:
            yield
        except RuntimeError as error:
            if not isinstance(error, torch.OutOfMemoryError):
                self.sample_shape()
            raise

    def potential(self, z: Tensor, beta: float = 1.0) -> Tensor:
        """Return the potential of the latent posterior, ``U(z) = -log eta(z) + beta E(B(z))``.

        If ``z`` has density proportional to ``exp(-U)`` at ``beta = 1``, then ``B(z)`` is a sample of the model (Arbel,
        Zhou and Gretton, ICLR 2021, section 4, the posterior latent distribution). Both networks are in evaluation mode
        and their parameters outside the graph: the gradient with respect to ``z`` is the only one there is.

        Computed in float32 even inside an autocast region. Acceptance compares two potentials close to each other, and
        ``beta`` multiplies an energy's rounding error by up to a hundred; the eight bits of bfloat16 hold none of that.
        For chains without an accept step, :func:`gebm.folded` makes a model whose networks run in bfloat16.

        Args:
            z: Latents (N, D).
            beta: Inverse temperature; 1 is the model itself, larger is colder, and at 0 the energy is left out.

        Returns:
            Potentials (N,), in nats, float32 or wider.

        Raises:
            TypeError: If ``beta`` is no number.
            ValueError: If ``beta`` is negative or not finite.

        Example:
            >>> from gebm.priors import StandardNormal
            >>> model = GEBM(nn.Linear(2, 3), nn.Linear(3, 1), StandardNormal(2))
            >>> z = torch.zeros(4, 2, requires_grad=True)
            >>> (gradient,) = torch.autograd.grad(model.potential(z).sum(), z)
            >>> gradient.shape
            torch.Size([4, 2])
        """
        beta = as_beta(beta)
        with unless_chosen(), frozen(self.base, self.energy), torch.autocast(z.device.type, enabled=False):
            moving, _ = self.split_latents(z)
            # Zero times an infinite energy would be no number; zero times the latents keeps their graph.
            tempered = beta * self.energy(self.decode(z)) if beta else 0.0 * moving.sum(1)
            return tempered - self.prior.log_prob(moving.to(samplers.wide(z.dtype)))

    def sample_latents(
        self, n: int, generator: torch.Generator | None = None, labels: Sequence[int] | Tensor | int | None = None
    ) -> Tensor:
        """Draw latents of the prior, with their classes where the model has classes.

        Args:
            n: Number of latents.
            generator: Source of every random number.
            labels: Classes (n,), or one for all (default: drawn by the data's frequencies). The rest of the latents is
                the same whichever they are.

        Returns:
            Latents (n, D), or with their classes (n, D + K).

        Raises:
            TypeError: If labels are no whole numbers.
            ValueError: If labels are no classes, or the model has none.

        Example:
            >>> from gebm.priors import StandardNormal
            >>> GEBM(nn.Linear(2, 3), nn.Linear(3, 1), StandardNormal(2)).sample_latents(5).shape
            torch.Size([5, 2])
        """
        z = self.prior.sample(n, generator)
        if self.class_frequencies is None:
            if labels is not None:
                raise ValueError("the model has no classes: leave labels out")
            return z
        drawn = draw_labels(self.class_frequencies, n, generator, z.device)
        return self._with_classes(z, drawn if labels is None else as_labels(labels, n, self.num_classes).to(z.device))

    def _with_classes(self, z: Tensor, labels: Tensor) -> Tensor:
        """Return latents (N, D) with their classes, if the model has any."""
        return torch.cat([z, one_hot(labels, self.num_classes, z.dtype)], 1) if self.num_classes else z

    def split_latents(self, z: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return latents (N, D) without their classes, and the vectors of these (N, K), or ``None`` without classes."""
        if not self.num_classes:
            return z, None
        if z.shape[1] != self.prior.dim + self.num_classes:
            raise ValueError(
                f"latents are {tuple(z.shape)}: give them with their classes, as sample_latents draws them"
            )
        return z[:, : self.prior.dim], z[:, self.prior.dim :]

    @torch.no_grad()
    def sample_base(
        self,
        n: int,
        generator: torch.Generator | None = None,
        batch_size: int | None = None,
        labels: Sequence[int] | Tensor | int | None = None,
    ) -> Tensor:
        """Draw from the base alone, the energy left out.

        Args:
            n: Number of samples.
            generator: Source of every random number.
            batch_size: Number of samples that go through the base at once (default: all).
            labels: Classes, as of :meth:`sample_latents`.

        Returns:
            Samples (n, ...); with their classes, where the model has any (see :func:`gebm.classes.split_labels`).

        Raises:
            TypeError: If a number is none, or the base returns no tensor.
            ValueError: If a number is out of range, or base and prior do not fit each other.

        Example:
            >>> from gebm.priors import StandardNormal
            >>> GEBM(nn.Linear(2, 3), nn.Linear(3, 1), StandardNormal(2)).sample_base(5, batch_size=2).shape
            torch.Size([5, 3])
        """
        sizes = _sizes(n, batch_size)
        require_generator(generator)
        with unless_chosen(), frozen(self.base), self._explaining_errors():
            z_ND = self.sample_latents(sum(sizes), generator, labels)
            return torch.cat([self.decode(part) for part in z_ND.split(sizes)])

    def sample(
        self,
        n: int,
        kernel: samplers.Kernel,
        num_steps: int,
        beta: float = 1.0,
        generator: torch.Generator | None = None,
        batch_size: int | None = None,
        labels: Sequence[int] | Tensor | int | None = None,
    ) -> Tensor:
        """Draw from the model: one Markov chain per sample on latent space, started at the prior, then the base.

        Arbel, Zhou and Gretton, ICLR 2021, algorithms 2 and 3, according to the kernel. Each chain's start and noise
        are its own: but for rounding inside the networks, a sample is the same for any ``n`` and ``batch_size``. A
        chain that diverges is restarted at the prior.

        Where the model has classes, each chain keeps the one that it was drawn with. Samples are of the model given
        the class, and classes as in the data: under the model itself a class has the share ``frequency * Z_y / Z``,
        with ``Z_y`` the mean of ``exp(-E)`` over the base's samples of the class.

        Args:
            n: Number of samples.
            kernel: A kernel of :mod:`gebm.samplers`.
            num_steps: Steps of each chain.
            beta: Inverse temperature; 1 is the model itself, larger is colder.
            generator: Source of every random number.
            batch_size: Number of chains that run at once (default: all).
            labels: Classes, as of :meth:`sample_latents`.

        Returns:
            Samples (n, ...); with their classes, where the model has any (see :func:`gebm.classes.split_labels`).

        Raises:
            TypeError: If an argument is of another kind, or a network returns no tensor.
            ValueError: If a number is out of range, the parts do not fit each other, or no chain can start.

        Example:
            >>> from gebm.priors import StandardNormal
            >>> model = GEBM(nn.Linear(2, 3), nn.Linear(3, 1), StandardNormal(2))
            >>> model.sample(5, samplers.make("ula", step_size=0.01), num_steps=3, batch_size=2).shape
            torch.Size([5, 3])
        """
        sizes = _sizes(n, batch_size)
        require_generator(generator)
        beta = as_beta(beta)
        z0_ND = self.sample_latents(sum(sizes), generator, labels)
        seed = int(samplers.philox.draw_key(generator, "cpu"))
        samples, first = [], 0
        # Frozen here as well as in the potential, so that normalized weights are computed once and not at every step.
        with unless_chosen(), frozen(self.base, self.energy), self._explaining_errors():
            for size in sizes:
                potential = ChainPotential(self, z0_ND[first : first + size], beta)
                chain = samplers.run(
                    kernel,
                    potential,
                    potential.z,
                    num_steps,
                    # The same keys for every batch; the chains' numbers distinguish them.
                    generator=torch.Generator().manual_seed(seed),
                    prior=self.prior,
                    first_chain=first,
                )
                with torch.no_grad():
                    samples.append(self.decode(potential.join(chain.z)))
                first += size
        return torch.cat(samples)

    def data_potential(self, x: Tensor) -> Tensor:
        """Return the potential of the model in data space, ``E(x) - log b(x)``, where the base has a density ``b``.

        Minus the log-density up to the log-partition: what a chain that walks on the data themselves needs. Under a
        :class:`RelativeEnergy` without a floor it is ``D(x)``, and is computed as such, not as a difference. Modes,
        precision and gradients as for :meth:`potential`.

        Args:
            x: Samples (N, ...).

        Returns:
            Potentials (N,), in nats, float32 or wider.

        Raises:
            ValueError: If the base has no ``log_prob``.

        Example:
            >>> from gebm.priors import StandardNormal
            >>> from gebm import networks
            >>> base, energy = networks.make("gaussian", resolution=0, channels=2, latent_dim=2)
            >>> GEBM(base, energy, StandardNormal(2)).data_potential(torch.zeros(3, 2)).shape
            torch.Size([3])
        """
        base = self.base
        if not isinstance(base, Density):
            raise ValueError("this base has no density: use a base with log_prob, such as a normalizing flow")
        with unless_chosen(), frozen(base, self.energy), torch.autocast(x.device.type, enabled=False):
            network = self.energy.network
            if isinstance(network, RelativeEnergy) and self.energy.floor == -math.inf:
                potential = one_per_sample(network.network(cast_to(network.network, x)), len(x), "the energy network")
                return potential.to(samplers.wide(potential.dtype))
            return self.energy(x) - log_density(base, x)

    @arithmetic("float32")
    def log_prob(self, x: Tensor, log_partition: Tensor | float | None = None) -> Tensor:
        """Return the model's log-density, ``log b(x) - E(x) - A``, where the base has a density ``b``.

        As good as the log-partition is. The trained ``c`` is what KALE's Fenchel form gives, and under a gradient guard
        it is too low (:mod:`gebm.training.gradient_guard`); other objectives leave it untrained. Then call
        :func:`gebm.initialize_log_partition` first, or give an estimate of :mod:`gebm.log_partition`. Gradients as for
        :meth:`potential`.

        Args:
            x: Samples (N, ...).
            log_partition: ``A``, a scalar in nats (default: the trained ``c``).

        Returns:
            Log-densities (N,), in nats.

        Raises:
            ValueError: If the base has no ``log_prob``.

        Example:
            >>> from gebm.priors import StandardNormal
            >>> from gebm import networks
            >>> base, energy = networks.make("gaussian", resolution=0, channels=2, latent_dim=2, offset=0.5)
            >>> model = GEBM(base, energy, StandardNormal(2))
            >>> round(model.log_prob(torch.zeros(1, 2), log_partition=-0.5).item() + math.log(2 * math.pi), 4)
            0.0
        """
        log_partition = self.log_partition.detach() if log_partition is None else log_partition
        return -self.data_potential(x) - log_partition


def _sizes(n: int, batch_size: int | None) -> list[int]:
    """Return the sizes of the batches that make up ``n``: as few as can be, and as equal."""
    n = as_count("n", n)
    count = 1 if batch_size is None else math.ceil(n / as_count("batch_size", batch_size))
    return [n // count + (index < n % count) for index in range(count)]
