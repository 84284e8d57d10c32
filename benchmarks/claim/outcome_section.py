"""The page's sections on the question itself: the scores, and the comparisons paired by seed."""

from __future__ import annotations

from benchmarks.claim.formatting import ABSENT, estimate, interval, number, paragraph, table
from benchmarks.claim.results import BEST, ENERGIES, LABELS, MODEL, Results, Variant, is_model
from benchmarks.claim.settings import OBJECTIVES, SETTINGS
from benchmarks.claim.verdict import COMPARISONS, HEADLINE_CONFIDENCE, HEADLINES, VERDICTS
from pipeline.evaluation.metrics.nearest_neighbors import NUM_MEASURED
from pipeline.evaluation.metrics.reference_statistics import MAX_FEATURES
from pipeline.tracking.seed_statistics import CONFIDENCE, Difference, mean_and_error

__all__ = ["comparisons", "conditions", "curves", "extractors", "precision", "scores"]

BETA = "`beta` = 1 is the temperature of the model, larger is colder"


def extractors(results: Results) -> str:
    """Return which extractor judges which settings, of those that have results."""
    labels: dict[str, list[str]] = {}
    for name in SETTINGS:
        for label in sorted({run["extractor"] for run in results.of(name)}):
            labels.setdefault(label, []).append(name)
    return ", ".join(f"extractor `{label}` ({', '.join(names)})" for label, names in labels.items())


def conditions(results: Results, samples: str, beta: bool = True) -> str:
    """Return a figure's caption: extractor, number of samples, temperature.

    Args:
        results: Whatever is there.
        samples: An attribute of a setting that holds the number.
        beta: Whether chains are shown.

    Returns:
        The caption, a sentence in italics.
    """
    counts: dict[int, list[str]] = {}
    for name in SETTINGS:
        if results.of(name):
            counts.setdefault(getattr(SETTINGS[name], samples), []).append(name)
    numbers = ", ".join(f"{count:,} samples ({', '.join(names)})" for count, names in counts.items())
    text = f"By {extractors(results)}; {numbers}"
    return paragraph(f"*{text}; {BETA if beta else 'bases alone, no chain'}.*")


def scores(results: Results, figures: set[str]) -> str:
    """Return the section with the FID of every base and energy."""
    parts = ["## FID of each base and each energy"]
    parts.append(
        paragraph(
            "Mean ± standard error over seeds, each energy at its own best sampler setting. In brackets: base samples "
            "drawn again by their weights `exp(-E)`, without a chain. For an energy by KALE or by the logistic loss "
            "they are of the model itself, `beta` 1; the scale of the others has no such meaning. Chains as short as "
            "these are somewhere between the base and what they would sample in the end, at `beta` 1 too."
        )
    )
    for name in SETTINGS:
        if not results.of(name):
            continue
        rows = []
        for objective in filter(lambda one, name=name: results.of(name, one), OBJECTIVES):
            cells = [estimate(mean_and_error(results.values(name, Variant(objective)).values()))]
            for energy in ENERGIES:
                variant = Variant(objective, energy)
                best, model = (
                    estimate(mean_and_error(results.values(name, variant, chain=chain).values()))
                    for chain in (BEST, MODEL)
                )
                cells.append(best if best == ABSENT else f"{best} ({model})")
            rows.append([LABELS[objective], str(len(results.of(name, objective))), *cells])
        parts += [f"### {name.capitalize()}", table(["trained by", "seeds", "base alone", *ENERGIES.values()], rows)]
    if "fid" in figures:
        parts += ["![FID of each seed](FIGURE:fid)", conditions(results, "final_samples")]
    return "\n\n".join(parts)


