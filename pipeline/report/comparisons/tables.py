"""Tables of a comparison: scores by data, networks and model, every group of runs, and paired differences."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from pipeline.config.scores import format_score, plus_minus
from pipeline.report.comparisons.groups import Group, difference
from pipeline.tracking.seed_statistics import CONFIDENCE, Difference, Estimate
from pipeline.tracking.summary_types import TERMINAL_STATUSES

__all__ = ["MISSING", "Table", "differences_table", "groups_table", "missing_lines", "scores_table"]

MISSING = "missing"
"""Cell of a score that no sweep has."""

# Groups of one data set that are compared with one another; of more, each with the first.
_MAX_GROUPS = 10


class Table(NamedTuple):
    """A table of texts.

    Attributes:
        title: Title.
        heads: Heads of its columns.
        rows: Its rows, a cell for each head.
        note: What has to be known to read it.
    """

    title: str
    heads: list[str]
    rows: list[list[str]]
    note: str


def scores_table(groups: Sequence[Group]) -> Table:
    """Return the scores by data set and networks, one column for each model.

    Args:
        groups: Groups of runs.

    Returns:
        The table; a cell that no sweep fills says that it is missing.
    """
    networks = dict.fromkeys(group.networks for group in groups)
    rows = list(itertools.product(dict.fromkeys(group.data for group in groups), networks))
    variants = list(dict.fromkeys((group.is_gan, group.variant) for group in groups))
    several = {gan: sum(one == gan for one, _ in variants) > 1 for gan in (False, True)}
    columns: list[tuple[str, str, bool]] = []
    for gan, variant in sorted(variants, key=lambda variant: variant[0]):
        name = f", {variant}" if several[gan] else ""
        ends = [("GAN", True)] if gan else [("GEBM", False), ("base", True)]
        columns += [(f"{model}{name}", variant, of_base) for model, of_base in ends]
    found = {(group.data, group.networks, group.variant): group for group in groups}
    lines = []
    for data, family in rows:
        cells = []
        for _, variant, of_base in columns:
            group = found.get((data, family, variant))
            cells.append(MISSING if group is None else _mean(group, group.base_score if of_base else group.gebm_score))
        lines.append([data, family, *cells])
    note = (
        "Mean over seeds ± its standard error; without one, it is a single seed. Where a sweep searched other keys "
        "than the seed, its best setting is shown. A GAN is its generator alone; a GEBM's base is the same "
        f"without the energy. {_conditions(groups)}"
    )
    return Table(_score_name(groups), ["data", "networks", *(name for name, _, _ in columns)], lines, note)


def groups_table(groups: Sequence[Group]) -> Table:
    """Return every group of runs: seeds, means, the best one, and what all its trials cost."""
    lines = []
    for group in groups:
        best = group.best()
        failed = sum(trial.status == "failed" for trial in group.trials)
        lines.append(
            [
                group.data,
                group.networks,
                group.variant,
                ", ".join(map(str, sorted(group.runs))) or MISSING,
                _mean(group, group.base_score),
                _mean(group, group.gebm_score),
                MISSING if best is None else f"{format_score(best[1].best_metrics, group.own_score)} (seed {best[0]})",
                f"{group.settings}",
                f"{len(group.trials)}" + (f", {failed} failed" if failed else ""),
                f"{group.hours:.3g}",
            ]
        )
    heads = ["data", "networks", "objective", "seeds", "base", "with the energy", "best run", "settings", "trials"]
    note = (
        "Each run is at its checkpoint with the best score. The best run's standard error is that of its samples. The "
        "best of many settings is partly the luckiest one. Hours are those of all trials, times the workers of each."
    )
    return Table("Runs", [*heads, "worker-hours"], lines, note)


def differences_table(groups: Sequence[Group]) -> Table:
    """Return the differences between models of one data set, and between each and its base, paired by seed."""
    lines, num_intervals = [], 0
    for first, score, second, other in _pairs(groups):
        found = difference(first, score, second, other)
        names = [_model_name(first, score), _model_name(second, other)]
        lines.append([first.data, *names, str(found.count), _signed(found), _interval(found), _verdict(found, first)])
        num_intervals += math.isfinite(found.low)
    mode = groups[0].sweeps[0].results.records.mode
    note = (
        f"The first's score minus the second's, over the seeds that both have: mean ± standard error, and the "
        f"{CONFIDENCE:.0%} interval by Student's t; {'lower' if mode == 'min' else 'higher'} is better. A GEBM has the "
        "score of its samples, a GAN that of its generator. Models that differ in both networks and objective are "
        "compared only where no others are there."
    )
    if num_intervals:
        by_chance = (1 - CONFIDENCE) * num_intervals
        note += f" Of {num_intervals} interval(s), about {by_chance:.1f} leave(s) zero out by chance."
    return Table(
        "Differences, paired by seed",
        ["data", "first", "second", "seeds", "difference", f"{CONFIDENCE:.0%} interval", "better"],
        lines,
        note,
    )


def missing_lines(groups: Sequence[Group]) -> list[str]:
    """Return what is missing, in lines: models of some data, seeds, and trials that failed or have not ended."""
    lines = []
    table = scores_table(groups)
    for row in table.rows:
        absent = [head for head, cell in zip(table.heads, row, strict=True) if cell == MISSING]
        if absent:
            lines.append(f"{row[0]}, {row[1]}: no {', no '.join(absent)}")
    for group in groups:
        seeds = {seed for other in groups if other.data == group.data for seed in other.runs}
        where = f"{group.data}, {group.networks}, {group.variant}"
        if group.runs and (left := sorted(seeds - group.runs.keys())):
            lines.append(f"{where}: no seed {', '.join(map(str, left))}")
        failed = sum(trial.status == "failed" for trial in group.trials)
        running = sum(trial.status not in TERMINAL_STATUSES for trial in group.trials)
        counts = [f"{failed} failed" if failed else "", f"{running} have not ended" if running else ""]
        if any(counts):
            lines.append(f"{where}: of {len(group.trials)} trials {' and '.join(filter(None, counts))}")
    return lines


def _pairs(groups: Sequence[Group]) -> Iterator[tuple[Group, str, Group, str]]:
    """Yield what is compared: two groups of one data set, each with the name of its score."""
    for data in dict.fromkeys(group.data for group in groups):
        ones = [group for group in groups if group.data == data]
        for group in ones:
            if not group.is_gan:
                yield group, group.gebm_score, group, group.base_score
        pairs = list(itertools.combinations(ones, 2))
        # All else being equal, where there are such pairs.
        equal = [(one, two) for one, two in pairs if one.networks == two.networks or one.variant == two.variant]
        pairs = equal or pairs
        for first, second in pairs if len(ones) <= _MAX_GROUPS else [pair for pair in pairs if ones[0] in pair]:
            yield first, first.own_score, second, second.own_score


def _model_name(group: Group, score: str) -> str:
    model = "base" if score == group.base_score and not group.is_gan else group.model
    return f"{model}, {group.networks}, {group.variant}"


def _mean(group: Group, score: str) -> str:
    found = group.estimate(score)
    return MISSING if not found.count else _plus_minus(found) if math.isfinite(found.mean) else "not finite"


def _plus_minus(found: Estimate | Difference) -> str:
    return plus_minus(found.mean, found.error if math.isfinite(found.error) else None)


def _signed(found: Difference) -> str:
    if not found.count:
        return MISSING
    if not math.isfinite(found.mean):
        return "not finite"
    text = _plus_minus(found)
    return f"+{text}" if found.mean > 0 else text


def _interval(found: Difference) -> str:
    if not math.isfinite(found.low):
        return "-"
    # The same number of decimals as the difference.
    digits = len(_plus_minus(found).partition(" ")[0].partition(".")[2])
    return f"{found.low:.{digits}f} to {found.high:.{digits}f}"


def _verdict(found: Difference, group: Group) -> str:
    """Return which one is better, where the interval has no zero in it."""
    if found.count < 2:
        return "-"
    lower_wins = group.sweeps[0].results.records.mode == "min"
    return {"smaller": ("second", "first"), "larger": ("first", "second"), "unclear": ("not shown", "not shown")}[
        found.verdict
    ][lower_wins]


def _score_name(groups: Sequence[Group]) -> str:
    return groups[0].sweeps[0].score.replace("_", " ").upper()


def _conditions(groups: Sequence[Group]) -> str:
    """Return how each data set's scores were measured."""
    lines = []
    for data in dict.fromkeys(group.data for group in groups):
        sweeps = [sweep for group in groups if group.data == data for sweep in group.sweeps]
        temperatures = dict.fromkeys(filter(None, (sweep.results.temperature for sweep in sweeps)))
        beta = f" ({' or '.join(temperatures)})" if temperatures else ""
        lines.append(f"{data}: {sweeps[0].results.measure}, {sweeps[0].num_samples:,} samples{beta}.")
    return " ".join(lines)
