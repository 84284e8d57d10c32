"""Ranges by kernel in a search space: a step size is another quantity in each kernel, and has a range in each.

Where an experiment's space has::

    sampler.name: {choice: [ula, kla]}
    sampler.step_size: {ula: {log_uniform: [1.0e-4, 1.0e-2]}, kla: {log_uniform: [1.4e-2, 1.4e-1]}}

a trial has ``sampler.ula.step_size`` or ``sampler.kla.step_size``, that of its kernel, drawn from its own range. Each
setting of some kernels alone has the condition ``when: {sampler.name: kla}`` by itself, also where it is not written;
see :mod:`pipeline.sweep.conditions`. Ranges of kernels that no trial can have are left out.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

from gebm import samplers
from pipeline.config import Config, part_settings
from pipeline.config.compose import format_overrides
from pipeline.config.fields import keys
from pipeline.config.kernels import KERNEL_KEYS, kernel_group
from pipeline.runtime.errors import UserError

__all__ = ["by_kernel", "implied_conditions", "kernels_that_use", "used_params"]

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
            settings = ", ".join(f"sampler.{name}" for name in KERNEL_KEYS)
            raise UserError(f"sweep.space: {key} is the same for all kernels; {settings} can have a range for each")
        groups = {kernel_group(name): inner for name, inner in form.items() if name in kernels}
        forms |= {f"sampler.{group}.{setting}": inner for group, inner in groups.items()}
    _check_unhidden(config, forms)
    return forms


def implied_conditions(forms: Mapping[str, Any]) -> dict[str, dict[str, tuple[str, ...]]]:
    """Return the condition of each key that is a setting of some kernels alone: that the kernel is one of them.

    Args:
        forms: Key to its form, from :func:`by_kernel`.

    Example:
        >>> implied_conditions({"sampler.kla.step_size": {"uniform": [0.1, 0.2]}, "sampler.beta": {"choice": [1.0]}})
        {'sampler.kla.step_size': {'sampler.name': ('kla',)}}
    """
    form = forms.get(_NAME, {"choice": []})
    # Any other form is refused where forms are parsed.
    if not (isinstance(form, Mapping) and isinstance(form.get("choice"), list | tuple)):
        return {}
    users = {key: kernels_that_use(key) for key in forms}
    return {key: {_NAME: names} for key, names in users.items() if len(names) < len(samplers.NAMES)}


def kernels_that_use(key: str) -> tuple[str, ...]:
    """Return the kernels that use a key of the experiment: all of them, where it is no setting of some alone.

    Args:
        key: Dotted name.

    Example:
        >>> kernels_that_use("sampler.friction"), kernels_that_use("sampler.ula.decay")
        (('kla',), ('ula', 'ddls'))
        >>> kernels_that_use("sampler.beta") == kernels_that_use("train.base_lr") == tuple(samplers.NAMES)
        True
    """
    return _kernels_that_use(key, tuple(samplers.NAMES))


@functools.cache
def _kernels_that_use(key: str, names: tuple[str, ...]) -> tuple[str, ...]:
    setting, group = key.rpartition(".")[2], _group_of(key)
    if part_settings.group_of(key) == "sampler.settings":
        return tuple(name for name in names if part_settings.uses("sampler.settings", name, setting))
    if (
        setting not in KERNEL_KEYS
        or not key.startswith("sampler.")
        or key not in {known.name for known in keys(Config)}
    ):
        return names
    return tuple(name for name in names if _has(name, setting) and group in (None, kernel_group(name)))


def used_params(params: Mapping[str, Any], kernel: str) -> dict[str, Any]:
    """Return the parameters of a trial without settings of kernels that it does not use, as earlier versions had them.

    Args:
        params: Parameters of a trial.
        kernel: Its kernel, where its parameters do not have one.
    """
    name = params.get(_NAME, kernel)
    # A summary may be untrusted.
    if name not in tuple(samplers.NAMES):
        return dict(params)
    return {key: value for key, value in params.items() if name in kernels_that_use(key)}


def _has(kernel: str, setting: str) -> bool:
    """Return whether a kernel has a setting; tempering moves its levels by MALA, and a schedule is what decays."""
    own = samplers.NAMES.part("mala" if kernel == "tempering" else kernel).parameters
    return ("schedule" if setting.startswith("decay") else setting) in own


def _possible_kernels(config: Config) -> list[str]:
    form = config.sweep.space.get(_NAME)
    choices = form.get("choice") if isinstance(form, Mapping) else None
    return list(choices) if isinstance(choices, list | tuple) else [config.sampler.name]


def _group_of(key: str) -> str | None:
    """Return the kernel that a key is a setting of, or ``None``."""
    parts = key.split(".")
    is_own = len(parts) == 3 and parts[0] == "sampler" and parts[1] != "settings"
    return parts[1] if is_own else None


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
