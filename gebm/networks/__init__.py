"""Base and energy networks, side by side, a file per family.

Image bases map latents (N, D) to images (N, C, H, W) in [-1, 1]; energies map images to (N, 1). The base is
batch-normalized, the energy spectrally normalized. For vectors (N, D) there are MLPs, and flows, whose base has a
density. Weights are drawn from torch's global random state: seed it first.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from gebm.networks import dcgan, double_backward, flows, layers, mlp, sngan

__all__ = ["NAMES", "VECTORS", "dcgan", "double_backward", "flows", "layers", "make", "mlp", "sngan"]

NAMES: dict[str, Callable[..., tuple[nn.Module, nn.Module]]] = {
    "dcgan": dcgan.make,
    "sngan_convnet": sngan.make_convnet,
    "sngan_resnet": sngan.make_resnet,
    "mlp": mlp.make,
    **flows.makers(),
}

VECTORS: tuple[str, ...] = ("mlp", *flows.FLOWS)
"""The families whose data are vectors."""


def make(
    name: str,
    *,
    resolution: int,
    channels: int,
    latent_dim: int,
    width: int | None = None,
    energy: str | None = None,
    offset: float = 0.0,
) -> tuple[nn.Module, nn.Module]:
    """Build a base and its energy by the family's name.

    Args:
        name: ``"dcgan"`` (resolutions 8 to 128), ``"sngan_convnet"``, ``"sngan_resnet"`` (32 to 128), or, for
            vectors, ``"mlp"`` and the flows ``"gaussian"``, ``"realnvp"``, ``"maf"``, ``"nsf"``: there ``channels``
            is the dimension and ``resolution`` means nothing.
        resolution: Height and width of the images in pixels, a power of two.
        channels: Color channels.
        latent_dim: Latent dimension ``D``; a flow's is the dimension of its data.
        width: Channels at the full resolution, or hidden units (default: the family's own).
        energy: Energy of a flow: by default one with a known log-partition, minus the log-density of a
            second such flow and relative to the base. ``"mlp"``, with a flow or an MLP as base: an MLP that is not
            spectrally normalized. The other families have one energy each.
        offset: Constant in a flow's energy, in nats: minus its true log-partition.

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
    settings = {} if width is None else {"width": width}
    if name in flows.FLOWS:
        settings |= {"energy": energy, "offset": offset}
    elif name == "mlp" and energy in (None, "mlp") and offset == 0:
        settings |= {"energy": energy}
    elif energy is not None or offset != 0:
        raise ValueError(f"energy={energy}, offset={offset}: {name} has an energy of its own; leave both out")
    return NAMES[name](resolution=resolution, channels=channels, latent_dim=latent_dim, **settings)
