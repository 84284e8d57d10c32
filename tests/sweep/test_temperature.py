"""Scores of a GEBM are shown with the temperature of their samples, wherever that is."""

from __future__ import annotations

import contextlib
import io
import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from mlflow import MlflowClient
from PIL import Image
from rich.console import Console

from pipeline.config import apply
from pipeline.config.temperature import describe_temperature, sampling_beta
from pipeline.data import open_store
from pipeline.evaluation import plots
from pipeline.report.analysis import collect_results, load_results
from pipeline.report.charts import charts
from pipeline.report.markdown import markdown
from pipeline.runtime.errors import UserError
from pipeline.sweep.display.live_table import SweepStatus
from pipeline.sweep.display.tables import draw_seeds, draw_trials
from pipeline.sweep.finalize import finalize
from pipeline.tasks.images import Images, ImageTaskWorker
from pipeline.tracking.registry import BEST, register
from pipeline.tracking.summary import SweepSummary, read_summary
from pipeline.tracking.summary_temperature import sweep_temperature, trial_beta
from pipeline.training.build_model import build_model
from tests.sweep.test_warnings import Driver
from tests.training.test_export import entry, packaged, trained

pytestmark = pytest.mark.usefixtures("mlflow_tables")

COLDER = "beta 10: colder than the model"
SHOWN = ("fid_base", "fid_gebm")


@given(st.floats(0, allow_infinity=False))
def test_only_beta_one_is_said_to_be_the_model_itself(beta):
    words = describe_temperature(beta)
    assert ("the model itself" in words) == (beta == 1) == words.startswith("beta 1:")
    assert ("colder" in words) == (beta > 1) and ("hotter" in words) == (0 < beta < 1)


def test_the_beta_of_a_score_is_that_of_its_chains(small):
    config = small(sampler={"beta": 10.0})
    assert sampling_beta(config) == sampling_beta(config, {}) == 10.0
    assert sampling_beta(config, {"sampler.beta": 2}) == 2.0
    config.sweep.space = {"sampler.beta": {"choice": [1.0, 2.0]}}
    assert sampling_beta(config) is None and sampling_beta(config, {"sampler.beta": 1.0}) == 1.0
    assert sampling_beta(config, {}) == 10.0
    config.task = "density"  # a likelihood, which no chain has a part in
    assert sampling_beta(config) is None and sampling_beta(config, {}) is None


def a_sweep(betas: list[float | None], searched: bool = False, **facts: object) -> SweepSummary:
    """A sweep of trials that were sampled at these betas, the best first."""
    facts = {"experiment": "small", "measure": "FID by any", **facts}
    records = SweepSummary("folder", metric="fid_gebm", mode="min", shown=SHOWN, facts=facts)
    for index, beta in enumerate(betas):
        record = records.add(f"{index:03d}", {"sampler.beta": beta} if searched else {"train.base_lr": 1.0 + index})
        metrics = {"base_step": 8, "fid_base": index + 6.0, "fid_gebm": index + 5.0}
        metrics |= {} if beta is None or searched else {"beta": beta}
        records.evaluated(record, metrics, f"folder/trials/{record.name}/checkpoints/step-00000008")
        record.status = "finished"
    return records


def printed(what: object, width: int = 200) -> str:
    console = Console(file=io.StringIO(), width=width, height=30, force_terminal=True, record=True)
    console.print(what)
    return console.export_text()


