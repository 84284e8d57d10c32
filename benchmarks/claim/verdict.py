"""The claim in a paragraph, and the comparisons that decide it, fixed before the runs."""

from __future__ import annotations

from typing import NamedTuple

from benchmarks.claim.formatting import change, interval, paragraph, seeds
from benchmarks.claim.results import MODEL, Results, Variant
from benchmarks.claim.settings import SEEDS, SETTINGS
from pipeline.tracking.seed_statistics import CONFIDENCE, Difference

__all__ = ["COMPARISONS", "GAN", "GEBM", "HEADLINES", "Comparison", "clause", "sentence"]

GEBM, GAN = "kale_fenchel", "gan"


class Comparison(NamedTuple):
    """Two variants that are compared.

    Attributes:
        first: What the claim says is better.
        first_name: It in words.
        second: What it is compared with.
        second_name: It in words.
    """

    first: Variant
    first_name: str
    second: Variant
    second_name: str


_GEBM = (Variant(GEBM, "own"), "the GEBM")
_DV = (Variant("kale_dv", "own"), "the GEBM by KALE-DV")
_GAN = (Variant(GAN), "the GAN")
_DISCRIMINATED = (Variant(GAN, "own"), "the GAN with its discriminator")
_ENERGY_ON_GAN = (Variant(GAN, "kale_phase"), "a KALE energy on the GAN's base")

HEADLINES = (
    Comparison(*_GEBM, *_GAN),
    Comparison(*_GEBM, *_DISCRIMINATED),
    Comparison(*_ENERGY_ON_GAN, *_GAN),
)
COMPARISONS = (
    *HEADLINES,
    Comparison(*_ENERGY_ON_GAN, *_DISCRIMINATED),
    Comparison(*_GEBM, *_ENERGY_ON_GAN),
    Comparison(*_GEBM, Variant(GEBM), "its own base"),
    Comparison(*_DISCRIMINATED, *_GAN),
    Comparison(Variant(GEBM), "the GEBM's base", *_GAN),
    Comparison(*_DV, *_GAN),
    Comparison(*_DV, *_DISCRIMINATED),
    Comparison(*_GEBM, Variant("hinge"), "the hinge GAN"),
    Comparison(*_GEBM, Variant("hinge", "own"), "the hinge GAN with its discriminator"),
    Comparison(*_GEBM, Variant("wasserstein"), "the Wasserstein GAN"),
    Comparison(*_GEBM, Variant("wasserstein", "own"), "the Wasserstein GAN with its critic"),
)


def clause(comparison: Comparison, found: Difference) -> str:
    """Return what a difference says of a comparison.

    Args:
        comparison: What is compared.
        found: By how much the FID of the first is lower.

    Returns:
        A clause: it outperforms, it does not, or it is not shown.

    Example:
        >>> clause(HEADLINES[0], Difference(-2.0, 0.1, -2.3, -1.7, 5))
        'the GEBM does not outperform the GAN (FID higher by 2.00 ± 0.10, interval 1.70 to 2.30)'
    """
    first, second = comparison.first_name, comparison.second_name
    if found.count == 0:
        return f"{first} and {second} have no seed in common yet"
    figure = f"FID {change(found)}"
    if found.count > 1:
        figure += f", interval {interval(found if found.mean >= 0 else -found)}"
    if found.count == 1:
        return f"on one seed, which shows nothing, {first} is compared with {second} ({figure})"
    if found.verdict == "larger":
        return f"{first} outperforms {second} ({figure})"
    if found.verdict == "smaller":
        return f"{first} does not outperform {second} ({figure})"
    return f"it is not shown that {first} outperforms {second} ({figure})"


def sentence(results: Results) -> str:
    """Return the claim, as the results have it, in a paragraph.

    Args:
        results: Whatever is there.

    Returns:
        For each setting the three headlines with their paired differences, and what is missing or not converged.
    """
    parts = [_of_setting(results, name) for name in SETTINGS]
    if any(results.of(name) for name in SETTINGS):
        parts.append(
            f"Each is sampled at the best setting of one sampler search, the same for all. Differences are paired by "
            f"seed, ± their standard error, with {CONFIDENCE:.0%} intervals; one with zero in it shows nothing."
        )
    return paragraph(" ".join(parts))


def _of_setting(results: Results, name: str) -> str:
    absent = results.missing(name, (GEBM, GAN))
    common = len(SEEDS) - len({seed for ones in absent.values() for seed in ones})
    title = f"**{name.capitalize()}**"
    if not any(results.of(name, objective) for objective in (GEBM, GAN)):
        return f"{title}: no runs yet."
    clauses = []
    for comparison in HEADLINES:
        clauses.append(clause(comparison, results.gain(name, comparison.first, comparison.second)))
    text = f"{title} ({common} of {len(SEEDS)} seeds): {'; '.join(clauses)}."
    model = results.gain(name, HEADLINES[0].first, HEADLINES[0].second, chain=MODEL)
    if model.count:
        text += f" The GEBM at `beta` 1, the model itself, against the GAN: FID {change(model)}."
    if absent:
        text += f" Missing: {seeds(absent)}."
    unfinished = results.not_converged(name, (GEBM, GAN))
    if unfinished:
        text += f" Not converged: {seeds(unfinished)}."
    return text
