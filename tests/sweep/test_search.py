"""Search spaces give the points they promise, and a resumed sweep continues from its last trial."""

from __future__ import annotations

import itertools
import json
import math
import time
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ray.tune.schedulers import FIFOScheduler, PopulationBasedTraining, TrialScheduler, pbt
from ray.tune.search import Searcher

from pipeline.config import apply, from_dict
from pipeline.config.validation import validate
from pipeline.runtime.errors import UserError
from pipeline.sweep import search
from pipeline.sweep.dimension import Choice, Interval, WholeNumbers
from pipeline.sweep.points import check_count, grid_points, initial_points, plan_trials, random_points
from pipeline.sweep.search_space import SearchSpace, parse_space
from pipeline.tracking.summary import TrialRecord

BOUNDS = st.tuples(st.floats(1e-6, 1e2), st.floats(1.001, 1e3)).map(lambda pair: (pair[0], pair[0] * pair[1]))


def config(space: dict, **sweep: object):
    return from_dict(
        {
            "name": "x",
            "data": {"store": "s", "resolution": 8, "channels": 1, "source": {"kind": "digits"}},
            "model": {"networks": "dcgan", "latent_dim": 4, "width": 8},
            "train": {"base_steps": 90},
            "sweep": {"space": space, **sweep},
        }
    )


@given(BOUNDS, BOUNDS, st.integers(1, 50), st.integers(0, 2**31 - 1))
@settings(deadline=None, max_examples=15)
def test_random_points_lie_within_the_bounds_and_are_the_seeds(continuous, log, low, seed):
    space = parse_space(
        config(
            {
                "train.penalty": {"uniform": list(continuous)},
                "train.base_lr": {"log_uniform": list(log)},
                "sampler.num_steps": {"int_uniform": [low, low + 3]},
                "sampler.name": {"choice": ["ula", "kla"]},
            }
        )
    )
    points = random_points(space, 20, seed)
    assert points == random_points(space, 20, seed)
    assert points != random_points(space, 20, (seed + 1) % 2**31)
    assert points[:7] == random_points(space, 7, seed)  # more trials add to those there are
    rounding = 1e-12
    for point in points:
        for key, (lowest, highest) in (("train.penalty", continuous), ("train.base_lr", log)):
            assert lowest * (1 - rounding) <= point[key] <= highest * (1 + rounding)
        assert point["sampler.num_steps"] in range(low, low + 4)
        assert point["sampler.name"] in ("ula", "kla")


def test_whole_numbers_on_a_logarithmic_scale_have_as_many_in_each_decade():
    space = parse_space(config({"sampler.num_steps": {"int_log_uniform": [1, 999]}}))
    drawn = [point["sampler.num_steps"] for point in random_points(space, 3000, 0)]
    for decade in (1, 10, 100):
        # Binomial of 3000 and a third: 1000 with a standard deviation of 26.
        assert abs(sum(decade <= value < 10 * decade for value in drawn) - 1000) < 130
    assert [point["sampler.num_steps"] for point in grid_points(space, 4)] == [1, 10, 100, 999]


def test_whole_numbers_reach_both_bounds():
    space = parse_space(config({"sampler.num_steps": {"int_uniform": [1, 3]}}))
    drawn = {point["sampler.num_steps"] for point in random_points(space, 200, 0)}
    assert drawn == {1, 2, 3}  # each is missed with probability (2/3)^200


@given(BOUNDS, BOUNDS, st.integers(2, 5))
@settings(deadline=None, max_examples=15)
def test_a_grid_has_its_ends_and_every_combination(continuous, log, points):
    space = parse_space(
        config(
            {
                "train.penalty": {"uniform": list(continuous)},
                "train.base_lr": {"log_uniform": list(log)},
                "sampler.num_steps": {"int_uniform": [3, 50]},
                "sampler.name": {"choice": ["ula", "kla", "mala"]},
            }
        )
    )
    grid = grid_points(space, points)
    assert len(grid) == points**3 * 3
    axes = [list(dict.fromkeys(point[key] for point in grid)) for key in space]
    assert {tuple(point.values()) for point in grid} == set(itertools.product(*axes))
    for axis, ends in zip(axes, (continuous, log, (3, 50)), strict=False):
        assert len(axis) == points
        assert (min(axis), max(axis)) == pytest.approx(ends, rel=1e-12)
    ratios = [following / before for before, following in itertools.pairwise(axes[1])]
    assert ratios == pytest.approx([(log[1] / log[0]) ** (1 / (points - 1))] * (points - 1))


