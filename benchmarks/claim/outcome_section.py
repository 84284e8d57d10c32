"""The page's sections on the question itself: what was run, the scores, and the comparisons paired by seed."""

from __future__ import annotations

from benchmarks.claim.formatting import ABSENT, estimate, interval, number, paragraph, seeds, share_of, table
from benchmarks.claim.results import COLD, ENERGIES, LABELS, MODEL, Results, Variant
from benchmarks.claim.settings import OBJECTIVES, SAMPLERS, SEEDS, SETTINGS, experiment
from benchmarks.claim.verdict import COMPARISONS, GAN
from pipeline.tracking.seed_statistics import CONFIDENCE, mean_and_error

__all__ = ["comparisons", "conditions", "curves", "extractors", "precision", "scores", "setup"]

BETA = "`beta` = 1 is the model itself, larger is colder"


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


def setup(results: Results) -> str:
    """Return the section on what was run, and how much of it is there."""
    rows = []
    for name, setting in SETTINGS.items():
        config = experiment(setting, GAN, 0)
        rows.append(
            [
                name,
                setting.title,
                f"`{config.model.networks}`, width {config.model.width}",
                f"{config.train.batch_size}",
                f"{config.data.held_out:,}",
                f"{setting.most_steps:,}",
                f"{setting.evaluate_every}",
                f"{setting.phase_steps}",
                share_of(len(results.of(name)), len(OBJECTIVES) * len(SEEDS)),
                _missing(results, name),
                seeds(results.not_converged(name)) or "none",
            ]
        )
    head = ["name", "data", "networks", "batch", "held out", "base steps, at most", "a look every"]
    head += ["energy steps of the final phase, at most", "runs there", "missing", "not converged"]
    config = experiment(SETTINGS["digits"], GAN, 0)
    rule = f"""
        A base is trained until the mean FID of its last three looks is no better than that of the three before, by the
        standard error of their difference; this rule was fixed beforehand. One that has not come to such a plateau
        after the most base steps is called *not converged*. Each base step has {config.train.energy_steps} energy
        steps before it, and all objectives have the same networks, rates, batches, gradient guard
        (`{config.train.gradient_guard}`) and seeds. Only the Wasserstein critic has no floor, for it has no zero.
        """
    search = f"""
        On each base three energies are sampled: {"; ".join(f"*{label}*" for label in ENERGIES.values())}. A phase ends
        by the KALE of held-out data, whatever its loss. Every energy gets the same search of {len(SAMPLERS)} settings
        of ULA with chains of {_lengths()} steps, from the base's own latents; the setting with the lowest FID is scored
        on other latents, and so is the best one at `beta` 1. A *GEBM* and a *GAN with its discriminator* (DDLS, Che et
        al. 2020) are sampled with the energy of their own loss, as trained or after the final phase by that loss,
        whichever that search prefers.
        """
    return "\n\n".join(["## What was run", table(head, rows), paragraph(rule), paragraph(search)])


def scores(results: Results, figures: set[str]) -> str:
    """Return the section with the FID of every base and energy."""
    parts = ["## FID of each base and each energy"]
    parts.append(
        paragraph(
            "Mean ± standard error over seeds, each energy at its own best sampler setting; at `beta` 1, the model "
            "itself, in brackets."
        )
    )
    for name in SETTINGS:
        if not results.of(name):
            continue
        rows = []
        for objective in OBJECTIVES:
            cells = [estimate(mean_and_error(results.values(name, Variant(objective)).values()))]
            for energy in ENERGIES:
                variant = Variant(objective, energy)
                best, model = (
                    estimate(mean_and_error(results.values(name, variant, chain=chain).values()))
                    for chain in (COLD, MODEL)
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
            "By how much the first one's score is lower, which is better: mean ± standard error over the seeds that "
            f"both have, and the {CONFIDENCE:.0%} interval by Student's t. Of the {len(COMPARISONS)} intervals in a "
            f"table, some may leave zero out by chance."
        )
    )
    for name in SETTINGS:
        if not results.of(name):
            continue
        rows = []
        for comparison in COMPARISONS:
            pair = (comparison.first, comparison.second)
            best = results.gain(name, *pair)
            model = results.gain(name, *pair, chain=MODEL)
            kid = results.gain(name, *pair, metric="kid")
            kid = kid._replace(mean=1000 * kid.mean, error=1000 * kid.error)
            verdict = {"larger": "yes", "smaller": "no, worse", "unclear": "not shown"}[best.verdict]
            rows.append(
                [
                    f"{comparison.first_name} against {comparison.second_name}",
                    str(best.count),
                    estimate(best, sign=True),
                    interval(best),
                    verdict if best.count > 1 else ABSENT,
                    estimate(model, sign=True),
                    interval(model),
                    estimate(kid, 1, sign=True),
                ]
            )
        head = ["", "seeds", "FID", "interval", "better?", "FID at `beta` 1", "interval", "KID x 1000"]
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
                "A line for each seed; a filled dot where its base came to a plateau, an open one where it did not. "
                "Seconds are of the processor, without the looks."
            ),
            conditions(results, "curve_samples", beta=False),
        ]
    )


def precision(results: Results, figures: set[str]) -> str:
    """Return the section on precision and recall, and on copies."""
    parts = ["## Precision, recall and copies"]
    parts.append(
        paragraph(
            "A cold chain may gain in FID by leaving out what is rare: precision rises, recall falls. *Nearest* is the "
            "mean distance of samples to the nearest training image, over that of training images among themselves: "
            "well below one, samples are copies. Energies are each pair's own."
        )
    )
    for name in SETTINGS:
        if not results.of(name):
            continue
        rows = [
            _precision_row(results, name, objective, energy, chain, label)
            for objective in OBJECTIVES
            if results.of(name, objective)
            for energy, chain, label in ((None, COLD, "base"), ("own", MODEL, "`beta` 1"), ("own", COLD, "best chain"))
        ]
        head = ["trained by", "samples of", "precision", "recall", "nearest", "KID x 1000", "`beta` of each seed"]
        parts += [f"### {name.capitalize()}", table(head, rows)]
    if "precision" in figures:
        parts += ["![Precision over recall](FIGURE:precision)", conditions(results, "final_samples")]
    return "\n\n".join(parts)


def _precision_row(
    results: Results, name: str, objective: str, energy: str | None, chain: str, label: str
) -> list[str]:
    variant = Variant(objective, energy)
    cells = [
        estimate(mean_and_error(results.values(name, variant, metric, chain).values()), 3)
        for metric in ("precision", "recall", "nearest")
    ]
    kids = [1000 * value for value in results.values(name, variant, "kid", chain).values()]
    betas = results.values(name, variant, "beta", chain).values() if energy else ()
    return [
        LABELS[objective],
        label,
        *cells,
        estimate(mean_and_error(kids), 1),
        ", ".join(number(beta, 0) for beta in betas) or ABSENT,
    ]


def _missing(results: Results, name: str) -> str:
    return (seeds(results.missing(name)) or "none") if results.of(name) else "all"


def _lengths() -> str:
    """Return the lengths of the chains, setting by setting where they differ."""
    lengths: dict[str, list[str]] = {}
    for name, setting in SETTINGS.items():
        lengths.setdefault(", ".join(map(str, setting.chain_points)), []).append(name)
    return " or ".join(f"{points} ({', '.join(names)})" for points, names in lengths.items())
