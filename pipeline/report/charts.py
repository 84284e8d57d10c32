"""The charts of a report as plain data, drawn by matplotlib as PNG and by plotly as something to point at."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import plotly.graph_objects as go
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from pipeline.report.analysis import SweepResults, importances
from pipeline.tracking.summary import TrialRecord

__all__ = ["Chart", "Series", "charts", "draw", "interactive"]

# Okabe and Ito's colours, which are told apart without colour vision.
_STATUS = {"finished": "#0072B2", "pruned": "#E69F00", "failed": "#D55E00", "running": "#009E73", "pending": "#999999"}
_MARKS = {"finished": ("o", "circle"), "pruned": ("s", "square"), "failed": ("X", "x"), "running": ("^", "triangle-up")}
_BEST = "#000000"
_MOST_WARNINGS = 3  # of a trial, where it is pointed at
_MOST_KEYS = 6  # of which there is a chart of their own each


@dataclass(frozen=True)
class Series:
    """Points that belong together.

    Attributes:
        name: for the legend; empty for none.
        x: positions.
        y: positions, or the lengths of bars.
        words: what is told of each when it is pointed at.
        colour: of all of them.
        shade: a number of each, in place of one colour.
        status: of the trials, for the mark.
    """

    name: str
    x: list[float | str]
    y: list[float | str]
    words: list[str] = field(default_factory=list)
    colour: str = _STATUS["finished"]
    shade: list[float] | None = None
    status: str = "finished"


@dataclass(frozen=True)
class Chart:
    """A chart.

    Attributes:
        key: its file's name, without an ending.
        title: what it shows.
        kind: ``points``, ``lines`` or ``bars``, which lie.
        x: what the horizontal axis is, with its unit.
        y: what the vertical axis is, with its unit, on one line or more.
        series: what is on it.
        log: which axes are logarithmic, of ``x`` and ``y``.
        shade: what a shade means.
        mode: ``min`` where the lowest shade is the best, else ``max``.
    """

    key: str
    title: str
    kind: str
    x: str
    y: str
    series: list[Series]
    log: str = ""
    shade: str = ""
    mode: str = "min"


def charts(found: SweepResults) -> list[Chart]:
    """The charts of a sweep, those that it has numbers for.

    Args:
        found: what the sweep has found.
    """
    made = [
        _learning_curves(found),
        _response(found),
        *(_against(found, key) for key in found.numeric[:_MOST_KEYS]),
        _importances(found),
        _pruning(found),
    ]
    return [chart for chart in made if chart is not None]


def draw(chart: Chart) -> Figure:
    """A chart by matplotlib, for :func:`pipeline.evaluation.plots.png`.

    Args:
        chart: what to draw.
    """
    count = len(chart.series[0].y) if chart.kind == "bars" else 0
    figure = Figure(figsize=(7.0, max(4.2, 1.4 + 0.18 * min(count, 60))), dpi=110, layout="constrained")
    axes = figure.subplots()
    for series in chart.series:
        if chart.kind == "bars":
            axes.barh([str(value) for value in series.y], series.x, color=series.colour, label=series.name or None)
        elif chart.kind == "lines":
            axes.plot(series.x, series.y, "-o", color=series.colour, label=series.name or None,
                      markersize=3, linewidth=2.2 if series.colour == _BEST else 1.0)  # fmt: skip
        elif series.shade is not None:
            mark = _MARKS.get(series.status, _MARKS["finished"])[0]
            low, high = _range(chart)
            shades = "viridis" if chart.mode == "max" else "viridis_r"
            points = axes.scatter(series.x, series.y, c=series.shade, cmap=shades, vmin=low, vmax=high, marker=mark,
                                  s=60, edgecolors="#333333", linewidths=0.5, label=series.name or None)  # fmt: skip
        else:
            mark = _MARKS.get(series.status, _MARKS["finished"])[0]
            axes.scatter(series.x, series.y, color=series.colour, marker=mark, s=36, label=series.name or None)
    if chart.kind == "points" and chart.series[0].shade is not None:
        figure.colorbar(points, ax=axes, label=chart.shade)
    if "x" in chart.log:
        axes.set_xscale("log")
        axes.set_xticks(*_ticks(chart, "x"))
        axes.xaxis.set_minor_locator(NullLocator())
    if "y" in chart.log:
        axes.set_yscale("log")
        axes.set_yticks(*_ticks(chart, "y"))
        axes.yaxis.set_minor_locator(NullLocator())
    if chart.kind == "bars":
        axes.invert_yaxis()
        axes.tick_params(axis="y", labelsize=8 if count > 25 else 10)
    axes.set_title(chart.title, fontsize=11)
    axes.set_xlabel(chart.x)
    axes.set_ylabel(chart.y)
    axes.grid(alpha=0.3)
    axes.set_axisbelow(True)
    if any(series.name for series in chart.series):  # beside the points, of which it hides none
        figure.legend(loc="outside lower center", ncols=4, frameon=False, fontsize=9)
    return figure


def interactive(chart: Chart) -> go.Figure:
    """A chart by plotly.

    Args:
        chart: what to draw.
    """
    figure = go.Figure()
    low, high = _range(chart)
    for index, series in enumerate(chart.series):
        told = {"name": series.name, "showlegend": bool(series.name), "hovertext": series.words, "hoverinfo": "text"}
        if chart.kind == "bars":
            figure.add_bar(x=series.x, y=[str(value) for value in series.y], orientation="h",
                           marker_color=series.colour, **told)  # fmt: skip
            continue
        mark = {"symbol": _MARKS.get(series.status, _MARKS["finished"])[1], "size": 5 if chart.kind == "lines" else 10}
        if series.shade is None:
            mark["color"] = series.colour
        else:
            mark |= {
                "color": series.shade,
                "colorscale": "Viridis",
                "reversescale": chart.mode == "min",
                "cmin": low,
                "cmax": high,
            }
            mark |= {"showscale": index == 0, "colorbar": {"title": _html(chart.shade)}, "line": {"width": 0.5}}
        width = 3 if series.colour == _BEST else 1
        figure.add_scatter(x=series.x, y=series.y, mode="lines+markers" if chart.kind == "lines" else "markers",
                           marker=mark, line={"color": series.colour, "width": width}, **told)  # fmt: skip
    figure.update_layout(title=chart.title, template="plotly_white", height=480, barmode="overlay",
                         legend={"orientation": "h", "y": -0.2})  # fmt: skip
    # Rates are numbers, not micros and millis.
    figure.update_xaxes(title=chart.x, exponentformat="power")
    figure.update_yaxes(title=_html(chart.y), exponentformat="power")
    for letter, update in (("x", figure.update_xaxes), ("y", figure.update_yaxes)):
        if letter in chart.log:
            places, words = _ticks(chart, letter)
            update(type="log", tickvals=places, ticktext=words)
    if chart.kind == "bars":  # numbers of trials are names, not numbers, and the first is on top
        figure.update_yaxes(type="category", autorange="reversed")
    return figure


def _html(label: str) -> str:
    """Return a label of several lines as plotly breaks them."""
    return label.replace("\n", "<br>")


def _ticks(chart: Chart, letter: str) -> tuple[list[float], list[str]]:
    """A few ticks of a logarithmic axis, told as numbers, also where it is shorter than a decade."""
    values = [value for series in chart.series for value in getattr(series, letter)]
    low, high = math.log10(min(values)), math.log10(max(values))
    every = max(1, math.ceil((high - low) / 10))  # decades
    multiples = range(1, 10) if high - low < 0.5 else (1, 2, 3, 5) if high - low < 2 else (1,)
    powers = range(math.floor(low), math.ceil(high) + 1, every)
    # Beyond the largest number this is infinity, and below the smallest nought.
    places = [float(f"{multiple}e{power}") for power in powers for multiple in multiples]
    inside = [place for place in places if place > 0 and low - 0.1 <= math.log10(place) <= high + 0.1]
    if len(inside) < 2:  # so short an axis has no round number
        inside = sorted({min(values), max(values)})
    return inside, [f"{place:.3g}" for place in inside]


def _range(chart: Chart) -> tuple[float, float]:
    """The ends of the shades: from the best to thrice as far as the median, so that one bad trial flattens no other."""
    shades = sorted(value for series in chart.series for value in series.shade or [])
    if not shades:
        return 0.0, 1.0
    low, middle, high = shades[0], shades[len(shades) // 2], shades[-1]
    if chart.mode == "max":
        return max(low, high - 3 * (high - middle)) if middle < high else low, high
    return low, min(high, low + 3 * (middle - low)) if middle > low else high


def _learning_curves(found: SweepResults) -> Chart | None:
    best = found.records.best()
    series = []
    for trial in found.records.trials:
        points = [(one["base_step"], one.get(found.metric)) for one in trial.evaluations]
        points = [(step, value) for step, value in points if isinstance(value, int | float) and math.isfinite(value)]
        if points:
            steps, values = (list(column) for column in zip(*points, strict=True))
            first = best is not None and trial.name == best.name
            words = [f"trial {trial.name}, base step {step}: {value:.4g}" for step, value in points]
            # Those of one status are told once.
            known = any(one.name == trial.status for one in series)
            name = f"best, trial {trial.name}" if first else "" if known else trial.status
            colour = _BEST if first else _STATUS[trial.status]
            series.append(Series(name, steps, values, words, colour, status=trial.status))
    if not series:
        return None
    series.sort(key=lambda one: one.colour == _BEST)  # on top of the others
    log = "y" if _wide([value for one in series for value in one.y]) else ""
    return Chart(
        "learning_curves", "Learning curves of all trials", "lines", "base steps", _measure(found), series, log
    )


def _response(found: SweepResults) -> Chart | None:
    x, y = "train.energy_lr", "train.base_lr"
    if not {x, y} <= set(found.numeric):
        return None
    series = [
        Series(status, [t.params[x] for t in trials], [t.params[y] for t in trials], [_told(found, t) for t in trials],
               shade=[found.score(t) for t in trials], status=status)
        for status, trials in _by_status(found)
    ]  # fmt: skip
    title = "Response surface of the learning rates"
    return Chart("response", title, "points", x, y, series, "xy", shade=_measure(found), mode=found.records.mode)


def _against(found: SweepResults, key: str) -> Chart:
    series = [
        Series(status, [t.params[key] for t in trials], [found.score(t) for t in trials],
               [_told(found, t) for t in trials], colour=_STATUS[status], status=status)
        for status, trials in _by_status(found)
    ]  # fmt: skip
    x, y = ([value for one in series for value in getattr(one, axis)] for axis in "xy")
    log = ("x" if _wide(x) else "") + ("y" if _wide(y) else "")
    name = "against_" + key.replace(".", "_")
    return Chart(name, f"Score against {key}", "points", key, _measure(found), series, log)


def _importances(found: SweepResults) -> Chart | None:
    shares = importances(found)
    if not shares:
        return None
    ordered = sorted(shares.items(), key=lambda item: -item[1])
    words = [f"{key}: {share:.0%}" for key, share in ordered]
    bars = Series("", [share for _, share in ordered], [key for key, _ in ordered], words)
    title = "Importance of each parameter for the rank of a trial"
    return Chart("importances", title, "bars", "share of the permutation importance of a random forest", "", [bars])


def _pruning(found: SweepResults) -> Chart | None:
    names = [trial.name for trial in found.records.trials]
    series = []
    for status in _STATUS:
        steps = {t.name: t.metrics.get("base_step", 0) for t in found.records.trials if t.status == status}
        if steps:
            words = [f"trial {name}, {status} at base step {steps.get(name, 0)}" for name in names]
            series.append(Series(status, [steps.get(name, 0) for name in names], names, words, _STATUS[status]))
    title = "How far each trial came, and how it ended"
    return Chart("pruning", title, "bars", "base steps", "trial", series) if series else None


def _wide(values: list[float]) -> bool:
    """Whether positive numbers lie so far apart that a logarithm tells them better."""
    return min(values) > 0 and max(values) / min(values) > 5


def _by_status(found: SweepResults) -> list[tuple[str, list[TrialRecord]]]:
    groups = [(status, [t for t in found.scored if t.status == status]) for status in _STATUS]
    return [(status, trials) for status, trials in groups if trials]


def _measure(found: SweepResults) -> str:
    """Return the label of a score's axis: its measure, and on a line of its own its temperature."""
    return "\n".join(filter(None, [found.measure, found.temperature]))


def _told(found: SweepResults, trial: TrialRecord) -> str:
    params = ", ".join(f"{key}={value:.3g}" if isinstance(value, float) else f"{key}={value}"
                       for key, value in trial.params.items())  # fmt: skip
    notes = "; ".join(filter(None, [params, found.trial_temperature(trial), *trial.warnings[:_MOST_WARNINGS]]))
    return f"trial {trial.name}, {trial.status}: {found.score(trial):.4g}; {notes}"
