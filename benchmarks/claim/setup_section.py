"""The page's section on what was run: data and networks, how chains are chosen, penalties, and the rounds before."""

from __future__ import annotations

from benchmarks.claim.figures import drift
from benchmarks.claim.formatting import ABSENT, number, paragraph, seeds, share_of, table
from benchmarks.claim.penalties import PENALTY_SAMPLES, PENALTY_STEPS
from benchmarks.claim.results import ENERGIES, LABELS, Results
from benchmarks.claim.settings import OBJECTIVES, PENALTIES, PENALTY, SAMPLERS, SEEDS, SETTINGS, experiment
from benchmarks.claim.verdict import GAN, GEBM, HEADLINE_CONFIDENCE, HEADLINES, cell
from pipeline.tracking.seed_statistics import Difference

__all__ = ["setup"]


def setup(results: Results) -> str:
    """Return the section on what was run, and how much of it is there."""
    train = experiment(SETTINGS["digits"], GAN, 0).train
    rule = """
        Every base of a data set is trained for the same number of steps. One is called *not converged* if the mean FID
        of its last three evaluations is still better than that of the three before, by more than the standard error of
        their difference. [How fast they were still falling](#lag-of-the-base) is measured below.
        """
    same = f"""
        Each base step has {train.energy_steps} energy steps before it; the first {train.warmup_base_steps} and every
        {train.warmup_every}th have those of a warm-up. All objectives have the same networks, rates (Adam with betas
        {train.beta1:g} and {train.beta2:g}), batches, {train.penalty_kind} penalty, spectral normalization of the
        energy, gradient guard (`{train.gradient_guard}`) and seeds. Rates are those that KALE was first tried with, and
        the guard is there for [KALE](#the-knocked-out-energy): only the [weight of the
        penalty](#the-penalty-of-each-objective) is each objective's own, so the GANs may not be at their best. The
        Wasserstein GAN is one under these bounds on its critic, not WGAN-GP; only its critic has no floor.
        """
    counts = sorted({f"{setting.tuning_samples:,}" for setting in SETTINGS.values()})
    search = f"""
        On each base three energies are sampled: {"; ".join(f"*{label}*" for label in ENERGIES.values())}. A phase ends
        by the KALE of held-out data, whatever its loss, or after the most steps. A critic or energy whose loss does not
        determine its level begins a phase with a mean of zero on base samples. Every energy gets the same search of
        {len(SAMPLERS)} settings of ULA with chains of {_lengths()} steps, from the base's own latents:
        {_grid()}. The setting with the lowest FID of {" or ".join(counts)} samples
        is scored on other latents. So few samples choose with some luck, the same for every energy.
        """
    own = f"""
        A *GEBM* and a *GAN with its discriminator* are sampled with the energy of their own loss: as trained, or after
        the final phase by that loss, whichever that search prefers. That is the best of
        {2 * len(SAMPLERS) * len(SETTINGS["digits"].chain_points)} chains; a KALE energy on the GAN's base has half as
        many to choose from, and the GAN alone none. At `beta` 1 the GAN with its discriminator is DDLS (Che et al.
        2020). There is no phase by the hinge and the Wasserstein loss; their energies are those as trained.
        """
    parts = ["## What was run", _sizes(results), *map(paragraph, (rule, same, search, own))]
    return "\n\n".join([*parts, _penalties(results), *_rounds(results)])


