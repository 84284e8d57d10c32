"""Tasks as parts: what others ask is a fact, and one of a plugin is as good as the built-in ones."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gebm.registry import Registry
from pipeline import tasks as opened
from pipeline.config import Config, from_dict, monitored_metrics, plugins, tasks
from pipeline.config.metrics import NAMES as METRICS
from pipeline.config.validation import validate, validate_rules, validate_store
from pipeline.data import write_store
from pipeline.data.sources.base import Table
from pipeline.evaluation.base import Evaluation
from pipeline.runtime.errors import UserError
from pipeline.tasks.open_store import ensure_store
from pipeline.tracking.metric_names import metric_name
from tests.helpers.plugins import load, no_plugins

__all__ = ["load", "no_plugins"]

HEAD = """
import torch
from torch import nn

import gebm
from pipeline import tasks
from pipeline.evaluation import metrics
from pipeline.tasks.points import Points
from pipeline.tasks.scored_rows import ScoredRows

"""
GAP = """
@tasks.register("gap", like="points", score="gap")
class Gap(ScoredRows):
    def score(self, samples, data):
        {body}
"""
DIM = 2


def config(store: str = "s", task: str = "gap", **groups: Any) -> Config:
    data = {"store": store, "resolution": None, "channels": DIM, "encoding": "rows", "source": {"kind": "redwine"}}
    model, train = {"networks": "mlp", "latent_dim": DIM, "width": 4}, {"batch_size": 16}
    return from_dict({"name": "x", "task": task, "data": data, "model": model, "train": train, **groups})


@given(st.data())
def test_a_part_has_the_facts_of_the_one_that_it_is_like_but_for_its_own(data):
    defaults = {"like": None, "a": 0, "b": "", "c": False}
    values = st.fixed_dictionaries({}, optional={"a": st.integers(), "b": st.text(), "c": st.booleans()})
    parts: Registry[Any] = Registry("shape", facts=defaults, inherits="like")
    expected: dict[str, dict[str, Any]] = {}
    for number, own in enumerate(data.draw(st.lists(values, max_size=6))):
        like = data.draw(st.sampled_from([None, *expected]))
        parts.register(f"p{number}", like=like, **own)(lambda: None)
        expected[f"p{number}"] = {**(expected[like] if like else defaults), **own, "like": like}
    assert {part.name: dict(part.facts) for part in parts.parts()} == expected
    with pytest.raises(ValueError, match="like='none' has to be among"):
        parts.register("last", like="none")(lambda: None)


def test_nothing_but_a_registration_compares_the_name_of_a_task():
    compared = re.compile(r"""\btask["')]*\s*(==|!=|(not )?in)\s[^\n=]*["'](images|density|points)["']""")
    written = ('config.task == "images"', 'config.get("task") == "density"', "config.task not in ('points', 'density')")
    assert all(compared.search(line) for line in written) and not compared.search(
        'facts_of(config.task).of == "images"'
    )
    files = list((Path(__file__).parents[2] / "pipeline").rglob("*.py"))
    assert len(files) > 100
    assert not [path.name for path in files if compared.search(path.read_text(encoding="utf-8"))]


class TestOwn:
    """Tasks of plugins."""

    def test_it_takes_the_networks_of_the_one_that_it_is_like_and_those_that_name_it(self, load):
        load(
            HEAD
            + GAP.format(body="return 0.0")
            + """
@gebm.networks.register("flat", tasks=("gap",))
def flat(channels, latent_dim):
    return nn.Linear(latent_dim, channels), nn.Linear(channels, 1)

