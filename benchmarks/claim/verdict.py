"""The claim in a few sentences and a table, and the comparisons that decide it, fixed before the runs."""

from __future__ import annotations

from typing import NamedTuple

from benchmarks.claim.formatting import ABSENT, estimate, interval, paragraph, seeds, share_of, table
from benchmarks.claim.results import MODEL, Results, Variant, measure
from benchmarks.claim.settings import SEEDS, SETTINGS
from pipeline.tracking.seed_statistics import CONFIDENCE, Difference, paired_difference

__all__ = [
    "COMPARISONS",
    "GAN",
    "GEBM",
    "HEADLINES",
    "HEADLINE_CONFIDENCE",
    "VERDICTS",
    "Comparison",
    "cell",
    "clause",
    "summary",
]

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
    Comparison(*_ENERGY_ON_GAN, *_DISCRIMINATED),
)
COMPARISONS = (
    *HEADLINES,
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
HEADLINE_CONFIDENCE = 1 - (1 - CONFIDENCE) / len(HEADLINES)
"""Of each headline's interval, so that all of a data set hold together with 95 % (Bonferroni)."""
VERDICTS = {"larger": "yes", "smaller": "no, worse", "unclear": "not shown"}
"""Whether the first is better, in a word."""


def clause(comparison: Comparison, found: Difference) -> str:
    """Return what a difference says of a comparison: the first outperforms the second, is worse, or neither is shown.

    Args:
        comparison: What is compared.
        found: By how much the FID of the first is lower.

    Example:
        >>> clause(HEADLINES[0], Difference(-2.0, 0.1, -2.3, -1.7, 5))
        'the GEBM is worse than the GAN'
    """
    first, second = comparison.first_name, comparison.second_name
    if found.verdict == "larger":
        return f"{first} outperforms {second}"
    if found.verdict == "smaller":
        return f"{first} is worse than {second}"
    return f"no difference is shown between {first} and {second}"


def cell(found: Difference) -> str:
    """Return a difference, its interval and its verdict as a table has them.

    Example:
        >>> import math
        >>> cell(Difference(2.0, 0.1, 1.7, 2.3, 5)), cell(Difference(2.0, math.nan, math.nan, math.nan, 1))
        ('+2.00 ± 0.10 (1.70 to 2.30): yes', '+2.00, one seed: no verdict')
    """
    if found.count == 0:
        return ABSENT
    figure = estimate(found, sign=True)
    if found.count == 1:
        return f"{figure}, one seed: no verdict"
    return f"{figure} ({interval(found)}): {VERDICTS[found.verdict]}"


def summary(results: Results) -> str:
    """Return the claim as the results have it: what is shown, by what figures, and under what conditions.

    Args:
        results: Whatever is there.

    Returns:
        Markdown: a sentence for each data set, a table of the headlines, and a paragraph.
    """
    there = [name for name in SETTINGS if any(results.of(name, objective) for objective in (GEBM, GAN))]
    if not there:
        return "There are no runs yet."
    sentences = [paragraph(f"- {_sentence(results, name)}").replace("\n", "\n  ") for name in there]
    if absent := [name for name in SETTINGS if name not in there]:
        sentences.append(f"- No runs yet: {', '.join(absent)}.")
    rows = [
        [f"{one.first_name} against {one.second_name}", *(cell(_headline(results, name, one)) for name in there)]
        for one in HEADLINES
    ]
    model = [results.gain(name, HEADLINES[0].first, HEADLINES[0].second, chain=MODEL) for name in there]
    rows.append(["the GEBM itself, `beta` 1, against the GAN", *(estimate(found, sign=True) for found in model)])
    bases = [_bases(results, name) for name in there]
    rows.append(["the GEBM's base against the GAN's, at the same base step", *bases])
    head = ["FID is lower by", *(f"{name}, {share_of(_common(results, name), len(SEEDS))} seeds" for name in there)]
    conditions = f"""
        FID is by small classifiers that were trained here, on the same kind of data, and not by Inception. GEBMs,
        discriminators and energies are sampled by short chains from the base, each at the best setting of one search
        that is the same for all; the best ones have `beta` {_chosen_betas(results)}, where more than 1 is colder than
        the model. The model itself is `beta` 1, by importance weights. Differences are paired by seed, ± their standard
        error. The intervals of a data set hold together with {CONFIDENCE:.0%}; one with zero in it shows nothing.
        """
    return "\n\n".join(["\n".join(sentences), table(head, rows), paragraph(conditions)])


def _headline(results: Results, name: str, comparison: Comparison) -> Difference:
    return results.gain(name, comparison.first, comparison.second, confidence=HEADLINE_CONFIDENCE)


def _common(results: Results, name: str) -> int:
    absent = results.missing(name, (GEBM, GAN))
    return len(SEEDS) - len({seed for ones in absent.values() for seed in ones})


def _sentence(results: Results, name: str) -> str:
    """Return what is shown on a data set, and what is missing there."""
    found = [(one, _headline(results, name, one)) for one in HEADLINES]
    clauses = [clause(one, difference) for one, difference in found if difference.count > 1]
    text = f"**{name.capitalize()}**: {'; '.join(clauses) or 'fewer than two seeds of both, which shows nothing'}."
    if absent := results.missing(name, (GEBM, GAN)):
        text += f" Missing: {seeds(absent)}."
    if unfinished := results.not_converged(name, (GEBM, GAN)):
        text += f" Not converged: {seeds(unfinished)}."
    return text


def _bases(results: Results, name: str) -> str:
    """Return how the two bases compare where they had the same number of steps."""
    found = results.at_the_last_common_step(name, (GEBM, GAN))
    if found is None or set(found[1]) != {GEBM, GAN}:
        return ABSENT
    step, fids = found
    gain = paired_difference(fids[GAN], fids[GEBM])
    return f"{estimate(gain, sign=True)} at {step:,}" if gain.count else ABSENT


def _chosen_betas(results: Results) -> str:
    variants = (Variant(GEBM, "own"), Variant(GAN, "own"), Variant(GAN, "kale_phase"))
    betas = [
        measure(run, variant.energy, "beta")
        for name in SETTINGS
        for variant in variants
        for run in results.of(name, variant.objective)
    ]
    return " to ".join(f"{beta:,.0f}" for beta in dict.fromkeys((min(betas), max(betas))))
