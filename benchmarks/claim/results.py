"""Results' files of the claim, any subset of them, and the queries that the page makes."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.claim.settings import OBJECTIVES, SEEDS, SETTINGS
from pipeline.tracking.seed_statistics import Difference, paired_difference

__all__ = ["COLD", "ENERGIES", "LABELS", "MODEL", "OWN_PHASE", "Results", "Variant", "chosen_energy", "measure"]

LABELS = {
    "kale_fenchel": "KALE-F",
    "kale_dv": "KALE-DV",
    "gan": "logistic",
    "hinge": "hinge",
    "wasserstein": "Wasserstein",
}
ENERGIES = {
    "as_trained": "own energy, as trained",
    "kale_phase": "after a final phase by KALE",
    "gan_phase": "after a final phase by the logistic loss",
}
# The final phase by a pair's own kind of loss.
OWN_PHASE = {name: "kale_phase" if name.startswith("kale") else "gan_phase" for name in OBJECTIVES}
# The two chains that are scored: the best of the whole search, and the best at ``beta`` 1, which is the model itself.
COLD, MODEL = "chain", "chain_at_beta_1"


class Variant(NamedTuple):
    """What samples are drawn from.

    Attributes:
        objective: What the base was trained by, a key of ``OBJECTIVES``.
        energy: ``as_trained``, ``kale_phase`` or ``gan_phase``; ``own``, see :func:`chosen_energy`; the base alone if
            none.
    """

    objective: str
    energy: str | None = None


def chosen_energy(run: Mapping[str, Any], chain: str = COLD) -> str:
    """Return which energy of its own loss a run is sampled with: as trained, or after the final phase by that loss.

    It is the one that the sampler's search found the lower FID with, on latents that no score of the page is of; the
    same rule for GEBMs and GANs.

    Args:
        run: The result of a run.
        chain: ``chain``, or ``chain_at_beta_1`` where only that temperature counts.

    Returns:
        ``as_trained`` or the name of the phase.
    """

    def best(name: str) -> float:
        rows = run["energies"][name]["tuning"]
        return min((row["fid"] for row in rows if chain == COLD or row["beta"] == 1.0), default=math.inf)

    return min(("as_trained", OWN_PHASE[run["objective"]]), key=best)


def measure(run: Mapping[str, Any], energy: str | None, metric: str = "fid", chain: str = COLD) -> float:
    """Return a score of a run's samples.

    Args:
        run: The result of a run.
        energy: As in :class:`Variant`.
        metric: ``fid``, ``kid``, ``precision``, ``recall`` or ``nearest``.
        chain: Which of the two chains, where there is an energy.

    Returns:
        The score; not a number if it is not there.
    """
    if energy is None:
        scores = run["base"]
    else:
        scores = run["energies"][chosen_energy(run, chain) if energy == "own" else energy][chain]
    value = scores.get(metric)
    return math.nan if value is None else float(value)


@dataclass(frozen=True)
class Results:
    """All results that are there.

    Attributes:
        runs: Of the experiment, one for each setting, objective and seed.
        guard: Of the comparison of gradient guards.
        flat: Of the regularizations.
        overfit: Of the long phases.
    """

    runs: tuple[dict[str, Any], ...] = ()
    guard: tuple[dict[str, Any], ...] = ()
    flat: tuple[dict[str, Any], ...] = ()
    overfit: tuple[dict[str, Any], ...] = ()

    @classmethod
    def load(cls, folder: Path) -> Results:
        """Read all files of a folder.

        Args:
            folder: With a folder for each setting, ``guard`` and ``why``; any of them may be missing.

        Returns:
            What is there.
        """
        return cls(
            runs=tuple(run for name in SETTINGS for run in _read(folder / name, "*.json")),
            guard=_read(folder / "guard", "*.json"),
            flat=_read(folder / "why", "flat-*.json"),
            overfit=_read(folder / "why", "overfit-*.json"),
        )

    def of(self, setting: str, objective: str | None = None) -> list[dict[str, Any]]:
        """Return the runs of a setting, or of one objective in it, by objective and seed."""
        order = list(OBJECTIVES)
        found = [r for r in self.runs if r["setting"] == setting and objective in (None, r["objective"])]
        return sorted(found, key=lambda run: (order.index(run["objective"]), run["seed"]))

    def values(self, setting: str, variant: Variant, metric: str = "fid", chain: str = COLD) -> dict[int, float]:
        """Return seed to score of a variant."""
        runs = self.of(setting, variant.objective)
        return {run["seed"]: measure(run, variant.energy, metric, chain) for run in runs}

    def gain(self, setting: str, first: Variant, second: Variant, metric: str = "fid", chain: str = COLD) -> Difference:
        """Return by how much a score is lower with the first variant than with the second, paired by seed."""
        return paired_difference(
            self.values(setting, second, metric, chain), self.values(setting, first, metric, chain)
        )

    def missing(self, setting: str, objectives: Iterable[str] = tuple(OBJECTIVES)) -> dict[str, list[int]]:
        """Return the seeds that have no result, of each objective that misses one."""
        there = {(run["objective"], run["seed"]) for run in self.of(setting)}
        seeds = {name: [seed for seed in SEEDS if (name, seed) not in there] for name in objectives}
        return {name: absent for name, absent in seeds.items() if absent}

    def not_converged(self, setting: str, objectives: Iterable[str] = tuple(OBJECTIVES)) -> dict[str, list[int]]:
        """Return the seeds whose base reached no plateau, of each objective that has one."""
        seeds = {name: [r["seed"] for r in self.of(setting, name) if not r["converged"]] for name in objectives}
        return {name: ones for name, ones in seeds.items() if ones}


def _read(folder: Path, pattern: str) -> tuple[dict[str, Any], ...]:
    return tuple(json.loads(path.read_text()) for path in sorted(folder.glob(pattern)))
