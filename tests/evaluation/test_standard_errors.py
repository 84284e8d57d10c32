"""Standard errors of scores: their intervals cover as often as they say, and they add nothing to what is measured."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from scipy.stats import binom, norm
from torch import Tensor

from pipeline.evaluation.metrics import Reference, fid_infinity, score
from pipeline.evaluation.metrics.influence import kid_standard_error
from pipeline.evaluation.metrics.scores import KEY_METRIC_KID_MEAN, KEY_METRIC_KID_STD, kid_features_to_metric
from pipeline.evaluation.standard_error import mean_standard_error, wasserstein_standard_error
from pipeline.runtime.errors import UserError
from pipeline.tasks.points import PointScorer

# A correct test fails once in 100,000.
_RARE = 5e-6


def draw(count: int, mu: Tensor, deviations: Tensor, seed: int) -> Tensor:
    noise = torch.randn(count, len(mu), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return mu + noise * deviations


def assert_covers(hits: list[bool], level: float) -> None:
    """Check the number of intervals that hold the truth: that of a binomial of the level, neither fewer nor more."""
    low, high = binom.ppf(_RARE, len(hits), level), binom.isf(_RARE, len(hits), level)
    assert low <= sum(hits) <= high, f"{sum(hits)} of {len(hits)}, expected {low} to {high}"


def standard_normal(dim: int, features: Tensor | None = None) -> Reference:
    mu, sigma = torch.zeros(dim, dtype=torch.float64), torch.eye(dim, dtype=torch.float64)
    return Reference("any", 1000, mu, sigma, torch.zeros(1000, dim) if features is None else features)


class Named:
    """Stand-in for an extractor, of which scores of features need the label alone."""

    label = "any"


def fid(samples: Tensor, reference: Reference) -> dict[str, float]:
    return score({"embedding": samples, "logits": samples}, reference, Named(), ("fid",))


@pytest.mark.parametrize(
    ("mu", "deviations"),
    [([1.0, 0.0, 0.0], [1.0, 1.0, 1.0]), ([0.0, 0.0, 0.0], [2.0, 0.5, 1.5]), ([0.5, -0.5, 0.3], [1.5, 0.7, 1.2])],
    ids=["mean", "covariance", "both"],
)
def test_intervals_cover_the_fid_of_gaussians(mu: list[float], deviations: list[float]) -> None:
    """Of diagonal Gaussians it is known: the squared distance of the means and of the deviations."""
    means, spreads = torch.tensor(mu, dtype=torch.float64), torch.tensor(deviations, dtype=torch.float64)
    truth = float(means.square().sum() + (spreads - 1).square().sum())
    misses = []
    for seed in range(250):
        scores = fid(draw(1000, means, spreads, seed), standard_normal(3))
        misses.append(abs(scores["fid"] - truth) / scores["fid_standard_error"])
    for errors in (1, 2):
        assert_covers([miss <= errors for miss in misses], 1 - 2 * norm.sf(errors))


def test_where_samples_are_the_data_the_error_of_the_fid_is_never_too_small() -> None:
    """The first order vanishes there; what the second leaves is bounded from both sides."""
    zero, one = torch.zeros(4, dtype=torch.float64), torch.ones(4, dtype=torch.float64)
    scores = [fid(draw(500, zero, one, seed), standard_normal(4)) for seed in range(200)]
    deviation = float(torch.tensor([each["fid"] for each in scores]).std())
    error = math.sqrt(sum(each["fid_standard_error"] ** 2 for each in scores) / len(scores))
    assert 1.0 < error / deviation < 2.0


@pytest.mark.parametrize("count", [2, 3, 12])
def test_fewer_samples_than_features_have_a_finite_error(count: int) -> None:
    samples = draw(count, torch.zeros(8, dtype=torch.float64), torch.ones(8, dtype=torch.float64), 0)
    error = fid(samples, standard_normal(8))["fid_standard_error"]
    assert math.isfinite(error) and error > 0


def test_the_error_of_the_fid_falls_with_the_root_of_the_samples() -> None:
    mu, spreads = torch.ones(3, dtype=torch.float64), torch.ones(3, dtype=torch.float64)
    few, many = (fid(draw(n, mu, spreads, 0), standard_normal(3))["fid_standard_error"] for n in (1_000, 16_000))
    assert few / many == pytest.approx(4, rel=0.1)


def test_intervals_cover_the_kid_of_gaussians() -> None:
    mu, spreads, subsets = torch.tensor([0.7, 0.0]).double(), torch.ones(2).double(), 10
    data = draw(400, torch.zeros(2).double(), spreads, 10_000).float()
    reference = standard_normal(2, data)

    def kernel_mean(x: Tensor, y: Tensor) -> float:
        return float(((x @ y.T / 2 + 1) ** 3).mean())

    # The expectation over samples, with the data as they are.
    x, y = draw(3000, mu, spreads, 20_000), draw(3000, mu, spreads, 30_000)
    own = (data.double() @ data.double().T / 2 + 1) ** 3
    among_data = float((own.sum() - own.diagonal().sum()) / (len(data) * (len(data) - 1)))
    truth = kernel_mean(x, y) + among_data - kernel_mean(x, data.double()) - kernel_mean(y, data.double())
    hits = []
    for seed in range(60):
        samples = draw(400, mu, spreads, seed).float()
        kid = kid_features_to_metric(samples, data, kid_subsets=subsets, kid_subset_size=200, verbose=False)
        error = kid_standard_error(samples, reference, kid[KEY_METRIC_KID_STD], subsets)
        hits.append(abs(kid[KEY_METRIC_KID_MEAN] - truth) <= 2 * error)
    # The truth has an error of its own, of a quarter of a score's.
    assert_covers(hits, 1 - 2 * norm.sf(2 / math.hypot(1, 0.25)))


@pytest.mark.parametrize("spread", [1.0, 3.0], ids=["shifted", "crossing"])
def test_the_error_of_a_distance_is_its_deviation_over_draws(spread: float) -> None:
    data, mu = draw(400, torch.zeros(2).double(), torch.ones(2).double(), 10_000), torch.tensor([0.5, 0.0]).double()
    scorer = PointScorer(data.float(), data.float(), None, lambda points: points)
    draws = [draw(300, mu, torch.full((2,), spread).double(), seed).float() for seed in range(40)]
    scores = [scorer.score({"points": points}, end=False) for points in draws]
    deviation = float(torch.tensor([each["distance"] for each in scores]).std())
    error = math.sqrt(sum(each["distance_standard_error"] ** 2 for each in scores) / len(scores))
    # A deviation over 40 draws has a standard error of 11 percent.
    assert error / deviation == pytest.approx(1, abs=0.5)


def test_equal_samples_and_data_are_at_no_distance_and_have_no_error() -> None:
    points = draw(50, torch.zeros(2).double(), torch.ones(2).double(), 0)
    assert wasserstein_standard_error(points, points.flip(0)) == 0.0


def test_every_score_of_features_has_its_error_but_recall_and_deviations() -> None:
    features = draw(400, torch.full((3,), 0.5).double(), torch.ones(3).double(), 0).float()
    data = draw(400, torch.zeros(3).double(), torch.ones(3).double(), 1).float()
    layers = {"embedding": features, "logits": features}
    scores = score(layers, standard_normal(3, data), Named(), ("fid", "kid", "is", "prc", "dc"))
    with_error = {name.removesuffix("_standard_error") for name in scores if name.endswith("_standard_error")}
    assert with_error == {"fid", "kid", "is", "precision", "density", "coverage"}
    assert all(math.isfinite(value) for value in scores.values())
    share = scores["precision"]
    assert scores["precision_standard_error"] == pytest.approx(math.sqrt(share * (1 - share) / 400))


@pytest.mark.parametrize("estimate", [mean_standard_error])
def test_one_sample_has_no_error(estimate: Callable[[Tensor], float]) -> None:
    assert math.isnan(estimate(torch.tensor([1.0])))


def test_the_extrapolated_fid_has_no_bias_and_intervals_that_cover() -> None:
    """In eight dimensions and of 400 samples, the FID itself is too large by more than its error."""
    means, spreads = torch.full((8,), 0.2, dtype=torch.float64), torch.ones(8, dtype=torch.float64)
    truth, reference = float(means.square().sum()), standard_normal(8)
    hits, values, plain = [], [], []
    for seed in range(100):
        samples = draw(400, means, spreads, seed)
        value, error = fid_infinity(samples, reference)
        hits.append(abs(value - truth) <= 2 * error)
        values.append(value)
        plain.append(fid(samples, reference)["fid"])
    assert sum(plain) / 100 - truth > 5 * abs(sum(values) / 100 - truth)
    low = binom.ppf(_RARE, len(hits), 1 - 2 * norm.sf(2))
    assert sum(hits) >= low, f"{sum(hits)} of {len(hits)}, expected {low} at least"


def test_the_extrapolated_fid_is_the_same_for_the_same_samples_and_refuses_few() -> None:
    samples = draw(200, torch.zeros(3).double(), torch.ones(3).double(), 0)
    assert fid_infinity(samples, standard_normal(3)) == fid_infinity(samples, standard_normal(3))
    with pytest.raises(UserError, match=r"needs 150 samples.*evaluation\.num_samples"):
        fid_infinity(samples[:149], standard_normal(3))
