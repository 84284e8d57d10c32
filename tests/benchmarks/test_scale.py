"""The model of ``docs/results/scale.md``: laws that hold whatever was measured, and the page that is made of it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.scale import page
from benchmarks.scale.model import Assumptions, Case, Settings, loads, recommend, saturation
from pipeline.training.pacing import REPORT_SECONDS

ROOT = Path(__file__).parents[2]
FOUND = json.loads((ROOT / "benchmarks" / "scale" / "scale-cpu.json").read_text())
MEASURED = {resolution: page.measured(FOUND["results"], resolution) for resolution in page.RESOLUTIONS}
ASSUMED = Assumptions()

resolutions = st.sampled_from(page.RESOLUTIONS)
powers = st.integers(0, 9).map(lambda power: 2**power)
settings = st.builds(
    Settings,
    hold=st.booleans(),
    reader_workers=st.integers(0, 4),
    report_every=st.sampled_from([10, 50, 500]),
    evaluate_every=st.sampled_from([1000, 10_000]),
    checkpoint_every=st.sampled_from([None, 100, 1000]),
)


@given(resolution=resolutions, gpus=powers, more=st.integers(1, 4), trials=st.integers(1, 1000), chosen=settings)
def test_no_load_falls_with_the_gpus(resolution: int, gpus: int, more: int, trials: int, chosen: Settings) -> None:
    """Of the same trials on so many times the GPUs: each trial, or their number, grows, and none shrinks."""
    few = loads(Case(resolution, gpus, trials), chosen, MEASURED[resolution], ASSUMED)
    many = loads(Case(resolution, gpus * 2**more, trials), chosen, MEASURED[resolution], ASSUMED)
    assert many.concurrent >= few.concurrent
    assert many.concurrent * many.steps >= few.concurrent * few.steps * (1 - 1e-9)
    for name in ("results", "checkpoint_bytes", "puts", "start_bytes", "read_bytes", "gets"):
        # Where trials side by side take the place of GPUs of one trial, less is read: then the trials' number grows.
        if few.workers <= many.workers:
            assert getattr(many, name) >= getattr(few, name) * (1 - 1e-9)


@given(resolution=resolutions, half=st.integers(1, 250), workers=st.sampled_from([1, 2, 8]), chosen=settings)
def test_two_sweeps_of_half_the_size_ask_for_as_much_as_one(
    resolution: int, half: int, workers: int, chosen: Settings
) -> None:
    one = loads(Case(resolution, 2 * half * workers, 2 * half), chosen, MEASURED[resolution], ASSUMED)
    other = loads(Case(resolution, half * workers, half), chosen, MEASURED[resolution], ASSUMED)
    assert one.workers == other.workers == workers and one.steps == other.steps
    for name in ("read_bytes", "gets", "puts", "start_bytes", "start_gets", "checkpoint_bytes", "results"):
        assert getattr(one, name) == pytest.approx(2 * getattr(other, name))
    for part in ("storage, gets", "storage, puts", "driver", "tracker"):
        assert one.shares[part] == pytest.approx(2 * other.shares[part])


@given(resolution=resolutions, report_every=st.integers(1, 1000), gpu=st.floats(1e12, 1e15))
def test_bisection_finds_where_the_driver_saturates_in_closed_form(
    resolution: int, report_every: int, gpu: float
) -> None:
    """With trials of a GPU each, the driver's core is full at a number of ``seconds a report / seconds a result``."""
    measured, chosen = MEASURED[resolution], Settings(report_every=report_every)
    assumed = replace(ASSUMED, gpu_flops=gpu)
    alone = loads(Case(resolution, 1, 1), chosen, measured, assumed)
    trials = saturation(lambda count: count * alone.shares["driver"])
    assert trials == pytest.approx(max(report_every / alone.steps, REPORT_SECONDS) / measured.driver_seconds)
    whole = loads(Case(resolution, 64, 64), chosen, measured, assumed)
    assert whole.shares["driver"] == pytest.approx(64 / trials)


@given(resolution=resolutions, trials=st.integers(1, 512), report_every=st.integers(1, 5000))
def test_the_lag_of_the_tracker_is_the_round_that_it_takes(resolution: int, trials: int, report_every: int) -> None:
    measured = MEASURED[resolution]
    found = loads(Case(resolution, trials, trials), Settings(report_every=report_every), measured, ASSUMED)
    if found.shares["tracker"] >= 1:
        assert found.tracker_lag == float("inf")
    else:
        turn = found.concurrent * measured.request_seconds + found.tracker_lag * found.shares["tracker"]
        assert found.tracker_lag == pytest.approx(turn)


@given(resolution=resolutions, gpus=st.integers(1, 512), trials=st.integers(1, 1000))
def test_no_part_of_a_recommended_config_is_full(resolution: int, gpus: int, trials: int) -> None:
    case = Case(resolution, gpus, trials)
    chosen = recommend(case, MEASURED[resolution], ASSUMED)
    found = loads(case, chosen, MEASURED[resolution], ASSUMED)
    assert all(share < 1 for share in found.shares.values()), found.shares
    assert found.concurrent * found.workers <= gpus and chosen.batch_size // found.workers >= ASSUMED.least_part
    assert chosen.report_every <= chosen.evaluate_every
    assert chosen.hold == (ASSUMED.num_images * MEASURED[resolution].image_bytes <= ASSUMED.gpu_bytes / 4)


def test_what_was_measured_makes_sense() -> None:
    small, large = (MEASURED[resolution] for resolution in page.RESOLUTIONS)
    pixels = (128 / 32) ** 2
    assert large.image_bytes == pytest.approx(pixels * small.image_bytes, rel=0.05)
    assert large.image_bytes == pytest.approx(3 * 128**2, rel=0.05), "a block is its pixels"
    assert 4 * small.flops < large.flops < 1.5 * pixels * small.flops
    for one in MEASURED.values():
        assert all(value > 0 for value in vars(one).values())
        # Both networks and Adam's two moments of each, which the gradients of one of them are a part of.
        assert one.checkpoint_bytes > 3 * one.gradient_bytes
    assert max(row["trials"] for row in FOUND["results"]["driver"]) >= 500


def test_the_page_is_what_the_command_writes(tmp_path: Path) -> None:
    written = tmp_path / "results" / "scale.md"
    written.parent.mkdir()
    page.write(FOUND, written)
    assert written.read_text() == (ROOT / "docs" / "results" / "scale.md").read_text()
    assert (tmp_path / "images" / "scale.png").stat().st_size > 10_000