def test_a_grid_of_one_point_takes_the_middle():
    space = parse_space(config({"train.base_lr": {"log_uniform": [1e-4, 1e-2]}}))
    [point] = grid_points(space, 1)
    assert point["train.base_lr"] == pytest.approx(1e-3)


@pytest.mark.parametrize(
    ("key", "form"),
    [
        ("train.base_lrr", {"choice": [1]}),
        ("nothing", {"choice": [1]}),
        ("train", {"choice": [1]}),
        ("train.base_lr", 3),
        ("train.base_lr", [1e-4, 1e-3]),
        ("train.base_lr", {}),
        ("train.base_lr", {"uniform": [0.1, 0.2], "choice": [1]}),
        ("train.base_lr", {"normal": [0, 1]}),
        ("train.base_lr", {"uniform": 3}),
        ("train.base_lr", {"uniform": []}),
        ("train.base_lr", {"uniform": [1e-4]}),
        ("train.base_lr", {"uniform": [1e-3, 1e-4]}),
        ("train.base_lr", {"uniform": [1e-3, 1e-3]}),
        ("train.base_lr", {"uniform": [1e-4, 1e-3, 1e-2]}),
        ("train.base_lr", {"uniform": ["a", "b"]}),
        ("train.base_lr", {"uniform": [True, 2]}),
        ("train.base_lr", {"uniform": [-1.0, 1.0]}),
        ("train.base_lr", {"log_uniform": [0.0, 1.0]}),
        ("train.base_lr", {"log_uniform": [-1.0, 1.0]}),
        ("train.beta1", {"uniform": [0.0, math.inf]}),
        ("train.beta1", {"uniform": [math.nan, 0.5]}),
        ("train.base_lr", {"choice": []}),
        ("train.base_lr", {"choice": [1e-3, "fast"]}),
        ("sampler.name", {"choice": ["ula", "nuts"]}),
        ("sampler.num_steps", {"int_uniform": [0, 5]}),
        ("sampler.num_steps", {"int_uniform": [1.5, 5]}),
        ("sampler.num_steps", {"int_log_uniform": [0, 5]}),
        ("sampler.num_steps", {"int_log_uniform": [1.5, 5]}),
        ("sampler.num_steps", {"int_log_uniform": [5, 1]}),
        ("sampler.num_steps", {"choice": [[1, 2]]}),
        ("sampler.num_steps", {"uniform": [10, 100]}),
        ("model.networks", {"choice": ["dcgan", "sngan_resnet"]}),
    ],
)
def test_a_malformed_space_is_one_line_that_names_its_key(key, form):
    with pytest.raises(UserError, match=r"^sweep\.space: ") as refusal:
        parse_space(config({key: form}))
    assert key.split(".")[0] in str(refusal.value) and "\n" not in str(refusal.value)


def test_an_empty_space_is_a_single_run():
    assert initial_points(config({}), parse_space(config({}))) == [{}]


SPACE = {"train.base_lr": {"log_uniform": [1e-4, 1e-2]}}


def ran(name: str, status: str, score: float | None = None, base_lr: float = 1e-3) -> TrialRecord:
    metrics = {} if score is None else {"fid_gebm": score}
    return TrialRecord(name, {"train.base_lr": base_lr}, status, metrics)


def handed_out(searcher: Searcher) -> list[dict]:
    found = []
    while (params := searcher.suggest(f"trial-{len(found)}")) != Searcher.FINISHED:
        found.append(params)
        assert len(found) < 10_000
    return found