def comparisons(results: Results) -> str:
    """Return the section with the differences, paired by seed."""
    parts = ["## Against each other, paired by seed"]
    parts.append(
        paragraph(
            "The FID of the second minus that of the first, so the first is better above zero: mean ± standard error "
            "over the seeds that both have, the interval by Student's t, and the difference of each seed. The "
            f"intervals of the first {len(HEADLINES)} rows hold together with {CONFIDENCE:.0%} in a table "
            f"({HEADLINE_CONFIDENCE:.2%} each, Bonferroni); those of the others hold with {CONFIDENCE:.0%} each, and "
            "some may leave zero out by chance. *By weights* is of the models themselves, `beta` 1."
        )
    )
    for name in SETTINGS:
        if not results.of(name):
            continue
        rows = []
        for comparison in COMPARISONS:
            pair = (comparison.first, comparison.second)
            confidence = HEADLINE_CONFIDENCE if comparison in HEADLINES else CONFIDENCE
            best = results.gain(name, *pair, confidence=confidence)
            if not best.count:
                continue
            model = results.gain(name, *pair, chain=MODEL)
            kid = _thousandfold(results.gain(name, *pair, metric="kid"))
            rows.append(
                [
                    comparison.title,
                    estimate(best, sign=True),
                    interval(best),
                    VERDICTS[best.verdict] if best.count > 1 else ABSENT,
                    ", ".join(_by_seed(results, name, *pair)),
                    estimate(model, sign=True) if all(map(is_model, pair)) else ABSENT,
                    estimate(kid, 1, sign=True),
                ]
            )
        head = ["", "FID", "interval", "better?", "FID of each seed", "FID by weights", "KID x 1000"]
        parts += [f"### {name.capitalize()}", table(head, rows)]
    return "\n\n".join(parts)


def curves(results: Results, figures: set[str]) -> str:
    """Return the section with the learning curves."""
    if "curves" not in figures:
        return ""
    return "\n\n".join(
        [
            "## Learning curves",
            "![FID of the bases over steps and over time](FIGURE:curves)",
            paragraph(
                "A line for each seed; a filled dot where its base was at a plateau by the rule, an open one where it "
                "was not. Seconds are of the processor, without the evaluations."
            ),
            conditions(results, "curve_samples", beta=False),
        ]
    )


def precision(results: Results, figures: set[str]) -> str:
    """Return the section on precision and recall, and on copies."""
    parts = ["## Precision, recall and copies"]
    parts.append(
        paragraph(
            "A cold chain may lower FID by leaving out what is rare: precision rises, recall falls. *Nearest* is the "
            f"mean distance of {NUM_MEASURED:,} samples to the nearest image of the data, over that of images among "
            "themselves, both in the features of the classifier: well below one, samples are copies. Data are a subset "
            f"of at most {MAX_FEATURES:,} images, held-out ones among them, for precision, recall and nearest. KID is "
            "the mean over subsets. Energies are each pair's own."
        )
    )
    for name in SETTINGS:
        if not results.of(name):
            continue
        rows = [
            _precision_row(results, name, objective, energy, label)
            for objective in OBJECTIVES
            if results.of(name, objective)
            for energy, label in ((None, "base"), ("own", "best chain"))
        ]
        head = ["trained by", "samples of", "precision", "recall", "nearest", "KID x 1000", "`beta` of each seed"]
        parts += [f"### {name.capitalize()}", table(head, rows)]
    if "precision" in figures:
        parts += ["![Precision over recall](FIGURE:precision)", conditions(results, "final_samples")]
    return "\n\n".join(parts)


def _precision_row(results: Results, name: str, objective: str, energy: str | None, label: str) -> list[str]:
    variant = Variant(objective, energy)
    cells = [
        estimate(mean_and_error(results.values(name, variant, metric).values()), 3)
        for metric in ("precision", "recall", "nearest")
    ]
    kids = [1000 * value for value in results.values(name, variant, "kid").values()]
    betas = results.values(name, variant, "beta").values() if energy else ()
    return [
        LABELS[objective],
        label,
        *cells,
        estimate(mean_and_error(kids), 1),
        ", ".join(number(beta, 0) for beta in betas) or ABSENT,
    ]


def _by_seed(results: Results, name: str, first: Variant, second: Variant) -> list[str]:
    """Return by how much the FID of the first is lower, seed by seed."""
    ours, theirs = results.values(name, first), results.values(name, second)
    return [f"{theirs[seed] - ours[seed]:+.2f}" for seed in sorted(ours.keys() & theirs.keys())]


def _thousandfold(found: Difference) -> Difference:
    mean, error, low, high = (1000 * value for value in found[:4])
    return Difference(mean, error, low, high, found.count)
