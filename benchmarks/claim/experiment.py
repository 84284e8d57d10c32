"""One run of the claim: a base is trained, its energies are trained on, each is sampled at its own best setting.

What is measured of each run, all from one trained pair:

- the base alone, and its learning curve by base steps and by seconds;
- three energies on it: as trained (for a GAN, its discriminator: DDLS, Che et al. 2020), and after the same final phase
  by KALE and by the logistic loss, each stopped by held-out KALE;
- each energy by importance weights, which are the model itself, and by the best chain of one search that all energies
  get, chosen on other latents than it is scored on.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks.claim.plateau import is_plateau
from benchmarks.claim.result_files import write_json
from benchmarks.claim.settings import SAMPLERS, SETTINGS, WITHOUT_LEVEL, SamplerSetting, Setting, experiment
from benchmarks.claim.short_runs import measure_quality
from gebm import GEBM, EnergyPhase, Trainer, adam, initialize_log_partition, objectives, penalties
from gebm.folding import folded
from gebm.training.gradient_guard import ClipGradients
from pipeline import config as schema
from pipeline import tasks
from pipeline.data import Position, open_store
from pipeline.evaluation import metrics
from pipeline.evaluation.chains import run_chains
from pipeline.evaluation.evaluator import resampled
from pipeline.evaluation.metrics.classifier_training import classifier_url
from pipeline.training.build_model import make_trainer, model_to_train
from pipeline.training.checkpoint_format import load_state
from pipeline.training.checkpoints import Checkpoints, read
from pipeline.training.step_generator import step_generator

__all__ = ["Bench", "OutOfTime", "run"]

_TUNING_LATENTS, _FINAL_LATENTS, _CURVE_LATENTS = 11, 23, 37  # seeds: a setting is not chosen by what it is scored on
_BATCH = 500  # chains at once
_FLOOR = -10.0  # of Arbel, Zhou and Gretton, ICLR 2021
_METRICS = ("fid", "kid", "prc")


class OutOfTime(Exception):
    """The time that was given is over; what was done is kept, and the same command resumes there."""


class Bench:
    """What all runs of a setting share: the store, the feature extractor and what data look like to it.

    Args:
        setting: The data set.
    """

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        config = experiment(setting, "kale_fenchel", 0)
        self.store = open_store(config.data.store)
        weights = None
        if setting.taken_from is not None:
            lender = open_store(experiment(SETTINGS[setting.taken_from], "gan", 0).data.store)
            metrics.make_extractor("classifier", store=lender)
            weights = classifier_url(lender)
        self.weights = weights
        self.extractor = metrics.make_extractor("classifier", store=self.store, weights=weights)
        self.reference = metrics.reference(self.store, self.extractor)

    def features(self, samples: Tensor) -> dict[str, Tensor]:
        """Return the extractor's layers of samples in [-1, 1] (N, C, H, W), a row a sample."""
        return metrics.features(metrics.to_uint8(samples), self.extractor)

    def score(self, features: dict[str, Tensor], names: tuple[str, ...] = ("fid",)) -> dict[str, float]:
        """Return the scores of samples by their features."""
        scores = metrics.score(features, self.reference, self.extractor, metrics=names)
        if "prc" in names:
            scores["nearest"] = metrics.nn_distance_ratio(features["embedding"], self.reference, self.spacing)
        return scores

    @functools.cached_property
    def spacing(self) -> float:
        """The usual distance of one datum to the nearest other."""
        return metrics.mean_nn_distance(self.reference.features)


class Trained(NamedTuple):
    """A base, with the energy it was trained against.

    Attributes:
        trainer: What trained them.
        work: The data.
        curve: A row for each look: base step, seconds of training so far, FID of the base.
        converged: Whether the base was at a plateau in the end.
    """

    trainer: Trainer
    work: tasks.TaskWorker
    curve: list[dict[str, float]]
    converged: bool


def run(
    bench: Bench,
    objective: str,
    seed: int,
    folder: Path,
    *,
    out_of_time: Callable[[], bool],
    log: Callable[[str], None],
) -> dict[str, Any]:
    """Run one objective from one seed, resuming what is in the folder.

    Args:
        bench: The setting.
        objective: A key of ``OBJECTIVES``.
        seed: The seed.
        folder: Where its checkpoints are kept.
        out_of_time: Asked between two parts; ends the run there.
        log: Takes lines about the progress.

    Returns:
        All that was measured, for JSON.

    Raises:
        OutOfTime: The time is over; the same call resumes.
    """
    setting = bench.setting
    config = experiment(setting, objective, seed)
    trained = _train(bench, config, folder, out_of_time, log)
    model = trained.trainer.sampling_model()
    energies = folder / f"energies-{setting.base_steps}.json"
    result: dict[str, Any] = {
        "setting": setting.name,
        "objective": objective,
        "seed": seed,
        "extractor": bench.extractor.label,
        "base_steps": trained.trainer.base_step,
        "converged": trained.converged,
        "curve": trained.curve,
        "energies": _read_json(energies),
    }
    for name in ("as_trained", "kale_phase", "gan_phase"):
        if name not in result["energies"]:
            if out_of_time():
                raise OutOfTime
            energy, measured = _prepare_energy(name, trained, config)
            measured |= _sample(bench, energy, config, log=lambda line, name=name: log(f"{name}: {line}"))
            result["energies"][name] = measured
            write_json(energies, result["energies"])
    samples = _draw_base(model, setting.final_samples, _FINAL_LATENTS)
    result["base"] = bench.score(bench.features(samples), _METRICS)
    return result


