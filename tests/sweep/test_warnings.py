"""Warnings of a trial: printed once, kept, in the report and in the tracker, and never apart from the best score."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
import yaml
from mlflow import MlflowClient
from ray.tune.experiment import Trial
from rich.console import Console

from pipeline.config import to_dict
from pipeline.report.analysis import collect_results
from pipeline.report.html import report
from pipeline.report.markdown import LIMIT, markdown
from pipeline.runtime.errors import UserError
from pipeline.sweep.callback import SweepCallback
from pipeline.sweep.display.console import Display
from pipeline.sweep.display.live_table import SweepStatus
from pipeline.sweep.display.tables import draw_trials
from pipeline.sweep.finalize import finalize, print_results
from pipeline.sweep.plan import load_sweep
from pipeline.sweep.trainable import TRIAL_NAME_KEY
from pipeline.tracking.summary import MAX_WARNINGS, SweepSummary, TrialRecord, read_summary
from pipeline.tracking.tracker import Tracker
from pipeline.tracking.trial_steps import trial_steps
from pipeline.training.export import write_package

pytestmark = pytest.mark.usefixtures("mlflow_tables")

NEGATIVE, ABOVE = "KALE is negative at base step 8", "the energy of data is above that of the base"
SHOWN = ("fid_base", "fid_gebm")


class Driver:
    """The driver's side of a sweep of two trials, which tests report for; the last one that was made has the log."""

    last: Driver | None = None

    def __init__(self, config, folder: Path, records: SweepSummary | None = None, run_id: str | None = None) -> None:
        self.config, self.folder, self.printed = config, folder, io.StringIO()
        config.output, config.tracking.uri = str(folder / "out"), f"sqlite:///{folder / 'mlflow.db'}"
        facts = {"measure": "FID by any", "experiment": "small", "store_checksum": "0a", "extractor": "any"}
        facts |= {"mlflow_experiment_id": "1", "mlflow_run_id": "1"}
        self.records = records or SweepSummary(
            config.output, metric="fid_gebm", mode="min", shown=SHOWN, facts=facts, steps=trial_steps(config)
        )
        self.console = Console(file=self.printed, width=400)
        self.display = Display(self.records, "small", self.console, str(folder / "events.jsonl"))
        if Driver.last is not None:
            Driver.last.close()
        Driver.last = self
        self.display.__enter__()
        self.tracker = Tracker(
            config.tracking.uri, "small", artifacts=(folder / "artifacts").as_uri(),
            journal=folder / "out" / "tracking.jsonl", folder=config.output, package=write_package,
        )  # fmt: skip
        self.run_id = self.tracker.start_sweep(
            "sweep", {"output": config.output}, "note", extractor="any", run_id=run_id
        )
        self.watch = SweepCallback(config, self.records, self.tracker, self.display)

    def close(self) -> None:
        self.display.__exit__(None, None, None)

    def trial(self, name: str) -> Trial:
        trial = Trial("small", config={TRIAL_NAME_KEY: name}, trial_id=name, stub=True)
        trial.custom_trial_name = name
        return trial

    def start(self, name: str) -> None:
        self.watch.on_trial_start(1, [], self.trial(name))

    def report(self, name: str, **values: object) -> None:
        self.watch.on_trial_result(1, [], self.trial(name), {**values, "reported": list(values)})

    def evaluate(self, name: str, score: float, **values: object) -> None:
        scores = {"base_step": 8, "fid_base": score + 1, "fid_gebm": score, "figures": [], "chain": {}}
        self.report(name, **scores, checkpoint=f"out/trials/{name}/checkpoints/step-00000008", **values)

    def end(self, name: str) -> None:
        self.watch.on_trial_complete(1, [], self.trial(name))

    def finish(self) -> str:
        """End the sweep; what its last table and lines are."""
        self.config.tracking.register = False
        finalize(self.config, self.records, self.tracker, "sweep", interrupted=False)
        self.printed.truncate(self.printed.seek(0))
        print_results(self.config, self.records, "sweep", self.console)
        self.close()
        return self.printed.getvalue()

    @property
    def lines(self) -> list[str]:
        return [line[10:] for line in self.printed.getvalue().splitlines()]

    @property
    def events(self) -> list[tuple[str, str]]:
        entries = map(json.loads, (self.folder / "events.jsonl").read_text().splitlines())
        return [(one["trial"], one["values"]["text"]) for one in entries if one["event"] == "warning"]


