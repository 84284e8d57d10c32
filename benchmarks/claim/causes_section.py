"""The page's sections on what makes or breaks an energy, each with what was measured."""

from __future__ import annotations

import math
import statistics
from itertools import pairwise
from typing import Any

from benchmarks.claim.energy_experiments import FLAT, OVERFIT
from benchmarks.claim.figures import best_by_beta, drift
from benchmarks.claim.formatting import ABSENT, change, estimate, number, paragraph, share_of, table
from benchmarks.claim.guard import GUARD_PENALTY, GUARD_SAMPLES, GUARD_SEEDS, GUARD_STEPS
from benchmarks.claim.outcome_section import BETA, conditions
from benchmarks.claim.plateau import first_plateau, recent_fall
from benchmarks.claim.results import BEST, LABELS, MODEL, OWN_PHASE, Results, Variant, chosen_energy
from benchmarks.claim.settings import OBJECTIVES, SAMPLERS, SETTINGS
from benchmarks.claim.verdict import GAN
from gebm import EnergyPhase
from gebm.training import gradient_guard
from gebm.training.gradient_guard import ClipGradients
from pipeline.tracking.seed_statistics import CONFIDENCE, mean_and_error, paired_difference

__all__ = ["flat", "guard", "lag", "overfit", "phase", "temperature"]


def guard(results: Results) -> str:
    """Return the section on the energy that one batch knocks out."""
    total = len(OBJECTIVES) * len(gradient_guard.NAMES) * len(GUARD_SEEDS)
    intro = f"""
        The Fenchel form of KALE holds `exp(-(E + c))` of single base samples: one sample can have a gradient many times
        that of a usual batch. Adam keeps its square in the second moment, so all steps are the smaller for it until it
        is forgotten, and the energy stops learning. A *gradient guard* bounds what one batch can do: `clip` scales the
        energy's gradient to a norm of at most {ClipGradients().max_norm:g}, `arbel` is the transform of the authors'
        code, `none` is Algorithm 1 as it is written. Photographs, {GUARD_STEPS} base steps, penalty
        {GUARD_PENALTY:g} for all, as weak as when energies were knocked out, so this does not say what a guard is worth
        under the penalties of the runs; {share_of(len(results.guard), total)} runs are there.
        """
    parts = ["### The knocked-out energy", paragraph(intro)]
    rows = []
    for objective in OBJECTIVES:
        for name in gradient_guard.NAMES:
            runs = [row for row in results.guard if (row["objective"], row["guard"]) == (objective, name)]
            if runs:
                rows.append([LABELS[objective], f"`{name}`", *_guard_cells(runs)])
    if rows:
        head = ["objective", "guard", "FID of each seed", "FID", "largest loss"]
        head += [
            "largest root of Adam's second moment",
            "mean of minus the loss, penalty left out, over the second half",
        ]
        labels = ", ".join(sorted({f"`{row['extractor']}`" for row in results.guard}))
        parts += [table(head, rows), f"*By extractor {labels}; {GUARD_SAMPLES:,} samples; bases alone, no chain.*"]
        parts.append(paragraph(" ".join(_guard_findings(results))))
    return "\n\n".join(part for part in parts if part)


def _guard_cells(runs: list[dict[str, Any]]) -> list[str]:
    runs = sorted(runs, key=lambda row: row["seed"])
    return [
        ", ".join(number(row["fid"]) for row in runs),
        estimate(mean_and_error(row["fid"] for row in runs)),
        number(max(row["largest_energy_loss"] for row in runs)),
        number(max(row["largest_second_moment"] for row in runs), 4),
        number(statistics.fmean(row["mean_lower_bound"] for row in runs), 3),
    ]