@tasks.register("lonely", of="rows", score="lonely")
class Lonely(Gap): ...
""",
        )
        assert set(tasks.networks_of("gap")) == {*tasks.networks_of("points"), "flat"}
        validate(config(model={"networks": "flat", "latent_dim": DIM}))
        for task, refusal in (
            ("points", "model.networks=flat: it has to be one of mlp"),
            ("lonely", "no networks are"),
        ):
            with pytest.raises(UserError, match=refusal):
                validate_rules(config(task=task, model={"networks": "flat", "latent_dim": DIM}))
        with pytest.raises(UserError, match="task=gap samples one"):
            validate_rules(
                config(train={"objective": "ml", "batch_size": 16}, model={"networks": "maf", "latent_dim": DIM})
            )

    @pytest.mark.parametrize(
        ("facts", "metric", "mode"),
        [
            ("", "gap_validation_gebm", "min"),
            (", better='up'", "gap_validation_gebm", "max"),
            (", ranked_by='{score}_{model}'", "gap_gebm", "min"),
        ],
    )
    def test_what_trials_are_ranked_by_is_the_task_s(self, load, facts, metric, mode):
        load(HEAD + GAP.format(body="return 0.0").replace('score="gap"', f'score="gap"{facts}'))
        chosen = config()
        assert (chosen.sweep.metric, chosen.sweep.mode, monitored_metrics(chosen)) == (
            metric, mode, ("gap_base", "gap_gebm")
        )  # fmt: skip
        validate_rules(chosen)
        assert from_dict({**cast(Any, chosen).__dict__, "sweep": {"metric": metric}}).sweep.mode == mode
        with pytest.raises(UserError, match=f"use sweep.mode={mode}"):
            validate_rules(config(sweep={"mode": "max" if mode == "min" else "min"}))
        assert metric_name("gap_validation_base", None) == "gap/validation_base"
        # A metric of that name would be another number by the same name.
        with pytest.raises(ValueError, match="called 'gap' already"):
            METRICS.register("gap")(lambda samples, data: 0.0)

    @pytest.mark.parametrize(
        ("text", "refusal"),
        [
            (
                'tasks.register("gap", of="rows", score="gap", like="points")(lambda config: object())',
                "it has no check",
            ),
            (GAP.format(body="pass").replace("score(", "scored("), "abstract"),
            (
                GAP.format(body="pass") + "    def open(self, rank): ...",
                "its open has to take rank, world_size, device",
            ),
            (GAP.format(body="pass") + "    prepare = None", "it has no prepare(store, device, report)"),
            (GAP.format(body="pass") + "    def __init__(self, config):\n        1 / 0", "ZeroDivisionError"),
            (GAP.format(body="pass").replace('score="gap"', 'score="a b"'), "has to have the name of a score"),
            (GAP.format(body="pass").replace('score="gap"', 'score="gap_gebm"'), "without the model"),
            (GAP.format(body="pass").replace('score="gap"', 'score="fid"'), "that of a metric"),
        ],
    )
    def test_one_that_is_none_is_refused_by_file_and_line(self, load, text, refusal):
        path = load(HEAD + text)
        with pytest.raises(UserError) as refused:
            validate(config())
        message = str(refused.value)
        assert re.match(rf"{path}:\d+: gap: ", message) and refusal in message and "\n" not in message

    @pytest.mark.parametrize(
        ("registered", "refusal"),
        [
            ('like="lines", score="gap"', "like='lines' has to be among images, density, points"),
            ('of="sounds"', "of='sounds' has to be among images, rows"),
            ('ranked_by="gap"', "has to be among"),
            ("scores=1", "it takes like, of, score"),
        ],
    )
    def test_facts_that_do_not_exist_are_refused_where_they_are_written(self, load, registered, refusal):
        with pytest.raises(UserError, match=refusal):
            load(HEAD + f'tasks.register("gap", {registered})(Points)')

    @pytest.mark.parametrize(
        ("body", "refusal"),
        [
            ("return float('nan')", "both have to be finite"),
            ("return samples", "has to return a number"),
            ("return samples @ data", "RuntimeError"),
            ("self.n = getattr(self, 'n', 0) + 1; return self.n", "the same rows have two scores"),
            ("return torch.rand(()), float(len(data))", None),
        ],
    )
    def test_its_score_is_tried_on_rows_of_the_store(self, load, tmp_path, body, refusal):
        path = load(HEAD + GAP.format(body=body))
        store = str(tmp_path / "rows")
        write_store(Table("redwine", None, None, torch.randn(200, DIM).numpy()), store)
        if refusal is None:
            ensure_store(config(store))
            return
        with pytest.raises(UserError, match=rf"^{path}:\d+: gap: .*{refusal}"):
            ensure_store(config(store))

    def test_an_evaluation_without_the_scores_of_the_facts_is_refused(self, load):
        path = load(HEAD + GAP.format(body="return 0.0"))

        def evaluated(**scores: float) -> Evaluation:
            worker: Any = SimpleNamespace(evaluate=lambda model, run: Evaluation(dict(scores)))
            return opened.evaluate(config(), worker, cast(Any, None))

        every = {"gap_base": 1.0, "gap_gebm": 1.0, "gap_validation_gebm": 1.0}
        assert evaluated(**every).scores == every
        for name in every:
            with pytest.raises(UserError, match=rf"^{path}:\d+: gap: its evaluation has no score {name}, "):
                evaluated(**{other: 1.0 for other in every if other != name})

    def test_a_folder_says_which_task_it_needs(self, load):
        path = load(HEAD + GAP.format(body="return 0.0"))
        saved = config(plugins=[path])
        plugins.require_parts(saved, "folder")
        saved.task = "missing"
        with pytest.raises(UserError, match="folder needs task=missing, which no loaded plugin has"):
            plugins.require_parts(saved, "folder")


def test_a_store_of_a_task_that_does_not_exist_is_refused():
    with pytest.raises(UserError, match="task=video: it has to be one of images, density, points"):
        validate_store(config(task="video"))
