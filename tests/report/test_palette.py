"""Colors of a report, by the formulas for contrast and for color vision that lacks one kind of cone."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from pipeline.report.palette import BEST_COLOR, STATUS_COLORS
from pipeline.tracking.summary import TERMINAL_STATUSES

COLORS = {**STATUS_COLORS, "best": BEST_COLOR}

# Machado, Oliveira and Fernandes (2009): linear RGB as it is seen without the cones for long, middle and short waves.
VISIONS = {
    "full": [[1, 0, 0], [0, 1, 0], [0, 0, 1]],
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}
TO_XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
WHITE = TO_XYZ.sum(1)


def linear(color: str) -> np.ndarray:
    """A color ``#RRGGBB`` in linear RGB (IEC 61966-2-1)."""
    values = np.array([int(color[at : at + 2], 16) for at in (1, 3, 5)]) / 255
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def contrast_to_white(color: str) -> float:
    """WCAG's contrast ratio."""
    return float(1.05 / (linear(color) @ TO_XYZ[1] + 0.05))


def lab(color: str, vision: str) -> np.ndarray:
    """A color in CIELAB, as it is seen."""
    seen = (np.array(VISIONS[vision]) @ linear(color)).clip(0, 1)
    x, y, z = (np.cbrt(one) if one > 0.008856 else 7.787 * one + 16 / 116 for one in TO_XYZ @ seen / WHITE)
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


def distance(first: str, second: str, vision: str) -> float:
    return float(np.linalg.norm(lab(first, vision) - lab(second, vision)))


def test_the_formulas_give_what_is_published():
    assert contrast_to_white("#FFFFFF") == 1 and contrast_to_white("#000000") == pytest.approx(21)
    assert contrast_to_white("#767676") == pytest.approx(4.54, abs=0.01)
    assert lab("#FF0000", "full") == pytest.approx([53.2, 80.1, 67.2], abs=0.1)
    # What a person without one kind of cone confuses: a red and a green that are distinct to most people.
    assert distance("#CC0000", "#4D6600", "full") > 60 > 30 > distance("#CC0000", "#4D6600", "deuteranopia")


@pytest.mark.parametrize("name", COLORS)
def test_each_color_is_seen_on_white(name):
    assert contrast_to_white(COLORS[name]) >= 3


@pytest.mark.parametrize("vision", VISIONS)
@pytest.mark.parametrize(("first", "second"), list(itertools.combinations(COLORS, 2)))
def test_any_two_colors_are_told_apart(first, second, vision):
    # A distance of 2 is just seen; in thin lines and small markers more is needed.
    assert distance(COLORS[first], COLORS[second], vision) >= 25


def test_every_status_has_a_color():
    assert set(STATUS_COLORS) == {*TERMINAL_STATUSES, "running", "pending"}
