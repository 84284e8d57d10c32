"""``python -m benchmarks.claim``: the page ``docs/results.md``, a GEBM against its base and against GANs, on images.

Three parts, each a command of its own, and all of them if none is named:

- ``comparison``: GEBM and GANs with the same networks, rates, steps and seeds; and the GEBM trained in float32.
- ``chain``: FID along the chain of each sampler, on one trained model, each at the setting that a small grid finds.
- ``search``: a sweep over both learning rates and the step size, and one over the sampler on its best checkpoint.

Every number comes from the pipeline as its users run it. A sweep that is there already is not run again, one that was
interrupted goes on, and the page has the parts that are there. The store is made once:

    python -m pipeline.shards conf=cifar10 data.store=cifar10-jpeg data.source.kind=images data.source.url=<its zip>
"""

from __future__ import annotations

import argparse
import json
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullFormatter

from benchmarks.pages import evaluation, spread, summary

SEEDS = "seed:{choice:[0,1,2]}"
# A narrow network and few steps: what two cores train a dozen times in half an hour.
SETTING = {
    "data.store": "cifar10-jpeg",
    "model.networks": "sngan_resnet",
    "model.width": 16,
    "train.batch_size": 32,
    "train.penalty": 0.1,
    "train.warmup_energy_steps": 20,
    "train.energy_lr": "3e-4",
    "train.base_lr": "3e-4",
    "train.precision": "bfloat16",
    "train.base_steps": 600,
    "evaluation.every": 600,
    "evaluation.extractor": "classifier",
    "evaluation.num_samples": 2000,
    "evaluation.metrics": "[fid,kid]",
    "evaluation.chain_points": 5,
    "sampler.num_steps": 50,
    "sampler.step_size": "3e-3",
    "sampler.beta": 1,
    "sampler.decay": 1.0,
    "sampler.precision": "auto",
}
OBJECTIVES = {"kale_fenchel": "GEBM (KALE)", "gan": "GAN, logistic", "hinge": "GAN, hinge"}
# What each sampler is tried with before its chain is drawn. Temperatures other than one are not the model itself.
SAMPLERS: dict[str, dict[str, list[float]]] = {
    "ula": {"sampler.step_size": [1e-3, 1e-2], "sampler.beta": [1, 10]},
    "kla": {"sampler.step_size": [1e-2, 1e-1], "sampler.friction": [1, 10]},
    "mala": {"sampler.step_size": [1e-3, 1e-2]},
    "imh": {"sampler.beta": [1, 3]},
    "dot": {"sampler.step_size": [1e-2, 1e-1]},
}
SEARCH = {
    "train.base_steps": 200,
    "evaluation.every": 100,
    "evaluation.num_samples": 1000,
    "evaluation.metrics": "[fid]",
    "evaluation.chain_points": 2,
    "sweep.num_trials": 24,
    "sweep.grace_steps": 100,
}
SPACE = (
    "train.energy_lr:{log_uniform:[1e-4,1e-3]},train.base_lr:{log_uniform:[1e-4,1e-3]},"
    "sampler.step_size:{log_uniform:[1e-3,3e-2]}"
)
SAMPLER_SPACE = (
    "sampler.name:{choice:[ula,kla]},sampler.step_size:{log_uniform:[1e-3,3e-1]},sampler.friction:{log_uniform:[0.1,10.0]},"
    "sampler.beta:{choice:[1.0,3.0,10.0]},sampler.num_steps:{choice:[20,50,100]}"
)
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")  # Okabe and Ito's

HEAD = """# Does a GEBM beat the GAN?

Arbel, Zhou and Gretton (ICLR 2021) claim that, all else being equal, a GEBM outperforms the GAN. Here that is tried on
`cifar10-jpeg`, the 50,000 training photographs of CIFAR-10 (Krizhevsky 2009) re-encoded as JPEG, so no figure here can
be held against a published one of CIFAR-10. FID and KID are by the extractor `{extractor}`, a small classifier trained
here on the store's own labels, and not by Inception: compare them with each other only.

**The budget** is that of two CPU cores: `{networks}` of width {width} (published: 128), batches of {batch},
{steps:,} base steps of {energy_steps} energy steps each (the paper's runs have 150,000 of batches of 128). The bases
are far from trained out, and what is compared are methods at that budget.

Made by `python -m benchmarks.claim <folder>`, of which each part below is a command of its own.
"""

COMPARISON = """## GEBM, its base, and GANs

`python -m benchmarks.claim <folder> comparison`: mean ± standard error over three seeds, {samples:,} samples. Networks,
rates, batches, steps and seeds are the same throughout; what differs is the pair of losses. The chain is {chain}
from the base's own latents. A GAN as it is usually used is its base; with its discriminator as the energy it is sampled
as the GEBM is.

| | FID, base | FID, with the energy | gain, each seed | KID x 1000, base | KID x 1000, with the energy |
|---|---|---|---|---|---|
{rows}

{verdict}

![FID of each seed](images/results-comparison.png)
"""

