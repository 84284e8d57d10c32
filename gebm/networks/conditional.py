"""Parts of conditional networks: latents and images with their classes, taken apart; layers that take a class.

A family writes its networks with two arguments, ``network(z, classes)`` and ``network(x, classes)``, where ``classes``
are the vectors (N, K) of :mod:`gebm.classes`. :class:`ConditionalBase` and :class:`ConditionalEnergy` make of them what
a model is built from.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

from gebm.classes import join_planes, split_planes
from gebm.networks.layers import BatchNorm2d

__all__ = [
    "ClassEmbedding",
    "ClassLayer",
    "ConditionalBase",
    "ConditionalBatchNorm2d",
    "ConditionalEnergy",
    "ConditionalSequential",
    "Projection",
    "normalized_embedding",
]


class ConditionalBase(nn.Module):
    """A base of latents with their classes, whose images have them too.

    Args:
        network: Maps latents (N, D) and classes (N, K) to images (N, C, H, W).
        latent_dim: ``D``.
        num_classes: ``K``.

    Example:
        >>> from gebm import networks
        >>> sizes = {"resolution": 8, "channels": 1, "latent_dim": 4, "num_classes": 3}
        >>> base, _ = networks.make("dcgan_conditional", width=2, **sizes)
        >>> base(torch.zeros(2, 7)).shape
        torch.Size([2, 2, 8, 8])
    """

    def __init__(self, network: nn.Module, latent_dim: int, num_classes: int) -> None:
        super().__init__()
        self.network = network
        self.latent_dim, self.num_classes = latent_dim, num_classes

    def extra_repr(self) -> str:
        """Return the settings that ``repr`` shows."""
        return f"latent_dim={self.latent_dim}, num_classes={self.num_classes}"

    def forward(self, z: Tensor) -> Tensor:
        """Map latents with their classes (N, D + K) to images with their classes (N, C + P, H, W).

        Raises:
            ValueError: If these are latents without classes, or with another number of classes.
        """
        if z.shape[1] != self.latent_dim + self.num_classes:
            raise ValueError(
                f"latents are {tuple(z.shape)}, and these networks take {self.latent_dim} coordinates and "
                f"{self.num_classes} classes: give the GEBM class_frequencies of {self.num_classes}"
            )
        classes = z[:, self.latent_dim :]
        return join_planes(self.network(z[:, : self.latent_dim], classes), classes)


class ConditionalEnergy(nn.Module):
    """An energy of images with their classes.

    Args:
        network: Maps images (N, C, H, W) and classes (N, K) to (N, 1).
        num_classes: ``K``.

    Example:
        >>> from gebm import networks
        >>> sizes = {"resolution": 8, "channels": 1, "latent_dim": 4, "num_classes": 3}
        >>> _, energy = networks.make("dcgan_conditional", width=2, **sizes)
        >>> energy(torch.zeros(2, 2, 8, 8)).shape
        torch.Size([2, 1])
    """

    def __init__(self, network: nn.Module, num_classes: int) -> None:
        super().__init__()
        self.network = network
        self.num_classes = num_classes

    def extra_repr(self) -> str:
        """Return the settings that ``repr`` shows."""
        return f"num_classes={self.num_classes}"

    def forward(self, x: Tensor) -> Tensor:
        """Map images with their classes (N, C + P, H, W) to (N, 1); the gradient in the classes is zero.

        Raises:
            ValueError: If these are images without classes.
        """
        return self.network(*split_planes(x, self.num_classes))


class ClassEmbedding(nn.Linear):
    """Linear map of the vectors of classes: the embedding of a class; between two classes, the interpolation of theirs.

    Args:
        num_classes: ``K``.
        features: Numbers ``F`` of an embedding.

    Example:
        >>> embedding = ClassEmbedding(3, 2)
        >>> torch.equal(embedding(torch.eye(3))[1], embedding.weight[:, 1])
        True
    """

    def __init__(self, num_classes: int, features: int) -> None:
        super().__init__(num_classes, features, bias=False)

    def reset_parameters(self) -> None:
        """Draw embeddings from ``N(0, 1)``."""
        nn.init.normal_(self.weight)

    def forward(self, input: Tensor) -> Tensor:
        """Map vectors of classes (N, K) to embeddings (N, F), in the precision of the weights even under autocast."""
        with torch.autocast(input.device.type, enabled=False):
            # Read once: a normalized weight is computed at each reading.
            weight = self.weight
            return F.linear(input.to(weight.dtype), weight)


class _UnitColumns(nn.Module):
    """Parametrization by which every column of a weight has the norm one."""

    def forward(self, weight: Tensor) -> Tensor:
        return F.normalize(weight, dim=0)


def normalized_embedding(num_classes: int, features: int) -> ClassEmbedding:
    """Return an embedding each of whose classes has the norm one.

    The inner product with the embedding of a class is a linear map to one number, whose spectral norm is the
    embedding's length. So each class is spectrally normalized by itself, and learns without moving the others; the
    matrix of all of them, which Miyato and Koyama normalize as one, would tie them to the largest.

    Args:
        num_classes: ``K``.
        features: Numbers ``F`` of an embedding.

    Example:
        >>> torch.allclose(normalized_embedding(3, 5)(torch.eye(3)).norm(dim=1), torch.ones(3))
        True
    """
    embedding = ClassEmbedding(num_classes, features)
    parametrize.register_parametrization(embedding, "weight", _UnitColumns())
    return embedding


class ClassLayer(nn.Module):
    """A layer that takes the classes (N, K) next to its input; :class:`ConditionalSequential` gives it both."""


class ConditionalBatchNorm2d(ClassLayer):
    """Batch normalization with scale and shift of the class (Dumoulin, Shlens and Kudlur 2017).

    Means and variances are those of all classes together.

    Args:
        width: Channels.
        num_classes: ``K``.
        eps: What is added to the variance.

    Example:
        >>> ConditionalBatchNorm2d(4, num_classes=3)(torch.randn(2, 4, 8, 8), torch.eye(3)[:2]).shape
        torch.Size([2, 4, 8, 8])
    """

    def __init__(self, width: int, num_classes: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.norm = BatchNorm2d(width, eps=eps, affine=False)
        self.scale = ClassEmbedding(num_classes, width)
        self.shift = ClassEmbedding(num_classes, width)
        nn.init.ones_(self.scale.weight)
        nn.init.zeros_(self.shift.weight)

    def forward(self, x: Tensor, classes: Tensor) -> Tensor:
        """Normalize images (N, C, H, W) of classes (N, K)."""
        scale, shift = self.scale(classes)[:, :, None, None], self.shift(classes)[:, :, None, None]
        normalized = self.norm(x)
        return torch.addcmul(shift.to(normalized.dtype), normalized, scale.to(normalized.dtype))


class ConditionalSequential(ClassLayer):
    """Layers one after another, of which those that take classes are given them.

    Args:
        **layers: The layers by their names, in their order.

    Example:
        >>> layers = ConditionalSequential(conv=nn.Conv2d(1, 4, 1), norm=ConditionalBatchNorm2d(4, num_classes=3))
        >>> layers(torch.zeros(2, 1, 8, 8), torch.eye(3)[:2]).shape
        torch.Size([2, 4, 8, 8])
    """

    def __init__(self, **layers: nn.Module) -> None:
        super().__init__()
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, x: Tensor, classes: Tensor) -> Tensor:
        """Map inputs (N, ...) and classes (N, K) to outputs (N, ...)."""
        for layer in self.children():
            x = layer(x, classes) if isinstance(layer, ClassLayer) else layer(x)
        return x


class Projection(ClassLayer):
    """The sum of a linear map of features and their inner product with the embedding of the class.

    Args:
        linear: Maps features (N, F) to (N, 1).
        embedding: Maps classes (N, K) to embeddings (N, F).

    Example:
        >>> Projection(nn.Linear(5, 1), ClassEmbedding(3, 5))(torch.zeros(2, 5), torch.eye(3)[:2]).shape
        torch.Size([2, 1])
    """

    def __init__(self, linear: nn.Module, embedding: nn.Module) -> None:
        super().__init__()
        self.linear, self.embedding = linear, embedding

    def forward(self, x: Tensor, classes: Tensor) -> Tensor:
        """Map features (N, F) and classes (N, K) to (N, 1)."""
        return self.linear(x) + (self.embedding(classes) * x).sum(1, keepdim=True)
