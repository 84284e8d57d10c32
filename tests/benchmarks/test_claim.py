"""The page on the claim: the rule of the plateau, and what it says of results that are half there."""

from __future__ import annotations

import itertools
import json
import math
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.claim import energy_experiments, experiment, page, settings
from benchmarks.claim.__main__ import RESULTS
from benchmarks.claim.penalties import best_penalty
from benchmarks.claim.plateau import first_plateau, is_plateau
from benchmarks.claim.results import Results, Variant, chosen_energy
from benchmarks.claim.settings import OBJECTIVES, SEEDS
from benchmarks.claim.verdict import HEADLINE_CONFIDENCE, HEADLINES, summary
from gebm import GEBM, StandardNormal, networks
from pipeline.training.build_model import build_model


def chain(fid: float, beta: float = 10.0, **more: float) -> dict[str, float]:
    scores = {"fid": fid, "kid": fid / 1000, "kid_std": 0.0, "precision": 0.6, "recall": 0.5, "nearest": 1.0}
    return {"beta": beta, "step_size": 1e-3, "num_steps": 50, **scores, **more}


def energy(fid: float, phase: bool) -> dict[str, Any]:
    tuning = [
        {"beta": beta, "step_size": 1e-3, "num_steps": 50, "fid": fid + cost}
        for beta, cost in ((1.0, 0.5), (10.0, 0.0))
    ]
    quality = {f"{data}_kale": 0.3 for data in ("held_out", "train")}
    made = {"tuning": tuning, "quality": quality, "weighted": {"fid": fid + 0.4}}
    made["chain"] = chain(fid)
    if phase:
        history = [{"steps": steps, "held_out_kale": 0.2, "train_kale": 0.3} for steps in (0, 25, 50)]
        made["phase"] = {"steps": 25, "steps_taken": 50, "history": history}
    return made


def run(setting: str, objective: str, seed: int, base: float, best: float, converged: bool = True) -> dict[str, Any]:
    """Return the result of a run whose base has one FID, and all of whose energies have another."""
    base, best = base + 0.1 * seed, best + 0.1 * seed + 0.01 * seed**2
    return {
        "setting": setting,
        "objective": objective,
        "seed": seed,
        "extractor": "classifier-of-tests",
        "base_steps": 400,
        "converged": converged,
        "curve": [{"base_step": step, "seconds": step / 5, "fid": base + 400 / step} for step in (200, 400)],
        "energies": {name: energy(best, name != "as_trained") for name in ("as_trained", "kale_phase", "gan_phase")},
        "base": {key: value for key, value in chain(base).items() if key not in ("beta", "step_size", "num_steps")},
    }


def write(path: Path, values: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(values))


@pytest.fixture
def folder(tmp_path: Path) -> Callable[[Iterable[dict[str, Any]]], Path]:
    def make(runs: Iterable[dict[str, Any]]) -> Path:
        results = tmp_path / "results"
        for one in runs:
            write(results / one["setting"] / f"{one['objective']}-{one['seed']}.json", one)
        return results

    return make


def gebm_and_gan(gebm: float, gan: float, seeds: Iterable[int] = SEEDS) -> list[dict[str, Any]]:
    """Return runs of one setting in which GEBM and GAN have these FIDs."""
    fids = {"kale_fenchel": (gebm + 1, gebm), "gan": (gan, gan - 0.5)}
    return [run("digits", name, seed, *fids[name]) for name in fids for seed in seeds]


def one_line(text: str) -> str:
    return " ".join(text.split())


@given(st.lists(st.floats(0, 100), max_size=5))
def test_no_base_is_at_a_plateau_before_six_looks(fids: list[float]) -> None:
    assert not is_plateau(fids)


@given(st.lists(st.floats(0.1, 100), max_size=6), st.floats(1.0, 50.0))
def test_a_base_that_stands_still_or_worsens_is_at_a_plateau(earlier: list[float], fid: float) -> None:
    noise = [0.01, -0.01, 0.02]
    assert is_plateau([*earlier, *[fid + part for part in noise], *[fid + part for part in noise]])
    assert is_plateau([*earlier, *[fid + part for part in noise], *[fid + 5 + part for part in noise]])