CHAIN = """## Along the chain

`python -m benchmarks.claim <folder> chain`: one trained GEBM (seed 0 of the table above), {samples:,} chains a sampler,
{chain_steps} steps. A sampler's setting is the best of a small grid, by chains from other latents. At a temperature
other than one (`beta`) what is sampled is not the model but a colder one, as in the paper.

| sampler | setting | FID after {chain_steps} steps | gradients a step | acceptance | seconds for {samples:,} chains |
|---|---|---|---|---|---|
{rows}

![FID along the chain](images/results-chain.png)

Left at equal gradient evaluations (an independence sampler's step takes none: it is counted as its one evaluation of
the potential), right at equal time, which hangs on what else the machine does.
"""

SEARCH_PAGE = """## The search

`python -m benchmarks.claim <folder> search`: {trials} trials of at most {steps} base steps, random points, ASHA;
{ended} were trained to the end. The best has `energy_lr` {energy_lr:.2g}, `base_lr` {base_lr:.2g} and `step_size`
{step_size:.2g}: FID {gebm:.2f} (base {base:.2f}; {samples:,} samples). In {gained} of {scored} trials the energy gained
over its base.

![Response surfaces](images/results-search.png)

On its checkpoint, `sweeps=mcmc` over sampler, step size, friction, temperature and number of steps ({sampler_trials}
trials) finds {found}: FID {sampled:.2f}.
"""


def words(*settings: dict[str, Any]) -> list[str]:
    """The settings as words of a command line."""
    joined = {key: value for setting in settings for key, value in setting.items()}
    return [f"{key}={value}" for key, value in joined.items()]


def compare(folder: Path, images: Path) -> str:
    """Run the comparison, and write its section."""
    space = f"++sweep.space={{train.objective:{{choice:[{','.join(OBJECTIVES)}]}},{SEEDS}}}"
    found = summary(folder / "comparison", "sweep", "conf=cifar10", "sweeps=comparison", *words(SETTING), space)
    full = {**SETTING, "train.precision": "float32"}
    exact = summary(
        folder / "float32", "sweep", "conf=cifar10", "sweeps=comparison", *words(full), f"++sweep.space={{{SEEDS}}}"
    )
    groups = {
        label: _scores(found, lambda trial, name=name: trial["params"]["train.objective"] == name)
        for name, label in OBJECTIVES.items()
    }
    groups["GEBM, trained in float32"] = _scores(exact, lambda trial: True)
    rows = []
    for label, trials in groups.items():
        gains = ", ".join(f"{scores['fid_base'] - scores['fid_gebm']:.2f}" for scores in trials)
        fid = [spread([scores[key] for scores in trials]) for key in ("fid_base", "fid_gebm")]
        kid = [spread([1000 * scores[key] for scores in trials], 1) for key in ("kid_base", "kid_gebm")]
        rows.append(f"| {label} | {' | '.join([*fid, gains, *kid])} |")
    _draw_comparison(groups, images / "results-comparison.png")
    sampler = f"{SETTING['sampler.num_steps']} ULA steps of {SETTING['sampler.step_size']} at `beta` "
    return COMPARISON.format(
        samples=SETTING["evaluation.num_samples"],
        chain=sampler + str(SETTING["sampler.beta"]),
        rows="\n".join(rows),
        verdict=_verdict(groups),
    )


def walk(folder: Path, images: Path) -> str:
    """Run each sampler on one model, and write the section."""
    compared = summary(folder / "comparison", "sweep")
    [trial] = [
        trial
        for trial in compared["trials"]
        if trial["params"]["train.objective"] == "kale_fenchel" and trial["params"]["seed"] == 0
    ]
    model = f"checkpoint={trial['best_checkpoint']}"
    curves, rows = {}, []
    for name, grid in SAMPLERS.items():
        choices = ",".join(f"{key}:{{choice:{values}}}".replace(" ", "") for key, values in grid.items())
        tried = summary(
            folder / f"chain-{name}",
            "sweep",
            "conf=cifar10",
            "sweeps=comparison",
            model,
            *words(SETTING, {"sampler.name": name, "evaluation.num_samples": 500, "evaluation.metrics": "[fid]"}),
            "seed=1",
            f"++sweep.space={{{choices}}}",
        )
        best = {**tried["best"]["params"], "sampler.name": name}
        number = {"evaluation.num_samples": SETTING["evaluation.num_samples"], "evaluation.chain_points": 10}
        measured = evaluation(folder / f"chain-{name}-best", model, *words(best, number))
        curves[name] = measured
        scores, told = measured["scores"], ", ".join(f"{key.split('.')[1]} {best[key]:g}" for key in grid)
        rows.append(
            f"| {name.upper()} | {told} | {scores['fid_gebm']:.2f} | {_gradients(measured):g} | "
            f"{scores.get('acceptance_rate', 1.0):.2f} | {_seconds(measured):.0f} |"
        )
    _draw_chains(curves, images / "results-chain.png")
    return CHAIN.format(
        samples=SETTING["evaluation.num_samples"], chain_steps=SETTING["sampler.num_steps"], rows="\n".join(rows)
    )


