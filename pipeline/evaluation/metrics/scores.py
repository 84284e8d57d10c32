"""Metrics of sample quality, computed from features, and their standard errors: FID, KID, IS and those of neighbors."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch_fidelity.metric_isc import KEY_METRIC_ISC_MEAN, KEY_METRIC_ISC_STD, isc_features_to_metric
from torch_fidelity.metric_kid import KEY_METRIC_KID_MEAN, KEY_METRIC_KID_STD, kid_features_to_metric
from torch_fidelity.metric_prc import KEY_METRIC_PRECISION, KEY_METRIC_RECALL, prc_features_to_metric

from pipeline.config.metrics import BUILTIN, MAX_SAMPLES, NAMES, measure, metric, names
from pipeline.config.scores import STANDARD_ERROR
from pipeline.evaluation.metrics.density_coverage import density_coverage
from pipeline.evaluation.metrics.extractors import Extractor, features
from pipeline.evaluation.metrics.frechet import frechet_distance, moments
from pipeline.evaluation.metrics.influence import fid_standard_error, kid_standard_error
from pipeline.evaluation.metrics.reference_statistics import Reference
from pipeline.evaluation.metrics.subsets import evenly_spaced
from pipeline.runtime.errors import UserError

__all__ = ["compare", "fid_from_features", "score"]

_IS_SPLITS = BUILTIN["is"].fewest
_KID_SUBSETS = 100
_KID_SUBSET_SIZE = 1000
_NEIGHBORS = BUILTIN["prc"].fewest - 1
# Torch-fidelity's default block of distances: those of as many points a side are computed exactly as by it.
_AT_ONCE = 10_000


def fid_from_features(embedding: Tensor, reference: Reference) -> float:
    """Return the Frechet distance between Gaussians fitted to the samples' and the reference's embeddings.

    See :func:`pipeline.evaluation.metrics.frechet.frechet_distance`. Biased upwards at finite N, by an amount that
    depends on the distribution: compare figures of the same N only. With fewer samples than features
    the covariance is singular and the bias large.

    Args:
        embedding: (N, F) features of the samples.
        reference: Of the data, by the same extractor.

    Returns:
        The distance, at least zero but for rounding.

    Raises:
        UserError: Fewer than two samples, features that are not finite, or of another extractor.

    Example:
        >>> import torch
        >>> x = torch.randn(1000, 3, generator=torch.Generator().manual_seed(0))
        >>> data = Reference("any", 1000, x.double().mean(0), x.double().T.cov(), x)
        >>> round(fid_from_features(x + 2.0, data), 4)
        12.0
    """
    _require(embedding, reference, "fid")
    mu, sigma = moments(embedding, reference.mu.device)
    return frechet_distance(mu - reference.mu, sigma, reference)


def score(
    samples: Tensor | Mapping[str, Tensor],
    reference: Reference,
    extractor: Extractor,
    metrics: Sequence[str] = ("fid",),
    images: Callable[[], Tensor] | None = None,
) -> dict[str, float]:
    """Measure samples against a store.

    Args:
        samples: Images, uint8 (N, C, H, W), or their :func:`pipeline.evaluation.metrics.features`, with ``images``,
            the images themselves, for metrics of those.
        reference: Of the data, by the same extractor.
        extractor: From :func:`pipeline.evaluation.metrics.make_extractor`.
        metrics: Any of ``fid`` (Heusel et al., 2017), ``kid`` (Binkowski et al., 2018: mean and deviation over 100
            subsets of 1,000 samples, or of half of them where there are fewer than 2,000), ``is`` (Salimans et al.,
            2016, of the extractor's own logits, ten splits), ``prc`` (precision and recall, Kynkaanniemi et al., 2019,
            three neighbors) and ``dc`` (density and coverage, Naeem et al., 2020, five neighbors;
            :mod:`pipeline.evaluation.metrics.density_coverage`), both of equal numbers of data and samples, 10,000 at
            most; or metrics of one's own, see :mod:`pipeline.config.metrics`, of equal numbers as well.
        images: Returns images of the data, for metrics of images; see
            :func:`pipeline.evaluation.metrics.reference_images`.

    Returns:
        ``fid``, ``kid``, ``kid_std``, ``is``, ``is_std``, ``precision``, ``recall``, ``density`` and ``coverage``,
        those requested, and for all but ``recall`` and the deviations ``<name>_standard_error``; see
        :mod:`pipeline.evaluation.metrics.influence`. They mean something only together with ``extractor.label``
        and N.

    Raises:
        UserError: Unknown metric, too few samples, another extractor, or features that are not finite.
    """
    _require_known(metrics)
    if reference.label != extractor.label:
        raise UserError(f"the reference is by {reference.label}, the extractor is {extractor.label}: use one of them")
    layers = features(samples, extractor) if isinstance(samples, Tensor) else samples
    embedding = layers["embedding"]
    for name in metrics:
        _require(embedding, reference, name)
    # The neighborhoods' radii shrink with the number of points: both sides get the same number.
    count = min(len(embedding), len(reference.features))
    sets = evenly_spaced(embedding, count), evenly_spaced(reference.features, count)
    parts = {
        "fid": functools.partial(_fid_of_moments, embedding, reference),
        **_parts(layers, reference),
        "prc": functools.partial(_precision_recall, *sets),
        "dc": functools.partial(_density_coverage, *sets),
    }
    return _measure(parts | _own_parts(layers, reference, images), metrics)


def compare(
    samples: Mapping[str, Tensor],
    reference: Reference,
    metrics: Sequence[str],
    images: Callable[[], Tensor] | None = None,
) -> dict[str, float]:
    """Measure a set of samples against a set of data, all of both, as torch-fidelity's command line does.

    In contrast to :func:`score`, precision, recall, density and coverage are of all samples and all data, whatever
    their numbers, and the FID's means are those of NumPy in float32. Each number equals torch-fidelity's of the same
    features in the same order, where KID's subsets have the same size.

    Args:
        samples: Features of the samples: ``embedding`` (N, F) and ``logits`` (N, K), float32.
        reference: Of the data, with the features of all of them; see :meth:`Reference.of_features`.
        metrics: As of :func:`score`.
        images: As of :func:`score`.

    Returns:
        As :func:`score`.

    Raises:
        UserError: Unknown metric, too few samples or data, or features that are not finite.
    """
    _require_known(metrics)
    embedding = samples["embedding"]
    for name in metrics:
        _require(embedding, reference, name)
    parts = {
        "fid": functools.partial(_fid_of_sets, embedding, reference),
        **_parts(samples, reference),
        "prc": functools.partial(_precision_recall, embedding, reference.features, at_once=_AT_ONCE),
        "dc": functools.partial(_density_coverage, embedding, reference.features),
    }
    return _measure(parts | _own_parts(samples, reference, images), metrics)


class _Measured(NamedTuple):
    """Values of a metric by their names, and the standard errors of those that have one."""

    values: dict[str, float]
    errors: dict[str, float]


def _measure(parts: Mapping[str, Callable[[], _Measured]], metrics: Sequence[str]) -> dict[str, float]:
    """Return the values of some metrics, and then their standard errors."""
    measured = [part() for name, part in parts.items() if name in metrics]
    values = {name: value for each in measured for name, value in each.values.items()}
    errors = {f"{name}{STANDARD_ERROR}": error for each in measured for name, error in each.errors.items()}
    return values | errors


def _parts(samples: Mapping[str, Tensor], reference: Reference) -> dict[str, Callable[[], _Measured]]:
    """Return the metrics that are the same for :func:`score` and :func:`compare`, by name."""
    return {
        "kid": functools.partial(_kid, samples["embedding"], reference),
        "is": functools.partial(_inception, samples, reference.label),
    }


def _own_parts(
    samples: Mapping[str, Tensor], reference: Reference, images: Callable[[], Tensor] | None
) -> dict[str, Callable[[], _Measured]]:
    """Return the metrics that plugins have registered, by name."""
    return {name: functools.partial(_own, name, samples, reference, images) for name in NAMES}


def _own(
    name: str, samples: Mapping[str, Tensor], reference: Reference, images: Callable[[], Tensor] | None
) -> _Measured:
    is_of_images = metric(name).of == "images"
    if is_of_images and (images is None or "images" not in samples):
        raise UserError(f"{name} is a metric of images, and there are features alone: leave it out")
    data = images() if is_of_images and images is not None else reference.features
    layer = samples["images" if is_of_images else "embedding"]
    count = min(len(layer), len(data), MAX_SAMPLES)
    value, error = measure(NAMES.part(name), evenly_spaced(layer, count).clone(), evenly_spaced(data, count).clone())
    return _Measured({name: value}, {} if error is None else {name: error})


def _fid_of_moments(embedding: Tensor, reference: Reference) -> _Measured:
    mu, sigma = moments(embedding, reference.mu.device)
    value = frechet_distance(mu - reference.mu, sigma, reference)
    return _Measured({"fid": value}, {"fid": fid_standard_error(embedding, mu, sigma, reference)})


def _fid_of_sets(embedding: Tensor, reference: Reference) -> _Measured:
    mu, sigma = moments(embedding, reference.mu.device)
    means = [torch.from_numpy(features.numpy().mean(0)) for features in (embedding, reference.features)]
    value = frechet_distance((means[0] - means[1]).to(mu), sigma, reference)
    return _Measured({"fid": value}, {"fid": fid_standard_error(embedding, mu, sigma, reference)})


def _kid(embedding: Tensor, reference: Reference) -> _Measured:
    size = min(_KID_SUBSET_SIZE, len(embedding) // 2, len(reference.features) // 2)
    kid = kid_features_to_metric(
        embedding, reference.features, kid_subsets=_KID_SUBSETS, kid_subset_size=size, verbose=False
    )
    mean, deviation = kid[KEY_METRIC_KID_MEAN], kid[KEY_METRIC_KID_STD]
    error = kid_standard_error(embedding, reference, deviation, _KID_SUBSETS)
    return _Measured({"kid": mean, "kid_std": deviation}, {"kid": error})


def _inception(samples: Mapping[str, Tensor], label: str) -> _Measured:
    if "logits" not in samples:
        raise UserError(f"{label} has no logits, which is needs: leave is out of evaluation.metrics")
    inception = isc_features_to_metric(samples["logits"], splits=_IS_SPLITS)
    mean, deviation = inception[KEY_METRIC_ISC_MEAN], inception[KEY_METRIC_ISC_STD]
    # The splits share no sample; their deviation has the divisor of a population.
    return _Measured({"is": mean, "is_std": deviation}, {"is": deviation / math.sqrt(_IS_SPLITS - 1)})


def _precision_recall(samples: Tensor, data: Tensor, at_once: int = 0) -> _Measured:
    """Measure precision and recall, with all distances in memory where there are up to ``at_once`` points a side."""
    saves_memory = max(len(samples), len(data)) > at_once
    prc = prc_features_to_metric(
        samples,
        data,
        prc_neighborhood=_NEIGHBORS,
        prc_batch_size=1000 if saves_memory else at_once,
        save_cpu_ram=saves_memory,
        verbose=False,
    )
    values = {"precision": prc[KEY_METRIC_PRECISION], "recall": prc[KEY_METRIC_RECALL]}
    # A share of the samples, each of which is inside the data's neighborhoods or is not.
    error = math.sqrt(max(0.0, values["precision"] * (1.0 - values["precision"])) / len(samples))
    return _Measured(values, {"precision": error})


def _density_coverage(samples: Tensor, data: Tensor) -> _Measured:
    scores = density_coverage(samples, data)
    return _Measured(
        {"density": scores.density, "coverage": scores.coverage},
        {"density": scores.density_standard_error, "coverage": scores.coverage_standard_error},
    )


def _require_known(metrics: Sequence[str]) -> None:
    unknown = [name for name in metrics if name not in names()]
    if unknown:
        raise UserError(f"no metric {unknown[0]!r}: choose from {', '.join(names())}")


def _require(embedding: Tensor, reference: Reference, name: str) -> None:
    if embedding.dim() != 2 or embedding.shape[1] != len(reference.mu):
        raise UserError(
            f"features {tuple(embedding.shape)} do not fit the reference's {len(reference.mu)}: use one extractor"
        )
    fewest = metric(name).fewest
    if min(len(embedding), len(reference.features)) < fewest:
        have = f"{len(embedding)} samples and {len(reference.features)} reference features"
        raise UserError(f"{name} needs {fewest} samples on both sides, got {have}: raise `evaluation.num_samples`")
    if not bool(embedding.isfinite().all()):
        raise UserError("some features are not finite: the samples diverged, lower `sampler.step_size`")
