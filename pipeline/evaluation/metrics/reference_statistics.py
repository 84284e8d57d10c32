"""Reference statistics of a store in an extractor's features, computed once and cached with the store."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from pipeline.data import Store
from pipeline.evaluation.metrics.extractors import Extractor
from pipeline.evaluation.metrics.saved_tensors import SavedTensors
from pipeline.evaluation.metrics.subsets import draw_subset, iter_subset
from pipeline.runtime.errors import UserError

__all__ = ["MAX_FEATURES", "SEED", "Reference", "has_reference", "reference"]

# KID and precision/recall compare features themselves; ten thousand are what they are usually computed with.
MAX_FEATURES = 10_000
# Of the subset, and of the rows whose features are saved.
SEED = 0


@dataclass(frozen=True)
class Reference:
    """Statistics of data that samples are compared to.

    Attributes:
        label: The extractor's full name.
        num_samples: Number of images behind ``mu`` and ``sigma``.
        mu: (F,) float64, mean embedding.
        sigma: (F, F) float64, covariance with divisor N - 1.
        features: (M, F) float32, a uniform subset of the embeddings, M at most 10,000.
    """

    label: str
    num_samples: int
    mu: Tensor
    sigma: Tensor
    features: Tensor

    @classmethod
    def of_features(cls, label: str, features: Tensor) -> Self:
        """Return the statistics of a set whose features are all there.

        Args:
            label: The extractor's full name.
            features: (N, F) float32.
        """
        rows = features.double()
        return cls(label, len(rows), rows.mean(dim=0), rows.T.cov().reshape(rows.shape[1], -1), features)

    def on(self, device: torch.device) -> Self:
        """Return the same with ``mu`` and ``sigma`` on a device, where distances to it are computed; copied once.

        Args:
            device: The device.
        """
        if self.mu.device == device:
            return self
        if device not in self._copies:
            self._copies[device] = dataclasses.replace(self, mu=self.mu.to(device), sigma=self.sigma.to(device))
        return self._copies[device]

    @functools.cached_property
    def _copies(self) -> dict[torch.device, Self]:
        return {}

    @functools.cached_property
    def sigma_root(self) -> Tensor:
        """(F, F) float64, the symmetric square root of ``sigma``; computed once."""
        variances, axes = torch.linalg.eigh(self.sigma)
        return (axes * variances.clamp(min=0.0).sqrt()) @ axes.T


class _Moments:
    """Mean and covariance of a stream, merged batch by batch (Chan, Golub and LeVeque, 1979).

    Sums of squares would lose the covariance of features whose mean is large; merged central moments do not.
    """

    def __init__(self) -> None:
        self.count = 0
        self.mean = self.scatter = torch.zeros(())

    def add(self, batch: Tensor) -> None:
        batch = batch.double()
        mean = batch.mean(dim=0)
        centered = batch - mean
        scatter, count = centered.T @ centered, len(batch)
        if self.count == 0:
            self.mean, self.scatter, self.count = mean, scatter, count
            return
        total = self.count + count
        delta = mean - self.mean
        self.scatter = self.scatter + scatter + torch.outer(delta, delta) * (self.count * count / total)
        self.mean = self.mean + delta * (count / total)
        self.count = total

    def covariance(self) -> Tensor:
        return self.scatter / (self.count - 1)


def reference(
    store: Store,
    extractor: Extractor,
    num_samples: int | None = None,
    *,
    progress: Callable[[int, int], None] | None = None,
) -> Reference:
    """Return the statistics of a store: read from ``<store>/statistics/``, or computed in one pass and saved there.

    The store is streamed, so memory does not grow with it. A cached file counts only if it names the same data,
    extractor weights and number of samples; one that is damaged is computed again, with a warning.

    Args:
        store: The store.
        extractor: From :func:`pipeline.evaluation.metrics.make_extractor`.
        num_samples: How many samples, a seeded uniform subset; by default all.
        progress: Called with (samples done, samples in all).

    Returns:
        The statistics.

    Raises:
        UserError: Fewer than two samples, or more than the store has.
    """
    count = store.manifest.num_samples if num_samples is None else num_samples
    if count < 2:
        raise UserError(f"statistics need 2 samples, {count} were requested: raise `evaluation.num_samples`")
    saved = _saved_statistics(store, extractor.label, count)
    key = {
        "extractor": extractor.label,
        "weights": extractor.digest,
        "data": store.manifest.digest,
        "num_samples": count,
        "num_features": min(count, MAX_FEATURES),
    }
    tensors = saved.read(key, lambda tensors: _are_valid(tensors, min(count, MAX_FEATURES)))
    if tensors is not None:
        return Reference(extractor.label, count, *(tensors[name] for name in ("mu", "sigma", "features")))
    computed = _compute(store, extractor, count, progress)
    saved.write({"mu": computed.mu, "sigma": computed.sigma, "features": computed.features}, key)
    return computed


def has_reference(store: Store, label: str) -> bool:
    """Return whether statistics of all of a store are saved with it, unread.

    Args:
        store: The store.
        label: The extractor's label.
    """
    return _saved_statistics(store, label, store.manifest.num_samples).exists()


def _saved_statistics(store: Store, label: str, count: int) -> SavedTensors:
    return SavedTensors(store, f"{label}-{count}", "the statistics")


def _are_valid(tensors: dict[str, Tensor], num_features: int) -> bool:
    """Return whether the tensors are of the shapes and types of a :class:`Reference`, and finite."""
    mu, sigma, features = (tensors.get(name) for name in ("mu", "sigma", "features"))
    return (
        mu is not None
        and sigma is not None
        and features is not None
        and mu.dim() == 1
        and sigma.shape == (len(mu), len(mu))
        and features.shape == (num_features, len(mu))
        and mu.dtype == sigma.dtype == torch.float64
        and features.dtype == torch.float32
        and all(bool(tensor.isfinite().all()) for tensor in (mu, sigma, features))
    )


def _compute(store: Store, extractor: Extractor, count: int, progress: Callable[[int, int], None] | None) -> Reference:
    in_subset = draw_subset(count, MAX_FEATURES, SEED)
    moments, subset, done = _Moments(), [], 0
    for images, _ in iter_subset(store, count, seed=SEED, batch_size=extractor.batch_size):
        embedding = extractor(images)["embedding"]
        moments.add(embedding)
        subset.append(embedding.cpu()[in_subset[done : done + len(images)]])
        done += len(images)
        if progress is not None:
            progress(done, count)
    return Reference(extractor.label, count, moments.mean.cpu(), moments.covariance().cpu(), torch.cat(subset))
