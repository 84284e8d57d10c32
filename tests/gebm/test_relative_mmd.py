"""The relative MMD test: its statistic by hand, its level, its power; and the schedule built on it."""

from __future__ import annotations

import math

import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gebm.training.plateau_decay import PlateauDecay
from gebm.training.relative_mmd import relative_mmd_test


def normal(n: int, shift: float = 0.0, dim: int = 4, generator: torch.Generator | None = None) -> torch.Tensor:
    return torch.randn(n, dim, generator=generator) + shift


def p_values(shifts: tuple[float, float, float], repeats: int, sizes=(60, 60, 60)) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    draw = lambda: (normal(n, shift, generator=generator) for n, shift in zip(sizes, shifts, strict=True))  # noqa: E731
    return torch.tensor([relative_mmd_test(*draw()).p_value for _ in range(repeats)], dtype=torch.float64)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 1_000), n=st.integers(4, 7), m=st.integers(4, 7), r=st.integers(4, 7))
def test_the_statistics_are_the_sums_of_the_definition(seed, n, m, r):
    g = torch.Generator().manual_seed(seed)
    x, y, z = normal(n, generator=g), normal(m, 0.5, generator=g), normal(r, -1.0, generator=g)

    def k(a, b):
        return float((a.double() @ b.double() / 4 + 1) ** 3)

    def mmd2(a, b):
        within = [sum(k(s, t) for s in c for t in c if s is not t) / (len(c) * (len(c) - 1)) for c in (a, b)]
        return sum(within) - 2 * sum(k(s, t) for s in a for t in b) / (len(a) * len(b))

    result = relative_mmd_test(x, y, z)
    x, y, z = list(x), list(y), list(z)
    assert result.mmd2_candidate == pytest.approx(mmd2(x, y), rel=1e-9, abs=1e-9)
    assert result.mmd2_incumbent == pytest.approx(mmd2(x, z), rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("sizes", [(40, 40, 40), (80, 25, 50)])
@pytest.mark.parametrize("shifts", [(0.0, 0.4, -0.4), (0.0, 0.3, 0.5), (0.3, 0.0, 0.6)])
def test_the_variance_is_that_of_the_difference_over_many_samples(shifts, sizes):
    generator = torch.Generator().manual_seed(0)
    differences, variances = [], []
    for _ in range(1_500):
        x, y, z = (normal(n, shift, generator=generator) for n, shift in zip(sizes, shifts, strict=True))
        result = relative_mmd_test(x, y, z)
        differences.append(result.mmd2_incumbent - result.mmd2_candidate)
        score = -math.sqrt(2) * float(torch.erfinv(torch.tensor(2 * result.p_value - 1, dtype=torch.float64)))
        variances.append((differences[-1] / score) ** 2)
    difference, variance = (torch.tensor(values, dtype=torch.float64) for values in (differences, variances))
    squares = (difference - difference.mean()).square()
    error = math.hypot(float(squares.std()), float(variance.std())) / math.sqrt(len(squares))
    assert abs(float(squares.mean() - variance.mean())) <= 4 * error


# Two ways for the null hypothesis to hold with equality: all three laws are the same, where the statistic degenerates;
# and candidate and incumbent differ, but are equally far on either side of a reference that is symmetric about zero.
@pytest.mark.parametrize("shifts", [(0.0, 0.0, 0.0), (0.0, 0.5, -0.5)], ids=["equal", "equally far"])
@pytest.mark.parametrize("sizes", [(60, 60, 60), (120, 40, 40)])
def test_p_values_are_roughly_uniform_when_the_two_are_equally_close(shifts, sizes):
    p, repeats = p_values(shifts, 400, sizes), 400
    for level in (0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95):
        # Four binomial standard errors.
        bound = 4 * math.sqrt(level * (1 - level) / repeats)
        assert abs(float((p <= level).double().mean()) - level) <= bound, level


def test_a_closer_candidate_is_found_and_a_farther_one_is_not():
    assert float((p_values((0.0, 0.2, 1.0), 100) < 0.01).double().mean()) > 0.95
    assert float((p_values((0.0, 1.0, 0.2), 100) > 0.99).double().mean()) > 0.95


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 1_000), shift=st.floats(-1, 1))
def test_swapping_the_two_swaps_the_tails(seed, shift):
    g = torch.Generator().manual_seed(seed)
    x, y, z = normal(20, generator=g), normal(12, shift, generator=g), normal(30, generator=g)
    forward, backward = relative_mmd_test(x, y, z), relative_mmd_test(x, z, y)
    assert forward.p_value + backward.p_value == pytest.approx(1)
    assert forward.mmd2_candidate == pytest.approx(backward.mmd2_incumbent)


def test_samples_that_cannot_be_told_apart_are_no_evidence():
    x = normal(30, generator=torch.Generator().manual_seed(0))
    assert relative_mmd_test(x, x + 1, x + 1).p_value == pytest.approx(0.5)
    # Both have collapsed to the same point: no variance at all.
    assert relative_mmd_test(x, torch.ones(10, 4), torch.ones(23, 4)).p_value == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize(
    ("shapes", "words"),
    [
        (((3, 4), (9, 4), (9, 4)), "reference"),
        (((9, 4), (9,), (9, 4)), "candidate"),
        (((9, 4), (9, 4), (9, 5)), "incumbent has 5 features"),
    ],
)
def test_samples_that_do_not_fit_are_refused(shapes, words):
    with pytest.raises(ValueError, match=words):
        relative_mmd_test(*(torch.zeros(shape) for shape in shapes))


# The schedule


REFERENCE = normal(100, generator=torch.Generator().manual_seed(0))
NOISE = normal(100, generator=torch.Generator().manual_seed(1))