@pytest.mark.parametrize("beta", [1.0, 10.0])
def test_tables_report_and_charts_say_the_beta_of_a_sweep(beta):
    records, words = a_sweep([beta] * 4, beta=beta), describe_temperature(beta)
    assert f"FID by any; {words})" in printed(draw_trials(records))
    assert "beta" not in [column.header for column in draw_trials(records).columns]
    window = printed(SweepStatus(records, "small", trials=4))
    assert f"4 trials of small ({words}): " in window and f"fid_gebm 5.000 ({words})" in window
    assert f"fid_gebm 5.000 ({words})" in SweepStatus(records, "small", trials=4).summary()
    found = collect_results("folder", records, {})
    text = markdown(found)
    assert text.splitlines()[0].endswith(f"the best 5.000 ({words})**")
    assert f"`fid_gebm` 5.000 ({words}). With its energy" in text and f"Scores of the GEBM: {words}." in text
    axes = [chart for chart in charts(found) if chart.key in ("learning_curves", "against_train_base_lr")]
    assert len(axes) == 2
    for chart in axes:
        assert chart.to_matplotlib().axes[0].get_ylabel() == f"FID by any\n{words}"
        assert chart.to_plotly().layout.yaxis.title.text == f"FID by any<br>{words}"
    assert all(words in label for series in axes[1].series for label in series.labels)


def test_where_beta_is_searched_it_is_that_of_each_trial_and_the_best_says_its_own():
    records = a_sweep([10.0, 0.5, 1.0], searched=True)
    words = "beta 0.5 to 10, by trial; 1 is the model itself, larger is colder"
    table = draw_trials(records)
    assert words in table.title and [column.header for column in table.columns].count("beta") == 1
    assert f"best is trial 000 with fid_base 6.000, fid_gebm 5.000 ({COLDER})" in SweepStatus(records, "s").summary()
    text = markdown(collect_results("folder", records, {}))
    assert f"the best 5.000 ({COLDER})" in text and f"Scores of the GEBM: {words}." in text
    [best, *_] = [row for row in text.splitlines() if row.startswith("| 000 |")]
    assert best.endswith("| 10.00 |") and "sampler.beta" in text


def test_trials_of_a_sweep_resumed_with_another_beta_are_told_apart():
    records = a_sweep([10.0, 1.0], beta=1.0)
    table = draw_trials(records)
    [column] = [column for column in table.columns if column.header == "beta"]
    assert list(column.cells) == ["10", "1"]
    text = markdown(collect_results("folder", records, {}))
    [table] = [block for block in text.split("\n\n") if " | beta" in block.splitlines()[0]]
    head, _, *rows = [line.split(" | ") for line in table.splitlines()]
    at = next(index for index, cell in enumerate(head) if cell.startswith("beta"))
    assert [row[at] for row in rows] == ["10.00", "1.000"]


def test_scores_of_no_known_temperature_are_shown_without():
    records = a_sweep([None, None])
    assert sweep_temperature(records) is None
    for text in (printed(draw_trials(records)), markdown(collect_results("folder", records, {}))):
        assert "beta" not in text


@pytest.mark.parametrize("beta", ["10", None, True, math.nan, -1.0, [1.0], {"a": 1}])
def test_an_untrusted_summary_has_no_beta_that_is_no_number(tmp_path, beta):
    records = a_sweep([None])
    records.output, records.facts["beta"] = str(tmp_path), beta
    records.trials[0].best_metrics["beta"] = beta
    assert trial_beta(records, records.trials[0]) is None
    (tmp_path / "summary.json").write_text(
        json.dumps({"metric": "fid_gebm", "mode": "min", "beta": beta, "trials": []})
    )
    # A value of another type is refused where the file is read.
    with contextlib.suppress(UserError):
        assert load_results(str(tmp_path)).temperature is None


def test_a_report_of_a_folder_has_the_beta_of_its_summary_or_else_of_its_config(tmp_path):
    records = a_sweep([None, None])
    records.output = str(tmp_path)
    records.write()
    config = "sweep: {search: grid, scheduler: none, space: {}}\nevaluation: {num_samples: 100}\n"
    for task, expected in (("images", "beta 4: colder than the model"), ("density", None)):
        (tmp_path / "config.yaml").write_text(f"{config}task: {task}\nsampler: {{beta: 4.0}}\n")
        found = load_results(str(tmp_path))
        assert found.temperature == expected and found.settings["num_samples"] == 100
    records.facts["beta"] = 10.0
    records.write()
    assert load_results(str(tmp_path)).temperature == COLDER


