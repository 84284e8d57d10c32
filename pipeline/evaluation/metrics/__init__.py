"""Sample quality by torch-fidelity: FID, KID, IS, precision and recall, against cached statistics of a store."""

from pipeline.evaluation.metrics.classifier_training import train_classifier
from pipeline.evaluation.metrics.extractors import Extractor, features, make_extractor, to_uint8
from pipeline.evaluation.metrics.fid_infinity import fid_infinity
from pipeline.evaluation.metrics.nearest_neighbors import (
    mean_nn_distance,
    nearest,
    nn_distance_ratio,
    reference_images,
)
from pipeline.evaluation.metrics.reference_statistics import Reference, reference
from pipeline.evaluation.metrics.scores import fid_from_features, score

__all__ = [
    "Extractor",
    "Reference",
    "features",
    "fid_from_features",
    "fid_infinity",
    "make_extractor",
    "mean_nn_distance",
    "nearest",
    "nn_distance_ratio",
    "reference",
    "reference_images",
    "score",
    "to_uint8",
    "train_classifier",
]
