"""What a sweep knows of its trials: ranked, written, and read back."""

from __future__ import annotations

import io
import json
import math
import time

import fsspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from pipeline.runtime.errors import UserError
from pipeline.sweep.callback import SweepCallback
from pipeline.sweep.display.console import Display
from pipeline.sweep.display.tables import draw_seeds
from pipeline.tracking.summary import SweepSummary, TrialRecord, read_summary
from pipeline.tracking.summary_types import LABELS

SCORES = st.lists(st.one_of(st.none(), st.floats()), max_size=8)


def place(trial: int, base_step: int = 10, output: str = "memory://records/sweep") -> str:
    return f"{output}/trials/{trial:03d}/checkpoints/step-{base_step:08d}"


def sweep(scores, mode, output="memory://records/sweep") -> SweepSummary:
    """A sweep whose trials were evaluated once, or not at all where the score is None."""
    records = SweepSummary(
        output,
        metric="fid_gebm",
        mode=mode,
        shown=("fid_base", "fid_gebm"),
        facts={"experiment": "x", "extractor": "any"},
    )
    for index, score in enumerate(scores):
        record = records.add(f"{index:03d}", {"train.base_lr": 1e-4 * (index + 1)})
        if score is not None:
            records.evaluated(
                record, {"base_step": 10, "fid_base": 1.0, "fid_gebm": score}, place(index, output=output)
            )
    return records


@given(SCORES, st.sampled_from(["min", "max"]))
def test_ranking_is_best_first_and_those_without_a_score_last(scores, mode):
    records = sweep(scores, mode)
    ranked = [scores[int(record.name)] for record in records.ranking()]
    finite = [score for score in scores if score is not None and math.isfinite(score)]
    assert len(ranked) == len(scores)
    assert ranked[: len(finite)] == sorted(finite, reverse=mode == "max")
    best = records.best()
    if not finite:
        assert best is None
    else:
        assert best.best_metrics["fid_gebm"] == (min if mode == "min" else max)(finite)


@given(
    st.lists(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=5), min_size=1, max_size=4),
    st.sampled_from(["min", "max"]),
)
def test_means_over_seeds_are_those_of_the_trials_that_share_the_rest(groups, mode):
    records = sweep([], mode)
    for seed in range(5):  # in the order of a grid: one seed after the other
        for index, scores in enumerate(groups):
            record = records.add(f"{seed}-{index}", {"train.objective": f"objective {index}", "seed": seed})
            if seed < len(scores):
                record.status = "finished"
                records.evaluated(record, {"base_step": 1, "fid_base": 2.0, "fid_gebm": scores[seed]}, "memory://c")
    found = records.mean_over_seeds()
    if max(map(len, groups)) == 1:
        assert found == []
        return
    assert [group.mean["fid_gebm"] for group in found] == sorted(
        (group.mean["fid_gebm"] for group in found), reverse=mode == "max"
    )
    for group in found:
        scores = groups[int(group.params["train.objective"].split()[1])]
        assert set(group.params) == {"train.objective"} and group.trials == len(scores)
        assert group.mean["fid_gebm"] == pytest.approx(np.mean(scores), abs=1e-6) and group.mean["fid_base"] == 2.0
        if len(scores) == 1:
            assert group.standard_error == {}
        else:
            expected = np.std(scores, ddof=1) / math.sqrt(len(scores))
            assert group.standard_error["fid_gebm"] == pytest.approx(expected, rel=1e-6, abs=1e-6)
    assert len(draw_seeds(records).rows) == len(groups)
    records.write()
    written = json.loads(fsspec.open("memory://records/sweep/summary.json").open().read())["over_seeds"]
    assert [group["mean"] for group in written] == [group.mean for group in found]


def test_means_are_of_trials_that_finished_one_a_seed_and_of_numbers():
    records = sweep([], "min")
    for name, seed, status, base, gebm in (
        ("000", 0, "finished", math.inf, 1.0),
        ("001", 1, "finished", 2.0, 3.0),
        ("002", 1, "finished", 2.0, 3.0),
        ("003", 2, "pruned", 9.0, 9.0),
        ("004", 3, "failed", math.nan, 9.0),
    ):
        record = records.add(name, {"seed": seed})
        record.status = status
        records.evaluated(record, {"base_step": 1, "fid_base": base, "fid_gebm": gebm}, "memory://c")
    [group] = records.mean_over_seeds()
    assert (group.trials, group.mean) == (2, {"fid_base": 2.0, "fid_gebm": 2.0})
    assert group.standard_error == {"fid_gebm": 1.0}
    records.write()