@given(st.lists(st.floats(0.1, 100), max_size=6), st.floats(10.0, 50.0), st.floats(0.5, 1.0))
def test_a_base_that_falls_steadily_is_not_at_a_plateau(earlier: list[float], fid: float, fall: float) -> None:
    assert not is_plateau([*earlier, *[fid - fall * look for look in range(6)]])


@given(st.lists(st.floats(0.1, 100), min_size=6, max_size=6), st.lists(st.floats(0.1, 100), max_size=6))
def test_a_plateau_is_a_matter_of_the_last_six_looks(last: list[float], earlier: list[float]) -> None:
    assert is_plateau([*earlier, *last]) == is_plateau(last)


@given(st.lists(st.floats(0.1, 100), max_size=12))
def test_the_rule_first_holds_at_the_shortest_part_of_a_curve_that_is_a_plateau(fids: list[float]) -> None:
    count = first_plateau(fids)
    shorter = range(len(fids) + 1 if count is None else count)
    assert not any(is_plateau(fids[:looks]) for looks in shorter)
    assert count is None or is_plateau(fids[:count])


def test_the_claim_is_said_to_hold_where_it_does(folder) -> None:
    said = one_line(summary(Results.load(folder(gebm_and_gan(3.0, 5.0)))))
    assert (
        "- **Digits**: the GEBM has a lower FID than the GAN; the GEBM has a lower FID than the GAN with its "
        "discriminator; a KALE energy on the GAN's base has a lower FID than the GAN; no other difference of the first "
        "4 rows is shown." in said
    )
    assert "| the GEBM against the GAN | +1.94 (1.81 to 2.07): yes |" in said
    assert "| the GEBM against the GAN with its discriminator | +1.50 (1.50 to 1.50): yes |" in said
    assert "digits, 5 of 5 seeds |" in said and "- No runs yet: photographs, horses." in said
    assert "Missing" not in said and "earlier rounds" not in said


def test_the_claim_is_said_to_fail_where_the_sign_is_reversed(folder) -> None:
    said = one_line(summary(Results.load(folder(gebm_and_gan(5.0, 3.0)))))
    assert "the GEBM has a higher FID than the GAN;" in said and "): no, worse |" in said
    assert "the GEBM has a lower FID" not in said


def test_a_difference_within_its_error_is_said_not_to_be_shown(folder) -> None:
    runs = gebm_and_gan(3.0, 3.0)
    for one in runs:
        if one["objective"] == "gan":
            one["base"]["fid"] += (-1) ** one["seed"]
    said = one_line(summary(Results.load(folder(runs))))
    assert re.search(r"\| the GEBM against the GAN \| [^|]*: not shown \|", said)
    assert not re.search(r"the GEBM has a (lower|higher) FID than the GAN[;.]", said)


def test_one_seed_tells_nothing(folder) -> None:
    said = one_line(summary(Results.load(folder(gebm_and_gan(3.0, 5.0, seeds=[2])))))
    assert "fewer than two seeds of both, which shows nothing" in said and ", one seed: no verdict |" in said
    assert "lower FID than" not in said


def test_missing_and_unconverged_seeds_are_named(folder) -> None:
    runs = [one for one in gebm_and_gan(3.0, 5.0) if (one["objective"], one["seed"]) not in {("gan", 1), ("gan", 4)}]
    next(one for one in runs if one["seed"] == 2)["converged"] = False
    results = Results.load(folder(runs))
    said = one_line(summary(results))
    assert "digits, 3 of 5 seeds" in said
    assert "Missing: GAN (logistic) seeds 1, 4." in said
    assert "| not converged | GEBM (KALE-F) seed 2 | none | none |" in one_line(page.document(results, set()))


