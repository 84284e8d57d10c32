"""The tutorial: its code runs as it is on the page, draws the figures that are shown, and prints what is printed."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import pytest
import torch
from PIL import Image

ROOT = Path(__file__).parents[2]
NUMBER = re.compile(r"[+-]?\d+(?:\.\d+)?")


def load_maker() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_tutorial", ROOT / "tools" / "make_tutorial.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


maker = load_maker()
PAGE = maker.PAGE.read_text(encoding="utf-8")


class Run(NamedTuple):
    """What the page's code left behind."""

    folder: Path
    printed: list[str]
    names: dict[str, Any]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    folder, threads = tmp_path_factory.mktemp("tutorial"), torch.get_num_threads()
    with torch.random.fork_rng():
        yield Run(folder, *maker.run(PAGE, folder))
    torch.set_num_threads(threads)


def test_the_page_has_the_figures_that_it_shows_and_each_is_small(run: Run) -> None:
    shown = maker.images(PAGE)
    assert shown and sorted(shown) == sorted(path.name for path in run.folder.iterdir())
    for name in shown:
        committed = ROOT / "docs" / "images" / name
        assert committed.stat().st_size < 60_000
        with Image.open(run.folder / name) as drawn, Image.open(committed) as image:
            assert abs(drawn.width - image.width) < 10 and abs(drawn.height - image.height) < 10
            assert len(drawn.convert("L").getcolors()) > 50, "something is on it"


def test_the_page_prints_what_it_says(run: Run) -> None:
    """Word for word; numbers up to what many steps of training and chains make of another processor's rounding."""
    for block, printed in zip(maker.blocks(PAGE), run.printed, strict=True):
        assert NUMBER.sub("#", printed).split() == NUMBER.sub("#", block.printed).split()
        for actual, claimed in zip(NUMBER.findall(printed), NUMBER.findall(block.printed), strict=True):
            assert float(actual) == pytest.approx(float(claimed), rel=0.3, abs=0.01)


def test_short_blocks(run: Run) -> None:
    assert all(len(block.code.strip().splitlines()) <= 14 for block in maker.blocks(PAGE))


def test_samples_of_the_model_are_nearer_to_the_data_than_those_of_the_base(run: Run) -> None:
    names = run.names
    base = names["distance"](names["base_samples"])
    assert names["distance"](names["samples"]) < 0.6 * base
    assert all(distance < base for _, _, distance in names["results"].values())
    exact = [names["results"][name][2] for name in ("MALA", "HMC", "random walk", "MH from prior", "tempering")]
    assert max(exact) < 0.6 * base


def test_what_the_page_says_of_kernels(run: Run) -> None:
    summaries = {name: summary for name, (_, summary, _) in run.names["results"].items()}
    assert summaries["tempering"]["ess_per_gradient"] > summaries["MALA"]["ess_per_gradient"]
    assert "ess_per_gradient" not in summaries["random walk"] and "acceptance_rate" not in summaries["ULA"]
    assert all(summary["divergences"] == 0 for summary in summaries.values())


def test_a_model_beats_the_base_that_a_gan_keeps(run: Run) -> None:
    names = run.names
    gan_base = names["distance"](names["models"]["GAN"].sample_base(4_000, names["generator"]))
    assert names["results"]["HMC"][2] < gan_base


def test_the_three_log_partitions_agree_and_the_density_integrates_to_one(run: Run) -> None:
    names = run.names
    monte_carlo, error, annealed = names["estimate"], names["error"], names["annealed"]
    assert error < 0.02 and annealed.standard_error < 0.05
    assert abs(annealed.log_partition - monte_carlo) < 4 * (error**2 + annealed.standard_error**2) ** 0.5
    assert abs(names["dense"].log_partition.item() - monte_carlo) < 0.1
    assert abs(names["total"] - 1) < 0.05
    with torch.no_grad():
        flow, model = names["flow"].log_prob(names["held_out"]), names["dense"].log_prob(names["held_out"], monte_carlo)
    assert model.mean() > flow.mean() + 0.05


def test_the_page_is_what_the_command_writes() -> None:
    assert maker.with_outputs(PAGE, [block.printed for block in maker.blocks(PAGE)]) == PAGE
    assert PAGE.count("```python") == len(maker.blocks(PAGE)), "each block is found"