def test_trials_without_seeds_have_no_means_over_them():
    records = sweep([1.0, 2.0], "min")
    assert records.mean_over_seeds() == [] and draw_seeds(records) is None


@given(st.lists(st.floats(), min_size=1, max_size=8), st.sampled_from(["min", "max"]))
def test_a_trial_remembers_its_best_evaluation_and_its_last(scores, mode):
    records = sweep([], mode)
    record = records.add("000", {})
    for step, score in enumerate(scores):
        records.evaluated(record, {"base_step": step, "fid_gebm": score}, f"memory://c/{step}")
    assert record.checkpoint == f"memory://c/{len(scores) - 1}"
    assert [entry["base_step"] for entry in record.evaluations] == list(range(len(scores)))
    finite = [score for score in scores if math.isfinite(score)]
    if finite:
        best = (min if mode == "min" else max)(finite)
        assert record.best_metrics["fid_gebm"] == best
        assert record.best_checkpoint == f"memory://c/{scores.index(best)}"
    else:
        assert record.best_metrics == {} and record.best_checkpoint is None


@given(SCORES, st.sampled_from(["min", "max"]))
def test_what_is_written_is_read_back(scores, mode):
    records = sweep(scores, mode)
    records.write()
    document, trials = read_summary(records.output)
    assert (document["metric"], document["mode"], document["extractor"]) == ("fid_gebm", mode, "any")
    assert [trial.name for trial in trials] == [trial.name for trial in records.trials]
    again = SweepSummary(records.output, metric="fid_gebm", mode=mode, shown=(), facts={}, trials=trials)
    assert [record.name for record in again.ranking()] == [record.name for record in records.ranking()]
    if all(score is None or math.isfinite(score) for score in scores):
        assert trials == records.trials
    if records.best() is None:
        assert document["best"] is None
    else:
        assert document["best"]["name"] == records.best().name
        assert document["best"]["metrics"] == records.best().best_metrics


def test_an_infinite_parameter_is_read_back():
    """Without it a trial would be outside its own search space: not resumed, and run a second time."""
    records = sweep([3.0, 2.0], "min", "memory://records/infinite")
    for record, floor, seed in zip(records.trials, (-math.inf, math.inf), (0, 1), strict=True):
        record.params, record.status = {"model.energy_floor": floor, "seed": seed}, "finished"
    records.trials.append(TrialRecord("002", {"model.energy_floor": -math.inf, "seed": 1}, "finished"))
    records.evaluated(records.trials[2], {"base_step": 10, "fid_gebm": 4.0}, place(2, output=records.output))
    records.write()
    document, trials = read_summary(records.output)
    assert [trial.params for trial in trials] == [record.params for record in records.trials]
    assert document["best"]["params"] == {"model.energy_floor": ".inf", "seed": 1}
    assert [group["params"] for group in document["over_seeds"]] == [
        {"model.energy_floor": ".inf"}, {"model.energy_floor": "-.inf"}
    ]  # fmt: skip


@pytest.mark.parametrize("name", [*LABELS, "another"])
def test_a_text_among_the_metrics_is_read_back_where_it_says_how_they_were_measured(tmp_path, name):
    records = sweep([], "min", str(tmp_path))
    records.evaluated(
        records.add("000", {}), {"base_step": 10, "fid_gebm": 1.0, name: "float32"}, place(0, output=str(tmp_path))
    )
    records.write()
    if name in LABELS:
        assert read_summary(str(tmp_path))[1][0].best_metrics[name] == "float32"
    else:
        with pytest.raises(UserError, match="damaged"):
            read_summary(str(tmp_path))


def test_the_best_is_told_with_the_metrics_and_the_checkpoint_that_made_it_the_best():
    records = sweep([5.0], "min")
    records.evaluated(records.trials[0], {"base_step": 20, "fid_gebm": 7.0}, place(0, 20))
    records.write()
    document, _ = read_summary(records.output)
    assert (document["best"]["metrics"]["fid_gebm"], document["best"]["checkpoint"]) == (
        5.0,
        "trials/000/checkpoints/step-00000010",
    )
    [trial] = document["trials"]
    assert (trial["metrics"]["fid_gebm"], trial["checkpoint"]) == (7.0, "trials/000/checkpoints/step-00000020")


def test_a_checkpoint_that_is_written_over_scores_what_it_scores_now():
    """As when a trial takes over another's weights and passes the same step again."""
    records = sweep([5.0], "min")
    records.evaluated(records.trials[0], {"base_step": 10, "fid_gebm": 7.0}, place(0))
    assert records.trials[0].best_metrics["fid_gebm"] == 7.0