def test_means_over_seeds_say_their_temperature():
    records = a_sweep([10.0, 10.0])
    for seed, record in enumerate(records.trials):
        record.params = {"seed": seed}
    assert COLDER in draw_seeds(records).title


def test_the_driver_notes_beta_with_each_score_and_tells_it_the_tracker(small, tmp_path):
    driver = Driver(small(train={"base_steps": 8}, sampler={"beta": 10.0}), tmp_path)
    driver.start("000")
    driver.evaluate("000", 5.0)
    driver.end("000")
    assert driver.records.trials[0].best_metrics["beta"] == 10.0
    assert any(line.endswith("fid_gebm 5.000  beta 10") for line in driver.lines)
    logged = [json.loads(line) for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    assert [one["values"]["beta"] for one in logged if one["event"] == "evaluated"] == [10.0]
    shown = driver.finish()
    # The title of a table is folded where the table is narrower.
    assert f"fid_gebm 5.000 ({COLDER})" in shown and f"FID by any; {COLDER})" in " ".join(shown.split())
    document, _ = read_summary(driver.config.output)
    assert document["temperature"] == COLDER and document["best"]["metrics"]["beta"] == 10.0
    client = MlflowClient(driver.config.tracking.uri)
    child, parent = (client.get_run(run).data.tags for run in (driver.tracker.trial_run_id("000"), driver.run_id))
    assert child["beta"] == "10" and f"Scores of the GEBM are at {COLDER}." in child["mlflow.note.content"]
    assert f"({COLDER})" in parent["mlflow.note.content"]


def test_a_registered_model_says_the_temperature_and_the_warnings_of_its_score(small, stores, tmp_path, monkeypatch):
    monkeypatch.setenv("GEBM_STORES", str(stores))
    config = small(train={"base_steps": 8}, sampler={"beta": 10.0, "num_steps": 2})
    driver = Driver(config, tmp_path)
    checkpoint = trained(config, tmp_path / "out" / "trials" / "000")
    driver.start("000")
    scores = {"base_step": 8, "fid_base": 6.0, "fid_gebm": 5.0, "figures": [], "chain": {}}
    driver.report("000", **scores, checkpoint=checkpoint, warnings=["KALE is negative <b>"])
    driver.end("000")
    finalize(config, driver.records, driver.tracker, "train", interrupted=False)
    version = MlflowClient(config.tracking.uri).get_model_version_by_alias("small", BEST)
    assert version.description.startswith(f"fid_base 6.000, fid_gebm 5.000 ({COLDER}): FID by any.")
    assert "Warning: KALE is negative \\<b\\>" in version.description
    assert version.tags["beta"] == "10" and version.tags["warnings"] == "KALE is negative <b>"


def test_the_alias_compares_versions_of_different_beta_and_a_line_says_so(small, stores, tmp_path, monkeypatch):
    monkeypatch.setenv("GEBM_STORES", str(stores))
    checkpoint = trained(small(sampler={"num_steps": 2}), tmp_path / "trial")
    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    experiment = client.create_experiment("small", artifact_location=(tmp_path / "artifacts").as_uri())
    lines = []
    for score, beta in ((5.0, "1"), (4.0, "1"), (3.0, "10"), (6.0, "1")):
        run = client.create_run(experiment).info.run_id
        lines.append(register(client, experiment, run, entry(checkpoint, score, beta=beta), packaged(score)))
    assert str(client.get_model_version_by_alias("small", BEST).version) == "3"
    assert [line is None for line in lines] == [True, True, False, True]
    assert "sampled at beta 10; version 2 was at beta 1" in lines[2] and "\n" not in lines[2]


# Pictures: their words cannot be read back, so those that draw them are listened to.


@pytest.fixture
def written(monkeypatch) -> list[str]:
    """All that Pillow is asked to write, and titles and legends of matplotlib."""
    from matplotlib.axes import Axes
    from PIL import ImageDraw

    words, text, legend = [], ImageDraw.ImageDraw.text, Axes.legend

    def noted_text(self, xy, what, *arguments, **more):
        words.append(what)
        return text(self, xy, what, *arguments, **more)

    def noted_legend(self, *arguments, **more):
        made = legend(self, *arguments, **more)
        words.extend(one.get_text() for one in made.get_texts())
        words.append(self.get_title())
        return made

    monkeypatch.setattr(ImageDraw.ImageDraw, "text", noted_text)
    monkeypatch.setattr(Axes, "legend", noted_legend)
    return words


@pytest.mark.parametrize("beta", [1.0, 10.0])
def test_every_picture_of_an_evaluation_says_the_beta_of_its_samples(beta, small, stores, classifier, written):
    url = str(stores / "digits-8")
    config = apply(
        small(evaluation={"num_samples": 60, "batch_size": 60, "chain_points": 2, "grid": 16}),
        {"data.store": url, "sampler.num_steps": 2, "sampler.beta": beta},
    )
    work = ImageTaskWorker(config, open_store(url), classifier, 0, 1, torch.device("cpu"))
    found, temperature = work.evaluate(build_model(config).eval()), describe_temperature(beta)
    assert written == []  # nothing is drawn that nobody looks at
    assert found.pictures
    titles = [f"MCMC step {step} ({temperature})" for step in (0, 1, 2)]
    titles += [f"GEBM, same latents ({temperature})"] * 2  # side by side, and by energy
    titles += [temperature, f"GEBM ({temperature})", f"along the chain ({temperature})"]
    titles += [f"MCMC step 2: the GEBM ({temperature})"]
    assert sorted(word for word in written if "beta" in word) == sorted(titles)
    images = torch.zeros(4, 1, 8, 8, dtype=torch.uint8)
    written.clear()
    assert Image.open(io.BytesIO(Images(config).pictures(images, images)["base_and_gebm.png"]))
    assert written == ["base", f"GEBM, same latents ({temperature})"]


def test_clouds_of_points_keep_their_temperature_on_a_line_of_its_own():
    points = torch.cat([torch.zeros(400, 2), torch.full((1, 2), 50.0)])
    [_, panel] = plots.scatter_3d({"base": points[:9], plots.at_temperature("GEBM", COLDER, "\n"): points}).axes
    assert panel.get_title() == f"GEBM (1 of 401 outside)\n({COLDER})"


def test_sample_and_evaluate_say_their_beta(call, small, stores, tmp_path, monkeypatch):
    """And evaluate says its scores before it writes them, so that no full disk loses them."""
    checkpoint = trained(small(sampler={"num_steps": 2, "num_samples": 8}), tmp_path / "trial")
    status, out, err = call("sample", f"checkpoint={checkpoint}", "sampler.beta=10", f"output={tmp_path / 'samples'}")
    assert status == 0, err
    assert f"8 samples (1, 8, 8), uint8 ({COLDER}): " in out
    settings = json.loads((tmp_path / "samples" / "settings.json").read_text())
    assert settings["temperature"] == COLDER and settings["sampler"]["beta"] == 10
    assert len(np.load(tmp_path / "samples" / "samples.npy")) == 8
    words = [
        f"checkpoint={checkpoint}",
        "sampler.beta=10",
        "evaluation.num_samples=40",
        "evaluation.extractor=classifier",
    ]
    status, out, err = call("evaluate", *words, f"output={tmp_path / 'scored'}")
    assert status == 0, err
    assert f"40 samples, {COLDER}" in out and f"along the chain ({COLDER})" in out
    scored = json.loads((tmp_path / "scored" / "evaluation.json").read_text())
    assert (scored["beta"], scored["temperature"]) == (10.0, COLDER)

    def full(url: str, content: bytes) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pipeline.training.evaluate_checkpoint.write_file", full)
    status, again, err = call("evaluate", *words, f"output={tmp_path / 'scored'}")
    assert status == 2 and err.splitlines()[-1].startswith("error: cannot write to") and "Traceback" not in err
    assert again.splitlines()[-4:-1] == out.splitlines()[-4:-1] or "fid_gebm" in again