@pytest.fixture
def driver(small, tmp_path) -> Driver:
    return Driver(small(train={"base_steps": 8}, sampler={"beta": 10.0}), tmp_path)


def test_each_warning_of_a_trial_is_printed_and_logged_once(driver):
    for name in ("000", "001"):
        driver.start(name)
    driver.report("000", base_step=4, warnings=[NEGATIVE])
    driver.report("000", base_step=6, warnings=[NEGATIVE, ABOVE])
    driver.evaluate("000", 5.0, warnings=[ABOVE, NEGATIVE])
    driver.report("001", base_step=4, warnings=[NEGATIVE])
    payload = [line for line in driver.lines if "warning: " in line]
    assert payload == [
        f"trial 000: warning: {NEGATIVE}",
        f"trial 000: warning: {ABOVE}",
        f"trial 001: warning: {NEGATIVE}",
    ]
    assert driver.events == [("000", NEGATIVE), ("000", ABOVE), ("001", NEGATIVE)]


def test_warnings_survive_a_resume_and_are_not_printed_again(driver, small, tmp_path):
    driver.start("000")
    driver.watch._changed = False  # whatever a start has to write is written
    driver.report("000", base_step=4, warnings=[NEGATIVE])
    driver.watch.on_step_end(0, [])  # a report without an evaluation, and yet it is written at once
    assert read_summary(driver.config.output)[1][0].warnings == [NEGATIVE]
    driver.tracker.close(60)
    (tmp_path / "out" / "config.yaml").write_text(yaml.safe_dump(to_dict(driver.config)))
    _, trials, _ = load_sweep(driver.config.output)
    records = SweepSummary(driver.config.output, metric="fid_gebm", mode="min", shown=SHOWN, facts={}, trials=trials)
    again = Driver(small(train={"base_steps": 8}), tmp_path, records, driver.run_id)
    again.start("000")
    again.evaluate("000", 5.0, warnings=[NEGATIVE, ABOVE])
    again.evaluate("000", 5.0, warnings=[NEGATIVE, ABOVE, "late"])  # it says first where it is, and may know more
    assert [line for line in again.lines if "warning: " in line] == [
        f"trial 000: warning: {ABOVE}",
        "trial 000: warning: late",
    ]
    assert records.trials[0].warnings == [NEGATIVE, ABOVE, "late"]
    again.tracker.close(60)


def test_warnings_are_bounded_in_number_and_length_and_a_terminal_prints_them_as_they_are(driver, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "hush-hush-hush")
    driver.start("000")
    many = ["\x1b[31mred\nand hush-hush-hush", *(f"{number} " + "x" * 5000 for number in range(100))]
    driver.report("000", base_step=4, warnings=many)
    driver.report("000", base_step=5, warnings=many)
    [record] = driver.records.trials
    assert len(record.warnings) == MAX_WARNINGS and record.warnings[0] == "[31mred and ***"
    assert all(len(line) <= 500 and line.isprintable() for line in record.warnings)
    assert sum("warning: " in line for line in driver.lines) == MAX_WARNINGS
    assert sum("further ones are dropped" in line for line in driver.lines) == 1
    for nonsense in ("a text", 3, None, [3, None, {}], [""]):  # of an untrusted checkpoint's report
        other = TrialRecord("001", {})
        assert driver.records.add_warnings(other, nonsense) == [] and other.warnings == []
    # MLflow would refuse a tag that is longer, and with it all others of the same entry.
    assert driver.tracker.close(60) == 0
    tags = MlflowClient(driver.config.tracking.uri).get_run(driver.tracker.trial_run_id("000")).data.tags
    assert tags["warnings"].startswith("[31mred and ***; 0 xx") and 4000 < len(tags["warnings"]) <= 5000
    assert tags["mlflow.note.content"].startswith("running") and len(tags["mlflow.note.content"]) <= 5000


