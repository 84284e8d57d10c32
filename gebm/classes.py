"""Classes of a conditional model: how latents and samples carry them, how they are drawn, and chains that keep them.

A model of pairs ``(x, y)`` is a generalized energy-based model on the product of both spaces: its base draws a class by
the data's frequencies and then an image of that class, and its energy is one of the pair. So a class is part of the
tensor: latents have ``K`` more coordinates, images one more plane of pixels (more if ``K`` needs more), and either
holds the vector of the class, which has a one at its number and zeros elsewhere. Whatever splits, joins or reorders
samples keeps their classes, and a point on the segment between two samples is between their classes as well, which is
where a gradient penalty takes it.

Only chains move latents. Theirs are without the class, which :class:`ChainPotential` keeps. So they sample the model
given the class, with classes as in the data, where the pair's own model has another share of a class.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Hashable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F

from gebm import inputs
from gebm.samplers import philox

if TYPE_CHECKING:
    from gebm.model import GEBM

__all__ = [
    "MAX_CLASSES",
    "ChainPotential",
    "as_frequencies",
    "as_labeled_batch",
    "as_labels",
    "draw_labels",
    "join_planes",
    "label_images",
    "num_planes",
    "one_hot",
    "split_labels",
    "split_planes",
]

MAX_CLASSES = 10_000
"""Largest number of classes: each latent has a coordinate for each."""


def as_labels(labels: Any, n: int, num_classes: int) -> Tensor:
    """Return the classes of ``n`` samples, checked where that waits for no device.

    Args:
        labels: A class for all of them, or one for each.
        n: Number of samples.
        num_classes: ``K``.

    Returns:
        Classes (n,), int64.

    Raises:
        TypeError: If they are not whole numbers.
        ValueError: If they are not ``n``, or one is not a class.

    Example:
        >>> as_labels(2, 3, num_classes=4)
        tensor([2, 2, 2])
        >>> as_labels([0, -1], 2, num_classes=4)
        Traceback (most recent call last):
        ...
        ValueError: a label is -1: classes are 0 to 3; leave out samples without one
    """
    labels = torch.as_tensor(labels)
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise TypeError(f"labels are {labels.dtype}: give whole numbers, the classes")
    labels = labels.long().expand(n) if labels.dim() == 0 else labels.long()
    if labels.shape != (n,):
        raise ValueError(f"labels are {tuple(labels.shape)} for {n} samples: give one for each, ({n},)")
    if labels.device.type == "cpu" and (wrong := labels[(labels < 0) | (labels >= num_classes)]).numel():
        raise ValueError(
            f"a label is {int(wrong[0])}: classes are 0 to {num_classes - 1}; leave out samples without one"
        )
    return labels


def one_hot(labels: Tensor, num_classes: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return the vectors (N, K) of classes (N,)."""
    return (labels[:, None] == torch.arange(num_classes, device=labels.device)).to(dtype)


def as_frequencies(frequencies: Sequence[float] | Tensor) -> Tensor:
    """Return the frequencies of the classes (K,), float64, which add up to one.

    Args:
        frequencies: Frequencies or counts (K,).

    Raises:
        ValueError: If they are none, or too many, or negative, or all zero.

    Example:
        >>> as_frequencies([1, 3])
        tensor([0.2500, 0.7500], dtype=torch.float64)
    """
    counts = torch.as_tensor(frequencies, dtype=torch.float64).detach().clone()
    if counts.dim() != 1 or not 1 <= len(counts) <= MAX_CLASSES:
        raise ValueError(
            f"class_frequencies are {tuple(counts.shape)}: give one for each class, of {MAX_CLASSES:,} at most"
        )
    if counts.is_meta:
        return counts
    if not counts.isfinite().all() or counts.min() < 0 or counts.sum() == 0:
        raise ValueError("class_frequencies have to be finite, zero or more, and not all zero")
    return counts / counts.sum()


def draw_labels(frequencies: Tensor, n: int, generator: torch.Generator | None, device: torch.device) -> Tensor:
    """Draw classes by their frequencies.

    Args:
        frequencies: Of the classes (K,).
        n: Number of classes.
        generator: Source of every random number; one is taken from it, whatever ``n`` is.
        device: Device of the result.

    Returns:
        Classes (n,), int64. The first are the same for any ``n``.

    Example:
        >>> draw_labels(torch.tensor([0.0, 1.0, 0.0]), 3, None, torch.device("cpu"))
        tensor([1, 1, 1])
    """
    key = philox.draw_key(generator, device)
    numbers = philox.uniform(key, torch.arange(n, device=device), philox.CLASS).double()
    bounds = frequencies.to(device, torch.float64).cumsum(0)
    # Below the last bound, which rounding may have put below one.
    return torch.searchsorted(bounds, numbers * bounds[-1], right=True)


