"""The page's sections on the question itself: what was run, the scores, and the comparisons paired by seed."""

from __future__ import annotations

from benchmarks.claim.formatting import ABSENT, change, estimate, interval, number, paragraph, seeds, share_of, table
from benchmarks.claim.penalties import PENALTY_SAMPLES, PENALTY_STEPS
from benchmarks.claim.results import BEST, ENERGIES, LABELS, MODEL, Results, Variant, is_model
from benchmarks.claim.settings import OBJECTIVES, PENALTIES, PENALTY, SAMPLERS, SEEDS, SETTINGS, experiment
from benchmarks.claim.verdict import COMPARISONS, GAN, HEADLINE_CONFIDENCE, HEADLINES, VERDICTS
from pipeline.evaluation.metrics.nearest_neighbors import NUM_MEASURED
from pipeline.evaluation.metrics.reference_statistics import MAX_FEATURES
from pipeline.tracking.seed_statistics import CONFIDENCE, Difference, mean_and_error

__all__ = ["comparisons", "conditions", "curves", "extractors", "precision", "scores", "setup"]

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


def setup(results: Results) -> str:
    """Return the section on what was run, and how much of it is there."""
    rows = []
    for name, setting in SETTINGS.items():
        config = experiment(setting, GAN, 0)
        rows.append(
            [
                name,
                setting.title,
                f"`{config.model.networks}`, width {config.model.width}, {config.model.latent_dim} latents",
                f"{config.train.batch_size}",
                f"{config.train.energy_lr:g}, {config.train.base_lr:g}",
                f"{config.train.warmup_energy_steps}",
                f"{config.data.held_out:,}",
                f"{setting.base_steps:,}",
                f"{setting.evaluate_every}",
                f"{setting.phase_steps}",
                share_of(len(results.of(name)), len(OBJECTIVES) * len(SEEDS)),
                _missing(results, name),
                seeds(results.not_converged(name)) or "none",
            ]
        )
    head = ["name", "data", "networks", "batch", "rates of energy and base", "energy steps of a warm-up"]
    head += ["held out", "base steps", "a look every"]
    head += ["energy steps of the final phase, at most", "runs there", "missing", "not converged"]
    config = experiment(SETTINGS["digits"], GAN, 0)
    train = config.train
    rule = """
        Every base is trained for the same number of steps. One is called *not converged* if the mean FID of its last
        three looks is still better than that of the three before, by more than the standard error of their difference.
        At first this rule, fixed beforehand, ended the runs. It takes a slow fall within the noise of six looks for a
        plateau, so where it first holds is luck: now it only says which bases were still improving. [By how much, and
        where it would have ended them](#lag-of-the-base) is measured below.
        """
    same = f"""
        Each base step has {train.energy_steps} energy steps before it; the first {train.warmup_base_steps} and every
        {train.warmup_every}th have those of a warm-up. All objectives have the same networks, rates (Adam with betas
        {train.beta1:g} and {train.beta2:g}), batches, {train.penalty_kind} penalty, spectral normalization of the
        energy, gradient guard (`{train.gradient_guard}`) and seeds. None of these was tuned for one of the objectives;
        rates are those that KALE was first tried with. The [weight of the penalty](#the-penalty-of-each-objective) was
        chosen for each objective by one search that is the same for all. The Wasserstein GAN is one under these bounds
        on its critic, not WGAN-GP; only its critic has no floor.
        """
    search = f"""
        On each base three energies are sampled: {"; ".join(f"*{label}*" for label in ENERGIES.values())}. A phase ends
        by the KALE of held-out data, whatever its loss, or after the most steps. A critic or energy whose loss does not
        determine its level begins a phase with a mean of zero on base samples. Every energy gets the same search of
        {len(SAMPLERS)} settings of ULA with chains of {_lengths()} steps, from the base's own latents:
        {_grid()}. The setting with the lowest FID is scored on other latents. Earlier
        runs, whose best chains were at the far end of a smaller search, gave this one its range.
        """
    own = """
        A *GEBM* and a *GAN with its discriminator* (DDLS, Che et al. 2020, at `beta` 1) are sampled with the energy of
        their own loss: as trained, or after the final phase by that loss, whichever that search prefers. There is no
        phase by the hinge and the Wasserstein loss; their energies are those as trained.
        """
    parts = ["## What was run", table(head, rows), *map(paragraph, (rule, same, search, own)), _penalties(results)]
    return "\n\n".join(part for part in parts if part)