def test_a_summary_with_warnings_is_read_back_and_one_without_the_field_too(tmp_path):
    records = SweepSummary(str(tmp_path), metric="fid_gebm", mode="min", shown=SHOWN, facts={})
    records.add_warnings(records.add("000", {}), [NEGATIVE, ABOVE])
    records.write()
    _, [trial] = read_summary(str(tmp_path))
    assert trial.warnings == [NEGATIVE, ABOVE]
    document = json.loads((tmp_path / "summary.json").read_text())
    del document["trials"][0]["warnings"]
    (tmp_path / "summary.json").write_text(json.dumps(document))
    _, [trial] = read_summary(str(tmp_path))
    assert trial.warnings == []


@pytest.mark.parametrize(
    "warnings",
    ["a text", None, 3, [3], [None], [["nested"]], {"a": "b"}, ["two\nlines"], ["\x1b[31m"], ["x" * 501], ["a"] * 21],
)
def test_a_summary_with_anything_else_for_warnings_is_damaged(tmp_path, warnings):
    document = {"trials": [{"name": "000", "params": {}, "warnings": warnings}]}
    (tmp_path / "summary.json").write_text(json.dumps(document))
    with pytest.raises(UserError, match=r"summary\.json is damaged"):
        read_summary(str(tmp_path))


def test_the_tracker_has_the_warnings_of_a_trial_through_the_journal(driver):
    driver.start("000")
    driver.report("000", base_step=4, warnings=[NEGATIVE])
    journal = (driver.folder / "out" / "tracking.jsonl").read_text()
    assert NEGATIVE in journal
    driver.evaluate("000", 5.0, warnings=[f"{ABOVE} <b>"])
    driver.end("000")
    assert driver.tracker.close(60) == 0
    tags = MlflowClient(driver.config.tracking.uri).get_run(driver.tracker.trial_run_id("000")).data.tags
    assert tags["warnings"] == f"{NEGATIVE}; {ABOVE} <b>" and tags["status"] == "finished"
    assert tags["mlflow.note.content"].startswith("finished\n")
    assert f"- {NEGATIVE}\n- {ABOVE} \\<b\\>" in tags["mlflow.note.content"]


def test_a_trial_without_warnings_has_no_tag_of_them(driver):
    driver.start("000")
    driver.evaluate("000", 5.0)
    driver.end("000")
    assert driver.tracker.close(60) == 0
    tags = MlflowClient(driver.config.tracking.uri).get_run(driver.tracker.trial_run_id("000")).data.tags
    assert "warnings" not in tags and "arning" not in tags["mlflow.note.content"]


def test_the_end_of_a_sweep_says_the_warnings_of_the_best_trial_next_to_its_score(driver):
    for name, score, warnings in (("000", 5.0, [NEGATIVE, ABOVE]), ("001", 6.0, [])):
        driver.start(name)
        driver.evaluate(name, score, warnings=warnings)
        driver.end(name)
    assert "(beta 10: colder than the model; 2 warnings)" in driver.display.status.summary()
    window = Console(file=io.StringIO(), width=200, height=24, force_terminal=True, record=True)
    window.print(driver.display.status)
    assert "(beta 10: colder than the model; 2 warnings)" in window.export_text()
    lines = driver.finish().splitlines()
    [at] = [number for number, line in enumerate(lines) if line.startswith("best trial ")]
    assert "fid_gebm 5.000 (beta 10: colder than the model; 2 warnings)" in lines[at]
    assert [line.strip() for line in lines[at + 1 : at + 3]] == [f"warning: {NEGATIVE}", f"warning: {ABOVE}"]
    rows = {line.split()[1]: line.split() for line in lines if line.startswith("│")}
    assert rows["000"][-2] == "2" and rows["001"][-2] == "-"
    # The sweep's description in MLflow is the report.
    note = MlflowClient(driver.config.tracking.uri).get_run(driver.run_id).data.tags["mlflow.note.content"]
    assert "## Warnings" in note and f"looked into**: {NEGATIVE}; {ABOVE}" in note