def _train(
    bench: Bench, config: schema.Config, folder: Path, out_of_time: Callable[[], bool], log: Callable[[str], None]
) -> Trained:
    """Train a base, keeping a checkpoint at each look."""
    setting, device = bench.setting, torch.device("cpu")
    if bench.weights is not None:
        config.evaluation.weights = bench.weights
    work = tasks.make(config).open(0, 1, device)
    model = model_to_train(config, device)
    checkpoints = Checkpoints(str(folder))
    curve: list[dict[str, float]] = []
    position, seconds = Position(), 0.0
    if checkpoints.last is None:
        initialize_log_partition(model, config.train.log_partition_samples, step_generator(config, "log-partition", 0))
    trainer = make_trainer(model, config, device)
    if checkpoints.last is not None:
        checkpoint = read(checkpoints.last)
        load_state(model, checkpoint)
        trainer.load_state_dict(checkpoint.training["trainer"])
        position = Position(**checkpoint.state["position"])
        curve, seconds = checkpoint.state["report"]["curve"], checkpoint.state["report"]["seconds"]
    batches = work.batches(position)

    while trainer.base_step < setting.base_steps:
        if out_of_time():
            raise OutOfTime
        began = time.process_time()
        for _ in range(setting.evaluate_every):
            trainer.step(batches, step_generator(config, "step", trainer.base_step))
        seconds += time.process_time() - began
        samples = _draw_base(trainer.sampling_model(), setting.curve_samples, _CURVE_LATENTS)
        fid = bench.score(bench.features(samples))["fid"]
        curve.append({"base_step": trainer.base_step, "seconds": round(seconds, 1), "fid": round(fid, 4)})
        log(f"base step {trainer.base_step}: FID {fid:.3f}, {seconds:.0f} s")
        checkpoints.save(
            trainer.base_step,
            model=trainer.gebm.state_dict(),
            training={"trainer": trainer.state_dict(), "plateau": {"tensors": {}, "values": {}}},
            state={
                "position": dataclasses.asdict(batches.position),
                "random": {"seed": config.seed, "base_step": trainer.base_step},
                "report": {"curve": curve, "seconds": seconds},
                "config": schema.to_dict(config),
            },
            score=None,
        )
    return Trained(trainer, work, curve, is_plateau([row["fid"] for row in curve]))


def _prepare_energy(name: str, trained: Trained, config: schema.Config) -> tuple[GEBM, dict[str, Any]]:
    """Return the model with the energy of that name, and what it knows of data that were held out."""
    model = copy.deepcopy(trained.trainer.sampling_model()).eval()
    if name == "as_trained":
        return model, {"quality": measure_quality(model, trained.work, _FINAL_LATENTS)}
    phase, result = train_phase(model, trained.work, config, name.removesuffix("_phase"))
    history = [
        {"steps": steps, "held_out_kale": unseen.kale, "train_kale": seen.kale if seen else None}
        for steps, unseen, seen in result.history
    ]
    measured = {"phase": {"steps": result.steps, "steps_taken": result.steps_taken, "history": history}}
    return phase, {**measured, "quality": measure_quality(model, trained.work, _FINAL_LATENTS)}


def train_phase(
    model: GEBM,
    work: tasks.TaskWorker,
    config: schema.Config,
    loss: str,
    *,
    patience: int = 4,
    steps: int | None = None,
    penalty: float | None = None,
) -> tuple[GEBM, Any]:
    """Train a model's energy alone, in place, on its base as it is: the same phase whatever the base was trained by.

    Args:
        model: The model.
        work: The data.
        config: Of the run that made it.
        loss: ``kale`` or ``gan``.
        patience: Looks without a better held-out KALE; 0 takes all steps.
        steps: Energy steps at most; ``None`` takes the setting's.
        penalty: Weight of the penalty; ``None`` takes the loss's own in the setting.

    Returns:
        The model, and how the phase went.
    """
    setting, name = SETTINGS[_name_of(config)], {"kale": "kale_fenchel", "gan": "gan"}[loss]
    objective = objectives.make(name)
    if penalty is None:
        penalty = experiment(setting, name, config.seed).train.penalty
    if config.train.objective in WITHOUT_LEVEL:
        _center(model)
    # The critic of the Wasserstein loss has no floor; in the phases all energies have the same.
    model.energy.floor = _FLOOR
    if objective.trains_log_partition:
        initialize_log_partition(model, 4096, torch.Generator().manual_seed(config.seed))
    trainer = Trainer(
        model,
        objective=objective,
        penalty=penalties.make(config.train.penalty_kind, penalty),
        energy_optimizer=adam(
            [*model.energy.parameters(), model.log_partition],
            config.train.energy_lr,
            betas=(config.train.beta1, config.train.beta2),
        ),
        train_base=False,
        gradient_guard=ClipGradients(),
    )
    phase = EnergyPhase(steps or setting.phase_steps, check_every=25, patience=patience)
    # Data in an order that the run has not seen: epochs that it never comes to.
    batches = work.batches(Position(epoch=1_000_000, step=0))
    result = phase.run(
        trainer,
        batches,
        lambda step: step_generator(config, f"phase-{loss}", step),
        held_out=work.held_out,
        seen=work.seen,
    )
    return model.eval(), result


