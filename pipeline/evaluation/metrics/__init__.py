"""Sample quality by torch-fidelity: FID, KID, IS, precision and recall, against cached statistics of a store."""

from pipeline.evaluation.metrics.classifier_store import train_classifier
from pipeline.evaluation.metrics.extractors import Extractor, features, make_extractor, to_uint8
from pipeline.evaluation.metrics.nearest_neighbours import gallery, nearest, nearest_ratio, spacing
from pipeline.evaluation.metrics.reference import Reference, reference
from pipeline.evaluation.metrics.scores import fid_from_features, score

__all__ = [
    "Extractor",
    "Reference",
    "features",
    "fid_from_features",
    "gallery",
    "make_extractor",
    "nearest",
    "nearest_ratio",
    "reference",
    "score",
    "spacing",
    "to_uint8",
    "train_classifier",
]