@given(st.lists(st.sampled_from(["pending", "running", "finished", "pruned", "failed"]), max_size=8))
@settings(deadline=None, max_examples=30)
def test_exactly_the_unfinished_trials_are_handed_out_again(statuses):
    settings_ = config(SPACE, search="random", num_trials=len(statuses) or 1)
    records = [ran(f"{index:03d}", status, 1.0) for index, status in enumerate(statuses)]
    searcher, count = search.make_searcher(settings_, parse_space(settings_), records)
    left = [record.name for record in records if record.status in ("pending", "running")]
    found = handed_out(searcher)
    assert [params[search.TRIAL_NAME_KEY] for params in found] == left and count == len(left)
    assert all(params["train.base_lr"] == 1e-3 for params in found)


def test_optuna_proposes_what_is_missing_after_the_unfinished():
    settings_ = config(SPACE, search="optuna", num_trials=6)
    records = [ran("000", "finished", 3.0), ran("001", "running", 2.0, base_lr=5e-3), ran("002", "failed")]
    searcher, count = search.make_searcher(settings_, parse_space(settings_), records)
    found = handed_out(searcher)
    assert [params[search.TRIAL_NAME_KEY] for params in found] == ["001", "003", "004", "005"] and count == 4
    assert found[0]["train.base_lr"] == 5e-3
    assert all(1e-4 <= params["train.base_lr"] <= 1e-2 for params in found)
    assert len({params["train.base_lr"] for params in found}) == 4


def test_optuna_learns_from_what_has_ended_and_from_failures():
    settings_ = config(SPACE, search="optuna", num_trials=60)
    # What has run says that the score is best near 1e-4, so later proposals should gather there.
    records = [ran(f"{i:03d}", "finished", abs(math.log10(lr) + 4), lr) for i, lr in enumerate([1e-4, 1e-3, 1e-2] * 4)]
    searcher, count = search.make_searcher(settings_, parse_space(settings_), records)
    assert count == 48
    drawn = []
    for index in range(count):
        params = searcher.suggest(f"t{index}")
        drawn.append(params["train.base_lr"])
        result = {"fid_gebm": abs(math.log10(drawn[-1]) + 4)} if index % 4 else None
        searcher.on_trial_complete(f"t{index}", result, error=result is None)
    # Half of blind draws lie below the middle, 1e-3: of 48 at least 34 do with probability 0.3 %.
    assert sum(rate < 1e-3 for rate in drawn) >= 34
    assert searcher.suggest("more") == Searcher.FINISHED


def decision(scheduler, name: str, step: int, score: float) -> str:
    trial = SimpleNamespace(trial_id=name)
    scheduler.on_trial_add(None, trial)
    return scheduler.on_trial_result(None, trial, {"base_step": step, "fid_gebm": score, "is_gebm": score})


@pytest.mark.parametrize(
    ("metric", "mode", "good", "bad"), [("fid_gebm", "min", 1.0, 1000.0), ("is_gebm", "max", 1000.0, 1.0)]
)
def test_results_of_before_a_resume_count_towards_the_cut_off(metric, mode, good, bad):
    asha = {"scheduler": "asha", "grace_steps": 10, "reduction_factor": 3}
    settings_ = config(SPACE, **asha, metric=metric, mode=mode)
    settings_.evaluation.metrics = ["is"]
    records = [
        TrialRecord(
            f"{index:03d}",
            {"train.base_lr": 1e-3},
            "finished",
            evaluations=[{"base_step": 10, metric: good + index / 10}],
        )
        for index in range(5)
    ]
    space = parse_space(settings_)
    assert decision(search.make_scheduler(settings_, space, []), "new", 10, bad) == TrialScheduler.CONTINUE
    assert decision(search.make_scheduler(settings_, space, records), "new", 10, bad) == TrialScheduler.STOP
    better = good - 0.5 if mode == "min" else good + 5
    assert decision(search.make_scheduler(settings_, space, records), "new", 10, better) == TrialScheduler.CONTINUE
    # A trial that resumes reports for itself, and may not be measured against what it was before.
    going_on = [TrialRecord(r.name, {}, "running", evaluations=r.evaluations) for r in records]
    assert decision(search.make_scheduler(settings_, space, going_on), "new", 10, bad) == TrialScheduler.CONTINUE