def a_sweep(warned: dict[str, list[str]], trials: int = 4) -> SweepSummary:
    facts = {"experiment": "small", "measure": "FID by any"}
    records = SweepSummary("folder", metric="fid_gebm", mode="min", shown=SHOWN, facts=facts)
    for index in range(trials):
        record = records.add(f"{index:03d}", {"train.base_lr": 1e-4 * (index + 1)})
        metrics = {"base_step": 8, "fid_base": index + 6.0, "fid_gebm": index + 5.0}
        records.evaluated(record, metrics, f"folder/trials/{record.name}/checkpoints/step-00000008")
        records.add_warnings(record, warned.get(record.name, []))
        record.status = "finished"
    return records


def test_the_report_lists_who_has_warnings_and_what_to_do_and_marks_them_in_the_table():
    found = collect_results("folder", a_sweep({"001": [NEGATIVE, "<script>alert(1)</script>"], "003": [ABOVE]}), {})
    text = markdown(found)
    section = text.partition("## Warnings")[2].partition("\n## ")[0]
    assert f"- trial 001 (finished): {NEGATIVE}; \\<script\\>alert(1)\\</script\\>" in section
    assert f"- trial 003 (finished): {ABOVE}" in section
    assert "train.energy_lr" in section and "trial 000" not in section
    [table] = [block for block in text.split("\n\n") if " | warnings" in block.splitlines()[0]]
    head, _, *rows = [line.split(" | ") for line in table.splitlines()]
    at = next(index for index, cell in enumerate(head) if cell.startswith("warnings"))
    assert [row[at] for row in rows] == ["-", "2", "-", "1"]
    # The best has none, and nothing else is said of it.
    assert "Do not rely" not in text and "with warnings" not in text.splitlines()[0]
    page = report(found)["report.html"].decode()
    assert f"<li>trial 003 (finished): {ABOVE}</li>" in page
    assert "<li>trial 001 (finished): KALE is negative at base step 8; &lt;script&gt;" in page


def test_the_reports_answer_says_the_warnings_of_the_best_trial_next_to_its_score():
    text = markdown(collect_results("folder", a_sweep({"000": [NEGATIVE]}), {}))
    assert f"`fid_gebm` 5.000. **Do not rely on this score before its warnings are looked into**: {NEGATIVE}." in text
    assert text.splitlines()[0].endswith("the best 5.000 (with warnings)**")


def test_a_report_without_warnings_says_nothing_of_them():
    assert "arning" not in markdown(collect_results("folder", a_sweep({}), {}))
    table = draw_trials(a_sweep({}))
    assert "warnings" not in [column.header for column in table.columns]


@pytest.mark.parametrize("length", [3, 80, 500])
def test_a_description_has_room_for_its_commands_however_many_warnings_there_are(length):
    warned = {f"{index:03d}": [f"{number:02d}" + "<" * length for number in range(20)] for index in range(40)}
    text = markdown(collect_results("folder", a_sweep(warned, trials=40), {}))
    assert len(text) <= LIMIT and "## Warnings" in text and "Do not rely" in text and text.count("```") == 2
    whole = markdown(collect_results("folder", a_sweep(warned, trials=40), {}), limit=None)
    assert whole.count("\n- trial ") == 40


def test_a_window_too_narrow_for_all_of_it_still_has_the_best_trial():
    records = a_sweep({"000": [NEGATIVE]})
    console = Console(file=io.StringIO(), width=60, height=24, force_terminal=True, record=True)
    console.print(SweepStatus(records, "small", trials=4))
    assert "best: trial 000, fid_base 6.000, fid_gebm 5.000 (1 warning)" in console.export_text()
