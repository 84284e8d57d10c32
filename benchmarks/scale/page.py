"""The page ``docs/results/scale.md`` and its figure, from what was measured and from the model."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from benchmarks.scale.model import Assumptions, Case, Loads, Measured, Settings, loads, recommend
from benchmarks.speed_page import table

__all__ = ["GPUS", "NETWORKS", "RESOLUTIONS", "TRIALS", "document", "figure", "measured", "write"]

RESOLUTIONS = (32, 128)
NETWORKS = "sngan_resnet"
GPUS = (1, 8, 64, 512)
TRIALS = (1, 10, 100, 1000)
_TOGETHER = 10  # results of a trial in the tracker's table that go together
# Okabe and Ito's colors, which can be distinguished without color vision, and a line style for each.
_LINES = {
    "network": ("#0072B2", "-"),
    "storage, gets": ("#56B4E9", "--"),
    "storage, puts": ("#009E73", ":"),
    "reader": ("#D55E00", "-"),
    "driver": ("#000000", "-"),
    "driver's memory": ("#999999", "--"),
    "tracker": ("#CC79A7", "-."),
}


def measured(results: Mapping[str, list[dict[str, Any]]], resolution: int, networks: str = NETWORKS) -> Measured:
    """Return the model's coefficients, from the tables of ``python -m benchmarks.scale measure``.

    Args:
        results: the tables.
        resolution: in pixels.
        networks: the family.
    """
    image = _row(results["images"], encoding="blocks", pixels=resolution)
    checkpoint = _row(results["checkpoints"], networks=networks, pixels=resolution)
    opened, read = results["requests"][0], results["requests"][1]
    steady = [row for row in results["driver"] if row["reports"] != "at once" and row["Tune's files"] == "no"][-1]
    memory = results["driver's memory"][-1]
    database = results["tracker"][-1]["database"]
    seconds_of = {row["event"]: row["seconds"] for row in results["tracker"] if row["database"] == database}
    alone = seconds_of["a result"]
    [among] = [seconds for name, seconds in seconds_of.items() if name.startswith(f"a result, {_TOGETHER} ")]
    return Measured(
        image_bytes=image["bytes an image"],
        reader_images=image["images/s, one process"],
        flops=checkpoint["GFLOP an image"] * 1e9,
        checkpoint_bytes=checkpoint["bytes a checkpoint"],
        checkpoint_puts=checkpoint["puts and deletes"],
        checkpoint_gets=checkpoint["gets"],
        gradient_bytes=checkpoint["gradients of a step, bytes"],
        shard_gets=read["gets"] / read["shards"],
        opening_gets=(opened["gets"] - 3) / opened["shards"],  # three are for the manifest
        driver_seconds=steady["CPU, ms a result"] / 1000,
        driver_bytes=memory["driver alone, MB"] * 1e6,
        driver_trial_bytes=memory["a trial, kB"] * 1e3,
        # From above: a request of one result took longer than one of ten, so their difference says nothing.
        request_seconds=alone,
        result_seconds=among,
        evaluation_seconds=seconds_of["an evaluation"] - alone,
        start_seconds=seconds_of["a trial's start"],
        end_seconds=seconds_of["a trial's end"],
    )


def write(found: dict[str, Any], page: Path) -> None:
    """Write the page, and its figure next to it.

    Args:
        found: contents of the JSON file.
        page: where.
    """
    images = page.parent.parent / "images"
    images.mkdir(parents=True, exist_ok=True)
    drawn = figure(found["results"])
    FigureCanvasAgg(drawn).print_png(str(images / "scale.png"))
    page.write_text(document(found))


def document(found: dict[str, Any]) -> str:
    """Return the page.

    Args:
        found: contents of the JSON file.
    """
    results, assumed = found["results"], Assumptions()
    machine = found["machine"]
    parts = {
        "machine": f"{machine['cores']} cores of {machine['cpu']}, Python {machine['python']}",
        "keeping": table(results["keeping"]),
        "driver": table(results["driver"]),
        "memory": table(results["driver's memory"]),
        "tracker": table(results["tracker"]),
        "images": table(results["images"]),
        "checkpoints": table(results["checkpoints"]),
        "requests": table(results["requests"]),
        "assumed": table([{"assumed": field.name, "value": getattr(assumed, field.name)} for field in fields(assumed)]),
    }
    coefficients = {resolution: measured(results, resolution) for resolution in RESOLUTIONS}
    parts["summary"] = table(_full(part, coefficients, assumed) for part in _LINES if part != "driver's memory")
    parts["trials"] = f"{max(row['trials'] for row in results['driver'])}"
    opening = loads(Case(32, 512, 512), Settings(), coefficients[32], assumed).start_gets
    parts["opening"] = f"{opening:,.0f}"
    parts["opening_seconds"] = _short(opening / assumed.gets_per_second)
    for resolution in RESOLUTIONS:
        parts[f"loads_{resolution}"] = table(
            _load(case, loads(case, Settings(), coefficients[resolution], assumed)) for case in _cases(resolution)
        )
        parts[f"config_{resolution}"] = table(
            _config(case, coefficients[resolution], assumed) for case in _cases(resolution) if case.gpus >= 8
        )
    text = (Path(__file__).parent / "page.md.in").read_text()
    for name, part in parts.items():
        text = text.replace(f"{{{name}}}", part)
    return text


def figure(results: Mapping[str, list[dict[str, Any]]]) -> Figure:
    """Shares of what each part can carry, over the number of GPUs: for one trial, and for a GPU a trial."""
    assumed = Assumptions()
    drawn = Figure(figsize=(10, 7.2), layout="constrained", dpi=110)
    axes = drawn.subplots(2, 2, sharex=True, sharey=True)
    gpus = [2**power for power in range(10)]
    for row, resolution in zip(axes, RESOLUTIONS, strict=True):
        coefficients = measured(results, resolution)
        for axis, trials in zip(row, (1, 1000), strict=True):
            found = [loads(Case(resolution, count, trials), Settings(), coefficients, assumed) for count in gpus]
            for part, (color, style) in _LINES.items():
                axis.plot(gpus, [one.shares[part] for one in found], style, color=color, label=part, linewidth=1.8)
            axis.axhline(1.0, color="#000000", linewidth=0.8)
            axis.text(1, 1.15, "saturated", fontsize=8)
            axis.set_xscale("log", base=2)
            axis.set_yscale("log")
            axis.set_ylim(1e-6, 30)
            axis.set_xticks(GPUS, [str(count) for count in GPUS])
            axis.grid(True, color="#dddddd", linewidth=0.6)
            many = "one trial on all GPUs" if trials == 1 else "1,000 trials, one at a time per GPU"
            axis.set_title(f"{resolution} pixels, {many}", fontsize=10)
    for axis in axes[:, 0]:
        axis.set_ylabel("share of what the part can carry")
    for axis in axes[-1]:
        axis.set_xlabel("GPUs of the cluster")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    drawn.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False, fontsize=9)
    return drawn


def _full(part: str, coefficients: Mapping[int, Measured], assumed: Assumptions) -> dict[str, str]:
    """How many GPUs fill a part: each with a trial of its own, or all of one trial."""
    row = {"part": part}
    for resolution in RESOLUTIONS:
        for trials, many in ((10**6, "a trial each"), (1, "one trial")):
            shares = [
                (
                    gpus,
                    loads(Case(resolution, gpus, trials), Settings(), coefficients[resolution], assumed).shares[part],
                )
                for gpus in (2**power for power in range(20))
            ]
            # Proportional from one power of two to the next, where it grows.
            full = next((gpus / share for gpus, share in shares if share >= 1), None)
            row[f"{resolution} pixels, {many}"] = "never" if full is None else f"{full:,.0f}"
    return row


def _cases(resolution: int) -> list[Case]:
    """Sweeps of different loads: more trials than GPUs run no more of them at a time."""
    cases = [Case(resolution, gpus, trials) for gpus in GPUS for trials in TRIALS]
    return [case for case in cases if case.trials <= case.gpus or case.trials == max(TRIALS)]


def _load(case: Case, found: Loads) -> dict[str, str]:
    return {
        "GPUs": f"{case.gpus}",
        "trials": f"{case.trials:,}",
        "at a time x GPUs": f"{found.concurrent} x {found.workers}",
        "base steps/s": _short(found.steps),
        "read, MB/s": _short(found.read_bytes / 1e6),
        "gets/s": _short(found.gets),
        "puts/s": _short(found.puts),
        "checkpoints, MB/s": _short(found.checkpoint_bytes / 1e6),
        "results/s": _short(found.results),
        "driver": _share(found.shares["driver"]),
        "tracker": _share(found.shares["tracker"]),
        "in MLflow after, s": "never" if math.isinf(found.tracker_lag) else _short(found.tracker_lag),
        "fullest part": f"{found.first}, {_share(found.shares[found.first])}",
    }


def _config(case: Case, coefficients: Measured, assumed: Assumptions) -> dict[str, str]:
    settings = recommend(case, coefficients, assumed)
    found = loads(case, settings, coefficients, assumed)
    return {
        "GPUs": f"{case.gpus}",
        "trials": f"{case.trials:,}",
        "sweep.max_concurrent": f"{found.concurrent}",
        "scale.num_workers": f"{found.workers}",
        "data.device_resident": str(settings.hold).lower(),
        "data.samples_per_shard": f"{settings.samples_per_shard}",
        "train.report_every": f"{settings.report_every}",
        "evaluation.every": f"{settings.evaluate_every}",
        "checkpoints.every": f"{settings.checkpoint_every or 'none'}",
        "read at the start, GB": _short(found.start_bytes / 1e9),
        "in MLflow after, s": "never" if math.isinf(found.tracker_lag) else _short(found.tracker_lag),
        "fullest part": f"{found.first}, {_share(found.shares[found.first])}",
    }


def _row(rows: Iterable[dict[str, Any]], **wanted: Any) -> dict[str, Any]:
    [row] = [row for row in rows if all(row[key] == value for key, value in wanted.items())]
    return row


def _short(value: float) -> str:
    """Format a number for a reader.

    Example:
        >>> [_short(value) for value in (0.0, 0.00123, 4.56, 78.9, 12345.6)]
        ['0', '0.0012', '4.6', '79', '12,346']
    """
    if value == 0:
        return "0"
    return f"{value:.2g}" if abs(value) < 10 else f"{value:,.0f}"


def _share(value: float) -> str:
    return f"{value:.0%}" if value >= 0.1 else f"{100 * value:.2g} %".replace(" ", "")
