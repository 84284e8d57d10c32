"""Results' files of the claim, any subset of them, and the queries that the page makes."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.claim.settings import OBJECTIVES, SEEDS, SETTINGS
from pipeline.tracking.seed_statistics import CONFIDENCE, Difference, paired_difference

__all__ = [
    "BEST",
    "ENERGIES",
    "LABELS",
    "MODEL",
    "OWN_PHASE",
    "Results",
    "Variant",
    "chosen_energy",
    "is_model",
    "measure",
]

LABELS = {
    "kale_fenchel": "GEBM (KALE-F)",
    "kale_dv": "GEBM (KALE-DV)",
    "gan": "GAN (logistic)",
    "hinge": "GAN (hinge)",
    "wasserstein": "GAN (Wasserstein)",
}
ENERGIES = {
    "as_trained": "own energy, as trained",
    "kale_phase": "after a final phase by KALE",
    "gan_phase": "after a final phase by the logistic loss",
}
# The final phase by a pair's own loss; there is none by the hinge or the Wasserstein loss. Both forms of KALE estimate
# the same divergence.
OWN_PHASE = {"kale_fenchel": "kale_phase", "kale_dv": "kale_phase", "gan": "gan_phase"}
# What an energy is scored by: the best chain of the search, and, without a chain, base samples drawn again by their
# weights ``exp(-E)``. These are of the model itself; chains as short as ours, at ``beta`` 1 too, come no further than
# somewhere between the base and what they would sample in the end.
BEST, MODEL = "chain", "weighted"


class Variant(NamedTuple):
    """What samples are drawn from.

    Attributes:
        objective: What the base was trained by, a key of ``OBJECTIVES``.
        energy: ``as_trained``, ``kale_phase`` or ``gan_phase``; ``own``, see :func:`chosen_energy`; the base alone if
            none.
    """

    objective: str
    energy: str | None = None


def is_model(variant: Variant) -> bool:
    """Return whether ``exp(-E)`` of a variant's energy is a density ratio, as it is by KALE and by the logistic loss.

    The scale of a hinge discriminator or of a Wasserstein critic means nothing. A base alone is its own model.

    Example:
        >>> is_model(Variant("hinge")), is_model(Variant("hinge", "own")), is_model(Variant("hinge", "gan_phase"))
        (True, False, True)
    """
    return variant.objective in OWN_PHASE or variant.energy not in ("own", "as_trained")


def chosen_energy(run: Mapping[str, Any]) -> str:
    """Return which energy of its own loss a run is sampled with: as trained, or after the final phase by that loss.

    It is the one that the sampler's search found the lower FID with, on latents that no score of the page is of; the
    same rule for GEBMs and GANs. Where there is no phase by the loss, the energy is the one as trained.

    Args:
        run: The result of a run.

    Returns:
        ``as_trained`` or the name of the phase.
    """

    def best(name: str) -> float:
        return min((row["fid"] for row in run["energies"][name]["tuning"]), default=math.inf)

    phase = OWN_PHASE.get(run["objective"])
    return min(("as_trained", *([phase] if phase else [])), key=best)


def measure(run: Mapping[str, Any], energy: str | None, metric: str = "fid", chain: str = BEST) -> float:
    """Return a score of a run's samples.

    Args:
        run: The result of a run.
        energy: As in :class:`Variant`.
        metric: ``fid``, ``kid``, ``precision``, ``recall`` or ``nearest``.
        chain: What samples are drawn by, where there is an energy: ``BEST`` or ``MODEL``.

    Returns:
        The score; not a number if it is not there.
    """
    if energy is None:
        scores = run["base"]
    else:
        scores = run["energies"][chosen_energy(run) if energy == "own" else energy][chain]
    value = scores.get(metric)
    return math.nan if value is None else float(value)


@dataclass(frozen=True)
class Results:
    """All results that are there.

    Attributes:
        runs: Of the experiment, one for each setting, objective and seed.
        earlier: Runs of the rounds before, whose settings were others, the first round first.
        penalties: Of the search of each objective's penalty.
        guard: Of the comparison of gradient guards.
        flat: Of the regularizations.
        overfit: Of the long phases.
    """

    runs: tuple[dict[str, Any], ...] = ()
    earlier: tuple[tuple[dict[str, Any], ...], ...] = ()
    penalties: tuple[dict[str, Any], ...] = ()
    guard: tuple[dict[str, Any], ...] = ()
    flat: tuple[dict[str, Any], ...] = ()
    overfit: tuple[dict[str, Any], ...] = ()

    @classmethod
    def load(cls, folder: Path) -> Results:
        """Read all files of a folder.

        Args:
            folder: With a folder for each setting, ``earlier``, ``penalties``, ``guard`` and ``why``; any of them may
                be missing.

        Returns:
            What is there.
        """
        return cls(
            runs=_read_runs(folder),
            earlier=tuple(_read_runs(one) for one in sorted((folder / "earlier").glob("*"))),
            penalties=_read(folder / "penalties", "*.json"),
            guard=_read(folder / "guard", "*.json"),
            flat=_read(folder / "why", "flat-*.json"),
            overfit=_read(folder / "why", "overfit-*.json"),
        )

    def of(self, setting: str, objective: str | None = None) -> list[dict[str, Any]]:
        """Return the runs of a setting, or of one objective in it, by objective and seed."""
        order = list(OBJECTIVES)
        found = [r for r in self.runs if r["setting"] == setting and objective in (None, r["objective"])]
        return sorted(found, key=lambda run: (order.index(run["objective"]), run["seed"]))

    def values(self, setting: str, variant: Variant, metric: str = "fid", chain: str = BEST) -> dict[int, float]:
        """Return seed to score of a variant."""
        runs = self.of(setting, variant.objective)
        return {run["seed"]: measure(run, variant.energy, metric, chain) for run in runs}

    def gain(
        self,
        setting: str,
        first: Variant,
        second: Variant,
        metric: str = "fid",
        chain: str = BEST,
        confidence: float = CONFIDENCE,
    ) -> Difference:
        """Return by how much a score is lower with the first variant than with the second, paired by seed."""
        return paired_difference(
            self.values(setting, second, metric, chain), self.values(setting, first, metric, chain), confidence
        )

    def at_the_last_common_step(
        self, setting: str, objectives: Iterable[str] = tuple(OBJECTIVES)
    ) -> tuple[int, dict[str, dict[int, float]]] | None:
        """Return the last base step that all bases were looked at, and objective to seed to FID of the base there."""
        runs = {name: found for name in objectives if (found := self.of(setting, name))}
        steps = [{look["base_step"] for look in run["curve"]} for found in runs.values() for run in found]
        common = set.intersection(*steps) if steps else set()
        if not common:
            return None
        step = max(common)
        return step, {
            name: {run["seed"]: look["fid"] for run in found for look in run["curve"] if look["base_step"] == step}
            for name, found in runs.items()
        }

    def missing(self, setting: str, objectives: Iterable[str] = tuple(OBJECTIVES)) -> dict[str, list[int]]:
        """Return the seeds that have no result, of each objective that misses one."""
        there = {(run["objective"], run["seed"]) for run in self.of(setting)}
        seeds = {name: [seed for seed in SEEDS if (name, seed) not in there] for name in objectives}
        return {name: absent for name, absent in seeds.items() if absent}

    def not_converged(self, setting: str, objectives: Iterable[str] = tuple(OBJECTIVES)) -> dict[str, list[int]]:
        """Return the seeds whose base was still improving in the end, of each objective that has one."""
        seeds = {name: [r["seed"] for r in self.of(setting, name) if not r["converged"]] for name in objectives}
        return {name: ones for name, ones in seeds.items() if ones}


def _read_runs(folder: Path) -> tuple[dict[str, Any], ...]:
    return tuple(run for name in SETTINGS for run in _read(folder / name, "*.json"))


def _read(folder: Path, pattern: str) -> tuple[dict[str, Any], ...]:
    return tuple(json.loads(path.read_text()) for path in sorted(folder.glob(pattern)))
