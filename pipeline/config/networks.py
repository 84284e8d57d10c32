"""Networks of an experiment: what builds them, and whether its energy is named or comes as weights."""

from __future__ import annotations

from typing import Any

from pipeline.config.schema import Config
from pipeline.runtime.errors import UserError

__all__ = ["NO_DISCRIMINATOR", "check_shared_keys", "is_weights", "network_arguments"]

NO_DISCRIMINATOR = "none"
"""Value of ``model.energy`` for a generator that comes without a discriminator."""


def network_arguments(config: Config) -> dict[str, Any]:
    """Return the arguments of :func:`gebm.networks.make`.

    Args:
        config: ``model``, ``data.resolution`` and ``data.channels``.

    Example:
        >>> from pipeline.config import from_dict
        >>> config = from_dict({"name": "x", "data": {"store": "s", "source": {"kind": "digits"}},
        ...     "model": {"networks": "imported", "energy": "D.pth"}})
        >>> network_arguments(config)["energy"] is None
        True
    """
    model, data = config.model, config.data
    is_named = model.energy != NO_DISCRIMINATOR and not is_weights(model.energy)
    return {
        "name": model.networks,
        "resolution": data.resolution or 0,
        "channels": data.channels,
        "latent_dim": model.latent_dim,
        "width": model.width,
        # An energy of trained weights, or one that is to get some, is the family's own.
        "energy": model.energy if is_named else None,
        "offset": model.energy_offset,
        **model.settings,
    }


def check_shared_keys(config: Config) -> None:
    """Refuse a key of several families that the experiment's networks do not take: its file may have set it.

    Args:
        config: ``model``.

    Raises:
        UserError: The networks have no width, or an energy of their own.

    Example:
        >>> from pipeline.config import from_dict
        >>> check_shared_keys(from_dict({"name": "x", "data": {"store": "s", "source": {"kind": "digits"}},
        ...     "model": {"networks": "dcgan", "energy": "mlp"}}))
        Traceback (most recent call last):
        ...
        pipeline.runtime.errors.UserError: model.energy=mlp: model.networks=dcgan has an energy of its own; set \
model.energy=null
    """
    # Not imported above: the schema is read without torch.
    from gebm import networks

    model, arguments = config.model, network_arguments(config)
    taken = networks.NAMES.part(model.networks).parameters
    for name, key, lack, default in (
        ("width", "model.width", "no width", None),
        ("energy", "model.energy", "an energy of its own", None),
        ("offset", "model.energy_offset", "an energy of its own", 0.0),
    ):
        value = arguments[name]
        if name not in taken and value != default:
            shown = "null" if default is None else default
            raise UserError(f"{key}={value}: model.networks={model.networks} has {lack}; set {key}={shown}")


def is_weights(energy: str | None) -> bool:
    """Return whether a value of ``model.energy`` is a file, and not the name of networks.

    Example:
        >>> [is_weights(value) for value in (None, "mlp", "none", "D.pth", "nets/D", "s3://bucket/D.safetensors")]
        [False, False, False, True, True, True]
    """
    return energy is not None and any(mark in energy for mark in ("/", "\\", "."))