def _guard_findings(results: Results) -> list[str]:
    """Return, for each objective, what a guard changes against none, paired by seed."""
    texts = []
    for objective in OBJECTIVES:
        fids = {
            name: {
                row["seed"]: row["fid"]
                for row in results.guard
                if (row["objective"], row["guard"]) == (objective, name)
            }
            for name in gradient_guard.NAMES
        }
        found = [(name, paired_difference(fids["none"], fids[name])) for name in gradient_guard.NAMES if name != "none"]
        changes = [f"{change(difference)} with `{name}`" for name, difference in found if difference.count]
        if changes:
            alone = all(difference.count <= 1 for _, difference in found)
            text = f"{LABELS[objective]}: FID {' and '.join(changes)}"
            texts.append(text + (" (one seed, which shows nothing)." if alone else "."))
    return ["Against no guard, paired by seed:", *texts] if texts else []


def flat(results: Results) -> str:
    """Return the section on energies that are too flat or too steep."""
    steps = sorted({job.base_steps for job in FLAT})
    intro = f"""
        The gradient penalty and spectral normalization bound how steep the energy is. A flat energy reweights nothing:
        its KALE is near zero, and its weights are all alike (their effective sample size is all of the samples). One
        that is too steep has losses that blow up. KALE-F on the digits with the guard `clip`,
        {" or ".join(f"{count:,}" for count in steps)} base steps; {share_of(len(results.flat), len(FLAT))} runs are
        there, mean ± standard error over seeds. Without the normalization, an energy begins as the same function.
        {_flat_finding(results)}
        """
    parts = ["### Flat energies", paragraph(intro)]
    rows = []
    for penalty, normalized in dict.fromkeys((job.penalty, job.spectral_norm) for job in FLAT):
        runs = [row for row in results.flat if (row["penalty"], row["spectral_norm"]) == (penalty, normalized)]
        if runs:
            rows.append([f"{penalty:g}", "on" if normalized else "off", str(len(runs)), *_flat_cells(runs)])
    if rows:
        head = ["penalty", "spectral norm", "seeds", "FID, base", "FID, reweighted", "held-out KALE", "training KALE"]
        head += ["spread of energies", "weights' ESS", "largest loss"]
        labels = ", ".join(sorted({f"`{row['extractor']}`" for row in results.flat}))
        counts = ", ".join(sorted({f"{row['samples']:,}" for row in results.flat}))
        parts += [table(head, rows)]
        parts.append(f"*By extractor {labels}; {counts} samples; reweighted is `beta` = 1. KALE and spread in nats.*")
    return "\n\n".join(parts)


def _flat_cells(runs: list[dict[str, Any]]) -> list[str]:
    def quality(key: str, digits: int = 3) -> str:
        return estimate(mean_and_error(row["quality"][key] for row in runs), digits)

    reweighted = [row["weighted_fid"] for row in runs if row["weighted_fid"] is not None]
    return [
        estimate(mean_and_error(row["fid"] for row in runs)),
        estimate(mean_and_error(reweighted)),
        quality("held_out_kale"),
        quality("train_kale"),
        quality("held_out_spread"),
        quality("held_out_weights_ess"),
        number(max(row["largest_energy_loss"] for row in runs)),
    ]


def _flat_finding(results: Results) -> str:
    """Return which penalty had the best base, and what reweighting gained there, with spectral normalization."""
    found = {}
    for penalty in dict.fromkeys(job.penalty for job in FLAT):
        runs = [row for row in results.flat if row["penalty"] == penalty and row["spectral_norm"]]
        if runs and all(row["weighted_fid"] is not None for row in runs):
            base, weighted, ess = (
                statistics.fmean(values)
                for values in (
                    [row["fid"] for row in runs],
                    [row["weighted_fid"] for row in runs],
                    [row["quality"]["held_out_weights_ess"] for row in runs],
                )
            )
            found[penalty] = (base, base - weighted, ess)
    if len(found) < 2:
        return ""
    best, steepest = min(found, key=lambda one: found[one][0]), min(found, key=lambda one: found[one][2])
    (base, gain, ess), (other, other_gain, other_ess) = found[best], found[steepest]
    return (
        f"With it, the base is best at penalty {best:g}, with an FID of {number(base)}, which reweighting lowers by "
        f"{number(gain)}, and weights with an effective sample size of {number(ess, 3)}. The energy is steepest at "
        f"penalty {steepest:g}: FID {number(other)}, lowered by {number(other_gain)}, effective sample size "
        f"{number(other_ess, 3)}."
        + (" So a flatter energy made the better base, and gains less by weights." if gain < other_gain else "")
    )


