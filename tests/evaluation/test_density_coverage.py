"""Density and coverage: against the definition, cases with known values, and their deviation over draws."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pipeline.evaluation.metrics import Reference, score
from pipeline.evaluation.metrics.density_coverage import NEIGHBORS, density_coverage
from pipeline.runtime.errors import UserError


def by_definition(samples: Tensor, data: Tensor, k: int) -> tuple[float, float]:
    """Sums over all pairs, one by one; distances of points with whole coordinates are exact."""
    hits, covered = 0, 0
    for i, x in enumerate(data):
        others = sorted(float((x - other).square().sum()) for j, other in enumerate(data) if j != i)
        inside = sum(float((x - y).square().sum()) < others[k - 1] for y in samples)
        hits += inside
        covered += inside > 0
    return hits / (k * len(samples)), covered / len(data)


points = st.lists(st.tuples(st.integers(-6, 6), st.integers(-6, 6)), min_size=7, max_size=20)


@settings(max_examples=25, deadline=None)
@given(points, points, st.integers(1, 6), st.sampled_from([0.0, 1e4]))
def test_they_are_the_sums_of_the_definition_also_where_points_coincide_or_are_on_a_surface(
    samples: list[tuple[int, int]], data: list[tuple[int, int]], k: int, origin: float
) -> None:
    x, y = torch.tensor(data).float() + origin, torch.tensor(samples).float() + origin
    assert density_coverage(y, x, k)[:2] == pytest.approx(by_definition(y, x, k), abs=1e-12)


def test_a_set_is_its_own_with_a_density_of_one_and_all_of_it_covered() -> None:
    """Each open ball holds its center and the k - 1 neighbors that are nearer than the k-th."""
    data = torch.randn(1100, 7, generator=torch.Generator().manual_seed(0)) * 3 + 50
    scores = density_coverage(data, data)
    assert scores.density == pytest.approx(1, abs=1e-6) and scores.coverage == 1
    apart = density_coverage(data + 1000, data)
    assert apart == (0, 0, 0, 0)


def test_of_one_distribution_they_are_what_the_paper_expects() -> None:
    """A density of one, and a coverage of `1 - (N-1)...(N-k) / ((M+N-1)...(M+N-k))`; five standard errors around."""
    n, m, draws = 300, 200, 40
    generator = torch.Generator().manual_seed(0)
    scores = [
        density_coverage(torch.randn(m, 4, generator=generator), torch.randn(n, 4, generator=generator))
        for _ in range(draws)
    ]
    expected = 1 - math.prod((n - j) / (m + n - j) for j in range(1, NEIGHBORS + 1))
    for found, truth in (
        (torch.tensor([s.density for s in scores]), 1),
        (torch.tensor([s.coverage for s in scores]), expected),
    ):
        assert float(found.mean()) == pytest.approx(truth, abs=5 * float(found.std()) / math.sqrt(draws))


def test_an_outlier_among_the_data_raises_precision_and_not_coverage() -> None:
    """The paper's case: one datum far out has a ball that reaches samples which are far from all other data."""
    generator = torch.Generator().manual_seed(0)
    data = torch.cat([torch.randn(199, 3, generator=generator), torch.full((1, 3), 40.0)])
    samples = torch.randn(200, 3, generator=generator) * 0.2 + 20
    reference = Reference("any", len(data), torch.zeros(3).double(), torch.eye(3).double(), data)
    scores = score({"embedding": samples, "logits": samples}, reference, _Named(), ("prc", "dc"))
    assert scores["precision"] == 1.0
    assert scores["density"] == pytest.approx(1 / NEIGHBORS) and scores["coverage"] == pytest.approx(1 / 200)


@pytest.mark.parametrize(("shift", "scale"), [(0.0, 1.0), (0.7, 1.0), (0.0, 0.5)], ids=["same", "shifted", "narrow"])
def test_their_errors_are_their_deviations_over_draws(shift: float, scale: float) -> None:
    data = torch.randn(300, 3, generator=torch.Generator().manual_seed(10_000))
    draws = []
    for seed in range(100):
        noise = torch.randn(300, 3, generator=torch.Generator().manual_seed(seed))
        draws.append(density_coverage(noise * scale + shift, data))
    for value, error in ((0, 2), (1, 3)):
        deviation = float(torch.tensor([each[value] for each in draws]).std())
        found = math.sqrt(sum(each[error] ** 2 for each in draws) / len(draws))
        # A deviation over 100 draws has a standard error of 7 percent.
        assert 0.7 < found / deviation < 1.9


def test_they_are_scores_with_errors_and_refuse_less_than_six() -> None:
    features = torch.randn(40, 3, generator=torch.Generator().manual_seed(0))
    reference = Reference("any", 40, torch.zeros(3).double(), torch.eye(3).double(), features)
    samples = features[:20] + 0.1
    scores = score({"embedding": samples, "logits": samples}, reference, _Named(), ("dc",))
    assert set(scores) == {f"{name}{end}" for name in ("density", "coverage") for end in ("", "_standard_error")}
    # Equal numbers of both, as of precision and recall.
    rows = torch.linspace(0, 39, 20).round().long()
    assert tuple(scores.values()) == density_coverage(samples, features[rows])
    with pytest.raises(UserError, match="dc needs 6 samples"):
        score({"embedding": samples[:5], "logits": samples[:5]}, reference, _Named(), ("dc",))


class _Named:
    """Stand-in for an extractor, of which scores of features need the label alone."""

    label = "any"
