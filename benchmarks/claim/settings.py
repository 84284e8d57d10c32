"""The three data sets that two cores can decide the claim on, the objectives, and the search that all of them get."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import yaml

from pipeline import config as schema

__all__ = [
    "OBJECTIVES",
    "PENALTIES",
    "PENALTY",
    "ROUNDS",
    "SAMPLERS",
    "SEEDS",
    "SETTINGS",
    "WITHOUT_LEVEL",
    "SamplerSetting",
    "Setting",
    "experiment",
]

SEEDS = (0, 1, 2, 3, 4)

# What differs between two runs of one seed: the pair of losses; and under the Wasserstein loss the energy has no floor.
OBJECTIVES: dict[str, dict[str, Any]] = {
    "kale_fenchel": {},
    "gan": {},
    "hinge": {},
    "kale_dv": {},
    "wasserstein": {"model.energy_floor": float("-inf")},
}


# Weights of the gradient penalty that each objective's is chosen from. The paper's is 1.
PENALTIES = (0.1, 1.0, 10.0)

# What was chosen: the weight whose base has the lowest FID in the short runs of :mod:`benchmarks.claim.penalties`.
PENALTY: dict[str, dict[str, float]] = {
    "digits": {"kale_fenchel": 1.0, "gan": 1.0, "hinge": 1.0, "kale_dv": 1.0, "wasserstein": 1.0},
    "photographs": {"kale_fenchel": 1.0, "gan": 1.0, "hinge": 1.0, "kale_dv": 1.0, "wasserstein": 1.0},
}

# A constant more or less of the energy changes nothing in these losses.
WITHOUT_LEVEL = ("kale_dv", "wasserstein")

# The order of the runs: first the two that the claim compares, in all seeds, then the others.
ROUNDS = (("kale_fenchel", "gan"), ("kale_dv", "hinge", "wasserstein"))


@dataclass(frozen=True)
class SamplerSetting:
    """One point of the sampler's search: ULA at an inverse temperature and a step size."""

    beta: float
    step_size: float


# The same for every energy. At ``beta`` 1 the chain samples the model itself, at a larger one a colder model.
SAMPLERS = (
    SamplerSetting(1.0, 1e-2),
    SamplerSetting(1.0, 1e-1),
    SamplerSetting(10.0, 3e-3),
    SamplerSetting(10.0, 1e-2),
    SamplerSetting(100.0, 3e-4),
    SamplerSetting(100.0, 1e-3),
    SamplerSetting(100.0, 3e-3),
    SamplerSetting(1000.0, 1e-4),
    SamplerSetting(1000.0, 3e-4),
    SamplerSetting(1000.0, 1e-3),
)


@dataclass(frozen=True)
class Setting:
    """A data set with its networks and its budget, the same for every objective.

    Attributes:
        name: As files and tables call it.
        title: A sentence about the data.
        overrides: Keys of the experiment ``digits`` that are others here.
        evaluate_every: Base steps between two looks at the base.
        base_steps: Base steps of a run.
        curve_samples: Samples at each of those looks.
        chain_points: Steps of a chain at which its samples are scored; the last is its length.
        tuning_samples: Samples that a sampler's setting is chosen by.
        final_samples: Samples of each final score.
        phase_steps: Energy steps of the final phase, at most.
        taken_from: The setting whose classifier gives the features and whose penalties were chosen; ``None`` for its
            own.
    """

    name: str
    title: str
    overrides: dict[str, Any]
    evaluate_every: int
    base_steps: int
    curve_samples: int = 5000
    chain_points: tuple[int, ...] = (25, 50, 100)
    tuning_samples: int = 2000
    final_samples: int = 10_000
    phase_steps: int = 600
    taken_from: str | None = None


_PHOTOGRAPHS = {
    "model.networks": "dcgan",
    "model.width": 16,
    "model.latent_dim": 64,
    "data.resolution": 16,
    "data.channels": 3,
    "data.source.kind": "images",
    "train.batch_size": 64,
    "train.energy_lr": 2e-4,
    "train.base_lr": 2e-4,
    "train.warmup_energy_steps": 20,
    # Not bfloat16, which only some of these machines have: the same arithmetic on all of them.
    "train.precision": "float32",
}

SETTINGS: dict[str, Setting] = {
    "digits": Setting(
        name="digits",
        title="scikit-learn's 1,797 handwritten digits at 8 x 8",
        overrides={
            # Half the preset's width: a run is some fifteen minutes of one core.
            "model.width": 16,
            "data.store": "digits-8",
            "data.held_out": 180,
            "train.batch_size": 64,
            "train.energy_lr": 3e-4,
            "train.base_lr": 3e-4,
            "train.precision": "float32",
        },
        evaluate_every=250,
        base_steps=6000,
        tuning_samples=1000,
    ),
    "photographs": Setting(
        name="photographs",
        title="the 50,000 training photographs of `cifar10-jpeg` at 16 x 16",
        overrides={**_PHOTOGRAPHS, "data.store": "cifar10-jpeg-16", "data.held_out": 2000},
        evaluate_every=200,
        base_steps=6000,
        chain_points=(10, 25, 50),
        tuning_samples=1000,
        phase_steps=400,
    ),
    "horses": Setting(
        name="horses",
        title="one class of them, 5,000 photographs of horses, at 16 x 16",
        overrides={
            **_PHOTOGRAPHS,
            "data.store": "horse-16",
            "data.held_out": 500,
        },
        evaluate_every=200,
        base_steps=4000,
        chain_points=(10, 25, 50),
        tuning_samples=1000,
        phase_steps=400,
        # Its store has no labels to train a classifier on.
        taken_from="photographs",
    ),
}


def experiment(setting: Setting, objective: str, seed: int, overrides: dict[str, Any] | None = None) -> schema.Config:
    """Return the config of one run.

    Args:
        setting: Data, networks and budget.
        objective: A key of ``OBJECTIVES``.
        seed: Of weights, data order, latents and noise.
        overrides: Other keys.

    Returns:
        The config, over the experiment ``digits``.

    Example:
        >>> experiment(SETTINGS["digits"], "wasserstein", 3).model.energy_floor
        -inf
    """
    values = yaml.safe_load((schema.config_root() / "conf" / "digits.yaml").read_text())
    ours = {
        "train.objective": objective,
        "train.penalty": PENALTY[setting.taken_from or setting.name][objective],
        "train.gradient_guard": "clip",
        "train.final_energy_steps": 0,
        "train.base_steps": setting.base_steps,
        "seed": seed,
    }
    return schema.apply(
        schema.from_dict(values), {**setting.overrides, **OBJECTIVES[objective], **ours, **(overrides or {})}
    )
