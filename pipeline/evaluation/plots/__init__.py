"""Plots of an evaluation: curves by matplotlib, images by Pillow."""

from __future__ import annotations

from pipeline.evaluation.plots.curves import (
    chain_curve,
    energy_histogram,
    log_partition,
    marginals,
    scatter_2d,
    scatter_3d,
)
from pipeline.evaluation.plots.image_grids import animation, arranged, chain_rows, class_rows, grid, png, side_by_side
from pipeline.evaluation.plots.titles import AT_START, at_temperature

__all__ = [
    "AT_START",
    "animation",
    "arranged",
    "at_temperature",
    "chain_curve",
    "chain_rows",
    "class_rows",
    "energy_histogram",
    "grid",
    "log_partition",
    "marginals",
    "png",
    "scatter_2d",
    "scatter_3d",
    "side_by_side",
]
