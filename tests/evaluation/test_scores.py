"""FID, KID, IS, precision and recall: against torch-fidelity's own pipeline, and against the mathematics."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pipeline.data import Store, load_images
from pipeline.evaluation.metrics import Extractor, Reference, features, fid_from_features, reference, score, to_uint8
from pipeline.evaluation.metrics.classifier_training import classifier_url
from pipeline.runtime.errors import UserError


def noisy_digits(store: Store, num: int, seed: int = 0) -> Tensor:
    """Digits in another order, with noise: near the data, and not the data."""
    generator = torch.Generator().manual_seed(seed)
    images = load_images(store)[0][torch.randperm(store.manifest.num_samples, generator=generator)[:num]]
    noise = torch.randint(-40, 41, images.shape, generator=generator)
    return (images.long() + noise).clamp(0, 255).to(torch.uint8)


def gaussian_reference(mu: Tensor, sigma: Tensor) -> Reference:
    return Reference("any", 100, mu, sigma, torch.zeros(100, len(mu)))


def exact_samples(mu: Tensor, sigma: Tensor, num: int = 50) -> Tensor:
    """Samples whose sample mean and covariance are `mu` and `sigma` to rounding."""
    x = torch.randn(num, len(mu), dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    x = x - x.mean(dim=0)
    white = torch.linalg.solve_triangular(torch.linalg.cholesky(x.T.cov()), x.T, upper=False).T
    return mu + white @ torch.linalg.cholesky(sigma).T


def covariance(angle: float, first: float, second: float) -> Tensor:
    c, s = math.cos(angle), math.sin(angle)
    rotation = torch.tensor([[c, -s], [s, c]], dtype=torch.float64)
    return rotation @ torch.diag(torch.tensor([first, second], dtype=torch.float64)) @ rotation.T


variances = st.floats(0.05, 20.0)
angles = st.floats(0.0, math.pi)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(-5, 5), min_size=2, max_size=2), angles, variances, variances, angles, variances, variances)
def test_fid_of_gaussians_is_the_closed_form(
    shift: list[float], angle1: float, a1: float, b1: float, angle2: float, a2: float, b2: float
) -> None:
    """In two dimensions `tr (S S')^(1/2) = (tr S S' + 2 (det S det S')^(1/2))^(1/2)`."""
    ours, data = covariance(angle1, a1, b1), covariance(angle2, a2, b2)
    mu = torch.tensor(shift, dtype=torch.float64)
    cross = math.sqrt((ours @ data).trace().item() + 2 * math.sqrt(a1 * b1 * a2 * b2))
    expected = mu.square().sum().item() + a1 + b1 + a2 + b2 - 2 * cross
    found = fid_from_features(exact_samples(mu, ours), gaussian_reference(torch.zeros_like(mu), data))
    # All is in float64; numbers are at most 130, and the square root halves the digits of an eigenvalue near zero.
    assert found == pytest.approx(expected, abs=1e-6)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(dim=st.integers(2, 24), samples=st.integers(2, 60), data=st.integers(2, 60), seed=st.integers(0, 1000))
def test_fid_is_that_of_the_matrix_root_of_the_product(dim: int, samples: int, data: int, seed: int) -> None:
    """With fewer samples or data than features too, whose covariances are singular."""
    generator = torch.Generator().manual_seed(seed)
    mixed = torch.randn(2, dim, dim, generator=generator, dtype=torch.float64)
    ours, theirs = (
        torch.randn(count, dim, generator=generator, dtype=torch.float64) @ one + shift
        for count, one, shift in zip((samples, data), mixed, (0.0, 0.5), strict=True)
    )
    root = np.asarray(scipy.linalg.sqrtm((ours.T.cov() @ theirs.T.cov()).numpy()))
    difference = (ours.mean(0) - theirs.mean(0)).square().sum()
    expected = difference + ours.T.cov().trace() + theirs.T.cov().trace() - 2.0 * float(np.trace(root).real)
    found = fid_from_features(ours, Reference.of_features("any", theirs))
    assert found == pytest.approx(float(expected), rel=1e-6)


def test_scores_are_those_of_torch_fidelity(
    digits: Store, stand_in: Extractor, torch_fidelity_metrics: Callable[..., dict[str, float]]
) -> None:
    data = load_images(digits)[0]
    samples = noisy_digits(digits, len(data))
    ours = score(samples, reference(digits, stand_in), stand_in, ("fid", "kid", "is", "prc"))
    theirs = torch_fidelity_metrics(
        samples.expand(-1, 3, -1, -1),
        data.expand(-1, 3, -1, -1),
        feature_extractor="linear-stand-in",
        fid=True,
        kid=True,
        isc=True,
        prc=True,
        kid_subset_size=len(data) // 2,
    )
    # torch-fidelity averages in float32: seven digits of numbers near one.
    assert ours["fid"] == pytest.approx(theirs["frechet_inception_distance"], abs=1e-5)
    assert ours["kid"] == pytest.approx(theirs["kernel_inception_distance_mean"], abs=1e-5)
    assert ours["kid_std"] == pytest.approx(theirs["kernel_inception_distance_std"], abs=1e-5)
    assert ours["is"] == pytest.approx(theirs["inception_score_mean"], rel=1e-6)
    assert ours["is_std"] == pytest.approx(theirs["inception_score_std"], rel=1e-4)
    # One neighbor more or less by rounding is 1/1797.
    assert ours["precision"] == pytest.approx(theirs["precision"], abs=2 / len(data))
    assert ours["recall"] == pytest.approx(theirs["recall"], abs=2 / len(data))
    assert ours["fid"] > 1e-2, "the samples differ from the data, and the FID has to see it"


def test_the_classifier_works_inside_torch_fidelity(
    digits: Store, classifier: Extractor, torch_fidelity_metrics: Callable[..., dict[str, float]]
) -> None:
    samples, data = noisy_digits(digits, 600), load_images(digits)[0]
    theirs = torch_fidelity_metrics(
        samples,
        data,
        feature_extractor="classifier",
        feature_extractor_weights_path=classifier_url(digits),
        fid=True,
    )
    ours = score(samples, reference(digits, classifier), classifier)
    assert ours["fid"] == pytest.approx(theirs["frechet_inception_distance"], rel=1e-4)


def test_fid_grows_with_the_noise(digits: Store, classifier: Extractor) -> None:
    data = load_images(digits)[0]
    statistics = reference(digits, classifier)
    generator = torch.Generator().manual_seed(0)
    fids = []
    for amount in (0, 32, 64, 128, 255):
        noise = torch.randint(-amount, amount + 1, data.shape, generator=generator)
        fids.append(score((data.long() + noise).clamp(0, 255).to(torch.uint8), statistics, classifier)["fid"])
    assert fids == sorted(fids) and fids[0] < 0.01 * fids[1]


def test_a_store_has_no_distance_to_itself(digits: Store, classifier: Extractor) -> None:
    statistics = reference(digits, classifier)
    found = score(load_images(digits)[0], statistics, classifier, ("fid", "prc"))
    # The square roots of eigenvalues that are zero but for rounding leave sqrt(eps) of the trace behind.
    assert abs(found["fid"]) < 1e-6 * statistics.sigma.trace().item() * len(statistics.mu)
    assert found["precision"] == found["recall"] == 1.0


def test_kid_is_unbiased(stand_in: Extractor) -> None:
    """Over independent pairs of samples from one distribution its mean is zero within five standard errors."""
    generator = torch.Generator().manual_seed(0)
    found = []
    for _ in range(60):
        x, y = torch.randn(2, 40, 6, generator=generator)
        statistics = Reference(stand_in.label, 40, torch.zeros(6), torch.eye(6), y)
        found.append(score({"embedding": x, "logits": x}, statistics, stand_in, ("kid",))["kid"])
    kids = torch.tensor(found)
    error = kids.std().item() / math.sqrt(len(kids))
    assert abs(kids.mean().item()) < 5 * error
    # The biased estimator would be off by 2/m E[k(x, x) - k(x, y)], and that is more than this test lets through.
    x = torch.randn(100_000, 6, generator=generator)
    diagonal = (x.square().sum(dim=1) / 6 + 1).pow(3).mean() - ((x * x.flip(0)).sum(dim=1) / 6 + 1).pow(3).mean()
    assert 2 / 20 * diagonal.item() > 5 * error


def test_kid_sees_a_shift(stand_in: Extractor) -> None:
    """With the kernel `(x.y/d + 1)^3`, a shift from N(0, I) to N(m, I) gives a positive distance."""
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(2, 500, 6, generator=generator)
    statistics = Reference(stand_in.label, 500, torch.zeros(6), torch.eye(6), y)
    near = score({"embedding": x, "logits": x}, statistics, stand_in, ("kid",))
    far = score({"embedding": x + 1.0, "logits": x}, statistics, stand_in, ("kid",))
    assert far["kid"] > near["kid"] + 5 * (far["kid_std"] + near["kid_std"]) / math.sqrt(100)


def test_precision_and_recall_tell_missing_modes_from_bad_samples(stand_in: Extractor) -> None:
    generator = torch.Generator().manual_seed(0)
    modes = torch.tensor([[-20.0] * 6, [20.0] * 6])
    data = modes[torch.arange(400) % 2] + torch.randn(400, 6, generator=generator)
    statistics = Reference(stand_in.label, 400, torch.zeros(6), torch.eye(6), data)

    def measure(samples: Tensor) -> dict[str, float]:
        return score({"embedding": samples, "logits": samples}, statistics, stand_in, ("prc",))

    dropped = measure(modes[0] + torch.randn(400, 6, generator=generator))
    assert dropped["precision"] > 0.8 and dropped["recall"] < 0.5
    outliers = measure(torch.cat([data[:200], torch.full((200, 6), 60.0) + torch.randn(200, 6, generator=generator)]))
    assert outliers["precision"] == 0.5 and outliers["recall"] > 0.8


def test_sorted_chains_and_sorted_stores_are_compared_evenly(stand_in: Extractor) -> None:
    """More samples than data, sorted by mode: all modes are counted, not the first ones only."""
    modes = torch.tensor([[-20.0] * 6, [20.0] * 6])
    generator = torch.Generator().manual_seed(0)
    data = modes[torch.arange(200) % 2] + torch.randn(200, 6, generator=generator)
    samples = modes[(torch.arange(1000) >= 500).long()] + torch.randn(1000, 6, generator=generator)
    statistics = Reference(stand_in.label, 200, torch.zeros(6), torch.eye(6), data)
    found = score({"embedding": samples, "logits": samples}, statistics, stand_in, ("prc",))
    assert found["recall"] > 0.8 and found["precision"] > 0.8


@pytest.mark.parametrize(("metric", "fewest"), [("fid", 2), ("kid", 4), ("is", 10), ("prc", 4), ("dc", 6)])
def test_too_few_samples_are_refused(digits: Store, stand_in: Extractor, metric: str, fewest: int) -> None:
    statistics = reference(digits, stand_in)
    samples = noisy_digits(digits, fewest)
    found = score(samples, statistics, stand_in, (metric,))
    assert all(math.isfinite(value) for value in found.values())
    with pytest.raises(UserError, match=f"{metric} needs {fewest} samples"):
        score(samples[:-1], statistics, stand_in, (metric,))


def test_what_cannot_be_measured_is_refused(digits: Store, stand_in: Extractor, classifier: Extractor) -> None:
    statistics = reference(digits, stand_in)
    samples = noisy_digits(digits, 20)
    with pytest.raises(UserError, match="no metric 'fidd'"):
        score(samples, statistics, stand_in, ("fidd",))
    with pytest.raises(UserError, match="the reference is by linear-stand-in"):
        score(samples, statistics, classifier)
    with pytest.raises(UserError, match="uint8"):
        score(samples.float(), statistics, stand_in)
    with pytest.raises(UserError, match="no images"):
        score(samples[:0], statistics, stand_in)
    with pytest.raises(UserError, match="takes 1 channels"):
        features(samples.expand(-1, 3, -1, -1), classifier)
    with pytest.raises(UserError, match="not finite"):
        fid_from_features(torch.full((10, 6), math.nan), statistics)
    with pytest.raises(UserError, match="do not fit"):
        fid_from_features(torch.zeros(10, 5), statistics)


@given(st.floats(allow_nan=True, allow_infinity=True, width=32))
def test_to_uint8_is_the_inverse_of_scaling_and_refuses_what_is_not_finite(value: float) -> None:
    images = torch.full((1, 1, 2, 2), value)
    if math.isfinite(value):
        pixel = to_uint8(images)[0, 0, 0, 0].item()
        assert abs(pixel / 127.5 - 1 - max(-1.0, min(1.0, value))) <= 0.5 / 127.5 + 1e-6
    else:
        with pytest.raises(UserError, match=r"sampler\.step_size"):
            to_uint8(images)


def test_to_uint8_gives_back_every_pixel() -> None:
    pixels = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16)
    assert torch.equal(to_uint8(pixels.float() / 127.5 - 1), pixels)


def test_features_do_not_depend_on_the_batch_size(digits: Store, classifier: Extractor) -> None:
    samples = noisy_digits(digits, 101)
    whole, parts = features(samples, classifier, batch_size=101), features(samples, classifier, batch_size=7)
    assert whole["embedding"].shape == (101, 64) and whole["logits"].shape == (101, 10)
    # Sums of a few hundred float32 terms near one.
    for name in whole:
        torch.testing.assert_close(whole[name], parts[name], atol=1e-4, rtol=1e-4)
