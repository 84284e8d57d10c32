"""Settings of the chosen kernel: what is set for all kernels, else its own, else what corresponds to ULA's.

``sampler.step_size`` is another quantity in each kernel: of ULA and MALA a squared length, of KLA and HMC a time, of
random-walk Metropolis a length. An experiment therefore has settings by kernel, such as ``sampler.kla.step_size``, and
``sampler.name`` chooses among them; ``sampler.step_size`` itself, where it is set, wins over all of them.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from pipeline.config.part_settings import own_settings
from pipeline.config.schema import Config, Sampler

__all__ = ["KERNEL_KEYS", "as_used", "kernel_group", "kernel_settings", "used_settings"]

_DEFAULTS = {"step_size": 1e-4, "friction": 0.1, "decay": 1.0, "decay_every": 200}

KERNEL_KEYS = tuple(_DEFAULTS)
"""Settings that each kernel has of its own."""
# Kernels whose step is a time or a length. In one step ULA moves (2 h)^(1/2) far, and KLA h at unit velocity.
_LENGTHS = ("kla", "hmc", "rwm")


def kernel_group(name: str) -> str:
    """Return the group of a kernel's own settings.

    Args:
        name: Name of the kernel.

    Example:
        >>> kernel_group("kla"), kernel_group("ddls")
        ('kla', 'ula')
    """
    # Not imported above: the schema is read without torch.
    from gebm import samplers

    part = samplers.NAMES.part(name) if name in samplers.NAMES else None
    like = part.facts["like"] if part else None
    # The schema has a group for each kernel that is like no other; any other is like ULA.
    return like or (name if part is None or part.builtin else "ula")


def kernel_settings(sampler: Sampler) -> Sampler:
    """Return the sampler with each of :data:`KERNEL_KEYS` set to the value that its chains use.

    Args:
        sampler: Settings as the config has them, where ``None`` leaves a value to the kernel.

    Example:
        >>> from pipeline.config.schema import KineticKernel, LangevinKernel
        >>> ula, kla = LangevinKernel(step_size=5e-5, decay=0.1), KineticKernel(step_size=0.02, friction=100.0)
        >>> used = kernel_settings(Sampler(name="kla", ula=ula, kla=kla))
        >>> used.step_size, used.friction, round(used.decay, 4)
        (0.02, 100.0, 0.3162)
        >>> kernel_settings(Sampler(name="kla", step_size=1e-3, kla=kla)).step_size
        0.001
        >>> kernel_settings(Sampler(name="hmc", ula=ula)).step_size
        0.01
    """
    own = getattr(sampler, kernel_group(sampler.name))
    chosen = {}
    for key in KERNEL_KEYS:
        candidates = (getattr(sampler, key), getattr(own, key, None))
        value = next((candidate for candidate in candidates if candidate is not None), None)
        chosen[key] = _counterpart(sampler, key) if value is None else value
    return dataclasses.replace(sampler, **chosen)


def _counterpart(sampler: Sampler, key: str) -> Any:
    """Return the value of a setting that corresponds to ULA's, or else to MALA's, whose steps are of the same kind."""
    values = (getattr(group, key, None) for group in (sampler.ula, sampler.mala))
    value = next((value for value in values if value is not None), _DEFAULTS[key])
    if kernel_group(sampler.name) not in _LENGTHS:
        return value
    # A decay multiplies the square of a length.
    return {"step_size": math.sqrt(2 * value), "decay": math.sqrt(value)}.get(key, value)


def used_settings(sampler: Sampler) -> dict[str, Any]:
    """Return the settings that chains use, without those of other kernels, for a file of results."""
    settings = dataclasses.asdict(kernel_settings(sampler))
    own = own_settings("sampler.settings", sampler.name, sampler.settings)
    unused = () if sampler.warm_up_steps else ("warm_up_steps",)
    used = {key: value for key, value in settings.items() if not isinstance(value, dict) and key not in unused}
    return used | ({"settings": own} if own else {})


def as_used(config: Config) -> Config:
    """Return the config with the settings that chains use, for the tracker."""
    return dataclasses.replace(config, sampler=kernel_settings(config.sampler))