def _sizes(results: Results) -> str:
    """Return the table of data, networks and budgets, a column for each setting."""
    columns = []
    for name, setting in SETTINGS.items():
        config = experiment(setting, GAN, 0)
        columns.append(
            [
                setting.title,
                f"`{config.model.networks}`, width {config.model.width}, {config.model.latent_dim} latents",
                f"{config.train.batch_size}",
                f"{config.train.energy_lr:g}, {config.train.base_lr:g}",
                f"{config.train.warmup_energy_steps}",
                f"{config.data.held_out:,}",
                f"{setting.base_steps:,}, evaluated every {setting.evaluate_every}",
                f"at most {setting.phase_steps} energy steps",
                share_of(len(results.of(name)), len(OBJECTIVES) * len(SEEDS)),
                (seeds(results.missing(name)) or "none") if results.of(name) else "all",
                seeds(results.not_converged(name)) or "none",
            ]
        )
    names = ["data", "networks", "batch", "rates of energy and base", "energy steps of a warm-up", "images held out"]
    names += ["base steps", "final phase", "runs there", "missing", "not converged"]
    rows = [[name, *(column[row] for column in columns)] for row, name in enumerate(names)]
    return table(["", *SETTINGS], rows)


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
        if any((name, objective, penalty) in fids for penalty in PENALTIES)
    ]
    intro = f"""
        The penalty bounds how steep an energy is, and losses of another scale need another weight. Before the runs,
        each objective was trained for {PENALTY_STEPS:,} base steps with each of the weights
        {", ".join(f"{penalty:g}" for penalty in PENALTIES)}, of which the paper's is 1, on a seed that no run has. The
        runs have the weight whose base had the lowest FID; an objective that was not tried with all of them has the
        paper's. It is one seed, so differences of a few tenths may be luck. A final phase has the weight of its own
        loss, whatever the base was trained by.
        """
    head = ["data", "trained by", *(f"FID at {penalty:g}" for penalty in PENALTIES), "in the runs"]
    labels = ", ".join(sorted({f"`{row['extractor']}`" for row in results.penalties})) or ABSENT
    caption = f"*By extractor {labels}; {PENALTY_SAMPLES:,} samples; bases alone, no chain; one seed.*"
    borrowed = "".join(
        f" {name.capitalize()} have those of {setting.taken_from}."
        for name, setting in SETTINGS.items()
        if setting.taken_from
    )
    parts = ["### The penalty of each objective", paragraph(intro + borrowed)]
    return "\n\n".join([*parts, table(head, rows), paragraph(caption)] if rows else parts)


def _rounds(results: Results) -> list[str]:
    """Return the section on the rounds of runs before these: settings were changed after they had been looked at."""
    rounds = [
        (f"round {index}, {name}", found, name)
        for index, runs in enumerate(results.earlier, 1)
        for name in SETTINGS
        if (found := Results(runs)).of(name)
    ]
    if not rounds:
        return []
    before = {name for _, _, name in rounds}
    rounds += [(f"now, {name}", results, name) for name in SETTINGS if name in before and results.of(name)]
    intro = """
        Settings were changed after runs had been looked at, so here is what those said. Round 1 ended each base by the
        rule of the plateau. It takes a slow fall within the noise of six evaluations for a plateau, and where it first
        holds is luck. In round 2 all bases of a data set had the same number of steps. Both had the same penalty for
        all objectives. Now it is searched for each, and the search of samplers goes farther, because the best chains of
        the first pair of photographs were the farthest of theirs. No other figure of this page is of an earlier round.
        """
    columns = [
        [*_design(found, name), *(cell(_headline(found, name, index)) for index in range(len(HEADLINES)))]
        for _, found, name in rounds
    ]
    names = ["penalty", "base steps", "settings of the search", "farthest drift of the search", "seeds of both"]
    names += [one.title for one in HEADLINES]
    rows = [[name, *(column[row] for column in columns)] for row, name in enumerate(names)]
    return ["### Earlier rounds", paragraph(intro), table(["", *(title for title, _, _ in rounds)], rows)]


def _headline(results: Results, name: str, index: int) -> Difference:
    one = HEADLINES[index]
    return results.gain(name, one.first, one.second, confidence=HEADLINE_CONFIDENCE)


def _design(results: Results, name: str) -> list[str]:
    """Return what a round had: penalties, base steps, the size and the reach of its search, and its seeds."""
    runs = [run for objective in (GEBM, GAN) for run in results.of(name, objective)]
    penalties = sorted({run.get("penalty", PENALTY[name].get(run["objective"])) for run in runs})
    steps = dict.fromkeys((min(run["base_steps"] for run in runs), max(run["base_steps"] for run in runs)))
    tuning = [row for run in runs for row in run["energies"]["as_trained"]["tuning"]]
    both = {run["seed"] for run in results.of(name, GEBM)} & {run["seed"] for run in results.of(name, GAN)}
    return [
        ", ".join(f"{penalty:g}" for penalty in penalties),
        " to ".join(f"{step:,}" for step in steps),
        str(len({(row["beta"], row["step_size"], row["num_steps"]) for row in tuning})),
        f"{max(map(drift, tuning)):g}",
        str(len(both)),
    ]


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
