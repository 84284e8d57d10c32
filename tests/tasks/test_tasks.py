"""Tables and points of space: batches, likelihoods and distances against what is known of them."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gebm import GEBM, StandardNormal
from pipeline import tasks
from pipeline.config import Config, apply, from_dict
from pipeline.config.validation import validate
from pipeline.data import Position, load_rows, open_store, sources, write_store
from pipeline.data.sources.base import Table
from pipeline.data.sources.tables import toy
from pipeline.evaluation.evaluator import evaluate
from pipeline.runtime.errors import UserError
from pipeline.tasks.open_store import ensure_store, split_store
from pipeline.tasks.points import PointScorer
from pipeline.tasks.rows import RowBatches
from pipeline.training.build_model import build_model

DIM = 3


@pytest.fixture(scope="module")
def table(tmp_path_factory) -> str:
    """The URL of a store of Gaussian rows."""
    url = str(tmp_path_factory.mktemp("tables") / "gaussian")
    rows = torch.randn(2_000, DIM, generator=torch.Generator().manual_seed(0)) @ torch.randn(DIM, DIM) + 3
    write_store(Table("redwine", None, None, rows.numpy()), url)
    return url


@pytest.fixture
def density(table) -> Config:
    return from_dict(
        {
            "name": "rows",
            "task": "density",
            "data": {
                "store": table,
                "resolution": None,
                "channels": DIM,
                "encoding": "rows",
                "source": {"kind": "redwine"},
            },
            "model": {"networks": "gaussian", "latent_dim": DIM, "energy_floor": -math.inf},
            "evaluation": {"num_samples": 4_000, "batch_size": 700},
            "sweep": {"metric": "nll_gebm_validation"},
        }
    )


@settings(deadline=None, max_examples=60)
@given(
    num_rows=st.integers(1, 60),
    part=st.integers(1, 6),
    world_size=st.integers(1, 4),
    seed=st.integers(0, 99),
    data=st.data(),
)
def test_batches_of_rows_are_the_same_for_any_number_of_ranks_and_from_any_position(
    num_rows, part, world_size, seed, data
):
    batch_size = part * world_size
    rows = torch.arange(float(max(num_rows, batch_size)))[:, None]
    per_epoch = len(rows) // batch_size

    def take(count: int, rank: int = 0, ranks: int = 1, position: Position | None = None) -> list[torch.Tensor]:
        batches = RowBatches(rows, batch_size=batch_size, rank=rank, world_size=ranks, seed=seed, position=position)
        return [next(batches) for _ in range(count)] + [batches.position]

    *whole, after = take(2 * per_epoch + 1)
    assert after == Position(*divmod(2 * per_epoch + 1, per_epoch))
    shared = [take(2 * per_epoch + 1, rank, world_size)[:-1] for rank in range(world_size)]
    assert all(len(batch) == part for batches in shared for batch in batches)
    for batch, *parts in zip(whole, *shared, strict=True):
        assert torch.equal(batch, torch.cat(parts))
    for epoch in (whole[:per_epoch], whole[per_epoch : 2 * per_epoch]):
        assert len(torch.cat(epoch).unique()) == per_epoch * batch_size  # no row twice
    cut = data.draw(st.integers(0, 2 * per_epoch))
    resumed = take(2 * per_epoch + 1 - cut, position=Position(*divmod(cut, per_epoch)))[:-1]
    assert all(torch.equal(one, other) for one, other in zip(resumed, whole[cut:], strict=True))


def test_the_likelihood_of_the_base_is_that_of_its_density(density):
    # The Gaussian starts as a standard normal, and the rows are whitened.
    found = tasks.make(density).open(0, 1, torch.device("cpu")).evaluate(build_model(density))
    rows = split_store(density, open_store(density.data.store))
    for name, part in (("", rows.test), ("_validation", rows.validation), ("_train", rows.train)):
        expected = -torch.distributions.Normal(0.0, 1.0).log_prob(part.double()).sum(1).mean()
        assert found.scores[f"nll_base{name}"] == pytest.approx(float(expected), rel=1e-5)
        assert found.scores[f"nll_gebm{name}"] == pytest.approx(float(expected), rel=1e-5)  # two equal flows
    assert found.scores["nll_gebm_train"] == pytest.approx(DIM / 2 * (1 + math.log(2 * math.pi)), rel=1e-3)
    assert set(found.pictures) == {"marginals.png", "energies.png", "density.png"}
    assert all(content[1:4] == b"PNG" for content in found.pictures.values())


POINTS = {
    "task": "points",
    "model.networks": "mlp",
    "model.width": 4,
    "sweep.metric": "auto",
    "sampler.num_steps": 2,
    "evaluation.num_samples": 100,
}


@pytest.mark.parametrize("keys", [{}, POINTS], ids=["density", "points"])
def test_each_picture_of_rows_has_a_first_one_of_the_base(density, keys):
    config = apply(density, keys)
    worker, model = tasks.make(config).open(0, 1, torch.device("cpu")), build_model(config)
    before = torch.get_rng_state()
    first = worker.draw_start(model)
    assert torch.equal(torch.get_rng_state(), before)
    assert first.keys() == worker.evaluate(model).pictures.keys()
    assert all(content[1:4] == b"PNG" for content in first.values())


def test_a_constant_in_the_energy_changes_no_likelihood(density):
    shifted = apply(density, {"model.energy_offset": 2.5})
    plain, moved = (
        tasks.make(config).open(0, 1, torch.device("cpu")).evaluate(build_model(config)).scores
        for config in (density, shifted)
    )
    assert moved["log_partition_known"] == -2.5 and plain["log_partition_known"] == 0
    assert moved["log_partition_monte_carlo"] == pytest.approx(plain["log_partition_monte_carlo"] - 2.5, abs=1e-4)
    assert moved["nll_gebm"] == pytest.approx(plain["nll_gebm"], abs=1e-4)


def test_the_energys_log_partition_is_estimated_where_it_is_not_known(density):
    config = apply(density, {"model.energy": "mlp"})
    model = build_model(config)
    last = model.energy.network[-1]
    torch.nn.init.normal_(last.weight, generator=torch.Generator().manual_seed(0))
    scores = tasks.make(config).open(0, 1, torch.device("cpu")).evaluate(model).scores
    assert "log_partition_known" not in scores
    with torch.no_grad():
        x = model.sample_base(200_000, torch.Generator().manual_seed(9))
        log_weights = -model.energy(x).double()
    exact = log_weights.logsumexp(0) - math.log(len(x))
    # The other estimate has fifty times as many draws, and next to no error of its own.
    assert abs(scores["log_partition_monte_carlo"] - exact) < 5 * scores["log_partition_monte_carlo_standard_error"]
    assert 1 < scores["log_partition_monte_carlo_effective_samples"] <= 4_000


@pytest.mark.parametrize("sampler", ["mala", "imh"])
def test_annealing_agrees_with_monte_carlo_on_an_energy_that_is_not_known(density, sampler):
    config = apply(
        density,
        {
            "model.energy": "mlp",
            "sampler.name": sampler,
            "sampler.step_size": 0.3,
            "evaluation.log_partition": "annealed",
            "evaluation.temperatures": 8,
        },
    )
    validate(config)
    model = build_model(config)
    torch.nn.init.normal_(model.energy.network[-1].weight, generator=torch.Generator().manual_seed(0))
    scores = tasks.make(config).open(0, 1, torch.device("cpu")).evaluate(model).scores
    error = math.hypot(
        scores["log_partition_monte_carlo_standard_error"], scores["log_partition_annealed_standard_error"]
    )
    assert abs(scores["log_partition_annealed"] - scores["log_partition_monte_carlo"]) < 5 * error
    assert scores["log_partition_annealed_effective_samples"] > scores["log_partition_monte_carlo_effective_samples"]
    with torch.no_grad():
        model.energy.network[0].bias.fill_(math.nan)
    with pytest.raises(UserError, match="diverged"):
        tasks.make(config).open(0, 1, torch.device("cpu")).evaluate(model)


def test_the_likelihood_is_computed_with_the_log_partition_that_is_asked_for(density):
    config = apply(density, {"model.energy_offset": 1.5, "sampler.name": "mala", "sampler.step_size": 0.3})
    model = build_model(config)
    with torch.no_grad():
        model.log_partition.fill_(-1.0)
    scores = {
        kind: tasks.make(apply(config, {"evaluation.log_partition": kind, "evaluation.temperatures": 6}))
        .open(0, 1, torch.device("cpu"))
        .evaluate(model)
        .scores
        for kind in ("auto", "monte_carlo", "trained", "annealed")
    }
    # Two equal flows: the energy is the constant 1.5, whose log-partition every estimate finds without an error.
    for kind, expected in (("auto", 0.0), ("monte_carlo", 0.0), ("annealed", 0.0), ("trained", 0.5)):
        assert scores[kind]["nll_gebm"] == pytest.approx(scores[kind]["nll_base"] + expected, abs=1e-4)
    assert scores["annealed"]["log_partition_annealed"] == pytest.approx(-1.5, abs=1e-5)
    assert scores["annealed"]["log_partition_annealed_effective_samples"] == pytest.approx(4_000)
    assert "log_partition_annealed" not in scores["auto"]


@pytest.mark.parametrize(
    "overrides",
    [
        {"model.energy_offset": 1.5},
        {"train.objective": "ml"},
        {"model.energy_offset": 1.5, "evaluation.log_partition": "trained"},
        {"model.energy": "mlp", "data.max_correlation": 0.1},
    ],
    ids=str,
)
def test_log_densities_are_those_of_the_scores_in_the_units_of_the_table(density, overrides):
    splits = split_store(apply(density, overrides), open_store(density.data.store))
    dim = len(splits.columns)
    config = apply(density, {**overrides, "data.channels": dim, "model.latent_dim": dim})
    model, worker = build_model(config), tasks.make(config).open(0, 1, torch.device("cpu"))
    with torch.no_grad():
        model.log_partition.fill_(-1.0)
        if "model.energy" in overrides:
            torch.nn.init.normal_(model.energy.network[-1].weight, generator=torch.Generator().manual_seed(0))
    table = load_rows(open_store(config.data.store))
    parts = torch.cat(splits[:3])
    order = torch.cdist(splits.whiten(table), parts).argmin(0)
    of_parts = worker.log_densities(model, table)[order] - splits.whitening.logdet()
    scores, start = worker.evaluate(model).scores, 0
    for name, part in (("_train", splits.train), ("_validation", splits.validation), ("", splits.test)):
        found = of_parts[start : start + len(part)].mean()
        assert float(found) == pytest.approx(-scores[f"nll_gebm{name}"], abs=1e-4)
        start += len(part)


@pytest.mark.parametrize(
    ("overrides", "expected_text"),
    [
        (
            {"evaluation.log_partition": "annealed"},
            "sampler.name=ula: evaluation.log_partition=annealed needs an",
        ),
        ({"evaluation.log_partition": "trained", "train.objective": "kale_dv"}, "trains no log-partition"),
        ({"evaluation.log_partition": "known"}, "auto, monte_carlo, trained, annealed"),
    ],
)
def test_an_estimate_that_cannot_be_had_is_refused(density, overrides, expected_text):
    with pytest.raises(UserError) as refusal:
        validate(apply(density, overrides))
    assert expected_text in str(refusal.value) and "\n" not in str(refusal.value)


def test_maximum_likelihood_alone_is_judged_by_its_base(density):
    config = apply(density, {"train.objective": "ml", "model.energy_offset": 7.0})
    scores = tasks.make(config).open(0, 1, torch.device("cpu")).evaluate(build_model(config)).scores
    assert scores["nll_gebm"] == scores["nll_base"]
    assert scores["log_partition_monte_carlo"] == 0 and scores["log_partition_monte_carlo_standard_error"] == 0


def test_a_density_that_is_not_finite_is_one_line(density):
    model = build_model(density)
    with torch.no_grad():
        model.base.mean.fill_(math.inf)
    with pytest.raises(UserError, match=r"train\.energy_lr") as refusal:
        tasks.make(density).open(0, 1, torch.device("cpu")).evaluate(model)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("overrides", "expected_text"),
    [
        ({"data.channels": 4}, "3 columns as conf=rows prepares them, and data.channels=4: set data.channels=3"),
        ({"train.batch_size": 1_700}, "1620 rows to train on, fewer than train.batch_size=1700"),
    ],
)
def test_a_table_that_does_not_fit_is_refused(density, overrides, expected_text):
    config = apply(density, overrides)
    with pytest.raises(UserError) as refusal:
        tasks.make(config).check(open_store(config.data.store))
    assert expected_text in str(refusal.value) and "\n" not in str(refusal.value)


def test_images_are_no_table(density, digits):
    with pytest.raises(UserError, match="holds images, not rows"):
        tasks.make(density).check(digits)


def test_rows_are_shown_in_the_units_of_the_table(density):
    store = open_store(density.data.store)
    shown = tasks.make(density).show(split_store(density, store).test)
    distances = torch.cdist(shown.double(), load_rows(store).double())
    assert (distances.min(1).values < 1e-4).all()


@pytest.fixture(scope="module")
def scorer() -> PointScorer:
    angles = torch.special.ndtri((torch.arange(5_000, dtype=torch.float64) + 0.5) / 5_000)[:, None]
    return PointScorer(
        toy.sample(2_000, seed=1), toy.sample(2_000, seed=2), toy.base(angles).float(), lambda points: points
    )


def test_the_distance_of_points_is_that_of_their_laws(scorer):
    exact, base = toy.sample(2_000, seed=2), toy.base(torch.randn(2_000, 1)).float()
    scores = [scorer.score({"points": points}, end=True) for points in (exact, base, exact + 0.5)]
    distances = [score["distance"] for score in scores]
    # Of two samples of one law: below the mean of n^(-1/2) times the spread, which is at most one along each direction.
    assert distances[0] < 1 / math.sqrt(2_000) * math.sqrt(math.pi) < distances[1] < distances[2]
    # A shift s moves a projection by s . u: at most |s|, and on average half of it in three dimensions.
    assert 0.2 * math.sqrt(0.75) < distances[2] < math.sqrt(0.75)
    assert scores[0]["off_support"] < 1e-3 and scores[1]["off_support"] < 1e-3 < scores[2]["off_support"]
    assert scores[0]["distance_validation"] == 0 < scores[1]["distance_validation"]  # these very points
    assert set(scorer.score({"points": exact}, end=False)) == {"distance", "distance_standard_error"}


def test_the_true_energy_on_the_true_base_leads_the_chain_to_the_data(scorer):
    """The model that made the data, sampled as a trained one is."""

    class Curve(torch.nn.Module):
        def forward(self, z):
            return toy.base(z)

    class Energy(torch.nn.Module):
        def forward(self, x):
            return toy.energy(x)

    config = from_dict(
        {
            "name": "toy",
            "task": "points",
            "data": {"store": "toy", "source": {"kind": "toy"}},
            "model": {"networks": "mlp", "latent_dim": 1},
            "sampler": {"name": "mala", "step_size": 0.2, "num_steps": 400},
            "evaluation": {"num_samples": 2_000, "batch_size": 2_000, "chain_points": 2},
        }
    )
    found = evaluate(GEBM(Curve(), Energy(), StandardNormal(1)).eval(), config, scorer)
    assert found.scores["distance_gebm"] < 1 / math.sqrt(2_000) * math.sqrt(math.pi) < found.scores["distance_base"]
    # Six standard errors: the weights exp(-E) / Z have a mean of one, and their own spread is estimated with it.
    error = found.scores["log_partition_monte_carlo_standard_error"]
    assert abs(found.scores["log_partition_monte_carlo"] - toy.log_partition()) < 6 * error


def test_the_toy_is_made_where_it_is_first_asked_for(tmp_path, monkeypatch):
    monkeypatch.setenv("GEBM_STORES", str(tmp_path))
    data = {"store": "toy", "resolution": None, "channels": 3, "encoding": "rows", "source": {"kind": "toy"}}
    config = from_dict({"name": "toy", "task": "points", "data": data, "model": {"networks": "mlp"}})
    store = ensure_store(config)
    assert store.manifest.num_samples == toy.NUM_ROWS and store.manifest.sample_shape == (3,)
    assert ensure_store(config).url == store.url
    assert sources.make("toy").rows.shape == (toy.NUM_ROWS, 3)
