"""Metrics of sample quality, computed from features, and their standard errors: FID, KID, IS, precision, recall."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from torch import Tensor
from torch_fidelity.metric_fid import KEY_METRIC_FID, fid_statistics_to_metric
from torch_fidelity.metric_isc import KEY_METRIC_ISC_MEAN, KEY_METRIC_ISC_STD, isc_features_to_metric
from torch_fidelity.metric_kid import KEY_METRIC_KID_MEAN, KEY_METRIC_KID_STD, kid_features_to_metric
from torch_fidelity.metric_prc import KEY_METRIC_PRECISION, KEY_METRIC_RECALL, prc_features_to_metric

from pipeline.config.scores import STANDARD_ERROR
from pipeline.config.validation import FEWEST_SAMPLES
from pipeline.evaluation.metrics.extractors import Extractor, features
from pipeline.evaluation.metrics.influence import fid_standard_error, kid_standard_error
from pipeline.evaluation.metrics.reference_statistics import Reference
from pipeline.evaluation.metrics.subsets import evenly_spaced
from pipeline.runtime.errors import UserError

__all__ = ["fid_from_features", "score"]

_IS_SPLITS = FEWEST_SAMPLES["is"]
_KID_SUBSETS = 100
_KID_SUBSET_SIZE = 1000
_NEIGHBORS = FEWEST_SAMPLES["prc"] - 1


def fid_from_features(embedding: Tensor, reference: Reference) -> float:
    """Return the Frechet distance between Gaussians fitted to the samples' and the reference's embeddings.

    ``|mu - mu'|^2 + tr(S + S' - 2 (S S')^(1/2))``, Heusel et al., NeurIPS 2017. Biased upwards at finite N, by an
    amount that depends on the distribution: compare figures of the same N only. With fewer samples than features
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
    return _fid(*_moments(embedding), reference)


def _moments(embedding: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean (F,) and the covariance (F, F) of features (N, F), in float64."""
    samples = embedding.double()
    return samples.mean(dim=0), samples.T.cov().reshape(embedding.shape[1], -1)


def _fid(mu: Tensor, sigma: Tensor, reference: Reference) -> float:
    ours = {"mu": mu.numpy(), "sigma": sigma.numpy()}
    data = {"mu": reference.mu.numpy(), "sigma": reference.sigma.numpy()}
    return fid_statistics_to_metric(ours, data, verbose=False)[KEY_METRIC_FID]


def score(
    samples: Tensor | Mapping[str, Tensor],
    reference: Reference,
    extractor: Extractor,
    metrics: Sequence[str] = ("fid",),
) -> dict[str, float]:
    """Measure samples against a store.

    Args:
        samples: Images, uint8 (N, C, H, W), or their :func:`pipeline.evaluation.metrics.features`.
        reference: Of the data, by the same extractor.
        extractor: From :func:`pipeline.evaluation.metrics.make_extractor`.
        metrics: Any of ``fid`` (Heusel et al., 2017), ``kid`` (Binkowski et al., 2018: mean and deviation over 100
            subsets of 1,000 samples, or of half of them where there are fewer than 2,000), ``is`` (Salimans et al.,
            2016, of the extractor's own logits, ten splits), ``prc`` (precision and recall, Kynkaanniemi et al., 2019,
            three neighbors, equal numbers of data and samples, 10,000 at most).

    Returns:
        ``fid``, ``kid``, ``kid_std``, ``is``, ``is_std``, ``precision`` and ``recall``, those requested, and for all
        but ``recall`` and the deviations ``<name>_standard_error``; see
        :mod:`pipeline.evaluation.metrics.influence`. They mean something only together with ``extractor.label``
        and N.

    Raises:
        UserError: Unknown metric, too few samples, another extractor, or features that are not finite.
    """
    unknown = [name for name in metrics if name not in FEWEST_SAMPLES]
    if unknown:
        raise UserError(f"no metric {unknown[0]!r}: choose from {', '.join(FEWEST_SAMPLES)}")
    if reference.label != extractor.label:
        raise UserError(f"the reference is by {reference.label}, the extractor is {extractor.label}: use one of them")
    layers = features(samples, extractor) if isinstance(samples, Tensor) else samples
    embedding, logits = layers["embedding"], layers["logits"]
    for name in metrics:
        _require(embedding, reference, name)
    results: dict[str, float] = {}
    errors: dict[str, float] = {}
    if "fid" in metrics:
        mu, sigma = _moments(embedding)
        results["fid"] = _fid(mu, sigma, reference)
        errors["fid"] = fid_standard_error(embedding, mu, sigma, reference)
    if "kid" in metrics:
        size = min(_KID_SUBSET_SIZE, len(embedding) // 2, len(reference.features) // 2)
        kid = kid_features_to_metric(
            embedding, reference.features, kid_subsets=_KID_SUBSETS, kid_subset_size=size, verbose=False
        )
        results |= {"kid": kid[KEY_METRIC_KID_MEAN], "kid_std": kid[KEY_METRIC_KID_STD]}
        errors["kid"] = kid_standard_error(embedding, reference, results["kid_std"], _KID_SUBSETS)
    if "is" in metrics:
        inception = isc_features_to_metric(logits, splits=_IS_SPLITS)
        results |= {"is": inception[KEY_METRIC_ISC_MEAN], "is_std": inception[KEY_METRIC_ISC_STD]}
        # The splits share no sample; their deviation has the divisor of a population.
        errors["is"] = results["is_std"] / math.sqrt(_IS_SPLITS - 1)
    if "prc" in metrics:
        # The neighborhoods' radii shrink with the number of points: both sides get the same number.
        count = min(len(embedding), len(reference.features))
        prc = prc_features_to_metric(
            evenly_spaced(embedding, count),
            evenly_spaced(reference.features, count),
            prc_neighborhood=_NEIGHBORS,
            prc_batch_size=1000,
            save_cpu_ram=True,
            verbose=False,
        )
        results |= {"precision": prc[KEY_METRIC_PRECISION], "recall": prc[KEY_METRIC_RECALL]}
        # A share of the samples, each of which is inside the data's neighborhoods or is not.
        errors["precision"] = math.sqrt(max(0.0, results["precision"] * (1.0 - results["precision"])) / count)
    return results | {f"{name}{STANDARD_ERROR}": error for name, error in errors.items()}


def _require(embedding: Tensor, reference: Reference, metric: str) -> None:
    if embedding.dim() != 2 or embedding.shape[1] != len(reference.mu):
        raise UserError(
            f"features {tuple(embedding.shape)} do not fit the reference's {len(reference.mu)}: use one extractor"
        )
    fewest = FEWEST_SAMPLES[metric]
    if min(len(embedding), len(reference.features)) < fewest:
        have = f"{len(embedding)} samples and {len(reference.features)} reference features"
        raise UserError(f"{metric} needs {fewest} samples on both sides, got {have}: raise `evaluation.num_samples`")
    if not bool(embedding.isfinite().all()):
        raise UserError("some features are not finite: the samples diverged, lower `sampler.step_size`")
