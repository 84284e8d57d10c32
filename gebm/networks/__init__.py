"""Base and energy networks, side by side, a file per family.

Image bases map latents (N, D) to images (N, C, H, W) in [-1, 1]; energies map images to (N, 1). The base is
batch-normalised, the energy spectrally normalised. Weights are drawn from torch's global random state: seed it first.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from gebm.networks import dcgan, mlp, sngan

__all__ = ["NAMES", "dcgan", "make", "mlp", "sngan"]

NAMES: dict[str, Callable[..., tuple[nn.Module, nn.Module]]] = {
    "dcgan": dcgan.make,
    "sngan_convnet": sngan.make_convnet,
    "sngan_resnet": sngan.make_resnet,
    "mlp": mlp.make,
}


def make(
    name: str, *, resolution: int, channels: int, latent_dim: int, width: int | None = None
) -> tuple[nn.Module, nn.Module]:
    """Build a base and its energy by the family's name.

    Args:
        name: ``"dcgan"`` (resolutions 8 to 128), ``"sngan_convnet"``, ``"sngan_resnet"`` (32 to 128), or ``"mlp"``,
            for vectors, where ``channels`` is the dimension and ``resolution`` means nothing.
        resolution: Height and width of the images in pixels, a power of two.
        channels: Colour channels.
        latent_dim: Latent dimension ``D``.
        width: Channels at the full resolution; the family's published width if none.

    Returns:
        The base and the energy.

    Raises:
        ValueError: If there is no such family, or it has no such resolution.

    Example:
        >>> import torch
        >>> base, energy = make("dcgan", resolution=8, channels=1, latent_dim=16, width=32)
        >>> images = base(torch.zeros(2, 16))
        >>> images.shape, energy(images).shape
        (torch.Size([2, 1, 8, 8]), torch.Size([2, 1]))
    """
    if name not in NAMES:
        raise ValueError(f"no networks are called '{name}': choose one of {', '.join(NAMES)}")
    if min(channels, latent_dim, 1 if width is None else width) < 1:
        raise ValueError(f"channels={channels}, latent_dim={latent_dim}, width={width}: each must be at least 1")
    sizes = {} if width is None else {"width": width}
    return NAMES[name](resolution=resolution, channels=channels, latent_dim=latent_dim, **sizes)
