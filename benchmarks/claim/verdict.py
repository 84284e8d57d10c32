"""The claim in a few sentences and a table, by the comparisons that decide it."""

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

    @property
    def title(self) -> str:
        """Both in words."""
        return f"{self.first_name} against {self.second_name}"


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
# What explains them: whether another energy does as well, and what the base alone has.
_BESIDE = (
    Comparison(*_DISCRIMINATED, *_GAN),
    Comparison(Variant(GEBM), "the GEBM's base", *_GAN),
)
COMPARISONS = (
    *HEADLINES,
    *_BESIDE,
    Comparison(*_GEBM, *_ENERGY_ON_GAN),
    Comparison(*_GEBM, Variant(GEBM), "its own base"),
    Comparison(
        Variant(GEBM, "as_trained"),
        "the GEBM, its energy as trained,",
        Variant(GAN, "as_trained"),
        "the GAN with its discriminator as trained",
    ),
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
    """Return what a difference says of a comparison: whose FID is lower, or that neither is shown to be.

    Args:
        comparison: What is compared.
        found: By how much the FID of the first is lower.

    Example:
        >>> clause(HEADLINES[0], Difference(-2.0, 0.1, -2.3, -1.7, 5))
        'the GEBM has a higher FID than the GAN'
    """
    first, second = comparison.first_name, comparison.second_name
    if found.verdict == "unclear":
        return f"no difference is shown between {first} and {second}"
    return f"{first} has a {'lower' if found.verdict == 'larger' else 'higher'} FID than {second}"


def cell(found: Difference) -> str:
    """Return a difference, its interval and its verdict as a table has them.

    Example:
        >>> import math
        >>> cell(Difference(2.0, 0.1, 1.7, 2.3, 5)), cell(Difference(2.0, math.nan, math.nan, math.nan, 1))
        ('+2.00 (1.70 to 2.30): yes', '+2.00, one seed: no verdict')
    """
    if found.count == 0:
        return ABSENT
    figure = estimate(found._replace(error=float("nan")), sign=True)
    if found.count == 1:
        return f"{figure}, one seed: no verdict"
    return f"{figure} ({interval(found)}): {VERDICTS[found.verdict]}"


def summary(results: Results) -> str:
    """Return the claim as the results have it: what is shown, by what figures, and under what conditions.

    Args:
        results: Whatever is there.

    Returns:
        Markdown: what is compared, a sentence for each data set, a table, and the conditions.
    """
    there = [name for name in SETTINGS if any(results.of(name, objective) for objective in (GEBM, GAN))]
    if not there:
        return "There are no runs yet."
    sentences = [paragraph(f"- {_sentence(results, name)}").replace("\n", "\n  ") for name in there]
    if absent := [name for name in SETTINGS if name not in there]:
        sentences.append(f"- No runs yet: {', '.join(absent)}.")
    rows = [
        [one.title, *(cell(results.gain(name, one.first, one.second, confidence=confidence)) for name in there)]
        for ones, confidence in ((HEADLINES, HEADLINE_CONFIDENCE), (_BESIDE, CONFIDENCE))
        for one in ones
    ]
    model = [results.gain(name, HEADLINES[0].first, HEADLINES[0].second, chain=MODEL) for name in there]
    rows.append(["the GEBM itself, `beta` 1, against the GAN", *map(cell, model)])
    head = [
        "FID of the second minus FID of the first",
        *(f"{name}, {share_of(_common(results, name), len(SEEDS))} seeds" for name in there),
    ]
    points = [point for name in there for point in SETTINGS[name].chain_points]
    terms = f"""
        *The GAN* is a generator, trained by the logistic loss and sampled as it is. *The GEBM* has the same networks,
        trained by KALE-F. It, the GAN with its discriminator, and a KALE energy on the GAN's base are sampled by
        Langevin chains of {min(points)} to {max(points)} steps on the latents, each at the best setting of a search by
        FID. These chains are short, and most are colder than the model: they have `beta` {_chosen_betas(results)},
        where 1 is the model. *The GEBM itself* is sampled at `beta` 1, by importance weights and without a chain.
        """
    conditions = f"""
        Above zero, the first one's FID is lower, which is better. Differences are paired by seed. The intervals of the
        first {len(HEADLINES)} rows hold together with {CONFIDENCE:.0%} for one data set, those of the others with
        {CONFIDENCE:.0%} each; one with zero in it shows nothing. FID is by small classifiers that were trained here on
        the same images, and not by Inception. A sample of a chain takes {min(points)} to {max(points)} passes
        through both networks, forward and backward, and one of the GAN a forward pass of its generator.
        """
    parts = [paragraph(terms), "\n".join(sentences), table(head, rows), paragraph(conditions)]
    return "\n\n".join([*parts, *map(paragraph, _caveats(results, there))])


def _common(results: Results, name: str) -> int:
    absent = results.missing(name, (GEBM, GAN))
    return len(SEEDS) - len({seed for ones in absent.values() for seed in ones})


def _sentence(results: Results, name: str) -> str:
    """Return what is shown on a data set, and what is missing there."""
    gains = [(one, results.gain(name, one.first, one.second, confidence=HEADLINE_CONFIDENCE)) for one in HEADLINES]
    found = [(one, difference) for one, difference in gains if difference.count > 1]
    shown = [clause(one, difference) for one, difference in found if difference.verdict != "unclear"]
    if not found:
        text = "fewer than two seeds of both, which shows nothing"
    elif not shown:
        text = "no difference is shown"
    else:
        rest = len(found) - len(shown)
        text = "; ".join(shown) + (f"; no other difference of the first {len(HEADLINES)} rows is shown" if rest else "")
    text = f"**{name.capitalize()}**: {text}."
    if absent := results.missing(name, (GEBM, GAN)):
        text += f" Missing: {seeds(absent)}."
    return text


def _caveats(results: Results, names: list[str]) -> list[str]:
    """Return what a lower FID was paid with, and which data had been looked at before their settings were fixed."""
    paid = []
    for name in names:
        gains = [
            paired_difference(
                results.values(name, Variant(GEBM), metric), results.values(name, Variant(GEBM, "own"), metric)
            )
            for metric in ("precision", "recall")
        ]
        if gains[0].count:
            paid.append(f"{name} {' and '.join(estimate(-gain, 3, sign=True) for gain in gains)}")
    texts = []
    if paid:
        texts.append(
            f"The GEBM's chains change precision and recall of its base by, in this order: {'; '.join(paid)}. Colder "
            "chains leave out what is rare."
        )
    for name in names:
        rounds = [found for runs in results.earlier if (found := Results(runs)).of(name)]
        gains = [
            found.gain(name, HEADLINES[0].first, HEADLINES[0].second, confidence=HEADLINE_CONFIDENCE)
            for found in rounds
        ]
        cells = [cell(gain) for gain in gains if gain.count > 1]
        if cells:
            texts.append(
                f"Of the {name} there were earlier rounds of runs, with another penalty and another search; in them "
                f"the first row was {' and '.join(cells)}. So on the {name} the experiment found its settings, and "
                "data whose settings were fixed before their runs are the test. The page has the earlier rounds, too."
            )
    return texts


def _chosen_betas(results: Results) -> str:
    variants = (Variant(GEBM, "own"), Variant(GAN, "own"), Variant(GAN, "kale_phase"))
    betas = [
        measure(run, variant.energy, "beta")
        for name in SETTINGS
        for variant in variants
        for run in results.of(name, variant.objective)
    ]
    return " to ".join(f"{beta:,.0f}" for beta in dict.fromkeys((min(betas), max(betas))))
