"""Sample quality by torch-fidelity: FID, KID, IS, precision and recall, against cached statistics of a store."""

from pipeline.metrics.classifier import train_classifier
from pipeline.metrics.extractors import Extractor, features, make_extractor, to_uint8
from pipeline.metrics.reference import Reference, reference
from pipeline.metrics.scores import fid_from_features, score

__all__ = [
    "Extractor",
    "Reference",
    "features",
    "fid_from_features",
    "make_extractor",
    "reference",
    "score",
    "to_uint8",
    "train_classifier",
]
