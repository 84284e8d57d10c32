"""Keys with conditions are part of a point exactly where these hold, whoever proposes it."""

from __future__ import annotations

import json

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from ray.tune.schedulers import pbt
from ray.tune.search import Searcher

from pipeline.config import apply
from pipeline.config.validation import validate
from pipeline.runtime.errors import UserError
from pipeline.sweep import search
from pipeline.sweep.kernel_ranges import used_params
from pipeline.sweep.points import check_count, grid_points, plan_trials, random_points
from pipeline.sweep.search_space import SearchSpace, parse_space
from pipeline.tracking.summary import TrialRecord
from tests.sweep.test_search import config

CHOICES = {
    "sampler.name": ["ula", "kla", "mala"],
    "train.penalty_kind": ["gradient", "none"],
    "train.schedule": ["constant", "linear"],
    "train.penalty_every": [1, 4],
}
RANGES = {
    "sampler.step_size": {"ula": {"log_uniform": [1e-4, 1e-2]}, "kla": {"log_uniform": [1e-2, 1e-1]}},
    "sampler.friction": {"log_uniform": [0.1, 10.0]},
    "sampler.decay": {"uniform": [0.1, 1.0]},
    "train.penalty": {"uniform": [0.1, 3.0]},
    "train.energy_steps": {"int_log_uniform": [1, 7]},
    "train.base_lr": {"log_uniform": [1e-4, 1e-2]},
}


@st.composite
def spaces(draw: st.DrawFn) -> dict:
    """Some of these keys in any order, some with conditions, which may be nested, on choices or on fixed keys."""
    keys = draw(st.permutations([*CHOICES, *RANGES]))[: draw(st.integers(1, 10))]
    space = {}
    for key in keys:
        form = {"choice": CHOICES[key]} if key in CHOICES else RANGES[key]
        # Each choice may depend on those before it, so that there is no cycle.
        possible = list(CHOICES)[: list(CHOICES).index(key)] if key in CHOICES else list(CHOICES)
        if possible and "ula" not in form and draw(st.booleans()):
            names = draw(st.sets(st.sampled_from(possible), min_size=1, max_size=2))
            when = {name: draw(st.lists(st.sampled_from(CHOICES[name]), min_size=1, max_size=2)) for name in names}
            form = {**form, "when": {name: v[0] if len(v) == 1 else v for name, v in when.items()}}
        space[key] = form
    return space


def parsed_or_skipped(settings_) -> SearchSpace:
    """Return the space; skip one of which the experiment leaves nothing."""
    space = parse_space(settings_)
    assume(len(space) > 0)
    return space


def assert_is_exact(settings_, space: SearchSpace, written: dict, point: dict) -> None:
    """Check a point against the conditions as they are written, and that it has no setting of another kernel."""
    assert space.refusal(point) is None
    validate(apply(settings_, point))
    kernel = point.get("sampler.name", settings_.sampler.name)
    assert used_params(point, kernel) == point
    for key, form in written.items():
        if key == "sampler.step_size":
            assert (f"sampler.{kernel}.step_size" in point) == (kernel in form)
            continue
        fulfilled = True
        for name, allowed in form.get("when", {}).items():
            fixed = {"sampler.name": "ula", "train.schedule": "constant", "train.penalty_kind": "gradient"}
            value = point.get(name) if name in written else {**fixed, "train.penalty_every": 1}[name]
            fulfilled = fulfilled and value in (allowed if isinstance(allowed, list) else [allowed])
        fulfilled = fulfilled and (key != "sampler.friction" or kernel == "kla")
        fulfilled = fulfilled and (key != "sampler.decay" or kernel in ("ula", "kla"))
        assert (key in point) == fulfilled, (key, point)


def handed_out(searcher: Searcher, score: str) -> list[dict]:
    points = []
    while (params := searcher.suggest(f"t{len(points)}")) != Searcher.FINISHED:
        points.append({key: value for key, value in params.items() if key != search.TRIAL_NAME_KEY})
        searcher.on_trial_complete(f"t{len(points) - 1}", {score: float(len(points) % 3)})
    return points


@given(spaces(), st.sampled_from(["random", "grid", "optuna"]), st.integers(0, 1000))
@settings(max_examples=20)
def test_a_point_has_the_keys_whose_conditions_hold_and_no_others(written, algorithm, seed):
    settings_ = config(written, search=algorithm, num_trials=14, grid_size=2)
    settings_.seed = seed
    space = parsed_or_skipped(settings_)
    planned, notes = plan_trials(settings_, space, [])
    searcher, count = search.make_searcher(settings_, space, planned)
    points = handed_out(searcher, settings_.sweep.metric)
    assert len(points) == count > 0 and notes == ()
    for point in points:
        assert_is_exact(settings_, space, written, point)
        # What is resumed from a summary is the same point, and one key more or less is none.
        assert space.holds(json.loads(json.dumps(point)))
        for key in space:
            changed = (
                {k: v for k, v in point.items() if k != key} if key in point else {**point, key: space[key].extremes[0]}
            )
            assert not space.holds(changed)
    if algorithm == "grid":
        assert len({json.dumps(point, sort_keys=True) for point in points}) == count == space.grid_size(2)