def num_planes(num_classes: int, shape: Sequence[int]) -> int:
    """Return the number of planes of pixels (H, W) that hold the vector of a class.

    Example:
        >>> num_planes(10, (8, 8)), num_planes(100, (8, 8))
        (1, 2)
    """
    return math.ceil(num_classes / math.prod(shape))


def join_planes(images: Tensor, classes: Tensor) -> Tensor:
    """Return images with their classes.

    Args:
        images: Images (N, C, H, W).
        classes: Vectors of the classes (N, K).

    Returns:
        (N, C + P, H, W), with the vectors in the first pixels of the last ``P`` planes.

    Example:
        >>> x = join_planes(torch.zeros(2, 3, 8, 8), torch.eye(10)[:2])
        >>> x.shape, x[1, 3, 0, :3]
        (torch.Size([2, 4, 8, 8]), tensor([0., 1., 0.]))
    """
    n, num_classes = classes.shape
    height, width = images.shape[2:]
    planes = num_planes(num_classes, (height, width))
    padded = F.pad(classes.to(images.dtype), (0, planes * height * width - num_classes))
    return torch.cat([images, padded.view(n, planes, height, width)], 1)


def split_planes(x: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
    """Return images and the vectors of their classes: the inverse of :func:`join_planes`.

    Args:
        x: Images with their classes (N, C + P, H, W).
        num_classes: ``K``.

    Returns:
        Images (N, C, H, W), and vectors (N, K), through which no gradient passes.

    Raises:
        ValueError: If these are images without classes.

    Example:
        >>> images, classes = split_planes(join_planes(torch.ones(2, 3, 8, 8), torch.eye(10)[:2]), 10)
        >>> images.shape, classes.argmax(1)
        (torch.Size([2, 3, 8, 8]), tensor([0, 1]))
    """
    planes = num_planes(num_classes, x.shape[2:]) if x.dim() == 4 else 0
    if x.dim() != 4 or x.shape[1] <= planes:
        raise ValueError(f"samples are {tuple(x.shape)}: give images with their classes, (N, C + {planes}, H, W)")
    images, held = x[:, :-planes], x[:, -planes:]
    return images, held.detach().flatten(1)[:, :num_classes]


def split_labels(x: Tensor, num_classes: int) -> tuple[Tensor, Tensor | None]:
    """Return samples without their classes, and the classes (N,), int64, or ``None`` of a model without classes.

    Args:
        x: Samples as a base makes them.
        num_classes: ``K``; zero without classes.

    Example:
        >>> x = label_images(torch.zeros(2, 1, 8, 8), [3, 1], num_classes=4)
        >>> split_labels(x, 4)[1]
        tensor([3, 1])
    """
    if not num_classes:
        return x, None
    images, classes = split_planes(x, num_classes)
    return images, classes.argmax(1)


def label_images(images: Tensor, labels: Any, num_classes: int) -> Tensor:
    """Return images with their classes, as a conditional model takes data and returns samples.

    Args:
        images: Images (N, C, H, W).
        labels: Classes (N,), or one for all.
        num_classes: ``K``.

    Returns:
        (N, C + P, H, W); see :func:`join_planes`.

    Raises:
        TypeError: If the labels are not whole numbers.
        ValueError: If they are not one for each image, or no classes.

    Example:
        >>> label_images(torch.zeros(2, 1, 8, 8), [3, 1], num_classes=4).shape
        torch.Size([2, 2, 8, 8])
    """
    labels = as_labels(labels, len(images), num_classes).to(images.device)
    return join_planes(images, one_hot(labels, num_classes, images.dtype))


def as_labeled_batch(
    batch: Any, shape: tuple[int, ...], num_classes: int, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """Return the images of a batch with their classes.

    Args:
        batch: ``(images, labels)``, a mapping with an entry of each, or images that have their classes already.
        shape: Shape of a sample with its class (C + P, H, W).
        num_classes: ``K``.
        dtype: The model's type.
        device: The model's device.

    Returns:
        Data (N, C + P, H, W), without a graph.

    Raises:
        TypeError: If there are no labels in it, or no images.
        ValueError: If labels are no classes, or images are empty, of another shape, or not finite.

    Example:
        >>> batch = torch.zeros(2, 1, 8, 8), torch.tensor([3, 1])
        >>> as_labeled_batch(batch, (2, 8, 8), 4, torch.float32, torch.device("cpu")).shape
        torch.Size([2, 2, 8, 8])
        >>> as_labeled_batch(batch[0], (2, 8, 8), 4, torch.float32, torch.device("cpu"))
        Traceback (most recent call last):
        ...
        TypeError: a batch has no labels: yield (images, labels), with a class from 0 to 3 for each image
    """
    if isinstance(batch, Tensor) and batch.shape[1:] == shape:
        return inputs.as_batch(batch, shape, dtype, device)
    labels = _labels_of(batch)
    if labels is None:
        raise TypeError(
            f"a batch has no labels: yield (images, labels), with a class from 0 to {num_classes - 1} for each image"
        )
    images = inputs.as_batch(batch, (shape[0] - num_planes(num_classes, shape[1:]), *shape[1:]), dtype, device)
    labels = as_labels(labels, len(images), num_classes).to(device, non_blocking=True)
    return join_planes(images, one_hot(labels, num_classes, dtype))


def _labels_of(batch: Any) -> Any:
    """Return the labels of a batch: the second entry, or of a mapping the only one of whole numbers, one a sample."""
    if isinstance(batch, Mapping):
        tensors = [torch.as_tensor(entry) for entry in batch.values() if hasattr(entry, "dtype")]
        found = [entry for entry in tensors if entry.dim() == 1 and not entry.is_floating_point()]
        return found[0] if len(found) == 1 else None
    return batch[1] if isinstance(batch, tuple | list) and len(batch) > 1 else None


class ChainPotential:
    """Potential of the latent posterior for chains that keep their classes.

    It maps latents without a class, (N, D), which is what a kernel moves. Row i is of the class of chain i, so that
    whatever evaluates other rows than those of all chains says of which chains they are, by :meth:`at`. Of an
    unconditional model it is the model's own potential.

    Args:
        model: The model.
        latents: Where the chains start, with their classes: (N, D) or (N, D + K), as
            :meth:`gebm.GEBM.sample_latents` draws them.
        beta: Inverse temperature.

    Attributes:
        z: Where the chains start (N, D).

    Example:
        >>> from torch import nn
        >>> from gebm import GEBM, StandardNormal, samplers
        >>> model = GEBM(nn.Linear(2, 3), nn.Linear(3, 1), StandardNormal(2))
        >>> potential = ChainPotential(model, model.sample_latents(4))
        >>> chain = samplers.run(samplers.MALA(0.1), potential, potential.z, 3)
        >>> potential.join(chain.z).shape
        torch.Size([4, 2])
    """

    def __init__(self, model: GEBM, latents: Tensor, beta: float = 1.0) -> None:
        self._model, self._beta = model, beta
        self.z, self._classes = model.split_latents(latents)

    @property
    def key(self) -> Hashable:
        """The model and the inverse temperature."""
        return self._model, self._beta

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """The classes' vectors (N, K), where there are classes."""
        return () if self._classes is None else (self._classes,)

    @property
    def differs(self) -> bool:
        """Whether there are classes."""
        return self._classes is not None

    def with_tensors(self, tensors: Sequence[Tensor]) -> ChainPotential:
        """Return the potential of the same number of chains, of other classes."""
        return self._of(tensors[0] if tensors else None)

    def __call__(self, z: Tensor) -> Tensor:
        """Map latents (N, D) of all chains to potentials (N,)."""
        return self._model.potential(self.join(z), self._beta)

    def join(self, z: Tensor) -> Tensor:
        """Return latents (N, D) of all chains with their classes."""
        return z if self._classes is None else torch.cat([z, self._classes.to(z.dtype)], 1)

    def at(self, rows: Tensor) -> ChainPotential:
        """Return the potential of latents (M, D) of the chains at ``rows`` (M,), which may repeat."""
        return self._of(None if self._classes is None else self._classes[rows])

    def independent(self, n: int) -> ChainPotential:
        """Return the potential of ``n`` latents of no chain, whose classes are in the data's proportions."""
        frequencies = self._model.class_frequencies
        if self._classes is None or frequencies is None:
            return self
        quantiles = (torch.arange(n, dtype=torch.float64, device=frequencies.device) + 0.5) / n
        labels = torch.searchsorted(frequencies.double().cumsum(0), quantiles).clamp(max=len(frequencies) - 1)
        return self._of(one_hot(labels, len(frequencies), self._classes.dtype).to(self._classes.device))

    def _of(self, classes: Tensor | None) -> ChainPotential:
        other = copy.copy(self)
        other._classes = classes
        return other