def temperature(results: Results, figures: set[str]) -> str:
    """Return the section on the temperature of the chains, and on how far they go."""
    points = [point for setting in SETTINGS.values() for point in setting.chain_points]
    intro = f"""
        {BETA}: in the end a chain samples the base reweighted by `exp(-beta E)`, which is another distribution than
        the model where `beta` is above one, and may be better by FID all the same. Chains of
        {min(points)} to {max(points)} steps do not come to that end. They are short noisy descents from the base. How
        far the energy drives one is `beta` times the step size times the number of steps, its *drift*; of chains with
        the same drift the coldest has the least noise.{_at_equal_drift(results)}
        """
    parts = ["### Temperature and drift", paragraph(intro)]
    if "drift" in figures:
        parts += ["![FID over the drift of a chain](FIGURE:drift)"]
        parts.append("Each point is a setting of the search at one number of steps: the mean over seeds.")
        parts.append(conditions(results, "tuning_samples"))
    rows = []
    for name in SETTINGS:
        farthest = max(one.beta * one.step_size for one in SAMPLERS) * max(SETTINGS[name].chain_points)
        for objective in OBJECTIVES:
            runs = results.of(name, objective)
            if not runs:
                continue
            energies = [chosen_energy(run) for run in runs]
            chosen = [run["energies"][energy]["chain"] for run, energy in zip(runs, energies, strict=True)]
            drops = [
                scores[1.0] - min(scores.values())
                for scores in (best_by_beta(run, energy) for run, energy in zip(runs, energies, strict=True))
            ]
            drifts = [drift(chain) for chain in chosen]
            rows.append(
                [
                    name,
                    LABELS[objective],
                    ", ".join(f"{one:g}" for one in drifts),
                    share_of(sum(math.isclose(one, farthest) for one in drifts), len(drifts)),
                    ", ".join(f"{chain['beta']:g}" for chain in chosen),
                    estimate(mean_and_error(drops)),
                ]
            )
    if rows:
        head = ["data", "own energy of", "drift of each seed's best chain", "at the search's farthest"]
        head += ["its `beta`", "FID lower than at `beta` 1 in the search by"]
        parts.append(table(head, rows))
        parts.append(
            "Where the best chain is the farthest of the search, a longer one may be better still, whatever the energy."
        )
    return "\n\n".join(parts)


def _at_equal_drift(results: Results) -> str:
    """Return how often, of chains with the same drift, the coldest is the best, and a cooler one no better."""
    coldest, cases, worse, pairs = 0, 0, 0, 0
    for name in SETTINGS:
        for objective in OBJECTIVES:
            groups: dict[float, dict[float, list[float]]] = {}
            for run in results.of(name, objective):
                for row in run["energies"]["as_trained"]["tuning"]:
                    groups.setdefault(drift(row), {}).setdefault(row["beta"], []).append(row["fid"])
            for fids in groups.values():
                means = {beta: statistics.fmean(ones) for beta, ones in sorted(fids.items())}
                if len(means) > 1:
                    cases += 1
                    coldest += min(means, key=lambda beta: means[beta]) == max(means)
                    pairs += len(means) - 1
                    worse += sum(means[cold] > means[warm] for warm, cold in pairwise(means))
    if not cases:
        return ""
    return (
        f" In {share_of(coldest, cases)} cases of data, loss and drift the coldest has the lowest mean FID of the "
        f"search, by energies as trained. But in {share_of(worse, pairs)} steps from one `beta` to the next colder one "
        f"at the same drift FID rises, so noise alone does not explain it."
    )


