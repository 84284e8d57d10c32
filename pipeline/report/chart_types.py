"""Chart types of a report: plain data that matplotlib draws as a PNG file and plotly as an interactive figure."""

from __future__ import annotations

import abc
import html
import math
import textwrap
from dataclasses import dataclass, field
from typing import Any

import plotly.graph_objects as go
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from pipeline.report.palette import BEST_COLOR, STATUS_COLORS
from pipeline.runtime.printable import printable

__all__ = ["BarChart", "Chart", "LineChart", "ScatterChart", "Series"]

# Characters of a line of a vertical axis's label.
_LABEL_WIDTH = 44
# Markers of matplotlib and of plotly.
_MARKERS = {
    "finished": ("o", "circle"),
    "pruned": ("s", "square"),
    "failed": ("X", "x"),
    "running": ("^", "triangle-up"),
}


@dataclass(frozen=True)
class Series:
    """Points that belong together.

    Attributes:
        name: Name in the legend; empty for none.
        x: Horizontal positions, or the lengths of bars.
        y: Vertical positions, or the names of bars.
        labels: Text of each point, shown when it is pointed at.
        color: Color of all points.
        shade: A number for each point, in place of one color.
        errors: Length of a vertical bar to each side of each point; empty for none.
        status: Status of the trials, for the marker.
        holds: Whether each value holds until the next one, as the best one so far does: a dashed line in steps.
    """

    name: str
    x: list[Any]
    y: list[Any]
    labels: list[str] = field(default_factory=list)
    color: str = STATUS_COLORS["finished"]
    shade: list[float] | None = None
    errors: list[float] = field(default_factory=list)
    status: str = "finished"
    holds: bool = False

    @property
    def markers(self) -> tuple[str, str]:
        """Markers of matplotlib and of plotly."""
        return _MARKERS.get(self.status, _MARKERS["finished"])

    @property
    def plotly_trace(self) -> dict[str, Any]:
        """Arguments that every plotly trace takes."""
        return {
            "name": _plotly_text(self.name),
            "showlegend": bool(self.name),
            "hovertext": [_plotly_text(label) for label in self.labels],
            "hoverinfo": "text",
        }

    @property
    def plotly_errors(self) -> dict[str, Any]:
        """Arguments of a plotly trace of points for their error bars."""
        return {"error_y": {"type": "data", "array": self.errors, "thickness": 1, "width": 3}} if self.errors else {}

    def draw_errors(self, axes: Axes) -> None:
        """Draw the error bars on matplotlib's axes."""
        if any(self.errors):
            axes.errorbar(self.x, self.y, yerr=self.errors, fmt="none", ecolor=self.color, elinewidth=0.8, capsize=2)


