"""FID of each class by itself: samples of a class against the images of that class."""

from __future__ import annotations

from torch import Tensor

from pipeline.config.scores import CLASS_FID, STANDARD_ERROR, at_end
from pipeline.evaluation.metrics.extractors import Extractor
from pipeline.evaluation.metrics.reference_statistics import Reference
from pipeline.evaluation.metrics.scores import score

__all__ = ["MAX_SCORED_CLASSES", "class_references", "score_classes"]

# With fewer there is no covariance.
_FEWEST = 2
MAX_SCORED_CLASSES = 100
"""Largest number of classes that have scores of their own."""


def class_references(reference: Reference, labels: Tensor, num_classes: int) -> dict[int, Reference]:
    """Return the statistics of each class that has enough images.

    Args:
        reference: Of the data, with the features of a uniform subset, of which these are.
        labels: Classes of those features (M,).
        num_classes: Number of classes.
    """
    parts = {label: reference.features[labels == label] for label in range(num_classes)}
    return {
        label: Reference.of_features(reference.label, features)
        for label, features in parts.items()
        if len(features) >= _FEWEST
    }


def score_classes(
    features: dict[str, Tensor], labels: Tensor, references: dict[int, Reference], extractor: Extractor, end: str
) -> dict[str, float]:
    """Return the FID of each class at an end of the chains, with its standard error.

    A class of which there are too few samples has none.

    Args:
        features: Features of samples, N rows each.
        labels: Their classes (N,).
        references: By :func:`class_references`.
        extractor: The feature extractor.
        end: ``base`` or ``gebm``.

    Returns:
        ``fid_class_<number>_<end>``, and the same with ``_standard_error``.
    """
    scores = {}
    for label, reference in references.items():
        rows = (labels == label).nonzero()[:, 0]
        if len(rows) < _FEWEST:
            continue
        own = score({name: part[rows] for name, part in features.items()}, reference, extractor)
        for suffix in ("", STANDARD_ERROR):
            scores[at_end(f"{CLASS_FID}{label}{suffix}", end)] = own[f"fid{suffix}"]
    return scores
