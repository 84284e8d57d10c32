"""The page on the authors' code has the figures that are measured, and its variant is one that can be trained."""

from __future__ import annotations

import shlex
from pathlib import Path

from benchmarks.differences import authors_energy_steps, measurements
from gebm import Alternation
from pipeline.config.validation import validate
from tests.config.test_config import composed
from tests.docs.test_documents import FENCE

PAGE = Path(__file__).parents[2] / "docs" / "differences.md"


def test_each_figure_is_on_the_page():
    text = PAGE.read_text(encoding="utf-8")
    figures = measurements()
    # What is as it should be here is said once.
    for name in [name for name in figures if name.endswith("as it should be")]:
        assert abs(float(figures.pop(name)) - 1) < 0.03
    missing = {name: value for name, value in figures.items() if value not in text}
    assert not missing


def test_the_counter_of_all_steps_begins_as_algorithm_1_and_does_not_continue_so():
    counts = authors_energy_steps(1_200)
    here = [Alternation().energy_steps_at(step) for step in range(1_200)]
    assert counts[:2] == here[:2] == [100, 100]
    assert counts[3:500] == here[3:500]
    assert counts[500] < here[500] == 100


def test_the_variant_of_the_page_is_an_experiment():
    blocks = [match["code"] for match in FENCE.finditer(PAGE.read_text(encoding="utf-8"))]
    [words] = [shlex.split(block)[3:] for block in blocks if "pipeline.train" in block]
    config = composed(*words)
    validate(config)
    decay = config.train.learning_rate_decay
    assert (config.model.networks, config.train.gradient_guard) == ("sngan_resnet_arbel", "arbel")
    assert (decay.significance, decay.lag, decay.unconditional_every) == (0.1, 22_000, 5_000)