@given(spaces(), st.sampled_from([0.0, 0.25, 1.0]))
@settings(max_examples=15)
def test_population_based_training_keeps_conditions_true(written, resample):
    settings_ = config(written, scheduler="pbt", num_trials=3)
    space = parsed_or_skipped(settings_)
    planned, _ = plan_trials(settings_, space, [])
    scheduler = search.make_scheduler(settings_, space, planned)
    for record in planned:
        params = {search.TRIAL_NAME_KEY: record.name, **record.params}
        for _ in range(6):
            mutations = scheduler._hyperparam_mutations
            params, _ = pbt._explore(params, mutations, resample, (1.2, 0.8), scheduler._custom_explore_fn)
            point = {key: value for key, value in params.items() if key != search.TRIAL_NAME_KEY}
            assert_is_exact(settings_, space, written, point)


def test_a_trial_of_a_population_begins_with_its_planned_parameters(monkeypatch):
    written = {"sampler.name": {"choice": ["ula", "kla"]}, "sampler.friction": RANGES["sampler.friction"]}
    settings_ = config(written, scheduler="pbt", num_trials=8)
    space = parse_space(settings_)
    planned, _ = plan_trials(settings_, space, [])
    scheduler = search.make_scheduler(settings_, space, planned)
    monkeypatch.setattr(pbt.PopulationBasedTraining, "on_trial_add", lambda *_: None)
    names = search.pbt_config(planned)[search.TRIAL_NAME_KEY]["grid_search"]
    assert names == [record.name for record in planned]
    for record in planned:
        trial = type("Trial", (), {"config": {search.TRIAL_NAME_KEY: record.name}})()
        scheduler.on_trial_add(None, trial)
        assert trial.config == {search.TRIAL_NAME_KEY: record.name, **record.params}
        # One that restarts keeps what it has exploited.
        trial.config["sampler.name"] = "other"
        scheduler.on_trial_add(None, trial)
        assert trial.config["sampler.name"] == "other"
    assert {"sampler.friction" in record.params for record in planned} == {True, False}


def test_a_condition_changes_no_other_draw():
    written = {"sampler.name": {"choice": ["ula", "mala"]}, "train.penalty": {"uniform": [0.1, 3.0]}}
    written["train.base_lr"] = {"log_uniform": [1e-4, 1e-2]}
    free = random_points(parse_space(config(written)), 20, 0)
    written["train.penalty"] = {"uniform": [0.1, 3.0], "when": {"sampler.name": "ula"}}
    for point, own in zip(free, random_points(parse_space(config(written)), 20, 0), strict=True):
        assert own == {k: v for k, v in point.items() if k != "train.penalty" or point["sampler.name"] == "ula"}


@pytest.mark.parametrize(
    ("when", "expected"),
    [
        ({"sampler.nam": "kla"}, "there is no such key"),
        ({"sampler": "kla"}, "there is no such key"),
        ({3: "kla"}, "there is no such key"),
        ({"sampler.num_steps": 10}, "can only be on a choice"),
        ({"sampler.step_size": 1e-3}, "can only be on a choice"),
        ({"train.penalty": 1.0}, "depend on one another"),
        ({"train.schedule": "linear"}, "depend on one another"),
        ({"sampler.name": "klaa"}, "has to be one of"),
        ({"train.penalty_every": "often"}, "train.penalty_every"),
        ({"train.batch_size": -1}, "has to be positive"),
        ({"sampler.name": []}, "a value or a list of values"),
        ({"sampler.name": {"a": 1}}, "sampler.name"),
        ({"evaluation.metrics": "fid"}, "evaluation.metrics"),
        ({}, "when takes conditions"),
        ("kla", "when takes conditions"),
        (None, "when takes conditions"),
    ],
)
def test_a_condition_that_cannot_be_is_one_line(when, expected):
    written = {
        "sampler.name": {"choice": ["ula", "kla"]},
        "sampler.num_steps": {"int_uniform": [1, 10]},
        "sampler.step_size": RANGES["sampler.step_size"],
        "train.schedule": {"choice": ["constant", "linear"], "when": {"train.penalty": 1.0}},
        "train.penalty": {"choice": [1.0, 2.0], "when": when},
    }
    if when != {"train.schedule": "linear"}:
        del written["train.schedule"]
    with pytest.raises(UserError, match=r"^sweep\.space: ") as refusal:
        parse_space(config(written))
    assert expected in str(refusal.value) and "\n" not in str(refusal.value)


