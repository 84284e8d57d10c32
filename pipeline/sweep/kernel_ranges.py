"""Ranges by kernel in a search space: a step size is another quantity in each kernel, and has a range in each.

Where an experiment's space has::

    sampler.name: {choice: [ula, kla]}
    sampler.step_size: {ula: {log_uniform: [1.0e-4, 1.0e-2]}, kla: {log_uniform: [1.4e-2, 1.4e-1]}}

trials have ``sampler.ula.step_size`` and ``sampler.kla.step_size``, each drawn from its own range, and use that of
their kernel. Ranges of kernels that no trial can have are left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gebm import samplers
from pipeline.config import Config
from pipeline.config.compose import format_overrides
from pipeline.config.kernels import KERNEL_KEYS, kernel_group
from pipeline.runtime.errors import UserError

__all__ = ["by_kernel", "unused_keys"]

_NAME = "sampler.name"


def by_kernel(config: Config) -> dict[str, Any]:
    """Return the sweep's space with each form by kernel as the keys of those kernels.

    Args:
        config: The experiment, with its ``sweep.space``.

    Raises:
        UserError: A setting has no value by kernel, or one that is set for all kernels hides what the search draws.

    Example:
        >>> from pipeline.config import from_dict
        >>> form = {"ula": {"uniform": [0.1, 0.2]}, "kla": {"uniform": [1.0, 2.0]}}
        >>> config = from_dict({"name": "x", "data": {"store": "s", "source": {"kind": "digits"}},
        ...     "model": {"networks": "dcgan"}, "sweep": {"space": {"sampler.step_size": form}}})
        >>> by_kernel(config)
        {'sampler.ula.step_size': {'uniform': [0.1, 0.2]}}
    """
    space, forms = config.sweep.space, {}
    kernels = _possible_kernels(config)
    for key, form in space.items():
        if not (isinstance(form, Mapping) and form and all(name in samplers.NAMES for name in form)):
            forms[key] = form
            continue
        setting = key.removeprefix("sampler.")
        if setting not in KERNEL_KEYS:
            keys = ", ".join(f"sampler.{name}" for name in KERNEL_KEYS)
            raise UserError(f"sweep.space: {key} is the same for all kernels; {keys} can have a range for each")
        groups = {kernel_group(name): inner for name, inner in form.items() if name in kernels}
        forms |= {f"sampler.{group}.{setting}": inner for group, inner in groups.items()}
    _check_unhidden(config, forms)
    return forms


def unused_keys(params: Mapping[str, Any], kernel: str) -> list[str]:
    """Return which parameters of a trial are settings of kernels that it does not use.

    Args:
        params: Parameters of a trial.
        kernel: Its kernel, where its parameters do not have one.
    """
    used = kernel_group(params.get(_NAME, kernel))
    return [key for key in params if (group := _group_of(key)) is not None and group != used]


def _possible_kernels(config: Config) -> list[str]:
    form = config.sweep.space.get(_NAME)
    choices = form.get("choice") if isinstance(form, Mapping) else None
    return list(choices) if isinstance(choices, list | tuple) else [config.sampler.name]


def _group_of(key: str) -> str | None:
    """Return the kernel that a key is a setting of, or ``None``."""
    parts = key.split(".")
    return parts[1] if len(parts) == 3 and parts[0] == "sampler" else None


def _check_unhidden(config: Config, forms: Mapping[str, Any]) -> None:
    for key in forms:
        if _group_of(key) is None:
            continue
        setting = key.rpartition(".")[2]
        value = getattr(config.sampler, setting, None)
        if f"sampler.{setting}" in forms:
            raise UserError(f"sweep.space: sampler.{setting} is for all kernels and hides {key}: leave one of them out")
        if value is not None:
            [override] = format_overrides({f"sampler.{setting}": value})
            raise UserError(f"sweep.space: {override} is for all kernels and hides {key}: use sampler.{setting}=null")