def test_records_without_a_score_do_not_disturb_the_scheduler():
    settings_ = config(SPACE, scheduler="asha", grace_steps=500)  # longer than a trial, which is 90 base steps
    records = [TrialRecord("000", {}, "failed"), TrialRecord("001", {}, "failed", evaluations=[{"base_step": 10}])]
    scheduler = search.make_scheduler(settings_, parse_space(settings_), records)
    assert decision(scheduler, "new", 90, 1.0) == TrialScheduler.STOP  # at its end


def test_population_based_training_stays_within_the_bounds():
    ranges = {
        "train.base_lr": {"log_uniform": [1e-4, 1e-2]},
        "train.batch_size": {"int_uniform": [32, 128]},
        "sampler.name": {"choice": ["ula", "kla"]},
    }
    settings_ = config(ranges, scheduler="pbt")
    explore = search.make_scheduler(settings_, parse_space(settings_), [])._custom_explore_fn
    for rate, size, wanted_rate, wanted_size in (
        (1.2e-2, 154, 1e-2, 128),
        (0.8e-4, 25, 1e-4, 32),
        (3e-3, 64, 3e-3, 64),
    ):
        perturbed = {
            search.TRIAL_NAME_KEY: "001",
            "train.base_lr": rate,
            "train.batch_size": size,
            "sampler.name": "kla",
        }
        wanted = {**perturbed, "train.base_lr": wanted_rate, "train.batch_size": wanted_size}
        assert explore(perturbed) == wanted


@pytest.mark.parametrize("key", ["evaluation.num_samples", "scale.num_workers", "data.resolution", "sweep.num_trials"])
def test_how_a_trial_is_measured_and_what_it_runs_on_cannot_be_searched(key):
    settings_ = config({key: {"int_uniform": [1, 64]}})
    with pytest.raises(UserError, match="cannot be searched"):
        parse_space(settings_)


def test_the_scheduler_is_the_one_that_is_named():
    for name, kind in (("none", FIFOScheduler), ("pbt", PopulationBasedTraining)):
        settings_ = config(SPACE, scheduler=name)
        assert isinstance(search.make_scheduler(settings_, parse_space(settings_), []), kind)


# Spaces of every form, of keys that population-based training may change; the last two need multiples.
FORMS = {
    "train.base_lr": {"log_uniform": [1e-4, 1e-2]},
    "train.penalty": {"uniform": [0.1, 3.0]},
    "train.energy_steps": {"int_uniform": [1, 7]},
    "sampler.num_steps": {"int_log_uniform": [1, 300]},
    "train.penalty_kind": {"choice": ["gradient", "none"]},
    "train.penalty_every": {"choice": [1, 4, 16]},
    "sampler.name": {"choice": ["ula", "mala"]},
    "train.batch_size": {"int_uniform": [31, 129]},
    "train.latent_batch_size": {"int_uniform": [64, 200]},
}
SPACES = st.sets(st.sampled_from(sorted(FORMS)), min_size=1).map(lambda keys: {key: FORMS[key] for key in sorted(keys)})


def with_workers(space: dict, workers: int, **sweep: object):
    settings_ = config(space, **sweep)
    settings_.scale.num_workers, settings_.train.batch_size = workers, 60
    return settings_