@dataclass(frozen=True)
class Chart(abc.ABC):
    """A chart.

    Attributes:
        key: Name of its file, without a suffix.
        title: Title.
        x: Label of the horizontal axis, with its unit.
        y: Label of the vertical axis, with its unit, on one line or more.
        series: Series that it shows.
        log: Logarithmic axes, of ``x`` and ``y``.
        y_range: Lowest and highest value of the vertical axis, the same in charts that are compared (default: those of
            the points).
    """

    key: str
    title: str
    x: str
    y: str
    series: list[Series]
    log: str = ""
    y_range: tuple[float, float] | None = None

    def to_matplotlib(self) -> Figure:
        """Draw the chart by matplotlib, for :func:`pipeline.evaluation.plots.png`."""
        figure = Figure(figsize=(7.0, self._height()), dpi=110, layout="constrained")
        axes = figure.subplots()
        self._draw(figure, axes)
        if "x" in self.log:
            axes.set_xscale("log")
            axes.set_xticks(*_ticks([value for series in self.series for value in series.x]))
            axes.xaxis.set_minor_locator(NullLocator())
        if "y" in self.log:
            axes.set_yscale("log")
            axes.set_yticks(*_ticks([value for series in self.series for value in series.y]))
            axes.yaxis.set_minor_locator(NullLocator())
        if self.y_range is not None:
            axes.set_ylim(*self.y_range)
        # A name with dollar signs is no formula.
        axes.set_title(self.title, fontsize=11, parse_math=False)
        axes.set_xlabel(self.x, parse_math=False)
        axes.set_ylabel(self.y, parse_math=False)
        axes.grid(alpha=0.3)
        axes.set_axisbelow(True)
        # Outside of the axes, where it hides no point.
        if any(series.name for series in self.series):
            figure.legend(loc="outside lower center", ncols=4, frameon=False, fontsize=9)
        return figure

    def to_plotly(self) -> go.Figure:
        """Draw the chart by plotly."""
        figure = go.Figure()
        self._add_traces(figure)
        figure.update_layout(
            title={"text": _plotly_text(self.title), "font": {"size": 15}},
            template="plotly_white",
            height=100 * self._height(),
            margin={"l": 60, "r": 20, "t": 50, "b": 50},
            barmode="overlay",
            legend={"orientation": "h", "y": -0.2},
        )
        # Learning rates are powers of ten, not micros and millis.
        figure.update_xaxes(title=_plotly_text(self.x), exponentformat="power")
        figure.update_yaxes(title={"text": _plotly_label(self.y), "font": {"size": 12}}, exponentformat="power")
        if "x" in self.log:
            positions, labels = _ticks([value for series in self.series for value in series.x])
            figure.update_xaxes(type="log", tickvals=positions, ticktext=labels)
        if "y" in self.log:
            positions, labels = _ticks([value for series in self.series for value in series.y])
            figure.update_yaxes(type="log", tickvals=positions, ticktext=labels)
        if self.y_range is not None:
            figure.update_yaxes(range=[math.log10(end) if "y" in self.log else end for end in self.y_range])
        return figure

    def _height(self) -> float:
        """Return the height of the figure, in inches of matplotlib."""
        return 4.2

    @abc.abstractmethod
    def _draw(self, figure: Figure, axes: Axes) -> None:
        """Draw the series on matplotlib's axes."""

    @abc.abstractmethod
    def _add_traces(self, figure: go.Figure) -> None:
        """Add the series to plotly's figure."""


@dataclass(frozen=True)
class BarChart(Chart):
    """Horizontal bars, the first on top."""

    def _height(self) -> float:
        return max(4.2, 1.4 + 0.18 * min(self._count, 60))

    @property
    def _count(self) -> int:
        return len(self.series[0].y)

    def _draw(self, figure: Figure, axes: Axes) -> None:
        for series in self.series:
            axes.barh([str(value) for value in series.y], series.x, color=series.color, label=series.name or None)
        axes.invert_yaxis()
        axes.tick_params(axis="y", labelsize=8 if self._count > 25 else 10)

    def _add_traces(self, figure: go.Figure) -> None:
        for series in self.series:
            figure.add_bar(
                x=series.x,
                y=[_plotly_text(str(value)) for value in series.y],
                orientation="h",
                marker_color=series.color,
                **series.plotly_trace,
            )
        # Names of trials look like numbers.
        figure.update_yaxes(type="category", autorange="reversed")


@dataclass(frozen=True)
class LineChart(Chart):
    """Lines with a marker at each point; the best trial's is wider."""

    def _draw(self, figure: Figure, axes: Axes) -> None:
        for series in self.series:
            width = 2.2 if series.color == BEST_COLOR and not series.holds else 1.0
            form: dict[str, Any] = {"drawstyle": "steps-post", "linestyle": "--"} if series.holds else {"marker": "o"}
            label = series.name or None
            axes.plot(series.x, series.y, color=series.color, label=label, markersize=3, linewidth=width, **form)
            series.draw_errors(axes)

    def _add_traces(self, figure: go.Figure) -> None:
        for series in self.series:
            line = {"color": series.color, "width": 3 if series.color == BEST_COLOR else 1}
            figure.add_scatter(
                x=series.x,
                y=series.y,
                mode="lines" if series.holds else "lines+markers",
                marker={"symbol": series.markers[1], "size": 5, "color": series.color},
                line=line | ({"width": 1, "dash": "dash", "shape": "hv"} if series.holds else {}),
                **series.plotly_trace,
                **series.plotly_errors,
            )


