"""Finals of a sweep: who is in them, on which latents, what they decide, and what stops none of it."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from ray.exceptions import RayTaskError, WorkerCrashedError
from rich.console import Console

from pipeline import config as schema
from pipeline.data import write_store
from pipeline.data.sources.base import Table
from pipeline.report.analysis import collect_results
from pipeline.report.markdown import markdown
from pipeline.runtime.errors import LockLost, UserError
from pipeline.runtime.filesystem import write_file
from pipeline.runtime.logging import ConsoleHandler, logging_to
from pipeline.runtime.terminal import Progress
from pipeline.sweep import finalists as finals
from pipeline.sweep.cluster import Capacity
from pipeline.sweep.display.live_table import SweepStatus, scores_in_words
from pipeline.sweep.display.tables import draw_finalists
from pipeline.sweep.driver import Sweep
from pipeline.sweep.finals_time import finals_seconds
from pipeline.sweep.preparation import ProgressFile
from pipeline.tracking.finalists import Finalist, close_to_best, read_finalists
from pipeline.tracking.locations import imported_start
from pipeline.tracking.summary import SweepSummary, TrialRecord, read_summary
from pipeline.training.build_model import build_model, make_trainer
from pipeline.training.checkpoints import Checkpoints
from pipeline.training.export import _measure
from pipeline.training.final_score import read_final_score
from tests.sweep.test_display import Screen

CAPACITY = Capacity([{"CPU": 2.0}], {"CPU": 1.0}, 1)
SCORES = {"000": (4.0, 0.3), "001": (4.2, 0.3), "002": (4.4, 0.3), "003": (9.0, 0.1)}


@dataclass(eq=False)
class Task:
    """What a task of Ray came to."""

    value: Any = None
    error: Exception | None = None


class LocalRay:
    """Stand-in for Ray's tasks, which run where they are started."""

    def remote(self, **resources: float) -> Callable[..., Any]:
        class Remote:
            def __init__(self, function: Callable[..., Any]) -> None:
                self._function = function

            def remote(self, *arguments: Any) -> Task:
                try:
                    return Task(self._function(*arguments))
                except Exception as error:
                    return Task(error=error)

        return Remote

    def wait(self, pending: list, timeout: float) -> tuple[list, list]:
        return pending[:1], pending[1:]

    def get(self, task: Task) -> Any:
        if isinstance(task.error, UserError):
            raise RayTaskError("score", "traceback", task.error)
        if task.error is not None:
            raise task.error
        return task.value

    def cancel(self, task: Task, force: bool) -> None: ...


