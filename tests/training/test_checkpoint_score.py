"""The checkpoint that is kept as the best is that of the best score, whichever way scores are better."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from pipeline.training.checkpoints import Checkpoints, read
from pipeline.training.loop import TrialRun


@pytest.mark.parametrize("mode", ["min", "max"])
@settings(max_examples=10, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(scores=st.lists(st.integers(-9, 9).map(float), min_size=2, max_size=5, unique=True))
@example(scores=[1.0, 3.0, 2.0])
def test_the_best_checkpoint_has_the_best_score(tmp_path_factory, mode, scores):
    checkpoints = Checkpoints(str(tmp_path_factory.mktemp("trial")))
    run = SimpleNamespace(
        config=SimpleNamespace(
            train=SimpleNamespace(base_steps=1000, final_energy_steps=0),
            sweep=SimpleNamespace(metric="precision_gebm", mode=mode),
            evaluation=SimpleNamespace(every=1),
        ),
        time_left=SimpleNamespace(add_evaluation=lambda seconds: None, numbers=dict),
        _add=lambda key, messages, first: None,
    )

    def save(*, score: float) -> dict:
        state = {"report": {"precision_gebm": run.report["precision_gebm"]}}
        url = checkpoints.save(run.trainer.base_step, model={"w": torch.ones(1)}, training={}, state=state, score=score)
        return {"checkpoint": url}

    run.save = save
    for step, score in enumerate(scores):
        run.trainer, run.report = SimpleNamespace(base_step=step), {}
        run._evaluate_model = lambda name, score=score: {"precision_gebm": score, "evaluation_seconds": 0.0}
        TrialRun.evaluate(run)
    best = read(str(checkpoints.best)).state["report"]["precision_gebm"]
    assert best == (min if mode == "min" else max)(scores)


def test_of_equal_scores_the_first_checkpoint_is_the_best(tmp_path):
    checkpoints = Checkpoints(str(tmp_path))
    urls = [
        checkpoints.save(step, model={"w": torch.ones(1)}, training={}, state={}, score=1.0) for step in range(1, 4)
    ]
    assert (checkpoints.best, checkpoints.last) == (urls[0], urls[-1])