def test_what_earlier_rounds_said_stands_beside_what_these_say(folder, tmp_path: Path) -> None:
    results = folder(gebm_and_gan(3.0, 5.0))
    for index, gan in enumerate((3.5, 2.0), 1):
        for one in gebm_and_gan(3.0, gan):
            name = f"{one['objective']}-{one['seed']}.json"
            write(results / "earlier" / str(index) / "digits" / name, {**one, "penalty": 0.25})
    found = Results.load(results)
    said = one_line(summary(found))
    assert "the first row was +0.44 (0.31 to 0.57): yes and -1.06 (-1.19 to -0.93): no, worse." in said
    text = one_line(page.document(found, set()))
    assert "| | round 1, digits | round 2, digits | now, digits |" in text
    assert "| penalty | 0.25 | 0.25 | 1 |" in text
    assert (
        "| the GEBM against the GAN | +0.44 (0.31 to 0.57): yes | -1.06 (-1.19 to -0.93): no, worse | "
        "+1.94 (1.81 to 2.07): yes |" in text
    )


def test_the_intervals_of_the_headlines_are_wider_than_those_of_one_comparison(folder) -> None:
    results = Results.load(folder(gebm_and_gan(3.0, 5.0)))
    pair = HEADLINES[0].first, HEADLINES[0].second
    alone, together = results.gain("digits", *pair), results.gain("digits", *pair, confidence=HEADLINE_CONFIDENCE)
    error = alone.error
    # By Student's t with 4 degrees of freedom: 2.776 at 95 %, 4.315 at 98.75 %.
    assert (alone.high - alone.mean) / error == pytest.approx(2.776, abs=1e-3)
    assert (together.high - together.mean) / error == pytest.approx(4.315, abs=1e-3)


def test_the_model_itself_is_what_the_weights_say_and_no_chain(folder) -> None:
    runs = gebm_and_gan(3.0, 5.0)
    for one in runs:
        for made in one["energies"].values():
            made["weighted"]["fid"] = 7.0 + 0.1 * one["seed"]
    said = one_line(summary(Results.load(folder(runs))))
    assert "| the GEBM itself, `beta` 1, against the GAN | -2.00 (-2.00 to -2.00): no, worse |" in said


def test_bases_are_compared_at_the_last_step_that_all_came_to(folder) -> None:
    runs = gebm_and_gan(3.0, 5.0)
    for one in runs:
        if one["objective"] == "gan":
            one["curve"].append({"base_step": 600, "seconds": 120, "fid": 0.1})
    found = Results.load(folder(runs)).at_the_last_common_step("digits", ("kale_fenchel", "gan"))
    assert found is not None
    step, fids = found
    assert step == 400 and fids["gan"][0] == pytest.approx(6.0) and fids["kale_fenchel"][0] == pytest.approx(5.0)
    assert Results.load(folder([])).at_the_last_common_step("horses") is None


def test_an_energy_is_chosen_by_the_search_and_not_by_its_score() -> None:
    one = run("digits", "gan", 0, 5.0, 4.0)
    one["energies"]["gan_phase"]["chain"]["fid"] = 1.0
    one["energies"]["as_trained"]["tuning"][1]["fid"] = 3.9
    assert chosen_energy(one) == "as_trained"
    one["energies"]["kale_phase"]["tuning"][1]["fid"] = 0.0
    assert chosen_energy(one) == "as_trained", "a GAN's own energy is none of KALE's"
    one["energies"]["gan_phase"]["tuning"][1]["fid"] = 3.8
    assert chosen_energy(one) == "gan_phase"


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_the_own_phase_is_one_by_the_own_loss_or_none(objective: str) -> None:
    one = run("digits", objective, 0, 5.0, 4.0)
    for name in ("kale_phase", "gan_phase"):
        one["energies"][name]["tuning"][1]["fid"] = 0.0
    own = {"kale_fenchel": "kale_phase", "kale_dv": "kale_phase", "gan": "gan_phase"}
    assert chosen_energy(one) == own.get(objective, "as_trained")


