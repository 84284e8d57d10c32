"""Base and energy networks, side by side, a file per family.

Image bases map latents (N, D) to images (N, C, H, W) in [-1, 1]; energies map images to (N, 1). The base is
batch-normalized, the energy spectrally normalized. Those of conditional families carry the class of each sample in
both (:mod:`gebm.classes`). For vectors (N, D) there are MLPs, and flows, whose base has a
density. Weights are drawn from torch's global random state: seed it first.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from gebm.classes import MAX_CLASSES
from gebm.networks import (
    conditional,
    conditional_dcgan,
    conditional_sngan,
    conventions,
    dcgan,
    double_backward,
    flows,
    layers,
    mlp,
    published,
    sngan,
    sngan_arbel,
    weights,
)
from gebm.registry import Registry

__all__ = [
    "NAMES",
    "conditional",
    "conditional_dcgan",
    "conditional_sngan",
    "conventions",
    "dcgan",
    "double_backward",
    "energies_for",
    "flows",
    "is_conditional",
    "layers",
    "make",
    "mlp",
    "needs_weights",
    "published",
    "register",
    "sngan",
    "sngan_arbel",
    "weights",
]

# Conventions of this package's own networks.
_OURS: dict[str, Any] = {"latents": "normal", "pixels": (-1.0, 1.0), "discriminator": None}

NAMES: Registry[Callable[..., tuple[nn.Module, nn.Module]]] = Registry(
    "network",
    given=("resolution", "channels", "latent_dim", "width", "energy", "offset", "num_classes"),
    facts={
        "tasks": ("images",),
        "resolutions": (),
        **_OURS,
        "weights": weights.read_as_they_are,
        "needs_weights": False,
    },
)
"""The families by their names, each with its facts:

- ``tasks`` they are for, and the ``resolutions`` that they have, empty for any;
- ``latents`` that their bases take, if not standard normal ones: a name or a function of
  :mod:`gebm.networks.conventions`;
- ``pixels``, the interval of the images of both, if not [-1, 1], such as ``(0.0, 1.0)``;
- ``discriminator``, ``"logit"`` or ``"probability"``, if the second of the pair returns one and is no energy;
- ``weights``, the function that reads those of a trained pair (:data:`gebm.networks.weights.Reader`), if their names
  are not those of the modules;