def _penalties(results: Results) -> str:
    """Return the section on the search for each objective's penalty."""
    fids = {(row["setting"], row["objective"], row["penalty"]): row["fid"] for row in results.penalties}
    rows = [
        [
            name,
            LABELS[objective],
            *(number(fids.get((name, objective, penalty))) for penalty in PENALTIES),
            f"{PENALTY[name][objective]:g}",
        ]
        for name in PENALTY
        for objective in OBJECTIVES
    ]
    intro = f"""
        The penalty bounds how steep an energy is, and losses of another scale need another weight. Before the runs,
        each objective was trained for {PENALTY_STEPS:,} base steps with each of the weights
        {", ".join(f"{penalty:g}" for penalty in PENALTIES)}, of which the paper's is 1, on a seed that no run has. The
        runs have the weight whose base had the lowest FID; until all were tried, it is the paper's. A final phase has
        that of its own loss, whatever the base was trained by.
        """
    head = ["data", "trained by", *(f"FID at {penalty:g}" for penalty in PENALTIES), "in the runs"]
    labels = ", ".join(sorted({f"`{row['extractor']}`" for row in results.penalties})) or ABSENT
    caption = f"*By extractor {labels}; {PENALTY_SAMPLES:,} samples; bases alone, no chain; one seed.*"
    borrowed = "".join(
        f" {name.capitalize()} have those of {setting.taken_from}."
        for name, setting in SETTINGS.items()
        if setting.taken_from
    )
    parts = ["### The penalty of each objective", paragraph(intro + borrowed), table(head, rows), paragraph(caption)]
    return "\n\n".join([*parts, *map(paragraph, _first_round(results))])


def _first_round(results: Results) -> list[str]:
    """Return for each setting how the runs before the search differed: it was added after they had been looked at."""
    before, texts = Results(results.first_round), []
    for name in SETTINGS:
        if not before.of(name):
            continue
        [penalty] = {run["penalty"] for run in before.of(name)}
        [first, *_] = HEADLINES
        bases = ", ".join(
            f"{LABELS[objective]} {estimate(mean_and_error(before.values(name, Variant(objective)).values()))}"
            for objective in OBJECTIVES
            if before.of(name, objective)
        )
        texts.append(
            f"The search was added after a first round of runs on the {name}, in which all objectives had a penalty of "
            f"{penalty:g} and a smaller search of samplers. Its bases had an FID of {bases}, and that of "
            f"{first.first_name} was {change(before.gain(name, first.first, first.second))} than that of "
            f"{first.second_name}."
        )
    return texts


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
        for objective in OBJECTIVES:
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
            "By how much the first one's score is lower, which is better: mean ± standard error over the seeds that "
            f"both have, and the interval by Student's t. The intervals of the first {len(HEADLINES)} hold together "
            f"with {CONFIDENCE:.0%} in a table ({HEADLINE_CONFIDENCE:.2%} each, Bonferroni); those of the others, and "
            f"of KID, hold with {CONFIDENCE:.0%} each, and some may leave zero out by chance. *The model itself* is by "
            "weights."
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
            model = results.gain(name, *pair, chain=MODEL)
            kid = _thousandfold(results.gain(name, *pair, metric="kid"))
            rows.append(
                [
                    f"{comparison.first_name} against {comparison.second_name}",
                    str(best.count),
                    estimate(best, sign=True),
                    interval(best),
                    VERDICTS[best.verdict] if best.count > 1 else ABSENT,
                    estimate(model, sign=True) if all(map(is_model, pair)) else ABSENT,
                    estimate(kid, 1, sign=True),
                    interval(kid, 1),
                ]
            )
        head = ["", "seeds", "FID", "interval", "better?", "FID of the model itself", "KID x 1000", "interval"]
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
                "was not. Seconds are of the processor, without the looks."
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


def _missing(results: Results, name: str) -> str:
    return (seeds(results.missing(name)) or "none") if results.of(name) else "all"


def _thousandfold(found: Difference) -> Difference:
    mean, error, low, high = (1000 * value for value in found[:4])
    return Difference(mean, error, low, high, found.count)


def _grid() -> str:
    """Return the settings of the search, by temperature."""
    betas = dict.fromkeys(sampler.beta for sampler in SAMPLERS)
    steps = {beta: [f"{one.step_size:g}" for one in SAMPLERS if one.beta == beta] for beta in betas}
    return ", ".join(f"`beta` {beta:g} with steps of {' and '.join(sizes)}" for beta, sizes in steps.items())


def _lengths() -> str:
    """Return the lengths of the chains, setting by setting where they differ."""
    lengths: dict[str, list[str]] = {}
    for name, setting in SETTINGS.items():
        lengths.setdefault(", ".join(map(str, setting.chain_points)), []).append(name)
    return " or ".join(f"{points} ({', '.join(names)})" for points, names in lengths.items())