@pytest.mark.parametrize("level", [-40.0, 0.3, 25.0])
def test_an_energy_of_any_level_begins_a_phase_at_zero(level: float) -> None:
    torch.manual_seed(0)
    base, energy = networks.make("dcgan", resolution=8, channels=1, latent_dim=4, width=8)
    model = GEBM(base, energy, StandardNormal(4), energy_floor=-math.inf).eval()
    x = model.sample_base(500, torch.Generator().manual_seed(5))
    before = model.energy(x)
    *_, last = (layer for layer in model.energy.modules() if isinstance(layer, torch.nn.Linear))
    with torch.no_grad():
        last.bias += level
    experiment._center(model)
    after = model.energy(x)
    assert abs(after.mean()) < 4 * before.std() / 500**0.5
    torch.testing.assert_close(after - after.mean(), before - before.mean(), rtol=0, atol=1e-4)


def project(folder: Path) -> Path:
    (folder / "README.md").write_text("before\n<!-- claim -->\nold\n<!-- /claim -->\nafter\n")
    return folder


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_phase_has_the_penalty_of_its_own_loss_whatever_the_base_was_trained_by(monkeypatch, objective: str) -> None:
    chosen = dict(zip(OBJECTIVES, (1.0, 2.0, 3.0, 4.0, 5.0), strict=True))
    monkeypatch.setitem(settings.PENALTY, "photographs", chosen)
    weights: list[float] = []
    monkeypatch.setattr(
        experiment.EnergyPhase, "run", lambda phase, trainer, *data, **more: weights.append(trainer.penalty.weight)
    )
    data = SimpleNamespace(batches=lambda position: None, held_out=None, seen=None)
    for name in ("photographs", "horses"):
        config = settings.experiment(settings.SETTINGS[name], objective, 0, {"model.width": 2})
        assert config.train.penalty == chosen[objective]
        for loss in ("kale", "gan"):
            experiment.train_phase(build_model(config), data, config, loss)
        experiment.train_phase(build_model(config), data, config, "kale", penalty=7.0)
    assert weights == 2 * [chosen["kale_fenchel"], chosen["gan"], 7.0]


def test_the_penalties_of_the_runs_are_those_that_the_search_prefers() -> None:
    found = Results.load(RESULTS).penalties
    for name, objective in itertools.product(settings.PENALTY, OBJECTIVES):
        best = best_penalty(found, name, objective)
        assert settings.PENALTY[name][objective] == (1.0 if best is None else best)
    assert found


def test_a_page_without_results_says_so(tmp_path: Path) -> None:
    page.write_page(tmp_path / "nothing", project(tmp_path))
    text = (tmp_path / page.PAGE).read_text()
    assert "0 of 75 runs are there" in one_line(text) and "FIGURE" not in text and "![" not in text
    assert "There are no runs yet." in (tmp_path / "README.md").read_text()