- ``needs_weights``, if the family is for trained generators alone, whose energy may be that of another family.
"""

register = NAMES.register
"""Register a family: a function that returns its base and its energy."""

register("dcgan", resolutions=(8, 16, 32, 64, 128))(dcgan.make)
register("sngan_convnet", resolutions=(32, 64, 128))(sngan.make_convnet)
register("sngan_resnet", resolutions=(32, 64, 128))(sngan.make_resnet)
register("dcgan_conditional", resolutions=(8, 16, 32, 64, 128))(conditional_dcgan.make)
register("sngan_resnet_conditional", resolutions=(32, 64, 128))(conditional_sngan.make)
register("sngan_convnet_arbel", resolutions=(32, 64, 128))(sngan_arbel.make_convnet)
register("sngan_resnet_arbel", resolutions=(32, 64, 128))(sngan_arbel.make_resnet)
register("imported", resolutions=(32, 48, 64, 128, 256, 512), weights=published.read, needs_weights=True)(
    published.make
)
register(
    "imported_conditional", resolutions=(32, 64, 128, 256, 512), weights=published.read_conditional, needs_weights=True
)(published.make_conditional)
register("mlp", tasks=("points",))(mlp.make)
for _name, _make in flows.makers().items():
    # Their bases have a density.
    register(_name, tasks=("density", "points"))(_make)


def is_conditional(name: str) -> bool:
    """Return whether a family is one of classes, whose ``num_classes`` it is given.

    Example:
        >>> is_conditional("dcgan_conditional"), is_conditional("dcgan")
        (True, False)
    """
    return "num_classes" in NAMES.part(name).parameters


def needs_weights(name: str) -> bool:
    """Return whether a family is for trained generators alone.

    Example:
        >>> needs_weights("imported"), needs_weights("dcgan")
        (True, False)
    """
    return NAMES.part(name).facts["needs_weights"]


def energies_for(*, with_classes: bool) -> tuple[str, ...]:
    """Return the families of images whose energy a trained generator may be given.

    Args:
        with_classes: Whether the generator is class-conditional, as the energy then has to be.

    Example:
        >>> energies_for(with_classes=True)
        ('dcgan_conditional', 'sngan_resnet_conditional')
    """
    families = NAMES.having("tasks", "images")
    return tuple(name for name in families if not needs_weights(name) and is_conditional(name) == with_classes)


def make(
    name: str,
    *,
    resolution: int,
    channels: int,
    latent_dim: int,
    width: int | None = None,
    energy: str | None = None,
    offset: float = 0.0,
    num_classes: int | None = None,
    **settings: Any,
) -> tuple[nn.Module, nn.Module]:
    """Build a base and its energy by the family's name.

    Args:
        name: ``"dcgan"`` (resolutions 8 to 128), ``"sngan_convnet"``, ``"sngan_resnet"`` (32 to 128), the last two
            also with ``_arbel`` after the name, as the authors' code has them; with classes ``"dcgan_conditional"`` and
            ``"sngan_resnet_conditional"``; for the weights of published layouts ``"imported"`` and
            ``"imported_conditional"`` (32 to 512); or, for vectors, ``"mlp"`` and the flows ``"gaussian"``,
            ``"realnvp"``, ``"maf"``, ``"nsf"``: there ``channels`` is the dimension and ``resolution`` means nothing.
        resolution: Height and width of the images in pixels, a power of two.
        channels: Color channels.
        latent_dim: Latent dimension ``D``; a flow's is the dimension of its data.
        width: Channels at the full resolution, or hidden units (default: the family's own).
        energy: Energy of a flow: by default one with a known log-partition, minus the log-density of a
            second such flow and relative to the base. ``"mlp"``, with a flow or an MLP as base: an MLP that is not
            spectrally normalized. With ``"imported"`` and ``"imported_conditional"``, another family of images,
            whose energy is taken. The other families have one energy each.
        offset: Constant in a flow's energy, in nats: minus its true log-partition.
        num_classes: Number of classes of a conditional family, which needs it; others have none.
        **settings: Settings that the family has of its own.

    Returns:
        The base and the energy.

    Raises:
        ValueError: If there is no such family, or it has no such resolution, dimension or energy.
        ImportError: If a flow needs zuko and it is not installed.

    Example:
        >>> import torch
        >>> base, energy = make("dcgan", resolution=8, channels=1, latent_dim=16, width=32)
        >>> images = base(torch.zeros(2, 16))
        >>> images.shape, energy(images).shape
        (torch.Size([2, 1, 8, 8]), torch.Size([2, 1]))
        >>> base, energy = make("realnvp", resolution=0, channels=3, latent_dim=3)
        >>> base.log_prob(torch.zeros(2, 3)).shape, energy(torch.zeros(2, 3)).shape
        (torch.Size([2]), torch.Size([2]))
    """
    if name not in NAMES:
        raise ValueError(f"no networks are called '{name}': choose one of {', '.join(NAMES)}")
    if min(channels, latent_dim, 1 if width is None else width) < 1:
        raise ValueError(f"channels={channels}, latent_dim={latent_dim}, width={width}: each must be at least 1")
    part = NAMES.part(name)
    part.refuse_unknown(settings)
    if is_conditional(name) != (num_classes is not None):
        problem = "needs num_classes, of the data's" if num_classes is None else "has no classes; leave it out"
        raise ValueError(f"num_classes={num_classes}: {name} {problem}")
    if num_classes is not None and not 1 <= num_classes <= MAX_CLASSES:
        raise ValueError(f"num_classes={num_classes}: it has to be from 1 to {MAX_CLASSES:,}")
    given: dict[str, Any] = {"resolution": resolution, "channels": channels, "latent_dim": latent_dim}
    chosen = {"width": width, "energy": energy, "offset": offset or None}
    foreign = [key for key in chosen if key not in part.parameters and chosen[key] is not None]
    if {"energy", "offset"} & set(foreign):
        raise ValueError(f"energy={energy}, offset={offset}: {name} has an energy of its own; leave both out")
    if foreign:
        raise ValueError(f"width={width}: {name} has no width; leave it out")
    chosen["num_classes"] = num_classes
    made = part.build(settings, **given, **{key: value for key, value in chosen.items() if value is not None})
    given_as = {key: part.facts[key] for key in _OURS}
    if given_as == _OURS:
        return made
    if num_classes is not None:
        raise ValueError(f"{name}: networks of classes take standard normal latents, and return energies and [-1, 1]")
    return conventions.adapt(*made, **given_as)
