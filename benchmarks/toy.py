"""``python -m benchmarks.toy``: ``docs/results/toy.md``, a GEBM against GANs and EBMs where the support is a curve.

The comparison comes from the pipeline as its users run it. That an energy is recovered is shown with the library alone,
on the base that made the data: with a base that is trained, data fix only the two together.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import nn

from benchmarks.cached_sweeps import runs, spread
from gebm import GEBM, Alternation, StandardNormal, Trainer, adam, log_partition_monte_carlo, objectives
from gebm.networks.mlp import MLPEnergy
from gebm.objectives.penalties import GradientPenalty
from pipeline.config import Config, from_dict
from pipeline.data.sources.tables import toy
from pipeline.tasks.points import PointScorer
from pipeline.tracking.summary import TrialRecord

SEEDS = "seed:{choice:[0,1,2]}"
EBM = ["model.networks=gaussian", "model.latent_dim=3", "train.train_base=false"]

PAGE = """# A curve in three dimensions

The data come from a known base, which maps a normal latent to a closed curve, and a known energy, which makes two parts
of the curve more likely: `conf=toy`, after the toy of Arbel, Zhou and Gretton (ICLR 2021). On a support without volume,
a GEBM and the methods it is compared with differ. The page is made by

```sh
python -m benchmarks.toy <folder>
```

Means over three seeds ± their standard errors, {steps} base steps of {energy_steps} energy steps each, MLPs of the same
size throughout (the EBM's base is a fixed standard normal on the whole space). *Distance* is the sliced Wasserstein
distance to test points, of the checkpoint that is best by validation points; two samples of that size of the true
distribution are {floor:.3f} apart. *Off the curve* is the mean distance to the nearest point of the true support.

| | distance: base | distance: with the energy | off the curve: base | off the curve: with the energy |
|---|---|---|---|---|
{rows}

For a GAN, the energy is its discriminator's, by which its samples are reweighted after training, as a GEBM's are. A
GAN as it is usually used is its base.

![Data, base and GEBM](../images/toy.png)

*Data, and base and GEBM of the first seed after its last step.*

## The energy is recovered

On the very base that made the data, an energy trained by KALE for {recovery_steps} steps, against the true one, over
{recovery_draws} draws of the true model: the standard deviation of the difference is {deviation:.3f} where the true
energy's own is {spread:.3f}. The trained log-partition `c` is {learned:+.3f}, that of the trained energy by 200,000
draws {estimate:+.3f}; and the KALE is {kale:.3f} nats where the Kullback-Leibler divergence is {divergence:.3f}.

With a trained base there is no single right energy: the closer the base comes to the data, the less is left for the
energy to correct.
"""


def compare(folder: Path) -> tuple[list[dict[str, Any]], Path]:
    """Run the sweeps; rows of scores, and the last figures of the first seed's GEBM."""
    rows = []
    objectives_ = "train.objective:{choice:[kale_fenchel,gan,hinge]}"
    found = runs(
        folder / "gebm-and-gans",
        "sweep",
        "conf=toy",
        "sweeps=comparison",
        "sweep.finalists=0",
        f"++sweep.space={{{objectives_},{SEEDS}}}",
    )
    names = {"kale_fenchel": "GEBM (KALE)", "gan": "GAN, logistic", "hinge": "GAN, hinge"}
    rows += [_row(label, found[objective]) for objective, label in names.items()]
    space = f"++sweep.space={{train.objective:{{choice:[kale_fenchel,pcd]}},{SEEDS}}}"
    ebm = runs(folder / "ebm", "sweep", "conf=toy", "sweeps=comparison", "sweep.finalists=0", *EBM, space)
    names = {"kale_fenchel": "EBM, KALE", "pcd": "EBM, persistent contrastive divergence"}
    rows += [_row(label, ebm[objective]) for objective, label in names.items()]
    shown = found["kale_fenchel"][0]
    figures = folder / "gebm-and-gans" / "trials" / shown.name / "figures"
    return rows, figures / f"step-{shown.metrics['base_step']:08d}"


def _row(label: str, trials: dict[int, TrialRecord]) -> dict[str, Any]:
    return {"label": label, "trials": [trial.best_metrics for trial in trials.values()]}


def recover(steps: int = 3_000, draws: int = 20_000) -> dict[str, float]:
    """Train an energy on the true base, and hold it against the true energy."""

    class Curve(nn.Module):
        def forward(self, z: torch.Tensor) -> torch.Tensor:
            return toy.base(z).float()

    torch.manual_seed(0)
    model = GEBM(Curve(), MLPEnergy(3, width=64, normalized=False), StandardNormal(1))
    trainer = Trainer(
        model,
        objective=objectives.make("kale_fenchel"),
        penalty=GradientPenalty(0.0),
        energy_optimizer=adam([*model.energy.parameters(), model.log_partition], lr=1e-3),
        alternation=Alternation(energy_steps=1, warmup_energy_steps=1),
        train_base=False,
    )
    data, generator = toy.sample(50_000, seed=1), torch.Generator().manual_seed(0)

    def batches():
        while True:
            yield data[torch.randint(len(data), (512,), generator=generator)]

    rows = batches()
    for _ in range(steps):
        trainer.step(rows, generator)
    with torch.no_grad():
        x = toy.sample(draws, seed=2)
        learned, true = model.energy(x), toy.energy(x)
        estimate, _ = log_partition_monte_carlo(model, 200_000, generator)
        kale = -learned.mean() - model.log_partition - (estimate - model.log_partition).exp() + 1
    return {
        "recovery_steps": steps,
        "recovery_draws": draws,
        "deviation": float((learned - true).std()),
        "spread": float(true.std()),
        "learned": model.log_partition.item(),
        "estimate": float(estimate),
        "kale": float(kale),
        "divergence": -float(true.mean()) - toy.log_partition(),
    }


def floor(test: int, samples: int, repeats: int = 20) -> float:
    """Return the mean distance of exact samples to exact test points."""
    found = []
    for repeat in range(repeats):
        points = toy.sample(test, seed=100 + repeat)
        scorer = PointScorer(points, points, None, lambda shown: shown)
        found.append(scorer.score({"points": toy.sample(samples, seed=200 + repeat)}, end=False)["distance"])
    return sum(found) / repeats


def document(rows: list[dict[str, Any]], config: Config) -> str:
    """Return the page."""
    keys = ("distance_base", "distance_gebm", "off_support_base", "off_support_gebm")
    lines = [
        f"| {row['label']} | {' | '.join(spread([scores[key] for scores in row['trials']], 3) for key in keys)} |"
        for row in rows
    ]
    return PAGE.format(
        rows="\n".join(lines),
        steps=f"{config.train.base_steps:,}",
        energy_steps=config.train.energy_steps,
        floor=floor(toy.NUM_ROWS // 10, config.evaluation.num_samples),
        **recover(),
    )


def main() -> None:
    """Run what is missing, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where the sweeps lie, or will")
    parser.add_argument("--page", type=Path, default=Path("docs/results/toy.md"), help="the page to write")
    arguments = parser.parse_args()
    rows, figures = compare(arguments.folder.absolute())
    config = from_dict(yaml.safe_load((arguments.folder / "gebm-and-gans" / "config.yaml").read_text()))
    arguments.page.write_text(document(rows, config))
    images = arguments.page.parent.parent / "images"
    images.mkdir(exist_ok=True)
    shutil.copy(figures / "base_and_gebm.png", images / "toy.png")
    print(f"written: {arguments.page}")


if __name__ == "__main__":
    main()