def phase(results: Results, figures: set[str]) -> str:
    """Return the section on the final phase."""
    intro = f"""
        In the alternation the energy follows a base that moves, and ends a little behind it. In a final phase the
        energy alone is trained, on the base as it ended, until its KALE on held-out data has stopped rising, or
        the most steps are over; the energy with the highest is kept, so the KALE *after* is a little too high. KALE
        is in nats and by {EnergyPhase(1).num_samples:,} base samples: an estimate near or above their logarithm,
        {math.log(EnergyPhase(1).num_samples):.1f}, is no measurement. Differences are paired by seed, each energy at
        its own best sampler setting; reweighted is `beta` 1 without a chain.
        """
    parts = ["### The final phase", paragraph(intro + _phase_finding(results))]
    rows = []
    for name in SETTINGS:
        for objective in OBJECTIVES:
            for energy in ("kale_phase", "gan_phase"):
                if results.of(name, objective):
                    rows.append([name, LABELS[objective], *_phase_cells(results, name, objective, energy)])
    if rows:
        head = ["data", "base trained by", "phase by", "steps of each seed", "took the most steps"]
        head += ["held-out KALE before", "after"]
        head += ["FID lower than as trained by", "reweighted FID lower by"]
        parts.append(table(head, rows))
    if "phases" in figures:
        parts += [
            "![KALE over the final phase](FIGURE:phases)",
            "*A line for each seed, of the phase by KALE; `beta` plays no part.*",
        ]
    return "\n\n".join(parts)


def _phase_finding(results: Results) -> str:
    """Return how many of the phases are shown to lower FID."""
    gains = [
        results.gain(name, Variant(objective, energy), Variant(objective, "as_trained"), chain=chain)
        for name in SETTINGS
        for objective in OBJECTIVES
        for energy in ("kale_phase", "gan_phase")
        for chain in (BEST, MODEL)
    ]
    counted = [[gain.verdict for gain in ones if gain.count > 1] for ones in (gains[::2], gains[1::2])]
    if not counted[0]:
        return ""
    said = [
        f"{share_of(verdicts.count('larger'), len(verdicts))} lower, {verdicts.count('smaller')} higher"
        for verdicts in counted
    ]
    return f" By intervals of {CONFIDENCE:.0%} each: {said[0]}; reweighted {said[1]}."


def _phase_cells(results: Results, name: str, objective: str, energy: str) -> list[str]:
    runs = results.of(name, objective)
    phases = [run["energies"][energy]["phase"] for run in runs]
    before, after = (
        mean_and_error(run["energies"][key]["quality"]["held_out_kale"] for run in runs)
        for key in ("as_trained", energy)
    )
    as_trained, with_phase = (
        {run["seed"]: run["energies"][key]["weighted"]["fid"] for run in runs} for key in ("as_trained", energy)
    )
    gain = results.gain(name, Variant(objective, energy), Variant(objective, "as_trained"))
    return [
        ("KALE" if energy == "kale_phase" else "logistic") + (" (own)" if OWN_PHASE.get(objective) == energy else ""),
        ", ".join(f"{phase['steps']:,}" for phase in phases),
        share_of(sum(phase["steps_taken"] >= SETTINGS[name].phase_steps for phase in phases), len(phases)),
        estimate(before, 3),
        estimate(after, 3),
        estimate(gain, sign=True),
        estimate(paired_difference(as_trained, with_phase), sign=True),
    ]