def search(folder: Path, images: Path) -> str:
    """Run both searches, and write their section."""
    found = summary(
        folder / "search",
        "sweep",
        "conf=cifar10",
        "sweeps=asha",
        *words(SETTING, SEARCH),
        f"++sweep.space={{{SPACE}}}",
    )
    best, trials = found["best"], [trial for trial in found["trials"] if trial["best_metrics"]]
    model = f"checkpoint={best['best_checkpoint']}"
    sampled = summary(
        folder / "search-mcmc",
        "sweep",
        "conf=cifar10",
        "sweeps=mcmc",
        model,
        *words(SETTING, SEARCH),
        "sweep.num_trials=12",
        f"++sweep.space={{{SAMPLER_SPACE}}}",
    )
    _draw_search(trials, images / "results-search.png")
    params = ", ".join(
        f"`{key.split('.')[1]}` {value:.2g}" if isinstance(value, float) else f"`{key.split('.')[1]}` {value}"
        for key, value in sampled["best"]["params"].items()
    )
    return SEARCH_PAGE.format(
        trials=len(found["trials"]),
        steps=SEARCH["train.base_steps"],
        ended=sum(trial["metrics"].get("base_step") == SEARCH["train.base_steps"] for trial in trials),
        samples=SEARCH["evaluation.num_samples"],
        sampler_trials=len(sampled["trials"]),
        found=params,
        sampled=sampled["best"]["metrics"]["fid_gebm"],
        gained=sum(trial["best_metrics"]["fid_gebm"] < trial["best_metrics"]["fid_base"] for trial in trials),
        scored=len(trials),
        gebm=best["metrics"]["fid_gebm"],
        base=best["metrics"]["fid_base"],
        **{key.split(".")[1]: value for key, value in best["params"].items()},
    )


PARTS: dict[str, Callable[[Path, Path], str]] = {"comparison": compare, "chain": walk, "search": search}


def _scores(found: dict[str, Any], wanted: Callable[[dict[str, Any]], bool]) -> list[dict[str, float]]:
    trials = sorted((trial for trial in found["trials"] if wanted(trial)), key=lambda trial: trial["params"]["seed"])
    return [trial["best_metrics"] for trial in trials]


def _verdict(groups: dict[str, list[dict[str, float]]]) -> str:
    """What the table says of the claim, in words that hang on its numbers."""
    ours, *others = [(label, trials) for label, trials in groups.items() if label in OBJECTIVES.values()]
    gains = [scores["fid_base"] - scores["fid_gebm"] for scores in ours[1]]
    better = sum(gain > 0 for gain in gains)
    text = (
        f"The energy makes the GEBM better than its own base on {better} of {len(gains)} seeds, by {spread(gains)} FID."
    )
    for label, trials in others:
        # Seed by seed, for a seed is a start that all of them share.
        behind = [gan["fid_base"] - gebm["fid_gebm"] for gebm, gan in zip(ours[1], trials, strict=True)]
        won = sum(gain > 0 for gain in behind)
        text += (
            f" Against the {label.replace('GAN, ', '')} GAN's base it wins on {won} of {len(behind)} seeds; the GAN's "
            f"FID less the GEBM's is {spread(behind)}."
        )
    text += " Three seeds are few, and a difference within twice its standard error shows nothing."
    return textwrap.fill(text, 120)


def _gradients(measured: dict[str, Any]) -> float:
    """Gradients of the potential a step takes; of a kernel that takes none, its evaluations of the potential."""
    return measured["gradients_per_step"] or 1


def _seconds(measured: dict[str, Any]) -> float:
    """Seconds that the chains took, without what judges them."""
    steps = measured["num_samples"] * measured["sampler"]["num_steps"]
    return steps / measured["scores"]["chain_steps_per_second"]


