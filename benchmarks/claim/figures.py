"""The page's figures, each of the results that are there; one that has none is not drawn."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, LogLocator, NullLocator

from benchmarks.claim.results import ENERGIES, LABELS, Results, chosen_energy, measure
from benchmarks.claim.settings import OBJECTIVES, SAMPLERS, SETTINGS
from benchmarks.claim.verdict import GAN, GEBM

__all__ = ["FIGURES", "best_by_beta", "draw", "drift"]

# Okabe and Ito's colors, which can be distinguished without color vision.
_COLORS = dict(zip(OBJECTIVES, ("#D55E00", "#0072B2", "#009E73", "#E69F00", "#CC79A7"), strict=True))
_VARIANTS: dict[str | None, tuple[str, str, str]] = {None: ("base", "#555555", "o")}
_VARIANTS |= {
    name: (label, color, marker)
    for (name, label), color, marker in zip(
        ENERGIES.items(), ("#56B4E9", "#D55E00", "#0072B2"), ("s", "^", "v"), strict=True
    )
}
# From warm to cold.
_BETA_COLORS = dict(zip(sorted({s.beta for s in SAMPLERS}), ("#999999", "#E69F00", "#0072B2", "#D55E00"), strict=True))
_FID = "FID (extractor trained here)"


def draw(results: Results, images: Path) -> dict[str, Path]:
    """Draw all figures that there are results for.

    Args:
        results: Whatever is there.
        images: The folder for them.

    Returns:
        Name to file of those that were drawn, ``claim-<name>.png``.
    """
    images.mkdir(parents=True, exist_ok=True)
    drawn = {}
    for name, make in FIGURES.items():
        figure = make(results)
        if figure is not None:
            drawn[name] = images / f"claim-{name}.png"
            FigureCanvasAgg(figure).print_png(str(drawn[name]))
    return drawn


def best_by_beta(run: dict[str, Any], energy: str) -> dict[float, float]:
    """Return the lowest FID of the sampler's search at each ``beta``, over step sizes and lengths of the chain.

    Example:
        >>> rows = [{"beta": 1.0, "fid": 3.0}, {"beta": 1.0, "fid": 2.0}, {"beta": 10.0, "fid": 4.0}]
        >>> best_by_beta({"energies": {"as_trained": {"tuning": rows}}}, "as_trained")
        {1.0: 2.0, 10.0: 4.0}
    """
    rows = run["energies"][energy]["tuning"]
    return {beta: min(r["fid"] for r in rows if r["beta"] == beta) for beta in sorted({r["beta"] for r in rows})}


def _fid(results: Results) -> Figure | None:
    def panel(axis: Axes, name: str) -> None:
        offsets = dict(zip(_VARIANTS, (-0.27, -0.09, 0.09, 0.27), strict=True))
        there = [objective for objective in OBJECTIVES if results.of(name, objective)]
        for place, objective in enumerate(there):
            runs = results.of(name, objective)
            for run in runs:
                heights = [measure(run, energy) for energy in _VARIANTS]
                axis.plot([place + offset for offset in offsets.values()], heights, color="#CCCCCC", linewidth=0.8)
            for energy, (label, color, marker) in _VARIANTS.items():
                heights = [measure(run, energy) for run in runs]
                places = [place + offsets[energy]] * len(runs)
                axis.scatter(places, heights, color=color, marker=marker, s=16, zorder=2, label=label)
        axis.set_xticks(range(len(there)), [LABELS[objective] for objective in there], fontsize=8)
        axis.set(ylabel=_FID, title=name)

    return _panels(_present(results), panel, width=5.2)


def _curves(results: Results) -> Figure | None:
    names = _present(results)
    if not names:
        return None
    figure, axes = _grid(len(names), 2)
    for row, name in zip(axes, names, strict=True):
        for axis, key, label in zip(row, ("base_step", "seconds"), ("base steps", "seconds of one core"), strict=True):
            for run in results.of(name):
                color = _COLORS[run["objective"]]
                across = [point[key] for point in run["curve"]]
                fids = [point["fid"] for point in run["curve"]]
                axis.plot(across, fids, color=color, linewidth=0.9, label=LABELS[run["objective"]])
                end = color if run["converged"] else "white"
                axis.plot(across[-1], fids[-1], marker="o", color=color, markerfacecolor=end, markersize=5)
            axis.set(xlabel=label, ylabel=_FID, yscale="log", title=name)
            _plain_ticks(axis.yaxis)
    _legend(figure)
    return figure


def drift(setting: dict[str, Any]) -> float:
    """Return how far the energy drives a chain: ``beta`` times the step size times the number of steps.

    Example:
        >>> drift({"beta": 10.0, "step_size": 0.003, "num_steps": 100})
        3.0
    """
    return round(setting["beta"] * setting["step_size"] * setting["num_steps"], 9)


def _drift(results: Results) -> Figure | None:
    series = (
        (GEBM, "own", f"{LABELS[GEBM]}, own energy", "^"),
        (GAN, "own", f"{LABELS[GAN]}, own energy", "o"),
        (GAN, "kale_phase", f"{LABELS[GAN]}, KALE energy", "s"),
    )

    def panel(axis: Axes, name: str) -> None:
        for objective, energy, label, marker in series:
            runs = results.of(name, objective)
            if not runs:
                continue
            tunings = [run["energies"][chosen_energy(run) if energy == "own" else energy]["tuning"] for run in runs]
            for rows in zip(*tunings, strict=True):
                fid, color = statistics.fmean(row["fid"] for row in rows), _BETA_COLORS[rows[0]["beta"]]
                axis.scatter(drift(rows[0]), fid, color=color, marker=marker, s=18)
            axis.scatter([], [], color="#444444", marker=marker, s=18, label=label)
        for beta, color in _BETA_COLORS.items():
            axis.scatter([], [], color=color, marker="o", s=18, label=f"beta {beta:g}")
        axis.set(xscale="log", yscale="log", xlabel="drift: beta x step size x steps", ylabel=_FID, title=name)
        _plain_ticks(axis.xaxis)
        _plain_ticks(axis.yaxis)

    return _panels(_present(results, (GEBM, GAN)), panel)


def _precision(results: Results) -> Figure | None:
    stations = ((None, "o", "base"), ("own", "^", "best chain"))

    def panel(axis: Axes, name: str) -> None:
        for objective in OBJECTIVES:
            runs = results.of(name, objective)
            if not runs:
                continue
            recalls, precisions = (
                [statistics.fmean(measure(run, energy, metric) for run in runs) for energy, _, _ in stations]
                for metric in ("recall", "precision")
            )
            axis.plot(recalls, precisions, color=_COLORS[objective], linewidth=0.9, label=LABELS[objective])
            for recall, precision, (_, marker, label) in zip(recalls, precisions, stations, strict=True):
                axis.scatter(recall, precision, color=_COLORS[objective], marker=marker, s=24, zorder=2)
                axis.scatter([], [], color="#444444", marker=marker, s=24, label=label)
        axis.set(xlabel="recall", ylabel="precision", title=name)

    return _panels(_present(results), panel)


def _phases(results: Results) -> Figure | None:
    def panel(axis: Axes, name: str) -> None:
        for objective in (GEBM, GAN):
            for run in results.of(name, objective):
                history = run["energies"]["kale_phase"]["phase"]["history"]
                _history(axis, history, _COLORS[objective], f"{LABELS[objective]} base")
        axis.set(xlabel="energy steps of the final phase", ylabel="KALE, nats", title=name)

    return _panels(_present(results, (GEBM, GAN)), panel)


def _overfit(results: Results) -> Figure | None:
    by_setting = {row["setting"]: row for row in results.overfit}

    def panel(axis: Axes, name: str) -> None:
        _history(axis, by_setting[name]["history"], _COLORS[GEBM], "KALE")
        axis.set(xlabel="energy steps on a base that does not change", ylabel="KALE, nats", title=name)

    return _panels([name for name in SETTINGS if name in by_setting], panel)


FIGURES: dict[str, Callable[[Results], Figure | None]] = {
    "fid": _fid,
    "curves": _curves,
    "precision": _precision,
    "drift": _drift,
    "phases": _phases,
    "overfit": _overfit,
}


def _history(axis: Axes, history: list[dict[str, float]], color: str, label: str) -> None:
    steps = [row["steps"] for row in history]
    axis.plot(steps, [row["held_out_kale"] for row in history], color=color, linewidth=1.2, label=f"{label}, held out")
    seen = [(row["steps"], row["train_kale"]) for row in history if row["train_kale"] is not None]
    if seen:
        axis.plot(*zip(*seen, strict=True), color=color, linewidth=0.9, linestyle="--", label=f"{label}, training data")


def _present(results: Results, objectives: Iterable[str] = tuple(OBJECTIVES)) -> list[str]:
    objectives = tuple(objectives)
    return [name for name in SETTINGS if any(results.of(name, objective) for objective in objectives)]


def _panels(names: list[str], panel: Callable[[Axes, str], None], width: float = 4.6) -> Figure | None:
    if not names:
        return None
    figure, [axes] = _grid(1, len(names), width)
    for axis, name in zip(axes, names, strict=True):
        panel(axis, name)
    _legend(figure)
    return figure


def _grid(rows: int, columns: int, width: float = 4.6, height: float = 3.6) -> tuple[Figure, Any]:
    figure = Figure(figsize=(width * columns, height * rows), dpi=150, layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    for axis in axes.flat:
        axis.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _legend(figure: Figure) -> None:
    """Draw one legend below all axes, in which each label is there once."""
    handles: dict[str, Any] = {}
    for axis in figure.axes:
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    subplot = figure.axes[0].get_subplotspec()
    assert subplot is not None
    columns = min(4, 2 * subplot.get_gridspec().ncols)
    figure.legend(
        handles.values(), handles.keys(), loc="outside lower center", ncols=columns, frameon=False, fontsize=8
    )


def _plain_ticks(axis: Axis, ticks: list[float] | None = None) -> None:
    """Write a logarithmic axis's numbers as they are, at the ticks or wherever there is room."""
    axis.set_major_locator(FixedLocator(ticks) if ticks else LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(lambda value, place: f"{value:g}")
    axis.set_minor_locator(NullLocator())