@given(SPACES, st.integers(1, 5), st.sampled_from(["random", "grid", "optuna"]), st.integers(0, 1000))
@settings(max_examples=6)
def test_whatever_is_proposed_is_a_point_that_can_run(space, workers, algorithm, seed):
    settings_ = with_workers(space, workers, search=algorithm, num_trials=6, grid_size=2)
    settings_.seed = seed
    parsed = parse_space(settings_)
    planned, notes = plan_trials(settings_, parsed, [])
    searcher, count = search.make_searcher(settings_, parsed, planned)
    points = [{k: v for k, v in point.items() if k != search.TRIAL_NAME_KEY} for point in handed_out(searcher)]
    assert len(points) == count > 0 and notes == ()
    # A grid may have hundreds, and each takes a tenth of a second.
    for point in points[:: 1 + len(points) // 8]:
        assert parsed.holds(point) and parsed.refusal(point) is None
        validate(apply(settings_, point))


@given(SPACES, st.integers(1, 5), st.data())
@settings(max_examples=6)
def test_whatever_population_based_training_explores_is_a_point_that_can_run(space, workers, data):
    settings_ = with_workers(space, workers, scheduler="pbt", num_trials=3)
    parsed = parse_space(settings_)
    planned, _ = plan_trials(settings_, parsed, [])
    scheduler = search.make_scheduler(settings_, parsed, planned)
    resample, factors = data.draw(st.sampled_from([0.0, 0.25, 1.0])), (1.2, 0.8)
    for record in planned:
        params = {search.TRIAL_NAME_KEY: record.name, **record.params}
        for _ in range(4):
            params, _ = pbt._explore(
                params, scheduler._hyperparam_mutations, resample, factors, scheduler._custom_explore_fn
            )
            point = {key: value for key, value in params.items() if key != search.TRIAL_NAME_KEY}
            assert parsed.refusal(point) is None, point
            validate(apply(settings_, point))


def test_a_trial_that_has_taken_its_last_step_exploits_nothing_more(monkeypatch):
    settings_ = config({"train.base_lr": {"uniform": [0.1, 0.9]}}, scheduler="pbt", num_trials=2, perturbation_steps=30)
    parsed = parse_space(settings_)
    scheduler = search.make_scheduler(settings_, parsed, plan_trials(settings_, parsed, [])[0])
    decided = []
    monkeypatch.setattr(scheduler, "_checkpoint_or_exploit", lambda trial, *_: decided.append(trial))
    monkeypatch.setattr(scheduler, "_save_trial_state", lambda *_: None)
    monkeypatch.setattr(scheduler, "_quantiles", lambda: ([], []))
    trials = [Mock(status="RUNNING"), Mock(status="RUNNING")]
    for trial in trials:
        scheduler._trial_state[trial] = SimpleNamespace(last_perturbation_time=0)
    tune = SimpleNamespace(get_trials=lambda: trials, get_live_trials=lambda: trials)
    for base_step in (30, 60, 90, 90):  # the last twice, as a trial that is resumed at its end does
        for trial in trials:
            scheduler.on_trial_result(tune, trial, {"base_step": base_step, settings_.sweep.metric: 1.0})
    assert len(decided) == 4


@pytest.mark.parametrize("value", [38, 24, 33, "wide", None])
def test_an_explored_choice_is_a_member(value):
    settings_ = config({"train.energy_steps": {"choice": [16, 32]}}, scheduler="pbt", num_trials=2)
    parsed = parse_space(settings_)
    explore = search.make_scheduler(settings_, parsed, plan_trials(settings_, parsed, [])[0])._custom_explore_fn
    assert explore({search.TRIAL_NAME_KEY: "000", "train.energy_steps": value})["train.energy_steps"] in (16, 32)


@pytest.mark.parametrize(
    ("key", "form"),
    [
        ("model.width", {"choice": [16, 32]}),
        ("model.latent_dim", {"int_uniform": [4, 8]}),
        ("model.energy_floor", {"uniform": [-20.0, -5.0]}),
        ("train.objective", {"choice": ["kale_fenchel", "gan"]}),
        ("train.train_base", {"choice": [True, False]}),
        ("train.base_steps", {"choice": [10, 90]}),
        ("train.ema_decay", {"choice": [None, 0.9]}),
        ("seed", {"choice": [0, 1]}),
        ("evaluation.num_samples", {"choice": [100, 200]}),
        ("data.held_out", {"choice": [0, 100]}),
        ("sweep.metric", {"choice": ["fid_base", "fid_gebm"]}),
    ],
)
def test_what_cannot_change_while_a_trial_trains_is_refused_under_pbt(key, form):
    with pytest.raises(UserError, match=rf"^sweep\.space: {key} c") as refusal:
        parse_space(config({key: form}, scheduler="pbt"))
    assert "\n" not in str(refusal.value)
    if key.split(".")[0] in ("model", "train", "seed"):
        assert list(parse_space(config({key: form}, scheduler="asha"))) == [key]


def test_whole_numbers_that_have_to_be_multiples_are_drawn_as_multiples():
    settings_ = with_workers({"train.batch_size": {"int_uniform": [33, 127]}}, 2)
    space = parse_space(settings_)
    drawn = {point["train.batch_size"] for point in random_points(space, 600, 0)}
    assert drawn == set(range(34, 127, 2))  # each is missed with probability (46/47)^600
    assert [point["train.batch_size"] for point in grid_points(space, 3)] == [34, 80, 126]
    for workers, bounds in ((2, [33, 34]), (1, [33, 34])):
        assert len(parse_space(with_workers({"train.batch_size": {"int_uniform": bounds}}, workers))) == 1
    settings_ = with_workers({"train.batch_size": {"int_uniform": [33, 59]}}, 60)
    with pytest.raises(UserError, match=r"sweep\.space: train\.batch_size has to be a multiple of 60"):
        parse_space(settings_)


@pytest.mark.parametrize(
    "space",
    [
        {"sampler.name": {"choice": ["ula", "mala"]}, "sampler.precision": {"choice": ["auto", "bfloat16"]}},
        {
            "train.learning_rate_decay.every": {"choice": [100, 300]},
            "train.learning_rate_decay.lag": {"choice": [400, 600]},
        },
    ],
)
def test_values_that_cannot_go_together_are_refused_before_anything_starts(space):
    settings_ = config(space)
    settings_.train.learning_rate_decay.every = 100
    settings_.train.learning_rate_decay.lag = 600
    for key, form in space.items():
        settings_.sweep.space = {key: form}
        assert list(parse_space(settings_)) == [key]
    settings_.sweep.space = space
    with pytest.raises(UserError, match=r"^sweep\.space: .* cannot go together: ") as refusal:
        parse_space(settings_)
    assert "\n" not in str(refusal.value)


@given(st.lists(st.integers(1, 300), min_size=1, max_size=4), st.booleans(), st.integers(1, 6), st.integers(1, 400))
@settings(max_examples=60)
def test_the_size_of_a_grid_is_known_without_its_points(tops, with_choice, multiple, size):
    space = {f"key.{n}": WholeNumbers(1, top + multiple, multiple, log=n > 0) for n, top in enumerate(tops[:2])}
    space |= {"key.x": Interval(0.0, 1.0)} | ({"key.c": Choice((1, 2, 3))} if with_choice else {})
    sizes = [(dimension.grid_size(size), len(dimension.grid(size))) for dimension in space.values()]
    assert all(known == counted for known, counted in sizes)
    assert all(len(set(dimension.grid(size))) == dimension.grid_size(size) for dimension in space.values())
    parsed = SearchSpace(config({}), space)
    assert parsed.grid_size(size) == math.prod(counted for _, counted in sizes)
    assert all(value in dimension for dimension in space.values() for value in dimension.grid(size))


@pytest.mark.parametrize(
    ("sweep", "expected"),
    [
        ({"search": "grid", "grid_size": 200}, ["8,000,000", "200 of train.base_lr", "sweep.grid_size=200"]),
        ({"search": "grid", "grid_size": 10**9}, ["sweep.grid_size=1000000000"]),
        ({"search": "random", "num_trials": 100_000}, ["sweep.num_trials=100000"]),
        ({"search": "optuna", "num_trials": 10**12}, ["sweep.num_trials=1000000000000"]),
        ({"search": "random", "num_trials": 5, "max_trials": 4}, ["sweep.num_trials=5"]),
    ],
)
def test_more_trials_than_the_limit_are_refused_at_once(sweep, expected):
    keys = ("train.base_lr", "train.energy_lr", "train.penalty")
    settings_ = config({key: {"uniform": [1e-4, 1e-2]} for key in keys}, **sweep)
    started = time.monotonic()
    with pytest.raises(UserError, match=r"sweep\.max_trials=") as refusal:
        check_count(settings_, parse_space(settings_))
    assert time.monotonic() - started < 20 and all(part in str(refusal.value) for part in expected)
    settings_.sweep.max_trials = 10**30
    check_count(settings_, parse_space(settings_))


def outside(name: str, status: str, score: float | None = None, **fields: object) -> TrialRecord:
    metrics = {} if score is None else {"fid_gebm": score}
    return TrialRecord(name, {"train.base_lr": 0.5}, status, metrics, **fields)


@pytest.mark.parametrize("algorithm", ["random", "grid", "optuna"])
@pytest.mark.parametrize(
    "space",
    [
        {"train.base_lr": {"log_uniform": [1e-4, 1e-2]}},
        {"train.base_lr": {"choice": [1e-4, 1e-2]}},
        {"train.energy_lr": {"log_uniform": [1e-4, 1e-2]}},
        {"train.base_lr": {"uniform": [1e-4, 1e-2]}, "train.penalty": {"choice": [0.1, 1.0]}},
        {},
    ],
)
def test_a_sweep_resumed_with_another_space_keeps_what_is_outside_and_proposes_inside(algorithm, space):
    settings_ = config(space, search=algorithm, num_trials=6, grid_size=3)
    parsed = parse_space(settings_)
    begun = [{"base_step": 10, "fid_gebm": 3.0}]
    records = [
        outside("000", "finished", 1.0, evaluations=begun),
        outside("001", "pending", 3.0, evaluations=begun),
        outside("002", "pending"),
    ]
    trials, [note] = plan_trials(settings_, parsed, records)
    assert "2 earlier trial(s)" in note and "1 of them" in note and "1 that had not started" in note
    assert [trial.status for trial in trials[:2]] == ["finished", "pruned"] and "outside" in str(trials[1].error)
    names = [trial.name for trial in trials]
    assert names == sorted(set(names))
    searcher, count = search.make_searcher(settings_, parsed, trials)
    found = handed_out(searcher) if parsed else []
    for params in found:
        name = params.pop(search.TRIAL_NAME_KEY)
        assert parsed.refusal(params) is None and name not in ("000", "001")
    assert len(found) == count or not parsed
    search.make_scheduler(settings_, parsed, trials)


def test_a_sweep_resumed_as_it_was_continues_as_it_would_have():
    for sweep in ({"search": "random", "num_trials": 5}, {"search": "grid", "grid_size": 5}):
        settings_ = config({**SPACE, "train.penalty": {"choice": [1.0]}}, **sweep)
        space = parse_space(settings_)
        trials, _ = plan_trials(settings_, space, [])
        read = [TrialRecord(t.name, json.loads(json.dumps(t.params)), "pending") for t in trials[:3]]
        read[0].status = "finished"
        again, notes = plan_trials(settings_, space, read)
        assert [(t.name, t.params) for t in again] == [(t.name, t.params) for t in trials] and notes == ()


def test_a_grid_that_grows_runs_what_it_has_not():
    settings_ = config({"train.penalty": {"choice": [1.0, 3.0]}}, search="grid")
    trials, _ = plan_trials(settings_, parse_space(settings_), [])
    for trial in trials:
        trial.status = "finished"
    settings_ = config({"train.penalty": {"choice": [1.0, 2.0, 3.0]}}, search="grid")
    again, notes = plan_trials(settings_, parse_space(settings_), trials)
    assert [(t.name, t.params["train.penalty"]) for t in again] == [("000", 1.0), ("001", 3.0), ("002", 2.0)]
    assert notes == ()


def test_successive_halving_stops_no_trial_before_its_own_last_step():
    settings_ = config({"train.base_steps": {"choice": [30, 200]}}, scheduler="asha")
    scheduler = search.make_scheduler(settings_, parse_space(settings_), [])
    for step in (30, 50, 90, 199):
        assert decision(scheduler, "long", step, 1.0) == TrialScheduler.CONTINUE
    assert decision(scheduler, "long", 200, 1.0) == TrialScheduler.STOP
