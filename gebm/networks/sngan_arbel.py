"""SNGAN as the code that Arbel, Zhou and Gretton published with their paper (ICLR 2021) has it.

The layouts are those of :mod:`gebm.networks.sngan`. These classes say what differs:

- Weights are Glorot-uniform and biases torch's own, where ``sngan`` has the published N(0, 0.02^2) in the ConvNet, and
  zero. The ConvNet's energy keeps torch's own weights in its convolutions: the code draws Glorot's, but into the
  normalized copy of them, which the next forward pass computes anew.
- The last layer of the ConvNet's energy is not spectrally normalized, so the energy's slope has no bound. The ResNet's
  is.
- The ConvNet's base ends in a transposed convolution.
- The shortcut of the ResNet's base repeats pixels, and has no weights.
- An energy step runs the energy three times, on data, on base samples and between them, and each pass takes a step of
  the power iteration. Here there is one normalization an energy step, which takes the three.

The code has 32x32 only; 64 and 128 add stages as in ``sngan``.
"""

from __future__ import annotations

import math

from torch import nn
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import spectral_norm

from gebm.networks.double_backward import Conv2d
from gebm.networks.sngan import ConvNetBase, ConvNetEnergy, ResNetBase, ResNetEnergy, UpBlock

__all__ = [
    "ArbelConvNetBase",
    "ArbelConvNetEnergy",
    "ArbelResNetBase",
    "ArbelResNetEnergy",
    "make_convnet",
    "make_resnet",
]

# Passes of the energy in one energy step, each with a step of the power iteration.
_POWER_ITERATIONS = 3


class ArbelConvNetBase(ConvNetBase):
    """The ConvNet's base with Glorot-uniform weights, torch's own biases, and a transposed convolution at the end.

    Args:
        resolution: Pixels on a side: 32, 64 or 128.
        channels: Color channels.
        latent_dim: Latent dimension ``D``.
        width: Channels at the full resolution.

    Raises:
        ValueError: If there is no such resolution.

    Example:
        >>> import torch
        >>> ArbelConvNetBase(32, channels=3, latent_dim=8, width=4)(torch.zeros(2, 8)).shape
        torch.Size([2, 3, 32, 32])
    """

    def __init__(self, resolution: int, channels: int, latent_dim: int, width: int = 64) -> None:
        super().__init__(resolution, channels, latent_dim, width)
        self[-2] = nn.ConvTranspose2d(width, channels, 3, padding=1)
        for layer in self:
            if isinstance(layer, nn.Linear | nn.ConvTranspose2d):
                nn.init.xavier_uniform_(layer.weight)
                _draw_bias(layer)


class ArbelConvNetEnergy(ConvNetEnergy):
    """The ConvNet's energy with torch's own initial weights; the last layer is Glorot-uniform and not normalized.

    Args:
        resolution: Pixels on a side: 32, 64 or 128.
        channels: Color channels.
        width: Channels at the full resolution.

    Raises:
        ValueError: If there is no such resolution.

    Example:
        >>> from torch.nn.utils.parametrize import is_parametrized
        >>> energy = ArbelConvNetEnergy(32, channels=3, width=4)
        >>> is_parametrized(energy[0]), is_parametrized(energy[-1])
        (True, False)
    """

    def __init__(self, resolution: int, channels: int, width: int = 64) -> None:
        super().__init__(resolution, channels, width)
        for index, layer in enumerate(self):
            if isinstance(layer, Conv2d):
                shape = layer.in_channels, layer.out_channels, layer.kernel_size[0], layer.stride[0]
                self[index] = spectral_norm(Conv2d(*shape, padding=1), n_power_iterations=_POWER_ITERATIONS)
        normalized = self[-1]
        assert isinstance(normalized, nn.Linear)
        self[-1] = last = nn.Linear(normalized.in_features, 1)
        nn.init.xavier_uniform_(last.weight)


class ArbelResNetBase(ResNetBase):
    """The ResNet's base with torch's own biases, and shortcuts that repeat pixels.

    Args:
        resolution: Pixels on a side: 32, 64 or 128.
        channels: Color channels.
        latent_dim: Latent dimension ``D``.
        width: Channels of every block.

    Raises:
        ValueError: If there is no such resolution.

    Example:
        >>> import torch
        >>> ArbelResNetBase(32, channels=3, latent_dim=8, width=4)(torch.zeros(2, 8)).shape
        torch.Size([2, 3, 32, 32])
    """

    def __init__(self, resolution: int, channels: int, latent_dim: int, width: int = 128) -> None:
        super().__init__(resolution, channels, latent_dim, width)
        for block in self:
            if isinstance(block, UpBlock):
                block.shortcut = nn.Sequential(nn.Upsample(scale_factor=2))
        _draw_biases(self)


class ArbelResNetEnergy(ResNetEnergy):
    """The ResNet's energy with torch's own biases, and three power iterations an energy step.

    Args:
        resolution: Pixels on a side: 32, 64 or 128; each doubling adds a down-sampling block.
        channels: Color channels.
        width: Channels of every block.

    Raises:
        ValueError: If there is no such resolution.

    Example:
        >>> import torch
        >>> ArbelResNetEnergy(32, channels=3, width=4)(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 1])
    """

    def __init__(self, resolution: int, channels: int, width: int = 128) -> None:
        super().__init__(resolution, channels, width)
        _draw_biases(self)
        for layer in self.modules():
            if isinstance(layer, parametrize.ParametrizationList):
                # Torch declares a module's attributes as tensors and modules.
                setattr(layer[0], "n_power_iterations", _POWER_ITERATIONS)  # noqa: B010


def make_convnet(
    resolution: int, channels: int, latent_dim: int, width: int = 64
) -> tuple[ArbelConvNetBase, ArbelConvNetEnergy]:
    """Build the ConvNet's base and energy; see :func:`gebm.networks.make`."""
    return ArbelConvNetBase(resolution, channels, latent_dim, width), ArbelConvNetEnergy(resolution, channels, width)


def make_resnet(
    resolution: int, channels: int, latent_dim: int, width: int = 128
) -> tuple[ArbelResNetBase, ArbelResNetEnergy]:
    """Build the ResNet's base and energy; see :func:`gebm.networks.make`."""
    return ArbelResNetBase(resolution, channels, latent_dim, width), ArbelResNetEnergy(resolution, channels, width)


def _draw_biases(network: nn.Module) -> None:
    for layer in network.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d):
            _draw_bias(layer)


def _draw_bias(layer: nn.Linear | nn.Conv2d | nn.ConvTranspose2d) -> None:
    """Draw a bias as torch's layers do: uniform, up to the inverse root of what torch counts as a weight's inputs."""
    assert layer.bias is not None
    nn.init.uniform_(layer.bias, -(bound := 1 / math.sqrt(layer.weight[0].numel())), bound)