@torch.no_grad()
def _center(model: GEBM) -> None:
    """Move an energy whose level its loss does not determine to a mean of zero on base samples, in place.

    Far from there the floor would take the gradients of all data, and the logistic loss would have nothing to learn
    from. Its last layer has a bias, which is the level.
    """
    samples = _draw_base(model, 4096, _TUNING_LATENTS)
    level = torch.cat([model.energy(part) for part in samples.split(_BATCH)]).mean()
    *_, last = (layer for layer in model.energy.modules() if isinstance(layer, torch.nn.Linear))
    last.bias.sub_(level)


def _name_of(config: schema.Config) -> str:
    [name] = [name for name, s in SETTINGS.items() if s.overrides["data.store"] == config.data.store]
    return name


def _sample(bench: Bench, model: GEBM, config: schema.Config, log: Callable[[str], None]) -> dict[str, Any]:
    """Tune the sampler on some latents, and score its best setting, and base samples by their weights, on others."""
    setting = bench.setting
    tried = []
    for sampler in SAMPLERS:
        chain = _chain(bench, model, config, sampler, setting.tuning_samples, _TUNING_LATENTS, ("fid",))
        tried += [{**dataclasses.asdict(sampler), "num_steps": steps, **scores} for steps, scores in chain.items()]
    best = min(tried, key=lambda row: row["fid"])
    log(f"best at beta {best['beta']:g}, step size {best['step_size']:g}, {best['num_steps']} steps: {best['fid']:.3f}")
    points = (best["num_steps"],)
    sampler = SamplerSetting(best["beta"], best["step_size"])
    scores = _chain(bench, model, config, sampler, setting.final_samples, _FINAL_LATENTS, _METRICS, points)
    picked = {key: best[key] for key in ("beta", "step_size", "num_steps")}
    found: dict[str, Any] = {"tuning": tried, "chain": {**picked, **scores[best["num_steps"]]}}
    samples = _draw_base(model, setting.final_samples, _FINAL_LATENTS)
    with torch.no_grad():
        energies = torch.cat([model.energy(part) for part in samples.split(_BATCH)])
    rows = resampled(energies)
    weighted = {layer: values[rows] for layer, values in bench.features(samples).items()}
    found["weighted"] = {"fid": bench.score(weighted)["fid"]}
    return found


def _chain(
    bench: Bench,
    model: GEBM,
    config: schema.Config,
    sampler: SamplerSetting,
    count: int,
    latents: int,
    names: tuple[str, ...],
    points: tuple[int, ...] | None = None,
) -> dict[int, dict[str, float]]:
    """Return the scores of ``count`` chains at each of the points, from the base's own latents."""
    points = points or bench.setting.chain_points
    settings = dataclasses.replace(
        config.sampler, name="ula", beta=sampler.beta, step_size=sampler.step_size, num_steps=max(points), decay=1.0
    )
    generator = torch.Generator().manual_seed(latents)
    z0 = model.prior.sample(count, generator)
    features: dict[int, list[dict[str, Tensor]]] = {point: [] for point in points}

    def observe(step: int, z: Tensor) -> None:
        if step in features:
            with torch.no_grad():
                features[step].append(bench.features(model.base(z)))

    fast = folded(model, torch.float32)
    for start in range(0, count, _BATCH):
        part = z0[start : start + _BATCH]
        run_chains(fast, settings, part, seed=latents + 1, first_chain=start, observe=observe)
    joined = {p: {layer: torch.cat([f[layer] for f in parts]) for layer in parts[0]} for p, parts in features.items()}
    return {point: bench.score(joined[point], names) for point in points}


@torch.no_grad()
def _draw_base(model: GEBM, count: int, latents: int) -> Tensor:
    return model.sample_base(count, torch.Generator().manual_seed(latents), batch_size=_BATCH)


def _read_json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text()) if path.exists() else {}
