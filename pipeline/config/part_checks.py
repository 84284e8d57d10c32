"""Checks of parts that are not built in, before anything starts: shapes of networks, and the protocol of a sampler.

What this project's own parts do is known from its tests. Of another's, one batch of two and two steps of two chains say
whether hours of training would end in a traceback.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from gebm import StandardNormal, networks, samplers
from gebm.registry import Part
from pipeline.config import part_settings, plugins
from pipeline.config.kernels import kernel_settings
from pipeline.config.schema import Config
from pipeline.runtime.errors import UserError, one_line

__all__ = ["check_parts"]

_STEPS = 2
# The tensors of a network that is tried on the CPU, where it cannot be on a device without memory.
_MAX_PARAMETERS = 2**28


def check_parts(config: Config) -> None:
    """Refuse networks of the wrong shape, and a sampler that is none.

    Args:
        config: The experiment, of which :func:`pipeline.config.validation.validate_rules` holds.

    Raises:
        UserError: One is; the line names the plugin's file and line.
    """
    model, data = config.model, config.data
    if not (part := networks.NAMES.part(model.networks)).builtin:
        shape = (data.channels, data.resolution or 0, data.resolution or 0)[: 3 if config.task == "images" else 1]
        given = {"width": model.width, "energy": model.energy, "offset": model.energy_offset}
        _check_networks(part, shape, model.latent_dim, part_settings.frozen(given | model.settings))
    if not (part := samplers.NAMES.part(config.sampler.name)).builtin:
        used = kernel_settings(config.sampler)
        settings = {"step_size": used.step_size, "friction": used.friction, **used.settings}
        _check_sampler(part, model.latent_dim, part_settings.frozen(settings))


@functools.cache
def _check_networks(part: Part, shape: tuple[int, ...], latent_dim: int, settings: tuple[tuple[str, Any], ...]) -> None:
    resolution = shape[1] if len(shape) == 3 else 0
    resolutions = part.facts["resolutions"]
    if resolutions and len(shape) == 3 and resolution not in resolutions:
        raise UserError(f"data.resolution={resolution}: {part.name} has {', '.join(map(str, resolutions))}")

    def build() -> tuple[nn.Module, nn.Module]:
        return networks.make(
            part.name, resolution=resolution, channels=shape[0], latent_dim=latent_dim, **dict(settings)
        )

    with _refusing(part):
        try:
            with torch.device("meta"):
                sample, energy = _apply(build, latent_dim)
        # Not every operation can do without memory.
        except (NotImplementedError, RuntimeError, TypeError, ValueError):
            with torch.device("meta"):
                count = _count_parameters(build)
            if count > _MAX_PARAMETERS:
                raise
            with torch.random.fork_rng(devices=[]):
                sample, energy = _apply(build, latent_dim)
    for what, tensor, wanted in (("base", sample, (2, *shape)), ("energy", energy, (2, 1))):
        if not isinstance(tensor, Tensor) or tuple(tensor.shape) != wanted:
            got = tuple(tensor.shape) if isinstance(tensor, Tensor) else type(tensor).__name__
            of = f"latents (2, {latent_dim})" if what == "base" else f"samples {(2, *shape)}"
            raise _refusal(part, f"its {what} maps {of} to {got}, and has to map them to {wanted}")


def _apply(build: Callable[[], tuple[nn.Module, nn.Module]], latent_dim: int) -> tuple[Any, Any]:
    base, energy = (module.eval() for module in _checked_pair(build()))
    with torch.no_grad():
        sample = base(torch.zeros(2, latent_dim))
        return sample, energy(sample)


def _checked_pair(pair: Any) -> tuple[nn.Module, nn.Module]:
    if not (isinstance(pair, tuple) and len(pair) == 2 and all(isinstance(one, nn.Module) for one in pair)):
        raise ValueError(f"it returns {type(pair).__name__}, and has to return a base and an energy, two nn.Module")
    return pair


def _count_parameters(build: Callable[[], tuple[nn.Module, nn.Module]]) -> int:
    """Return the number of parameters; 0 where networks cannot be built on a device without memory."""
    try:
        return sum(parameter.numel() for module in _checked_pair(build()) for parameter in module.parameters())
    except (NotImplementedError, RuntimeError, TypeError, ValueError):
        return 0


@functools.cache
def _check_sampler(part: Part, latent_dim: int, settings: tuple[tuple[str, Any], ...]) -> None:
    prior = StandardNormal(latent_dim)
    z = prior.sample(2, torch.Generator().manual_seed(0))

    def chain(first: int, count: int) -> samplers.Chain[Any]:
        kernel = samplers.make(part.name, prior=prior, **dict(settings))
        generator = torch.Generator().manual_seed(1)
        start = z[first : first + count]
        return samplers.run(kernel, _half_square, start, _STEPS, generator=generator, prior=prior, first_chain=first)

    with _refusing(part), torch.device("cpu"), torch.random.fork_rng(devices=[]):
        both, again, second = chain(0, 2), chain(0, 2), chain(1, 1)
        state, infos = both.state, both.infos
        wanted = {
            "state.z": (state.z, (2, latent_dim)),
            "state.potential": (state.potential, (2,)),
            "state.chain": (state.chain, (2,)),
            "info.potential": (infos.potential, (_STEPS, 2)),
            "info.diverged": (infos.diverged, (_STEPS, 2)),
        }
        for name, (tensor, shape) in wanted.items():
            if tuple(tensor.shape) != shape:
                raise ValueError(f"{name} has the shape {tuple(tensor.shape)}, and has to have {shape}")
        if int(state.step) != _STEPS:
            raise ValueError(f"after {_STEPS} steps state.step is {int(state.step)}: add 1 in each")
        if state.chain.tolist() != [0, 1]:
            raise ValueError("state.chain is changed by a step: it has the numbers of the chains")
        if not isinstance(samplers.make(part.name, prior=prior, **dict(settings)).gradients_per_step, int):
            raise ValueError("gradients_per_step has to be a whole number")
        if not torch.equal(both.z, again.z):
            raise ValueError("the same generator gives two different chains: draw all noise from the one it is given")
        if not torch.allclose(both.z[1], second.z[0], rtol=1e-4, atol=1e-5):
            raise ValueError(
                "chain 1 is another one alone than next to chain 0: draw noise by gebm.samplers.philox, "
                "normal(draw_key(generator, z.device), state.chain, z.shape[1])"
            )


def _half_square(z: Tensor) -> Tensor:
    return z.square().sum(1) / 2


@contextlib.contextmanager
def _refusing(part: Part) -> Iterator[None]:
    """Have what a part raises in the block be a line that names its file."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        # A ValueError's message is a sentence; of another the type says more.
        text = one_line(error, limit=300)
        reason = text if isinstance(error, ValueError) else f"{type(error).__name__}: {text}"
        raise _refusal(part, reason, error) from None


def _refusal(part: Part, reason: str, error: BaseException | None = None) -> UserError:
    """Return the refusal of a part, with its file and its line: of the error, or else of its definition."""
    return UserError(f"{_line_of(part, error)}: {part.name}: {reason}")


def _line_of(part: Part, error: BaseException | None) -> str:
    make = part.make.func if isinstance(part.make, functools.partial) else part.make
    code = getattr(make, "__code__", None) or getattr(getattr(make, "step", None), "__code__", None)
    file = code.co_filename if code else plugins.where(part.module)
    line = code.co_firstlineno if code else None
    trace = error.__traceback__ if error else None
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == file:
            line = trace.tb_lineno
        trace = trace.tb_next
    return f"{file}:{line}" if line is not None else str(file)