def test_what_the_experiment_decides_is_decided_before_the_search():
    when = {"train.penalty_kind": ["gradient", "r1"], "sampler.name": "ula"}
    settings_ = config(
        {
            "train.penalty": {"uniform": [0.1, 3.0], "when": when},
            "sampler.friction": {"log_uniform": [0.1, 10.0]},
            "train.schedule": {"choice": ["constant", "linear"], "when": {"sampler.name": "kla"}},
            "train.base_lr": {"log_uniform": [1e-4, 1e-2], "when": {"train.schedule": ["constant"]}},
        }
    )
    space = parse_space(settings_)
    assert list(space) == ["train.penalty"] and not space.conditions
    assert len(space.notes) == 3 and all("left out: no trial has " in note for note in space.notes)
    settings_.sampler.name = "kla"
    assert list(parse_space(settings_)) == ["sampler.friction", "train.schedule", "train.base_lr"]
    settings_.sweep.space = {"sampler.friction": {"log_uniform": [0.1, 10.0]}}
    settings_.sampler.name = "ula"
    with pytest.raises(UserError, match=r"^sweep\.space: no trial uses sampler\.friction"):
        check_count(settings_, parse_space(settings_))


def test_a_key_is_checked_where_its_condition_holds():
    precision = {"choice": ["auto", "bfloat16"], "when": {"sampler.name": "ula"}}
    settings_ = config({"sampler.name": {"choice": ["mala", "ula"]}, "sampler.precision": precision})
    settings_.sampler.name = "mala"
    assert [sorted(point.values()) for point in grid_points(parse_space(settings_), 2)] == [
        ["mala"],
        ["auto", "ula"],
        ["bfloat16", "ula"],
    ]
    settings_.sweep.space["sampler.precision"]["when"] = {"sampler.name": "mala"}
    with pytest.raises(UserError, match=r"sampler\.precision=bfloat16"):
        parse_space(settings_)


@pytest.mark.parametrize("algorithm", ["random", "grid"])
def test_a_sweep_of_an_earlier_version_resumes_without_the_settings_of_other_kernels(algorithm):
    written = {"sampler.name": {"choice": ["ula", "kla"]}, "sampler.step_size": RANGES["sampler.step_size"]}
    settings_ = config(written, search=algorithm, num_trials=4, grid_size=2)
    space = parse_space(settings_)
    trials, _ = plan_trials(settings_, space, [])
    others = {"sampler.ula.step_size": 1e-4, "sampler.kla.step_size": 1e-2}
    earlier = [TrialRecord(trial.name, {**others, **trial.params}, "finished") for trial in trials[:2]]
    earlier.append(TrialRecord(trials[2].name, {**others, **trials[2].params}, "pending"))
    again, notes = plan_trials(settings_, space, earlier)
    assert [(t.name, t.params) for t in again] == [(t.name, t.params) for t in trials] and notes == ()


def test_a_trial_with_a_value_that_counted_is_no_point_of_a_space_without_it():
    settings_ = config({"train.schedule": {"choice": ["constant", "linear"]}, "train.penalty": {"uniform": [0.1, 3.0]}})
    [record] = plan_trials(settings_, parse_space(settings_), [])[0]
    settings_.sweep.space["train.penalty"]["when"] = {"train.schedule": "linear"}
    record.params["train.schedule"], record.status = "constant", "finished"
    kept, [note] = plan_trials(settings_, parse_space(settings_), [record])
    assert "train.penalty" in kept[0].params and "1 earlier trial(s)" in note


def test_optuna_learns_from_points_that_lack_keys():
    written = {"sampler.name": {"choice": ["ula", "kla"]}, "sampler.friction": {"log_uniform": [0.1, 10.0]}}
    settings_ = config(written, search="optuna", num_trials=60)
    records = [
        TrialRecord(f"{i:03d}", {"sampler.name": "kla", "sampler.friction": f}, "finished", {"fid_gebm": f})
        for i, f in enumerate([0.1, 0.5, 2.0, 10.0] * 4)
    ]
    records += [TrialRecord(f"{i:03d}", {"sampler.name": "ula"}, "finished", {"fid_gebm": 20.0}) for i in range(16, 24)]
    searcher, count = search.make_searcher(settings_, parse_space(settings_), records)
    points = [searcher.suggest(f"t{index}") for index in range(count)]
    # Of blind draws half are of each kernel, and half of KLA's have a friction below 1.
    assert sum(point["sampler.name"] == "kla" for point in points) > count * 0.7
    assert sum(point.get("sampler.friction", 9.0) < 1.0 for point in points) > count * 0.5


@pytest.mark.parametrize("values", [10, 40])
def test_conditions_of_too_many_combinations_are_refused_in_bounded_time(values):
    numbers = list(range(1, values + 1))
    named = [
        "train.energy_steps",
        "train.report_every",
        "sampler.num_steps",
        "train.penalty_every",
        "train.warmup_every",
    ]
    written = {key: {"choice": numbers} for key in named}
    written["train.base_lr"] = {"uniform": [1e-4, 1e-2], "when": dict.fromkeys(named, 1)}
    with pytest.raises(UserError, match=r"^sweep\.space: .* combinations"):
        parse_space(config(written))
