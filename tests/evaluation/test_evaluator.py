"""The base against the GEBM, measured on a tiny model and the digits."""

from __future__ import annotations

import copy
import itertools
import math

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from gebm import GEBM, StandardNormal
from gebm.replay import compiled
from gebm.samplers.replayed import BLOCK
from pipeline.evaluation import metrics
from pipeline.evaluation.base import EvaluationRun
from pipeline.evaluation.chains import chain_steps, run_chains
from pipeline.evaluation.evaluator import evaluate, resampled
from pipeline.evaluation.metrics.subsets import evenly_spaced, evenly_spaced_rows
from pipeline.runtime.errors import UserError
from pipeline.tasks.images import ImageScorer
from pipeline.training.build_model import build_model

SMALL = {
    "sampler": {"name": "ula", "step_size": 1e-2, "num_steps": 8},
    "evaluation": {"num_samples": 120, "batch_size": 120, "chain_points": 4, "grid": 9, "extractor": "classifier"},
}


@given(st.integers(1, 5000), st.integers(1, 200))
def test_places_along_a_chain(num_steps, points):
    steps = chain_steps(num_steps, points)
    assert steps[0] == 0 and steps[-1] == num_steps
    assert all(before < after for before, after in itertools.pairwise(steps))
    assert len(steps) == min(points, num_steps) + 1
    # Evenly spaced: no place is further than half a step from where it should be.
    if points <= num_steps:
        assert all(abs(step - index * num_steps / points) <= 0.5 for index, step in enumerate(steps))


class Flat(torch.nn.Module):
    """An energy that is the same everywhere."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return 3.0 + 0.0 * images.flatten(1).sum(1)


@pytest.mark.parametrize("name", ["ula", "kla", "mala", "hmc", "rwm", "imh"])
def test_a_constant_energy_leaves_the_latents_alone(small, name):
    """From N(0, I) to N(0, I), but for the known bias of the kernels that accept everything."""
    step_size, num_steps, chains, dim = 0.05, 30, 4000, 4
    config = small(sampler={"name": name, "step_size": step_size, "num_steps": num_steps, "beta": 2.0, "friction": 1.0})
    model = GEBM(torch.nn.Linear(dim, 3), Flat(), StandardNormal(dim)).eval()
    seen: dict[int, torch.Tensor] = {}
    z0 = model.prior.sample(chains, torch.Generator().manual_seed(0))
    chain = run_chains(model, config.sampler, z0, seed=1, observe=seen.__setitem__)
    assert list(seen) == list(range(num_steps + 1))
    assert torch.equal(seen[0], z0) and torch.equal(seen[num_steps], chain.z) and not torch.equal(seen[0], chain.z)
    z, count = chain.z.double(), chains * dim
    variance = 1.0
    if name == "ula":  # v <- (1 - h)^2 v + 2 h
        for _ in range(num_steps):
            variance = (1 - step_size) ** 2 * variance + 2 * step_size
    # KLA from rest, at most h^2 / 4 away from equilibrium in position; the velocities warm up from zero.
    allowance = step_size**2 if name == "kla" else 0.0
    if name == "kla":
        assert z.var() <= 1.0 + allowance + 5 * math.sqrt(2 / count)
    else:
        assert abs(z.square().mean() - variance) < 5 * variance * math.sqrt(2 / count)
    assert (z.mean(0).abs() < 5 * math.sqrt(variance / chains)).all()
    correlations = z.T.corrcoef() - torch.eye(dim)
    assert (correlations.abs() < 5 / math.sqrt(chains)).all()


@given(st.lists(st.floats(-5, 5), min_size=1, max_size=30))
@example([0.0, 3.0])
def test_base_samples_are_resampled_by_their_weights(energies):
    weights = (-torch.tensor(energies).double()).softmax(0)
    counts = torch.bincount(resampled(torch.tensor(energies)), minlength=len(energies))
    # Systematic resampling is off by less than one of each.
    assert counts.sum() == len(energies) and ((counts - len(energies) * weights).abs() < 1 + 1e-6).all()


@given(st.lists(st.tuples(st.floats(-5, 5), st.integers(0, 3)), min_size=1, max_size=30))
def test_base_samples_with_classes_are_resampled_within_each(pairs):
    energies, labels = torch.tensor([energy for energy, _ in pairs]), torch.tensor([label for _, label in pairs])
    drawn = resampled(energies, labels)
    # As many of a class as there were, as a chain leaves them.
    assert torch.equal(labels[drawn], labels)
    for label in labels.unique():
        rows = (labels == label).nonzero().flatten()
        assert torch.equal(drawn[rows], rows[resampled(energies[rows])])


def test_chains_follow_the_energy_times_beta(small):
    config = small(sampler={"name": "ula", "step_size": 1e-2, "num_steps": 3, "beta": 4.0})
    model = GEBM(torch.nn.Identity(), torch.nn.Linear(4, 1), StandardNormal(4)).eval()
    z0 = model.prior.sample(20, torch.Generator().manual_seed(0))
    chain = run_chains(model, config.sampler, z0, seed=1, observe=lambda step, z: None)
    with torch.no_grad():
        torch.testing.assert_close(chain.infos.potential[-1], model.potential(chain.z, beta=4.0))


class Still:
    """A judge of the latents themselves, seen through a base that changes nothing."""

    primary = "spread"

    def kept_rows(self, total: int) -> torch.Tensor:
        return torch.zeros(total, dtype=torch.bool)

    def show(self, samples: torch.Tensor) -> torch.Tensor:
        return samples

    def features(self, shown: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"z": shown}

    def score(self, features: dict[str, torch.Tensor], *, end: bool) -> dict[str, float]:
        return {"spread": float(features["z"].double().square().mean())}


@pytest.mark.parametrize("name", ["mala", "hmc", "rwm", "imh"])
def test_an_evaluation_leaves_the_prior_alone_where_the_energy_is_constant(small, name):
    """From the first step on: noise that had to do with the latents would show there most."""
    count, dim = 4000, 4
    settings = {"num_samples": count, "batch_size": 1000, "chain_points": 3, "grid": 4}
    config = small(sampler={"name": name, "step_size": 0.1, "num_steps": 3}, evaluation=settings)
    found = evaluate(GEBM(torch.nn.Identity(), Flat(), StandardNormal(dim)).eval(), config, Still())
    assert list(found.chain) == [0, 1, 2, 3] and found.chain[1] != found.chain[0]
    for point in found.chain.values():
        assert abs(point.score - 1) < 5 * math.sqrt(2 / (count * dim))


class ClassShare(Still):
    """A judge of the share of the first of two classes, whose vectors are the samples' last coordinates."""

    def score(self, features: dict[str, torch.Tensor], *, end: bool) -> dict[str, float]:
        return {"spread": float(features["z"][:, -2].double().mean())}