def test_the_summary_is_json_that_others_read_too():
    records = sweep([math.nan, math.inf, 3.0], "min")
    records.write()

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    text = fsspec.open("memory://records/sweep/summary.json").open().read()
    document = json.loads(text, parse_constant=refuse)
    assert document["best"]["name"] == "002"
    assert "fid_gebm" not in document["trials"][0]["metrics"]


def test_trials_are_found_by_name():
    records = sweep([1.0, 2.0], "min")
    assert records.get("001") is records.trials[1]
    assert records.get("007") is None
    assert records.trials[0] == TrialRecord(**vars(records.trials[0]))


@pytest.mark.parametrize(
    "text", [b"", b"\xff", b"[]", b"{}", b'{"trials": 3}', b'{"trials": [3]}', b'{"trials": [{"nothing": 1}]}']
)
def test_a_damaged_summary_is_one_line(tmp_path, text):
    (tmp_path / "summary.json").write_bytes(text)
    with pytest.raises(UserError, match="damaged") as refusal:
        read_summary(str(tmp_path))
    assert "\n" not in str(refusal.value) and str(tmp_path) in str(refusal.value)


@pytest.mark.parametrize("mode", ["min", "max"])
@pytest.mark.parametrize("score", ["NaN", "Infinity", "-Infinity", "1e400", "null"])
def test_a_score_that_is_no_finite_number_is_none(tmp_path, score, mode):
    trials = [{"name": f"{i:03d}", "params": {"seed": i}, "status": "finished"} for i in range(4)]
    for trial, value in zip(trials, ["SCORE", 1.0, 2.0], strict=False):
        trial["best_metrics"] = {"base_step": 10, "fid_gebm": value}
    text = json.dumps({"trials": trials, "metric": "fid_gebm", "mode": mode}).replace('"SCORE"', score)
    (tmp_path / "summary.json").write_text(text)
    records = sweep([], mode)
    records.trials = read_summary(str(tmp_path))[1]
    best = records.best()
    assert [trial.name for trial in records.ranking()][2:] == ["000", "003"] and best is records.ranking()[0]
    assert [(mean.trials, mean.mean["fid_gebm"]) for mean in records.mean_over_seeds()] == [(2, 1.5)]
    records.trials = [trial for trial in records.trials if trial.name in ("000", "003")]
    assert records.best() is None and records.mean_over_seeds() == []


def test_trials_of_one_name_are_refused(tmp_path):
    trial = {"name": "003", "params": {}, "status": "finished"}
    (tmp_path / "summary.json").write_text(json.dumps({"trials": [trial, {"name": "004", "params": {}}, trial]}))
    with pytest.raises(UserError, match=r"summary\.json is damaged \(ValueError: 2 trials are called 003\)"):
        read_summary(str(tmp_path))


def test_no_summary_is_one_line(tmp_path):
    with pytest.raises(UserError, match=r"no sweep at"):
        read_summary(str(tmp_path))


def test_a_summary_that_takes_long_is_written_rarely_and_at_last(tmp_path, small):
    """A second change at once waits until the driver has done ten times as long something else; it is not forgotten."""
    records = sweep([1.0] * 2000, "min", str(tmp_path))
    watch = SweepCallback(small(), records, None, Display(records, "small", Console(file=io.StringIO())))
    written = []
    for turn in range(3):
        records.trials[0].seconds = float(turn)
        watch._changed = True
        watch.on_step_end(0, [])
        written.append(read_summary(str(tmp_path))[1][0].seconds)
    assert written[0] == 0.0 and watch._changed == (written[2] < 2.0)
    end = time.monotonic() + 120
    while watch._changed and time.monotonic() < end:
        watch.on_step_end(0, [])
    assert read_summary(str(tmp_path))[1] == records.trials


@given(st.lists(st.tuples(st.floats(0, 1e6), st.floats(0, 1e6), st.floats(-1e6, 1e6)), min_size=1, max_size=5))
def test_an_evaluation_has_the_times_at_which_it_came(times):
    records = sweep([], "min")
    record = records.add("000", {})
    for step, (trial_seconds, sweep_seconds, score) in enumerate(times):
        record.seconds = trial_seconds
        metrics = {"base_step": step, "fid_base": 1.0, "fid_gebm": score}
        assert not records.is_newest(record, metrics)
        records.evaluated(record, metrics, "memory://c", sweep_seconds=sweep_seconds)
        # The same report once more, as from a trial that resumes, at whatever time.
        assert records.is_newest(record, metrics)
    assert [(one["trial_seconds"], one["sweep_seconds"]) for one in record.evaluations] == [one[:2] for one in times]
    assert records.seconds() == max(seconds for _, seconds, _ in times)
