"""Networks and other parts of an experiment, built without memory for weights, to see what refuses their settings."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from gebm import networks
from pipeline.config import part_settings
from pipeline.config.networks import network_arguments
from pipeline.config.part_checks import own_networks
from pipeline.config.schema import Config
from pipeline.runtime.errors import UserError, one_line
from pipeline.runtime.part_errors import refusing

__all__ = ["build_shapes", "check_networks", "try_to_build"]


def build_shapes(
    config: Config, settings: Mapping[str, Any] | None = None, num_classes: int | None = None
) -> tuple[nn.Module, nn.Module]:
    """Build base and energy for the shapes of their weights, the built-in ones on a device that allocates nothing.

    Args:
        config: ``model``, ``data.resolution`` and ``data.channels``.
        settings: Settings of the networks, which add to those of the config or replace them.
        num_classes: Number of classes of conditional networks (default: any).

    Raises:
        ValueError: There are no such networks.
        UserError: They are one's own and fail; the line names the plugin's file and line.
    """
    arguments = dict(part_settings.frozen(network_arguments(config) | dict(settings or {})))
    if networks.is_conditional(config.model.networks):
        # Which number it is says the store, which is not open yet.
        arguments["num_classes"] = num_classes or 2
    if (part := own_networks(config)) is None:
        return _build_networks(**arguments)
    # Of one's own it is not known whether they can be built there.
    with refusing(part, passing=(ValueError,)), torch.random.fork_rng(devices=[]):
        return networks.make(**arguments)


def check_networks(config: Config) -> None:
    """Refuse networks that cannot be built."""
    # Those of one's own are built, and applied, by `check_parts`.
    if own_networks(config) is None:
        try_to_build("model", lambda: build_shapes(config))


# A search validates the same networks at each end of each range.
@functools.cache
def _build_networks(name: str, **arguments: Any) -> tuple[nn.Module, nn.Module]:
    # A flow reads its masks while it is built, which the meta device cannot do; and it is small.
    with torch.device("cpu" if name in networks.flows.FLOWS else "meta"), _ShapesOnly():
        return networks.make(name, **arguments)


class _ShapesOnly(TorchFunctionMode):
    """Mode for the meta device, in which weights are neither drawn nor normalized, since they are shapes only.

    For both, torch would load its compiler on that device, which takes seconds.
    """

    _RESULTS: ClassVar = {
        Tensor.normal_: lambda tensor, *_, **__: tensor,
        # The steps of a spectral norm.
        functional.normalize: lambda tensor, *_, **__: tensor,
        torch.mv: lambda matrix, _: matrix[:, 0],
        torch.vdot: lambda vector, _: vector[0],
        Tensor.div: lambda tensor, _: tensor,
    }

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        if getattr(func, "__module__", None) == "torch.nn.init":
            return args[0] if args else kwargs["tensor"]
        return self._RESULTS.get(func, func)(*args, **(kwargs or {}))


def try_to_build(key: str, make: Callable[[], object]) -> None:
    """Build an object on a device that allocates nothing, and report what it refuses."""
    try:
        with torch.device("meta"):
            make()
    except ValueError as error:
        raise UserError(f"{key}: {error}") from None
    # Raised for sizes that no memory has.
    except (RuntimeError, OverflowError, TypeError, MemoryError) as error:
        raise UserError(f"{key}: these sizes are impossible ({one_line(error, limit=200)})") from None
