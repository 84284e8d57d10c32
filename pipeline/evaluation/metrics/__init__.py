"""Sample quality: FID, KID, IS, precision and recall by torch-fidelity, density and coverage; statistics of stores."""

from pipeline.config.metrics import register
from pipeline.evaluation.metrics import extractors
from pipeline.evaluation.metrics.class_fid import MAX_SCORED_CLASSES, class_references, score_classes
from pipeline.evaluation.metrics.class_labels import (
    class_labels,
    classes_of,
    has_class_labels,
    reference_labels,
    require_classes,
)
from pipeline.evaluation.metrics.classifier_training import has_classifier, train_classifier
from pipeline.evaluation.metrics.extractors import Extractor, features, make_extractor, require_logits, to_uint8
from pipeline.evaluation.metrics.fid_infinity import fid_infinity, require_samples
from pipeline.evaluation.metrics.nearest_neighbors import (
    has_reference_images,
    mean_nn_distance,
    nearest,
    nn_distance_ratio,
    reference_images,
)
from pipeline.evaluation.metrics.reference_statistics import Reference, has_reference, reference
from pipeline.evaluation.metrics.scores import compare, fid_from_features, score

__all__ = [
    "MAX_SCORED_CLASSES",
    "Extractor",
    "Reference",
    "class_labels",
    "class_references",
    "classes_of",
    "compare",
    "extractors",
    "features",
    "fid_from_features",
    "fid_infinity",
    "has_class_labels",
    "has_classifier",
    "has_reference",
    "has_reference_images",
    "make_extractor",
    "mean_nn_distance",
    "nearest",
    "nn_distance_ratio",
    "reference",
    "reference_images",
    "reference_labels",
    "register",
    "require_classes",
    "require_logits",
    "require_samples",
    "score",
    "score_classes",
    "to_uint8",
    "train_classifier",
]
