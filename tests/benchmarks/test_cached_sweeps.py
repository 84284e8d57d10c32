"""Pages of results: each has the runs of its sweeps by objective and seed, as ``pipeline.compare`` groups them."""

from __future__ import annotations

import json

import pytest

from benchmarks import density, toy
from benchmarks.cached_sweeps import runs
from tests.helpers.compared import write_sweep


def test_the_runs_of_a_sweep_that_is_there_come_by_objective_and_seed(tmp_path):
    params = [{"train.objective": name, "seed": seed} for name in ("kale_fenchel", "gan") for seed in (2, 0, 1)]
    folder = tmp_path / "sweep"
    write_sweep(folder, params)
    found = runs(folder, "sweep")
    trials = json.loads((folder / "summary.json").read_text())["trials"]
    assert list(found) == ["kale_fenchel", "gan"]
    for objective, of_seed in found.items():
        assert list(of_seed) == [0, 1, 2]
        for seed, trial in of_seed.items():
            [written] = [one for one in trials if one["params"] == {"train.objective": objective, "seed": seed}]
            assert trial.best_metrics == written["best_metrics"] and trial.name == written["name"]
            # Another command may be given it from any folder.
            assert trial.best_checkpoint == f"{folder}/{written['best_checkpoint']}"


def test_the_page_of_the_toy_has_means_and_errors_over_seeds(tmp_path):
    def scores(params, seed):
        names = ("distance_base", "distance_gebm", "off_support_base", "off_support_gebm", "distance_validation_gebm")
        return {name: 1.0 + seed for name in (*names, "distance_validation_base")}

    for name, objectives in (("gebm-and-gans", ("kale_fenchel", "gan", "hinge")), ("ebm", ("kale_fenchel", "pcd"))):
        params = [{"train.objective": objective, "seed": seed} for objective in objectives for seed in range(3)]
        write_sweep(tmp_path / name, params, scores, metric="distance_validation_gebm")
    rows, figures = toy.compare(tmp_path)
    assert [row["label"] for row in rows] == [
        "GEBM (KALE)", "GAN, logistic", "GAN, hinge", "EBM, KALE", "EBM, persistent contrastive divergence",
    ]  # fmt: skip
    assert [trial["distance_gebm"] for trial in rows[0]["trials"]] == [1.0, 2.0, 3.0]
    assert figures == tmp_path / "gebm-and-gans/trials/000/figures/step-00000010"


def test_the_page_of_densities_pairs_the_gain_by_seed(tmp_path):
    def scores(params, seed):
        names = ("nll_base", "nll_gebm", "nll_gebm_validation", "log_partition")
        return {name: 1.0 + seed for name in names} | {"log_partition_monte_carlo_standard_error": 0.1}

    grids = {"gaussian": ["ml"], "maf": ["ml"], "realnvp": ["ml", "kale_fenchel", "kale_dv"], "pcd": ["pcd_data"]}
    for name, objectives in {**grids, "flow": ["ml"]}.items():
        params = [{"train.objective": objective, "seed": seed} for objective in objectives for seed in density.SEEDS]
        write_sweep(tmp_path / "redwine" / name, params, scores, metric="nll_gebm_validation")
    for seed in density.SEEDS:

        def top(params, _, seed=seed):
            return {**scores(params, seed), "nll_gebm": 0.75 + seed}

        write_sweep(tmp_path / f"redwine/on-top-{seed}", scores=top, metric="nll_gebm_validation", seed=seed)
    page = density.document({"redwine": density.measure("redwine", tmp_path / "redwine")})
    assert "| Real NVP, maximum likelihood | 3.00 ± 0.71 |" in page
    assert "| gain of the energy on top | 0.250 ± 0.000 |" in page


@pytest.fixture(autouse=True)
def no_command(monkeypatch):
    """What is there is not run again."""
    monkeypatch.setattr("benchmarks.cached_sweeps._command", lambda *words: pytest.fail(f"run: {words}"))