def test_weights_and_chains_leave_the_shares_of_classes_as_they_are_in_the_data(small):
    class ByClass(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return 5 * x[:, -1] + x[:, 0]

    settings = {"num_samples": 200, "batch_size": 70, "chain_points": 2, "grid": 4}
    config = small(sampler={"name": "mala", "step_size": 0.3, "num_steps": 4}, evaluation=settings)
    model = GEBM(torch.nn.Identity(), ByClass(), StandardNormal(2), class_frequencies=[3, 1]).eval()
    scores = evaluate(model, config, ClassShare()).scores
    assert abs(scores["spread_base"] - 0.75) < 5 * math.sqrt(0.75 * 0.25 / 200)
    assert scores["spread_weighted"] == scores["spread_gebm"] == scores["spread_base"]


class Keeper(Still):
    """A judge of a few samples as they are shown, which notes what it is given."""

    def __init__(self, count: int) -> None:
        self.count, self.given = count, []

    def kept_rows(self, total: int) -> torch.Tensor:
        return evenly_spaced_rows(total, self.count)

    def score(self, features: dict[str, torch.Tensor], *, end: bool) -> dict[str, float]:
        self.given.append((features["z"], features.get("images"), end))
        return super().score(features, end=end) | {"kept": 1.0}


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    num_samples=st.integers(2, 30),
    batch_size=st.integers(1, 30),
    count=st.integers(0, 40),
    metric=st.sampled_from([None, "spread_gebm", "kept_gebm"]),
)
def test_samples_are_kept_as_they_are_shown_where_a_score_needs_them_and_no_more_of_them(
    small, num_samples, batch_size, count, metric
):
    sizes = {"num_samples": num_samples, "batch_size": batch_size, "chain_points": 3, "grid": 1}
    config = small(sampler={"name": "ula", "step_size": 0.1, "num_steps": 3}, evaluation=sizes)
    config.sweep.metric = metric or "spread_gebm"
    run = EvaluationRun(reached=None if metric is None else lambda step, score: None)
    model, keeper = GEBM(torch.nn.Identity(), Flat(), StandardNormal(4)).eval(), Keeper(count)
    found = evaluate(model, config, keeper, run)
    ends = [entry for entry in keeper.given if entry[2]]
    # A search by a score that is not followed along the chain needs it at each point.
    assert len(ends) == (4 if metric == "kept_gebm" else 2)
    for shown, kept, end in keeper.given:
        assert (kept is not None) == (end and count > 0)
        assert kept is None or torch.equal(kept, evenly_spaced(shown, count))
    # What is left of an evaluation has none of them.
    assert all(samples.features.keys() == {"z"} for samples in found.ends.values())