def _axes(count: int, height: float = 3.6) -> tuple[Figure, list[Any]]:
    figure = Figure(figsize=(4.6 * count, height), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = list(figure.subplots(1, count, squeeze=False)[0])
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _draw_comparison(groups: dict[str, list[dict[str, float]]], path: Path) -> None:
    figure, [axis] = _axes(1)
    for place, trials in enumerate(groups.values()):
        for scores in trials:
            axis.plot([place - 0.15, place + 0.15], [scores["fid_base"], scores["fid_gebm"]], color="#999999", zorder=1)
        for offset, key, colour, marker, name in (
            (-0.15, "fid_base", COLOURS[0], "o", "base"),
            (0.15, "fid_gebm", COLOURS[1], "^", "with the energy"),
        ):
            heights = [scores[key] for scores in trials]
            axis.scatter(
                [place + offset] * len(heights), heights, color=colour, marker=marker, label=None if place else name
            )
    axis.set_xticks(
        range(len(groups)), [label.replace(", ", ",\n").replace(" (", "\n(") for label in groups], fontsize=8
    )
    axis.set_ylabel("FID (extractor trained here)")
    axis.legend(frameon=False, fontsize=8)
    figure.savefig(path)


def _draw_chains(curves: dict[str, dict[str, Any]], path: Path) -> None:
    figure, (left, right) = _axes(2)
    for colour, (name, measured) in zip(COLOURS, curves.items(), strict=False):
        steps, heights = [int(step) for step in measured["chain"]], list(measured["chain"].values())
        seconds = _seconds(measured) / measured["sampler"]["num_steps"]
        for axis, unit in ((left, _gradients(measured)), (right, seconds)):
            axis.plot(
                [step * unit for step in steps], heights, color=colour, marker="o", markersize=3, label=name.upper()
            )
    left.set_xlabel("gradient evaluations a chain")
    right.set_xlabel(f"seconds for {SETTING['evaluation.num_samples']:,} chains")
    left.set_ylabel("FID (extractor trained here)")
    right.legend(frameon=False, fontsize=8)
    figure.savefig(path)


def _draw_search(trials: list[dict[str, Any]], path: Path) -> None:
    figure, (left, right) = _axes(2)
    heights = [trial["best_metrics"]["fid_gebm"] for trial in trials]
    points = left.scatter(
        [trial["params"]["train.base_lr"] for trial in trials],
        [trial["params"]["train.energy_lr"] for trial in trials],
        c=heights,
        cmap="viridis_r",
        s=[20 + 60 * trial["metrics"]["base_step"] / SEARCH["train.base_steps"] for trial in trials],
        edgecolors="#444444",
    )
    figure.colorbar(points, ax=left, label="best FID of the trial")
    left.set(xscale="log", yscale="log", xlabel="base_lr", ylabel="energy_lr", title="size: how far it was trained")
    left.title.set_fontsize(8)
    gains = [trial["best_metrics"]["fid_base"] - trial["best_metrics"]["fid_gebm"] for trial in trials]
    right.scatter([trial["params"]["sampler.step_size"] for trial in trials], gains, color=COLOURS[0])
    right.axhline(0, color="#999999", linewidth=0.8)
    right.set(xscale="log", xlabel="step_size of ULA", ylabel="FID gained over the base")
    for axis, ticks in (
        (left.xaxis, [1e-4, 3e-4, 1e-3]),
        (left.yaxis, [1e-4, 2e-4, 4e-4, 8e-4]),
        (right.xaxis, [1e-3, 3e-3, 1e-2, 3e-2]),
    ):
        axis.set_major_locator(FixedLocator(ticks))
        axis.set_major_formatter(lambda value, place: f"{value:g}")
        axis.set_minor_formatter(NullFormatter())
    figure.savefig(path)


def document(sections: list[str], extractor: str, config: dict[str, Any]) -> str:
    """The page, from its sections."""
    head = HEAD.format(
        extractor=extractor,
        networks=config["model"]["networks"],
        width=config["model"]["width"],
        batch=config["train"]["batch_size"],
        steps=config["train"]["base_steps"],
        energy_steps=config["train"]["energy_steps"],
    )
    return "\n".join([head, *sections])


def main() -> None:
    """Run what is missing of the parts asked for, and write the page of those that are there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where the sweeps lie, or will")
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], default=[], help="all by default")
    parser.add_argument("--page", type=Path, default=Path("docs/results.md"), help="the page to write")
    arguments = parser.parse_args()
    folder = arguments.folder.absolute()
    images = arguments.page.parent / "images"
    images.mkdir(exist_ok=True, parents=True)
    asked = arguments.parts or list(PARTS)
    last = {"comparison": "float32", "chain": "chain-dot-best", "search": "search-mcmc"}
    sections = [
        write(folder, images) for part, write in PARTS.items() if part in asked or (folder / last[part]).exists()
    ]
    trained = next(path for path in (folder / "comparison", folder / "search") if path.exists())
    config = yaml.safe_load((trained / "config.yaml").read_text())
    label = json.loads((trained / "summary.json").read_text())["measure"].removeprefix("FID by ")
    arguments.page.write_text(document(sections, label, config))
    print(f"written: {arguments.page}")


if __name__ == "__main__":
    main()