@dataclass(frozen=True)
class ScatterChart(Chart):
    """Points, of one color for each series or shaded by a number.

    Attributes:
        shade: Label of the color bar; empty where no series is shaded.
        mode: ``min`` where the lowest shade is the best, or ``max``.
    """

    shade: str = ""
    mode: str = "min"

    def _draw(self, figure: Figure, axes: Axes) -> None:
        points = None
        low, high = self._shade_range()
        for series in self.series:
            marker, label = series.markers[0], series.name or None
            if series.shade is None:
                axes.scatter(series.x, series.y, color=series.color, marker=marker, s=36, label=label)
                series.draw_errors(axes)
                continue
            points = axes.scatter(
                series.x,
                series.y,
                c=series.shade,
                cmap="viridis" if self.mode == "max" else "viridis_r",
                vmin=low,
                vmax=high,
                marker=marker,
                s=60,
                edgecolors="#333333",
                linewidths=0.5,
                label=label,
            )
        if points is not None:
            figure.colorbar(points, ax=axes).set_label(self.shade, parse_math=False)

    def _add_traces(self, figure: go.Figure) -> None:
        low, high = self._shade_range()
        for index, series in enumerate(self.series):
            marker: dict[str, Any] = {"symbol": series.markers[1], "size": 10}
            if series.shade is None:
                marker["color"] = series.color
            else:
                marker |= {
                    "color": series.shade,
                    "colorscale": "Viridis",
                    "reversescale": self.mode == "min",
                    "cmin": low,
                    "cmax": high,
                    "showscale": index == 0,
                    "colorbar": {"title": {"text": _plotly_label(self.shade), "side": "right"}},
                    "line": {"width": 0.5},
                }
            figure.add_scatter(
                x=series.x, y=series.y, mode="markers", marker=marker, **series.plotly_trace, **series.plotly_errors
            )

    def _shade_range(self) -> tuple[float, float]:
        """Return the ends of the color scale.

        It reaches from the best to three times as far as the median, so that one bad trial does not flatten the others.
        """
        shades = sorted(value for series in self.series for value in series.shade or [])
        if not shades:
            return 0.0, 1.0
        low, middle, high = shades[0], shades[len(shades) // 2], shades[-1]
        if self.mode == "max":
            return max(low, high - 3 * (high - middle)) if middle < high else low, high
        return low, min(high, low + 3 * (middle - low)) if middle > low else high


def _plotly_text(text: str) -> str:
    """Return a text as plotly shows it: none of it is markup, of which plotly has links and styles, but line breaks."""
    return html.escape(printable(text), quote=False).replace("\n", "<br>")


def _plotly_label(text: str) -> str:
    """Return the label of a vertical axis, on lines that are no longer than a chart is high."""
    return "<br>".join(_plotly_text(part) for line in text.split("\n") for part in textwrap.wrap(line, _LABEL_WIDTH))


def _ticks(values: list[float]) -> tuple[list[float], list[str]]:
    """Return a few ticks of a logarithmic axis and their labels, also where it is shorter than a decade.

    Args:
        values: Positive positions on that axis.
    """
    low, high = math.log10(min(values)), math.log10(max(values))
    decades_per_tick = max(1, math.ceil((high - low) / 10))
    multiples = range(1, 10) if high - low < 0.5 else (1, 2, 3, 5) if high - low < 2 else (1,)
    powers = range(math.floor(low), math.ceil(high) + 1, decades_per_tick)
    # Above the largest float this is infinity, and below the smallest zero.
    positions = [float(f"{multiple}e{power}") for power in powers for multiple in multiples]
    inside = [position for position in positions if position > 0 and low - 0.1 <= math.log10(position) <= high + 0.1]
    # A very short axis has no round number.
    if len(inside) < 2:
        inside = sorted({min(values), max(values)})
    return inside, [f"{position:.3g}" for position in inside]