def test_replayed_chains_have_the_scores_of_plain_ones_and_say_so(small, monkeypatch):
    monkeypatch.setattr(compiled, "compile_graph", lambda graph: graph)
    settings = {"num_samples": 90, "batch_size": 30, "chain_points": 2, "grid": 4}
    found = {}
    modes = {None: {"cuda_graphs": False}, "static": {"cuda_graphs": True}, "compiled": {"compile": True}}
    for path, keys in modes.items():
        sampler = {"name": "mala", "step_size": 0.1, "num_steps": 2 * BLOCK, **keys}
        config = small(sampler=sampler, evaluation=settings)
        found[path] = evaluate(GEBM(torch.nn.Identity(), Flat(), StandardNormal(4)).eval(), config, Still())
        assert found[path].sampler_path == path
        assert found[path].chain == found[None].chain
        assert torch.equal(found[path].ends["gebm"].latents, found[None].ends["gebm"].latents)
    assert found[None].notes == []
    for path, how in (("static", "replayed on static tensors"), ("compiled", "compiled")):
        [note] = found[path].notes
        assert note.startswith(f"steps of chains are {how}: ")


@pytest.fixture(scope="module")
def reference(digits, classifier):
    return metrics.reference(digits, classifier)


@pytest.fixture
def scorer(classifier, reference):
    return ImageScorer(classifier, reference, ["fid"])


@pytest.fixture
def found(small, scorer):
    """A fresh model and what its evaluation found."""
    config = small(**SMALL)
    model = build_model(config).eval()
    steps: list[int] = []
    return config, model, evaluate(model, config, scorer, EvaluationRun(steps.append)), steps


def test_the_base_is_scored_on_the_latents_that_the_chain_starts_from(found, classifier, reference):
    config, model, evaluation, _ = found
    generator = torch.Generator().manual_seed((config.seed + 1) * 1_000_003)
    latents = model.prior.sample(config.evaluation.num_samples, generator)
    with torch.no_grad():
        images = metrics.to_uint8(model.base(latents))
    fid = metrics.score(images, reference, classifier)["fid"]
    assert evaluation.scores["fid_base"] == pytest.approx(fid, rel=1e-6)
    assert torch.equal(evaluation.frames[0], images[: config.evaluation.grid])


def test_the_chain_goes_from_the_base_to_the_gebm(found):
    config, _, evaluation, steps = found
    assert list(evaluation.chain) == list(evaluation.frames) == [0, 2, 4, 6, 8]
    for step, end in ((0, "base"), (8, "gebm")):
        assert evaluation.chain[step] == (
            evaluation.scores[f"fid_{end}"],
            evaluation.scores[f"fid_{end}_standard_error"],
        )
    # Each point has an error of its own.
    assert len({point.score for point in evaluation.chain.values()}) == 5
    assert len({point.standard_error for point in evaluation.chain.values()} - {None, 0.0}) == 5
    for frame in evaluation.frames.values():
        assert frame.shape == (9, 1, 8, 8) and frame.dtype == torch.uint8
    assert sum(steps) == config.evaluation.num_samples * config.sampler.num_steps
    assert all(math.isfinite(value) for value in evaluation.scores.values())
    assert {"mean_potential", "log_partition_monte_carlo", "log_partition_monte_carlo_standard_error"} <= set(
        evaluation.scores
    )


