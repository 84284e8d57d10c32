"""Colors of a report: each is visible on white, and distinct from every other with and without full color vision."""

from __future__ import annotations

__all__ = ["BEST_COLOR", "STATUS_COLORS"]

STATUS_COLORS = {
    "finished": "#1450E0",
    "pruned": "#AD8B10",
    "failed": "#85280C",
    "running": "#1AA06A",
    "pending": "#505050",
}
"""Color of the trials of a status: a contrast to white of 3 at least, as WCAG 2.2 asks of graphics."""

BEST_COLOR = "#000000"
"""Color of the best trial, and of the best score so far."""