def overfit(results: Results, figures: set[str]) -> str:
    """Return the section on overfitting."""
    intro = f"""
        KALE on training data may rise for as long as one likes; on held-out data it falls from where the energy begins
        to know single images. Here the energy is trained for {OVERFIT[0].energy_steps:,} steps on a base that does not
        change, on few and on many data, to see whether it comes to that, with a penalty of {OVERFIT[0].penalty:g};
        {share_of(len(results.overfit), len(OVERFIT))} runs are there.
        """
    parts = ["### Overfitting", paragraph(intro)]
    for job in OVERFIT:
        for row in results.overfit:
            if row["setting"] == job.setting:
                parts.append(paragraph(_overfit_finding(row)))
    if "overfit" in figures:
        parts += ["![KALE over a long phase](FIGURE:overfit)", "*One seed each; `beta` plays no part.*"]
    return "\n\n".join(parts)


def _overfit_finding(row: dict[str, Any]) -> str:
    history = row["history"]
    best, last = max(history, key=lambda look: look["held_out_kale"]), history[-1]
    return (
        f"**{row['setting'].capitalize()}** ({SETTINGS[row['setting']].title}; {row['held_out']:,} held out, "
        f"{row['base_steps']:,} base steps before): held-out KALE is highest after {best['steps']:,} energy steps, "
        f"{number(best['held_out_kale'], 3)} nats. After {last['steps']:,} it is {number(last['held_out_kale'], 3)}, "
        f"and that of training data {number(last['train_kale'], 3)}: a gap of "
        f"{number(last['train_kale'] - last['held_out_kale'], 3)} where it was "
        f"{number(best['train_kale'] - best['held_out_kale'], 3)}.{_bound(best['held_out_kale'])}"
    )


def _bound(kale: float) -> str:
    """Return a sentence where KALE is more than an estimate by so few base samples can be."""
    limit = math.log(EnergyPhase(1).num_samples)
    return (
        f" Above {limit:.1f} nats, the logarithm of the number of base samples, KALE is too high."
        if kale > limit
        else ""
    )


def lag(results: Results) -> str:
    """Return the section on how far a base is behind the GAN's at the same step, and how far all were still falling."""
    intro = f"""
        How far each base is behind that of the {LABELS[GAN]} at the same step, and how fast it was still falling. FID
        is by the samples of the learning curves, fewer than those of the scores above, and on other latents. *Still
        falling* is by how much the mean of the last three evaluations is below that of the three before, in percent.
        The rule of a plateau, had it ended the runs, would have ended some that differ in their seed alone long before
        others.
        """
    parts = ["### Lag of the base", paragraph(intro)]
    rows = []
    for name in SETTINGS:
        found = results.at_the_last_common_step(name)
        if found is None:
            continue
        step, fids = found
        for objective, at in fids.items():
            ours = results.of(name, objective)
            behind = paired_difference(at, fids.get(GAN, {}))
            rows.append(
                [
                    name,
                    LABELS[objective],
                    f"{step:,}",
                    estimate(mean_and_error(at.values())),
                    ABSENT if objective == GAN else estimate(behind, sign=True),
                    estimate(mean_and_error(100 * recent_fall(_fids(run)) for run in ours), 0),
                    ", ".join(map(_first_plateau, ours)),
                    estimate(mean_and_error(run["curve"][-1]["seconds"] for run in ours), 0),
                    share_of(sum(run["converged"] for run in ours), len(ours)),
                ]
            )
    if rows:
        head = ["data", "trained by", "base step", "FID there", f"more than {LABELS[GAN]}", "still falling, %"]
        head += ["step where the rule first held, by seed", "seconds of the run", "converged"]
        parts.append(table(head, rows))
        parts.append(conditions(results, "curve_samples", beta=False))
    return "\n\n".join(parts)


def _fids(run: dict[str, Any]) -> list[float]:
    return [look["fid"] for look in run["curve"]]


def _first_plateau(run: dict[str, Any]) -> str:
    """Return the base step at which the rule of a plateau first held."""
    count = first_plateau(_fids(run))
    return "never" if count is None else f"{run['curve'][count - 1]['base_step']:,}"