def test_the_same_seed_finds_the_same_and_another_does_not(found, small, scorer):
    config, model, first, _ = found
    again = evaluate(model, config, scorer)
    scores = [
        {key: value for key, value in found.scores.items() if not key.endswith("per_second")}
        for found in (again, first)
    ]
    assert scores[0] == scores[1] and again.chain == first.chain
    assert all(torch.equal(again.frames[step], first.frames[step]) for step in first.frames)
    other = evaluate(model, small(**SMALL, seed=1), scorer)
    assert other.scores["fid_base"] != first.scores["fid_base"]


def test_evaluating_changes_nothing_of_the_model(found, scorer):
    config, model, _, _ = found
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    evaluate(model, config, scorer)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())


def test_a_model_in_training_is_evaluated_as_it_will_be_sampled(found, scorer):
    config, model, evaluation, _ = found
    training = copy.deepcopy(model).train()
    before = {name: tensor.clone() for name, tensor in training.state_dict().items()}
    again = evaluate(training, config, scorer)
    for name in ("fid_base", "fid_gebm"):
        assert again.scores[name] == evaluation.scores[name]
    assert all(torch.equal(before[name], tensor) for name, tensor in training.state_dict().items())
    assert all(module.training for module in training.modules())


def test_batches_that_do_not_divide_the_samples(found, small, scorer):
    config = small(sampler=SMALL["sampler"], evaluation={**SMALL["evaluation"], "batch_size": 50, "grid": 70})
    model = build_model(config).eval()
    advanced: list[int] = []
    evaluation = evaluate(model, config, scorer, EvaluationRun(advanced.append))
    assert sum(advanced) == 120 * 8
    assert all(len(frame) == 70 for frame in evaluation.frames.values())
    # Latents and noise belong to a chain, so the scores are the same however chains are batched.
    for name in ("fid_base", "fid_gebm"):
        assert evaluation.scores[name] == pytest.approx(found[2].scores[name], rel=1e-4)


def test_other_metrics_are_of_the_base_and_of_the_gebm(small, classifier, reference):
    config = small(**SMALL)
    scorer = ImageScorer(classifier, reference, ["kid", "is", "prc"])
    scores = evaluate(build_model(config).eval(), config, scorer).scores
    for model in ("base", "gebm"):
        assert {f"{name}_{model}" for name in ("fid", "kid", "kid_std", "is", "is_std", "precision", "recall")} <= set(
            scores
        )


class Cliff(torch.nn.Module):
    """An energy that is not a number for some of the images."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        energy = images.flatten(1).mean(1)
        return torch.where(energy > energy.detach().quantile(0.9), torch.nan, energy)


def test_chains_that_diverge_are_counted_and_restarted(small, scorer):
    config = small(**SMALL)
    model = GEBM(build_model(config).base, Cliff(), StandardNormal(4)).eval()
    found = evaluate(model, config, scorer)
    assert 0 < found.scores["divergences"] < 120 * 8
    assert math.isfinite(found.scores["fid_gebm"]) and math.isfinite(found.scores["mean_potential"])


def test_chains_that_all_diverge_are_one_line(small, scorer):
    config = small(sampler={**SMALL["sampler"], "step_size": 1e30}, evaluation=SMALL["evaluation"])
    with pytest.raises(UserError, match=r"sampler\.step_size") as refusal:
        evaluate(build_model(config).eval(), config, scorer)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("name", "step_size", "moves"), [("kla", 1e-6, False), ("ula", 1e-2, True), ("rwm", 1e-7, False)]
)
def test_chains_that_hardly_move_are_warned_of_in_one_line(small, name, step_size, moves):
    config = small(sampler={**SMALL["sampler"], "name": name, "step_size": step_size}, evaluation=SMALL["evaluation"])
    evaluation = evaluate(GEBM(torch.nn.Identity(), Flat(), StandardNormal(4)).eval(), config, Still())
    start, end = (evaluation.ends[key].latents for key in ("base", "gebm"))
    assert evaluation.scores["chain_distance"] == pytest.approx(float((end - start).norm(dim=1).mean()), rel=1e-4)
    assert ("acceptance_rate" in evaluation.scores) == (name == "rwm")
    assert len(evaluation.warnings) == (0 if moves else 1)
    for line in evaluation.warnings:
        assert f"sampler.name={name}" in line and f"sampler.step_size={step_size:g}" in line and "\n" not in line
