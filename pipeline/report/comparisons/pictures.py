"""Samples of the compared runs, side by side."""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.report.comparisons.groups import Group
from pipeline.report.pictures import Gallery, add_picture

__all__ = ["sample_galleries"]

# Pictures of a page: each takes as much of it as a picture of a report may.
_MAX_PICTURES = 50
# Of images, points and densities.
_OF_GEBM = ("gebm.png", "base_and_gebm.png", "marginals.png")
_OF_BASE = ("base.png", *_OF_GEBM[1:])


def sample_galleries(groups: Sequence[Group]) -> list[Gallery]:
    """Return the samples of each group's best checkpoint, a gallery for each data set.

    All groups of a data set are shown at one seed, the one that most of them have.

    Args:
        groups: Groups of runs.
    """
    galleries, left = [], _MAX_PICTURES
    for number, data in enumerate(dict.fromkeys(group.data for group in groups if group.runs)):
        gallery = Gallery(f"samples-{number}", f"Samples: {data}")
        own = [group for group in groups if group.data == data and group.runs]
        seeds = sorted({seed for group in own for seed in group.runs})
        usual = max(seeds, key=lambda seed: sum(seed in group.runs for group in own))
        for group in own:
            if not left:
                gallery.missing.append(f"{_caption(group, usual)}: left out, the page has no room for it")
                continue
            _add_samples(gallery, group, usual if usual in group.runs else min(group.runs))
            left -= 1
        galleries.append(gallery)
    return galleries


def _add_samples(gallery: Gallery, group: Group, seed: int) -> None:
    trial = group.runs[seed]
    sweep = next(sweep for sweep in group.sweeps if any(one is trial for one in sweep.results.records.trials))
    names = _OF_BASE if group.is_gan else _OF_GEBM
    caption, before = f"{_caption(group, seed)}, trial {trial.name}", len(gallery.missing)
    add_picture(gallery, sweep.results, trial, trial.best_metrics.get("base_step"), names, caption)
    # Trials of several sweeps have the same name.
    gallery.missing[before:] = [f"{_caption(group, seed)}, {line}" for line in gallery.missing[before:]]


def _caption(group: Group, seed: int) -> str:
    return f"{group.model}, {group.networks}, {group.variant}, seed {seed}"
