"""Curves and histograms, by matplotlib's object-oriented interface: no window system, no global state."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from pipeline.config.scores import ChainPoint
from pipeline.evaluation.plots.titles import at_temperature

__all__ = [
    "chain_curve",
    "energy_histogram",
    "log_partition",
    "marginals",
    "scatter_2d",
    "scatter_3d",
]

# Okabe and Ito's palette, distinguishable with every kind of color vision.
_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")


def _figure(width: float, height: float) -> Figure:
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def chain_curve(
    chain: Mapping[int, ChainPoint],
    measure: str,
    temperature: str | None = None,
) -> Figure:
    """Draw a score of the samples along the chain, with the base's, where the chain starts, as a line.

    Args:
        chain: MCMC step -> the score there, of one number of samples, the lower the better; the first is the base's. A
            band has two standard errors to each side, where there are any.
        measure: What the score is, with its unit or its feature extractor, without which the numbers mean nothing.
        temperature: Of the chain, in words, for the title.

    Returns:
        A matplotlib figure; :func:`png` makes bytes of it.

    Raises:
        ValueError: No point.

    Example:
        >>> from pipeline.evaluation.plots.image_grids import png
        >>> png(chain_curve({0: ChainPoint(13.3), 50: ChainPoint(11.0, 0.2)}, "FID (classifier-1a2b3c4d)"))[1:4]
        b'PNG'
    """
    if not chain:
        raise ValueError("a curve takes a score at one step at least, got none")
    steps, values = list(chain), [point.score for point in chain.values()]
    errors = [point.standard_error or 0.0 for point in chain.values()]
    figure = _figure(6.4, 4.0)
    axes = figure.subplots()
    best = min(range(len(values)), key=lambda i: values[i] if math.isfinite(values[i]) else math.inf)
    axes.axhline(values[0], color=_COLORS[1], linestyle="--", label=f"base alone: {values[0]:.4g}")
    label = f"GEBM, best {values[best]:.4g} at step {steps[best]}"
    axes.plot(steps, values, color=_COLORS[0], marker="o", markersize=4, label=label)
    if any(errors):
        low = [value - 2 * error for value, error in zip(values, errors, strict=True)]
        high = [value + 2 * error for value, error in zip(values, errors, strict=True)]
        axes.fill_between(steps, low, high, color=_COLORS[0], alpha=0.2, label="plus and minus two standard errors")
    if temperature is not None:
        axes.set_title(at_temperature("along the chain", temperature), fontsize=10)
    axes.set_xlabel("MCMC step")
    axes.set_ylabel(measure)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    return figure


def marginals(samples: Mapping[str, Tensor], max_columns: int = 12) -> Figure:
    """Draw the marginal density of each column, one panel a column, those of all sets in one panel.

    Args:
        samples: Name of a set -> its rows (N, D); D is the same for all.
        max_columns: Panels; of more columns the first are drawn.

    Returns:
        A matplotlib figure.

    Example:
        >>> x = torch.linspace(0, 1, 50)[:, None].expand(-1, 3)
        >>> len(marginals({"test rows": x, "GEBM": x}).axes)
        3
    """
    width = min(next(iter(samples.values())).shape[1], max_columns)
    columns = min(width, 4)
    rows = math.ceil(width / columns)
    figure = _figure(2.6 * columns, 2.0 * rows + 0.4)
    panels = figure.subplots(rows, columns, squeeze=False).flatten()
    for column, panel in enumerate(panels[:width]):
        edges = _edges([rows[:, column] for rows in samples.values()])
        for (name, values), color in zip(samples.items(), _COLORS, strict=False):
            panel.hist(values[:, column].numpy(), edges, density=True, histtype="step", color=color, label=name)
        panel.set_xlabel(f"column {column + 1}")
        panel.set_yticks([])
    for panel in panels[width:]:
        panel.remove()
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper center", ncols=len(samples), frameon=False)
    return figure


def energy_histogram(energies: Mapping[str, Tensor]) -> Figure:
    """Draw the distributions of the energies of data and of samples: the energy is to be low on the data.

    Args:
        energies: Name of a set -> its energies (N,), in nats.

    Returns:
        A matplotlib figure.

    Example:
        >>> from pipeline.evaluation.plots.image_grids import png
        >>> png(energy_histogram({"test": torch.zeros(9), "base": torch.arange(9.0)}))[1:4]
        b'PNG'
    """
    figure = _figure(6.4, 4.0)
    axes = figure.subplots()
    energies = {name: values[values.isfinite()] for name, values in energies.items()}
    edges = _edges(list(energies.values()))
    for (name, values), color in zip(energies.items(), _COLORS, strict=False):
        axes.hist(
            values.clamp(edges[0], edges[-1]).numpy(),
            edges.tolist(),
            density=True,
            histtype="step",
            color=color,
            label=name,
        )
    axes.set_xlabel("energy E(x) in nats")
    axes.set_ylabel("density per nat")
    axes.legend(frameon=False)
    return figure


def log_partition(energies: Tensor, trained: float | None = None) -> Figure:
    """Draw the log-partition by Monte Carlo, ``log mean exp(-E)`` over more and more of the base's samples.

    Args:
        energies: Of samples of the base (N,), in nats, N at least 2, in the order in which they were drawn.
        trained: The model's own scalar, ``c``, in nats; ``None`` where it is not trained.

    Returns:
        A matplotlib figure.

    Example:
        >>> from pipeline.evaluation.plots.image_grids import png
        >>> png(log_partition(torch.linspace(0, 1, 100), trained=-0.5))[1:4]
        b'PNG'
    """
    counts = torch.arange(1, len(energies) + 1, dtype=torch.float64)
    lowest = energies.double().min()
    weights = (lowest - energies.double()).exp()
    means = weights.cumsum(0) / counts
    spreads = (weights.square().cumsum(0) / counts - means.square()).clamp(min=0)
    # Of a logarithm, to first order.
    errors = (spreads / (counts - 1)).sqrt() / means
    values = means.log() - lowest
    # Of fewer samples a standard error means nothing.
    start = min(9, len(energies) - 2)
    counts, values, errors = (line[start:].numpy() for line in (counts, values, errors))
    figure = _figure(6.4, 4.0)
    axes = figure.subplots()
    axes.fill_between(
        counts, values - 2 * errors, values + 2 * errors, color=_COLORS[0], alpha=0.25, linewidth=0,
        label="plus and minus two standard errors",
    )  # fmt: skip
    axes.plot(counts, values, color=_COLORS[0], label=f"Monte Carlo over the base: {values[-1]:.4g}")
    if trained is not None:
        axes.axhline(trained, color=_COLORS[1], linestyle="--", label=f"trained, c: {trained:.4g}")
    axes.set_xscale("log")
    axes.set_xlabel("samples of the base")
    axes.set_ylabel("log-partition log E[exp(-E(x))] in nats")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    return figure


def scatter_2d(samples: Mapping[str, Tensor], pair: tuple[int, int], frame: Tensor | None = None) -> Figure:
    """Draw the rows in two of their columns, a panel a set, on the same axes.

    Args:
        samples: Name of a set -> its rows (N, D).
        pair: The two columns, from 0.
        frame: Rows (M, D) whose range the axes have, so that those of other samples are the same (default: all).

    Returns:
        A matplotlib figure.

    Example:
        >>> len(scatter_2d({"test rows": torch.zeros(9, 2), "GEBM": torch.ones(9, 2)}, (0, 1)).axes)
        2
    """
    figure = _figure(3.6 * len(samples), 3.8)
    panels = figure.subplots(1, len(samples), sharex=True, sharey=True, squeeze=False)[0]
    framed = list(samples.values()) if frame is None else [frame]
    x, y = (_edges([rows[:, column] for rows in framed]) for column in pair)
    for panel, (name, rows) in zip(panels, samples.items(), strict=True):
        panel.scatter(
            rows[:, pair[0]].numpy(), rows[:, pair[1]].numpy(), s=3, alpha=0.4, linewidths=0, color=_COLORS[0]
        )
        panel.set_title(name)
        panel.set_xlabel(f"column {pair[0] + 1}")
    panels[0].set_xlim(x[0], x[-1])
    panels[0].set_ylim(y[0], y[-1])
    panels[0].set_ylabel(f"column {pair[1] + 1}")
    return figure


def scatter_3d(samples: Mapping[str, Tensor], frame: Tensor | None = None) -> Figure:
    """Draw points in space, a panel a set, on the same axes; of more than three coordinates the first three.

    Args:
        samples: Name of a set, on one line or more -> its points (N, D), D at least 2.
        frame: Points (M, D) whose range the axes have, so that those of other samples are the same (default: all).

    Returns:
        A matplotlib figure.

    Example:
        >>> len(scatter_3d({"data": torch.zeros(9, 3), "GEBM": torch.ones(9, 3)}).axes)
        2
    """
    dim = min(next(iter(samples.values())).shape[1], 3)
    figure = _figure(3.6 * len(samples), 3.8)
    framed = list(samples.values()) if frame is None else [frame]
    limits = [_edges([points[:, axis] for points in framed])[[0, -1]] for axis in range(dim)]
    for index, ((name, points), color) in enumerate(zip(samples.items(), _COLORS, strict=False)):
        panel = figure.add_subplot(1, len(samples), index + 1, projection="3d" if dim == 3 else None)
        inside = torch.ones(len(points), dtype=torch.bool)
        for axis, (low, high) in enumerate(limits):
            inside &= (points[:, axis] >= low) & (points[:, axis] <= high)
            getattr(panel, f"set_{'xyz'[axis]}lim")(low, high)
            getattr(panel, f"set_{'xyz'[axis]}label")(f"x{axis + 1}")
        if dim == 3:
            # Smaller, or the labels of its axes are cut off. The panel is an ``Axes3D``, which has the parameter.
            panel.set_box_aspect(None, zoom=0.75)  # pyright: ignore[reportCallIssue]
        panel.scatter(*points[inside, :dim].T.numpy(), s=4, alpha=0.6, linewidths=0, color=color)
        outside = len(points) - int(inside.sum())
        first, newline, rest = name.partition("\n")
        if outside:
            first = f"{first} ({outside} of {len(points)} outside)"
        panel.set_title(first + newline + rest, y=0.97 if dim == 3 else None)
    return figure


def _edges(sets: Sequence[Tensor], bins: int = 40) -> np.ndarray:
    """Return the edges of bins over the middle 99 % of all sets: one outlier would leave nothing to see."""
    joined = torch.cat([values.flatten().float() for values in sets]).numpy()
    low, high = np.quantile(joined[np.isfinite(joined)], [0.005, 0.995])
    margin = 0.05 * (high - low) or 0.5
    return np.linspace(low - margin, high + margin, bins + 1)