def test_a_page_of_some_results_has_them_all_and_no_others(folder, tmp_path: Path) -> None:
    runs = [run("digits", name, seed, 5.0, 4.0) for name in OBJECTIVES for seed in (0, 1)]
    runs.append(run("horses", "hinge", 0, 50.0, 49.0, converged=False))
    results = folder(runs)
    for seed, name in itertools.product((0, 1), ("gan", "kale_fenchel")):
        before = run("digits", name, seed, 8.0 if name == "gan" else 9.0, 6.5 - 0.11 * seed)
        write(results / "earlier" / "1" / "digits" / f"{name}-{seed}.json", {**before, "penalty": 0.25})
    for guard, fid in (("none", 32.0), ("clip", math.inf)):
        payload = {"objective": "kale_fenchel", "guard": guard, "seed": 0, "fid": fid, "largest_energy_loss": 1e9}
        payload |= {"largest_second_moment": 0.1, "mean_lower_bound": 0.2, "extractor": "classifier-of-guards"}
        write(results / "guard" / f"{guard}.json", payload)
    job = energy_experiments.FLAT[0]
    quality = dict.fromkeys(
        ["held_out_kale", "train_kale", "held_out_spread", "held_out_weights_ess", "held_out_floor_share"], 0.25
    )
    payload = {**job._asdict(), "samples": 5000, "extractor": "classifier-of-tests", "fid": 5.0, "weighted_fid": None}
    payload |= {"quality": quality, "largest_energy_loss": 3.0, "largest_second_moment": 0.1, "nonfinite_losses": 2}
    write(results / "why" / f"{job.name}.json", payload)
    history = [
        {"steps": steps, "held_out_kale": kale, "train_kale": 0.5} for steps, kale in ((0, 0.1), (50, 0.4), (100, 0.2))
    ]
    payload = {"setting": "digits", "seed": 0, "base_steps": 2000, "held_out": 180, "history": history}
    write(results / "why" / "overfit-digits.json", payload)
    page.write_page(results, project(tmp_path))
    text = (tmp_path / page.PAGE).read_text()
    said = one_line(text)
    assert "11 of 75 runs are there" in said and "FIGURE" not in said
    assert "10 of 25" in said and "1 of 25" in said and "0 of 25" in said
    assert "GEBM (KALE-F) seeds 2, 3, 4" in said and "| GAN (hinge) seed 0 |" in said
    assert "| round 1, digits | now, digits |" in said
    assert "### Photographs" not in said and "### Horses" in said
    assert "2 of 45 runs are there" in said and "not finite" in said and "1.0e+09" in said
    assert "1 of 16 runs are there" in said and "1 of 2 runs are there" in said
    assert "held-out KALE is highest after 50 energy steps, 0.400 nats" in said
    assert (
        "`classifier-of-tests` (digits, horses); 10,000 samples (digits, horses); `beta` = 1 is the temperature of the "
        "model" in said
    )
    pictures = sorted(path.stem for path in (tmp_path / page.IMAGES).iterdir())
    assert pictures == [f"claim-{name}" for name in ("curves", "drift", "fid", "overfit", "phases", "precision")]
    for name in pictures:
        assert f"](../images/{name}.png)" in text
    tables = [block.splitlines() for block in text.split("\n\n") if block.startswith("|")]
    assert all(len({line.count("|") for line in lines}) == 1 for lines in tables), "a row has as many cells as its head"
    readme = (tmp_path / "README.md").read_text()
    assert summary(Results.load(results)) in readme and "\nold\n" not in readme
    assert readme.startswith("before\n") and readme.endswith("after\n")


def test_a_readme_without_a_place_for_the_claim_stops_before_anything_is_written(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("no markers\n")
    with pytest.raises(ValueError, match="one place"):
        page.write_page(tmp_path / "nothing", tmp_path)
    assert not (tmp_path / "docs").exists()


def test_a_gain_is_positive_where_the_first_is_better(folder) -> None:
    results = Results.load(folder(gebm_and_gan(3.0, 5.0)))
    assert results.gain("digits", HEADLINES[0].first, HEADLINES[0].second).mean > 0
    assert results.gain("digits", Variant("gan"), Variant("kale_fenchel", "own")).mean < 0


def test_jobs_have_names_of_their_own_and_are_not_run_again(tmp_path: Path, monkeypatch) -> None:
    jobs = [*energy_experiments.FLAT, *energy_experiments.OVERFIT]
    assert len({job.name for job in jobs}) == len(jobs)
    ran: list[str] = []
    monkeypatch.setattr(energy_experiments, "Bench", lambda setting: None)
    monkeypatch.setattr(energy_experiments, "run_flat", lambda bench, job: ran.append(job.name) or {})
    monkeypatch.setattr(energy_experiments, "run_overfit", lambda job: ran.append(job.name) or {})
    for share in ("0/2", "1/2", "0/2"):
        energy_experiments.run_why(tmp_path, share, lambda: False, lambda line: None)
    assert sorted(ran) == sorted(job.name for job in jobs)
    energy_experiments.run_why(tmp_path / "other", "0/1", lambda: True, lambda line: None)
    assert not (tmp_path / "other").exists()