def test_the_papers_schedule_decays_after_three_comparisons_that_fail_and_refills():
    plateau = PlateauDecay(REFERENCE)
    steps = range(2_000, 100_001, 2_000)
    decays = [step for step in steps if plateau.update(step, NOISE + 1)]
    # Nothing to compare with before 22,000; then three failures; then the buffer starts again with the last features.
    assert decays == [26_000, 50_000, 74_000, 98_000]
    assert plateau.decays == 4
    assert (plateau.factor, plateau.significance) == (0.8, 0.05)


def test_a_model_that_improves_is_left_alone():
    plateau = PlateauDecay(REFERENCE, every=1, lag=2)
    assert not any(plateau.update(step, NOISE + 4 * 0.7**step) for step in range(8))
    assert plateau.latest.p_value < 0.05


def test_a_success_forgives_earlier_failures():
    plateau = PlateauDecay(REFERENCE, every=1, lag=1)
    shifts = [4, 4, 4, 1, 1, 1, 1]  # fails, fails, succeeds, fails, fails, fails
    assert [plateau.update(step, NOISE + shift) for step, shift in enumerate(shifts)] == [False] * 6 + [True]


def test_a_model_that_gets_worse_has_failed_too():
    plateau = PlateauDecay(REFERENCE, every=1, lag=1)
    assert [plateau.update(step, NOISE + step) for step in range(4)] == [False, False, False, True]


@settings(max_examples=20, deadline=None)
@given(cut=st.integers(0, 14), lag=st.integers(1, 4), patience=st.integers(1, 3), seed=st.integers(0, 100))
def test_a_resumed_schedule_decides_as_the_uninterrupted_one(cut, lag, patience, seed):
    g = torch.Generator().manual_seed(seed)
    features = [normal(20 + step, generator=g) + 2 * float(torch.rand((), generator=g)) for step in range(14)]
    make = lambda: PlateauDecay(REFERENCE, every=1, lag=lag, patience=patience)  # noqa: E731
    whole = make()
    expected = [whole.update(step, x) for step, x in enumerate(features)]

    first, second = make(), make()
    decisions = [first.update(step, x) for step, x in enumerate(features[:cut])]
    second.load_state_dict(safetensors.torch.load(safetensors.torch.save(first.state_dict())))
    decisions += [second.update(cut + step, x) for step, x in enumerate(features[cut:])]
    assert decisions == expected
    assert second.decays == whole.decays
    assert second.state_dict().keys() == whole.state_dict().keys()
    steps = {name.split(".")[0] for name in whole.state_dict() if "." in name}
    assert len(steps) <= lag + 1  # the buffer does not grow


def test_the_schedule_compares_as_the_test_itself_does():
    plateau, features = PlateauDecay(REFERENCE, every=1, lag=1), (NOISE + 1).clone()
    plateau.update(0, features)
    features.zero_()  # what the caller does with its features later is its own affair
    newer = 2 * NOISE[:80] + 0.5
    plateau.update(1, newer)
    assert plateau.latest == relative_mmd_test(REFERENCE, newer, NOISE + 1)


def test_the_state_has_what_the_comparison_needs_and_not_the_features():
    width = 500
    plateau = PlateauDecay(normal(100, dim=width), every=1, lag=3)
    for step in range(4):
        plateau.update(step, normal(100, dim=width))
    size = sum(tensor.numel() * tensor.element_size() for tensor in plateau.state_dict().values())
    assert size < 4 * 100 * width * 4 / 50


@pytest.mark.parametrize("other", [REFERENCE + 1, REFERENCE[:50], REFERENCE[:, :3]])
def test_what_was_measured_against_another_reference_is_not_compared(other):
    first, second = PlateauDecay(REFERENCE, every=1, lag=1), PlateauDecay(other, every=1, lag=1)
    for step in range(2):
        first.update(step, NOISE + step)
    second.load_state_dict(first.state_dict())
    assert second.failures == first.failures == 1
    assert not second.update(2, NOISE[:, : other.shape[1]]) and second.latest is None


def test_features_that_do_not_fit_the_reference_are_refused():
    with pytest.raises(ValueError, match="candidate has 3 features"):
        PlateauDecay(REFERENCE, every=1, lag=1).update(0, NOISE[:, :3])


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({"factor": 1.0}, "factor"),
        ({"significance": 0.0}, "significance"),
        ({"patience": 0}, "patience"),
        ({"every": 0}, "every"),
        ({"every": 3_000}, "lag"),
        ({"unconditional_every": 0}, "unconditional_every"),
    ],
)
def test_settings_out_of_range_are_refused(settings, name):
    with pytest.raises(ValueError, match=name):
        PlateauDecay(REFERENCE, **settings)


def test_features_that_are_not_due_are_refused():
    plateau = PlateauDecay(REFERENCE)
    assert plateau.due(4_000) and not plateau.due(4_001)
    with pytest.raises(ValueError, match="every 2000"):
        plateau.update(4_001, NOISE)


@given(st.integers(1, 50), st.integers(1, 50), st.integers(-1, 500))
def test_unconditional_decays_are_at_the_multiples_without_a_test(every, unconditional, step):
    plateau = PlateauDecay(REFERENCE, every=every, lag=every, unconditional_every=unconditional)
    assert plateau.is_unconditional(step) == (step > 0 and step % unconditional == 0 and step % every != 0)


def test_the_authors_unconditional_decays_are_fifteen():
    plateau = PlateauDecay(REFERENCE, unconditional_every=5_000)
    assert [step for step in range(150_001) if plateau.is_unconditional(step)] == list(range(5_000, 150_000, 10_000))
    assert not any(PlateauDecay(REFERENCE).is_unconditional(step) for step in range(0, 150_001, 1_000))