class Finals:
    """The end of a sweep whose trials have scores, and whose second scores a test decides."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, config: schema.Config) -> None:
        self.config, self.output, self.second, self.scored = config, str(folder / "out"), {}, []
        config.output, config.evaluation.num_samples, config.evaluation.final_samples = self.output, 1000, 5000
        self.records = self.make()
        for name, (value, error) in SCORES.items():
            self.add(name, value, error)
        monkeypatch.setattr(finals, "ray", LocalRay())
        monkeypatch.setattr(finals, "_score_task", self.score)
        monkeypatch.setattr(finals, "Progress", lambda *_, **__: _Silent())

    def make(self, trials: list[TrialRecord] | None = None, among: list[Finalist] | None = None) -> SweepSummary:
        facts = {"experiment": "small", "measure": "FID by any", "extractor": "any"}
        shown = ("fid_base", "fid_gebm")
        return SweepSummary(
            self.output, metric="fid_gebm", mode="min", shown=shown, facts=facts, trials=trials, finalists=among
        )

    def add(self, name: str, value: float, error: float, *, with_checkpoint: bool = True) -> None:
        checkpoint = f"{self.output}/trials/{name}/checkpoints/step-00000008"
        record = self.records.add(name, {})
        scores = {"base_step": 8, "fid_base": 20.0, "fid_gebm": value, "fid_gebm_standard_error": error}
        self.records.evaluated(record, scores, checkpoint)
        record.status = "finished"
        if with_checkpoint:
            write_file(f"{checkpoint}/state.json", b"{}")

    def score(
        self, config: dict, params: dict, finalist: dict, gpus: float, url: str, plugins: object
    ) -> dict[str, float]:
        self.scored.append(Finalist(**finalist))
        outcome = self.second.get(finalist["name"], 4.5)
        if isinstance(outcome, BaseException):
            raise outcome
        return {"fid_base": 19.0, "fid_gebm": outcome, "fid_gebm_standard_error": 0.05}

    def run(self, console: Console | None = None) -> None:
        finals.score_finalists(self.config, self.records, CAPACITY, console)

    def read(self) -> SweepSummary:
        document, trials = read_summary(self.output)
        return self.make(trials, read_finalists(document, trials, self.output))


class _Silent:
    def __enter__(self) -> _Silent:
        return self

    def __exit__(self, *error: object) -> None: ...

    def advance(self, steps: int) -> None: ...


@pytest.fixture
def sweep(tmp_path, monkeypatch, small) -> Finals:
    return Finals(tmp_path, monkeypatch, small())


def test_the_trials_that_the_ranking_cannot_tell_apart_are_scored_again_and_decide(sweep):
    sweep.second = {"000": 4.5, "001": 4.1, "002": 4.3}
    sweep.run()
    assert [each.name for each in sweep.scored] == ["000", "001", "002"]
    assert {each.num_samples for each in sweep.scored} == {5000}
    assert sweep.records.best().name == "001"
    document = json.loads((Path(sweep.output) / "summary.json").read_text())
    assert document["best"]["name"] == "001" and document["best"]["metrics"]["fid_gebm"] == 4.1
    assert [entry["checkpoint"] for entry in document["finalists"]] == [
        f"trials/00{index}/checkpoints/step-00000008" for index in range(3)
    ]
    # The first scores are what they were.
    assert document["trials"][1]["best_metrics"]["fid_gebm"] == 4.2
    assert scores_in_words(sweep.records, sweep.records.best()) == (
        "fid_base 19.00, fid_gebm 4.100 ± 0.050 (5,000 fresh samples)"
    )


def test_the_report_says_how_often_the_first_ranking_was_wrong(sweep):
    sweep.second = {"000": 4.5, "001": 4.1, "002": 4.3}
    sweep.run()
    for limit in (None, 4800):
        text = markdown(collect_results(sweep.output, sweep.read(), {}), limit)
        assert "2 of 3 pairs of finalists are in another order" in text and "another trial first" in text
        assert "the best 4.100 ± 0.050" in text and "trial 001" in text
    table = draw_finalists(sweep.records)
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(table)
    printed = console.export_text()
    assert "2 of 3 pairs changed order" in str(table.title) and "4.20 ± 0.30" in printed


@pytest.mark.parametrize(("last", "finalists"), [(0.1, 2), (0.1, 3), (30.0, 3), (30.0, 4)])
def test_the_report_says_how_many_trials_are_close_to_the_best_and_how_many_were_scored(sweep, last, finalists):
    sweep.config.sweep.finalists = finalists
    sweep.records.get("003").best_metrics["fid_gebm_standard_error"] = last
    sweep.run()
    text = markdown(collect_results(sweep.output, sweep.read(), {}), None)
    close = 3 if last < 1 else 4
    assert f"{finalists} of {close} trials within two standard errors of the best were scored again" in text


def test_a_best_trial_that_no_other_comes_close_to_is_not_put_in_order_with_itself(sweep, caplog):
    for name in ("001", "002"):
        sweep.records.get(name).best_metrics["fid_gebm"] = 8.0
    with caplog.at_level("INFO", logger="pipeline"):
        sweep.run()
    text = markdown(collect_results(sweep.output, sweep.read(), {}), None)
    assert "No other trial is within two standard errors of the best, which was scored again, on 5,000 samples" in text
    assert str(draw_finalists(sweep.records).title) == "Finalists on 5,000 fresh samples"
    assert "pairs" not in f"{text} {caplog.text}"


def test_a_resumed_sweep_scores_nothing_again_that_has_its_second_score(sweep):
    sweep.second = {"000": 4.5, "001": 4.1}
    sweep.run()
    sweep.records, sweep.scored = sweep.read(), []
    assert sweep.records.best().name == "001"
    sweep.run()
    assert sweep.scored == [] and sweep.records.best().name == "001"
    # Of other samples it is another score.
    sweep.config.evaluation.final_samples = 6000
    sweep.run()
    assert [each.num_samples for each in sweep.scored] == [6000] * 3


@pytest.mark.parametrize("changed", ["metric", "extractor"])
def test_a_second_score_by_another_measure_is_not_taken_for_this_one(sweep, changed):
    """Nor does one that an older summary has, which does not say its measure, have to be measured again."""
    sweep.run()
    for each in sweep.records.finalists:
        setattr(each, changed, "another")
    sweep.scored.clear()
    sweep.run()
    assert [each.name for each in sweep.scored] == ["000", "001", "002"]
    for each in sweep.records.finalists:
        setattr(each, changed, None)
    sweep.scored.clear()
    sweep.run()
    assert not sweep.scored


def test_a_trial_that_is_better_than_those_of_earlier_finals_is_not_passed_over(sweep):
    sweep.run()
    sweep.records = sweep.read()
    sweep.add("004", 3.0, 0.5)
    assert sweep.records.best().name == "004"
    sweep.scored, sweep.second = [], {"004": 2.9}
    sweep.run()
    assert [each.name for each in sweep.scored] == ["004"] and sweep.records.best().name == "004"


def test_no_more_than_the_config_says_are_scored(sweep):
    sweep.config.sweep.finalists = 2
    sweep.run()
    assert [each.name for each in sweep.scored] == ["000", "001"]


@pytest.mark.parametrize("why", ["turned off", "one candidate", "density"])
def test_where_there_is_nothing_to_decide_nothing_is_scored(sweep, why):
    if why == "one candidate":
        sweep.add("005", 1.0, 0.01)
        sweep.config.evaluation.final_samples = None
    elif why == "density":
        sweep.config.task = "density"
    else:
        sweep.config.sweep.finalists = 0
    sweep.run()
    assert sweep.scored == [] and sweep.records.finalists == [] and sweep.records.best() is not None


@pytest.mark.parametrize(
    ("nodes", "workers", "finalists", "expected"),
    [
        ([{"CPU": 2.0}], 1, 4, 2 * 50.0),  # three are close to the best, two at a time
        ([{"CPU": 3.0}], 1, 4, 50.0),
        ([{"CPU": 1.0}], 1, 2, 2 * 50.0),
        ([{"CPU": 2.0}], 2, 4, 2 * 2 * 50.0),
        ([{"CPU": 2.0}], 1, 0, 0.0),
    ],
)
def test_the_time_of_the_finals_is_a_part_of_what_is_left(sweep, nodes, workers, finalists, expected):
    """Evaluations of 1,000 samples took 8 s and 12 s: one of 5,000 takes five times their mean."""
    sweep.config.sweep.finalists = finalists
    capacity, status = Capacity(nodes, {"CPU": 1.0}, workers), SweepStatus(sweep.records, "small", trials=5)
    assert finals_seconds(sweep.config, sweep.records, capacity, 5) == 0
    for record, seconds in zip(sweep.records.trials, (8.0, 12.0, 0.0, math.nan), strict=True):
        record.metrics, record.seconds = {"base_step": 8, "seconds_an_evaluation": seconds}, 100.0
    before = status.remaining()
    status.finals_seconds = lambda: finals_seconds(sweep.config, sweep.records, capacity, 5)
    assert status.remaining().seconds - before.seconds == pytest.approx(expected)
    assert before.done == pytest.approx(4 / 5) and status.remaining().done == pytest.approx(400 / (500 + expected))
    assert finals_seconds(sweep.config, sweep.records, capacity, 1) == 0
    sweep.config.evaluation.final_samples = None
    assert finals_seconds(sweep.config, sweep.records, capacity, 5) == pytest.approx(expected / 5)


def test_a_best_trial_that_none_comes_close_to_is_scored_on_the_samples_of_all_finals(sweep):
    """The registry compares only scores of as many samples."""
    sweep.add("005", 1.0, 0.01)
    sweep.run()
    assert [each.name for each in sweep.scored] == ["005"] and sweep.records.best().name == "005"


def test_a_finalist_without_a_checkpoint_is_a_line_and_the_next_takes_its_place(sweep, caplog):
    caplog.set_level("INFO", logger="pipeline")
    sweep.config.sweep.finalists = 2
    (Path(sweep.output) / "trials/000/checkpoints/step-00000008/state.json").unlink()
    sweep.run()
    assert [each.name for each in sweep.scored] == ["001", "002"]
    lines = [record.getMessage() for record in caplog.records if "cannot be scored" in record.getMessage()]
    assert len(lines) == 1 and "trial 000" in lines[0] and "no checkpoint at" in lines[0] and "\n" not in lines[0]
    assert sweep.records.best().name in ("001", "002")
    assert "trial 000 could not be scored again" in markdown(collect_results(sweep.output, sweep.records, {}), None)


@pytest.mark.parametrize(
    "failure",
    [UserError("is damaged:\ntake another"), WorkerCrashedError(), math.nan],
    ids=["damaged", "crashed", "not finite"],
)
def test_a_finalist_that_cannot_be_scored_is_a_line_and_the_next_takes_its_place(sweep, caplog, failure):
    caplog.set_level("INFO", logger="pipeline")
    sweep.config.sweep.finalists, sweep.second = 2, {"000": failure}
    sweep.run()
    assert [each.name for each in sweep.scored] == ["000", "001", "002"]
    lines = [record.getMessage() for record in caplog.records if "cannot be scored" in record.getMessage()]
    assert len(lines) == 1 and "trial 000" in lines[0] and "\n" not in lines[0]
    assert sweep.read().best().name in ("001", "002")


def test_finals_that_were_interrupted_decide_nothing_and_are_taken_up(sweep):
    sweep.second = {"000": 4.5, "001": KeyboardInterrupt()}
    with pytest.raises(KeyboardInterrupt):
        sweep.run()
    assert sweep.records.best().name == "000"
    sweep.records, sweep.second = sweep.read(), {"001": 4.0}
    sweep.run()
    assert sweep.records.best().name == "001"


def test_a_driver_that_has_lost_its_lock_ends(sweep):
    def verify() -> None:
        raise LockLost("taken over")

    sweep.records.verify = verify
    with pytest.raises(LockLost):
        sweep.run()


@given(st.integers(0, 2**31 - 1), st.lists(st.integers(0, 9), max_size=4), st.one_of(st.none(), st.integers(0, 9)))
def test_no_trial_was_scored_on_the_latents_of_the_finals(seed, seeds, evaluation_seed):
    config = schema.Config(seed=seed, evaluation=schema.Evaluation(seed=evaluation_seed))
    records = SweepSummary("out", metric="fid_gebm", mode="min", shown=(), facts={})
    for index, value in enumerate(seeds):
        records.add(f"{index:03d}", {"seed": value})
    first = finals.final_seed(config, records)
    assert first not in {seed, evaluation_seed, *seeds} and 0 <= first < 2**31
    # A seed that the trials had by chance is passed over.
    records.add("999", {"seed": first})
    assert finals.final_seed(config, records) != first


@given(st.lists(st.tuples(st.floats(0, 10), st.one_of(st.none(), st.floats(0, 2))), min_size=1, max_size=6))
def test_finalists_are_within_two_errors_of_the_difference(scores):
    ranking = []
    for index, (value, error) in enumerate(sorted(scores, key=lambda pair: pair[0])):
        metrics = {"fid_gebm": value} | ({} if error is None else {"fid_gebm_standard_error": error})
        ranking.append(TrialRecord(f"{index:03d}", {}, best_metrics=metrics))
    chosen = close_to_best(ranking, "fid_gebm")
    best, least = ranking[0].best_metrics["fid_gebm"], ranking[0].best_metrics.get("fid_gebm_standard_error", 0.0)
    for place, record in enumerate(ranking):
        error = math.hypot(least, record.best_metrics.get("fid_gebm_standard_error", 0.0))
        assert (place in chosen) == (record.best_metrics["fid_gebm"] - best <= 2 * error)
    assert chosen[0] == 0


def test_the_registry_compares_the_second_score_of_the_checkpoint(sweep):
    sweep.second = {"000": 4.5, "001": 4.1}
    sweep.run()
    measure = _measure(sweep.records.best().best_checkpoint, {})
    assert measure == {
        "value": "4.1", "metric": "fid_gebm", "mode": "min", "extractor": "any", "num_samples": "5000",
    }  # fmt: skip


@pytest.mark.parametrize(
    "content", ["{", "[]", '{"metric": "fid_gebm", "mode": "min", "value": "4", "num_samples": 9}']
)
def test_a_damaged_second_score_is_one_line(tmp_path, content):
    (tmp_path / "final.json").write_text(content)
    with pytest.raises(UserError, match=r"final\.json is damaged"):
        read_final_score(str(tmp_path))


def test_a_summary_without_finalists_is_read(sweep):
    sweep.records.write()
    path = Path(sweep.output) / "summary.json"
    document = json.loads(path.read_text())
    del document["finalists"]
    path.write_text(json.dumps(document))
    assert sweep.read().best().name == "000"


@pytest.mark.parametrize(
    "change", [{"name": "../x"}, {"rank": 0}, {"score": "4"}, {"metrics": {"fid_gebm": "4"}}, {"more": 1}]
)
def test_finalists_that_no_sweep_has_written_are_one_line(sweep, change):
    sweep.run()
    path = Path(sweep.output) / "summary.json"
    document = json.loads(path.read_text())
    document["finalists"][0] |= change
    path.write_text(json.dumps(document))
    with pytest.raises(UserError, match=r"damaged.*finalists\.0"):
        read_summary(sweep.output)


def test_a_finalist_is_scored_from_its_checkpoint_on_other_draws(tmp_path):
    rows = torch.randn(600, 3, generator=torch.Generator().manual_seed(0))
    write_store(Table("redwine", None, None, rows.numpy()), str(tmp_path / "rows"))
    data = {"store": str(tmp_path / "rows"), "resolution": None, "channels": 3, "encoding": "rows"}
    config = schema.from_dict(
        {
            "name": "rows", "task": "density", "data": {**data, "source": {"kind": "redwine"}},
            "model": {"networks": "gaussian", "latent_dim": 3, "energy": "mlp"},
            "evaluation": {"num_samples": 50, "log_partition": "monte_carlo"},
            "sweep": {"metric": "nll_gebm_validation"}, "output": str(tmp_path / "out"),
        }
    )  # fmt: skip
    model = build_model(config)
    # As it is built, the energy is the same everywhere.
    with torch.no_grad():
        for parameter in model.energy.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
    training = {"trainer": make_trainer(model, config, torch.device("cpu")).state_dict(), "plateau": {}}
    state = {"config": schema.to_dict(config), "report": {}, "lr_scale": 1.0}
    checkpoint = Checkpoints(f"{config.output}/trials/000").save(
        8, model=model.state_dict(), training=training, state=state, score=1.0
    )

    def score(num_samples: int, seed: int) -> dict[str, float]:
        finalist = Finalist("000", checkpoint, rank=1, num_samples=num_samples, seed=seed)
        report = ProgressFile(str(tmp_path / "progress"))
        return finals.score_again(config, {}, finalist, torch.device("cpu"), report)

    few, again, other, many = score(50, 1), score(50, 1), score(50, 2), score(5000, 1)
    assert few == again
    assert few["log_partition_monte_carlo"] != other["log_partition_monte_carlo"]
    assert many["log_partition_monte_carlo_standard_error"] < few["log_partition_monte_carlo_standard_error"] / 3
    assert few["nll_gebm_validation_standard_error"] > 0


@pytest.mark.parametrize("width", [80, 100])
def test_on_a_terminal_the_scores_stand_above_the_bar_which_ends_full(sweep, monkeypatch, width):
    monkeypatch.setattr(finals, "Progress", Progress)
    monkeypatch.setattr(sweep.config.sampler, "num_steps", 2000)
    output, screen = io.StringIO(), Screen(width, 24)
    console = Console(file=output, force_terminal=True, width=width, height=24)
    with logging_to(ConsoleHandler(console, timestamps=False)):
        sweep.run(console)
    screen.feed(output.getvalue().replace("\n", "\r\n").encode())
    lines = [line.rstrip() for line in screen.lines if line.strip()]
    assert lines[0] == "scoring the finalists on 5,000 fresh latents each: 000, 001, 002"
    assert [line[:12] for line in lines[1:-2]] == ["finalist 000", "finalist 001", "finalist 002"]
    assert "30,000,000/30,000,000 chain-steps" in lines[-2] and "pairs of finalists" in lines[-1]


def test_ctrl_c_in_the_finals_leaves_the_sweep_to_be_resumed(sweep, monkeypatch):
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("pipeline.sweep.driver.score_finalists", interrupt)
    plan: Any = SimpleNamespace(config=sweep.config)
    nothing: Any = None
    display: Any = SimpleNamespace(console=None)
    driver = Sweep(plan, "sweep", sweep.records, display, nothing, CAPACITY, "owner")
    assert not driver.interrupted
    driver.score_finalists()
    assert driver.interrupted


def test_trials_that_sample_the_imported_model_are_scored_again(sweep):
    """Their checkpoint is the folder of the sweep's imported model."""
    start = imported_start(sweep.output)
    Checkpoints(start).save(0, model={"w": torch.ones(1)}, training={}, state={}, score=None)
    for record in sweep.records.trials:
        record.checkpoint = record.best_checkpoint = start
    sweep.second = {"000": 4.5, "001": 4.1, "002": 4.9}
    sweep.run()
    assert {each.name: (each.checkpoint, each.error) for each in sweep.records.finalists} == {
        name: (start, None) for name in sweep.second
    }
    assert sweep.read().finalists == sweep.records.finalists
    assert sweep.read().best().name == "001"


def test_a_sweep_that_was_interrupted_has_no_finals(sweep, monkeypatch):
    monkeypatch.setattr("pipeline.sweep.driver.score_finalists", lambda *_: pytest.fail("they were scored"))
    sweep.records.trials[-1].status = "running"
    plan: Any = SimpleNamespace(config=sweep.config)
    nothing: Any = None
    Sweep(plan, "sweep", sweep.records, nothing, nothing, CAPACITY, "owner").score_finalists()
