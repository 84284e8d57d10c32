"""One training run, on its workers: read, alternate, evaluate, checkpoint, report.

``python -m pipeline.train`` and every trial of a sweep run this same loop. A trial whose checkpoint has reached
``train.base_steps`` trains no more and is only evaluated, which is how ``sweeps=mcmc`` searches a sampler's settings.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

import ray.train
import ray.train.torch
import torch

from gebm import GEBM, objectives
from gebm.memory import return_freed_memory
from gebm.relative_mmd import PlateauDecay
from gebm.training import StepInfo, Trainer, initialise_log_partition
from pipeline import config as schema
from pipeline import tasks
from pipeline.checkpoints import Checkpoint, Checkpoints, load_state, read
from pipeline.errors import NonFiniteLoss, Preempted, UserError
from pipeline.files import write_files
from pipeline.machine import Machine
from pipeline.model import make_trainer, model_to_train, trained_config
from pipeline.secrets import redacted
from pipeline.stores import Position
from pipeline.throughput import Throughput
from pipeline.watchdog import Watchdog

__all__ = ["loop", "random_numbers"]

_T = TypeVar("_T")


@dataclass(frozen=True)
class _Run:
    """What the parts of a run share."""

    config: schema.Config
    url: str
    rank: int
    world_size: int
    device: torch.device
    work: tasks.Work
    watchdog: Watchdog
    machine: Machine


def random_numbers(config: schema.Config, purpose: str, base_step: int, device: torch.device) -> torch.Generator:
    """The random numbers of one step, a function of seed and step and of nothing that came before.

    So a resumed run draws what an undisturbed one would have drawn, and a checkpoint needs no generator's state. All
    workers have the same, and each takes its own rows of what is drawn for all.

    Args:
        config: ``seed``.
        purpose: ``step`` or ``log-partition``.
        base_step: base steps done before.
        device: where they are drawn.
    """
    # The nought keeps what seeds have given since there were numbers for each worker.
    text = f"{config.seed}/0/{purpose}/{base_step}"
    seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:7], "big")
    return torch.Generator(device).manual_seed(seed)


def loop(settings: dict[str, Any]) -> None:
    """Train on this worker, from the last checkpoint if there is one.

    Args:
        settings: ``config`` as a nested dict; ``url``, the trial's folder; and ``rates``, a factor of both learning
            rates, for a trial that diverged at those of its config.

    Raises:
        NonFiniteLoss: a loss is NaN or infinite.
        Preempted: a machine is about to be taken away; the present step is in a checkpoint.
        UserError: the store is damaged, the checkpoint is of another architecture, or none can be written.
    """
    config = schema.from_dict(settings["config"])
    if config.data.split_seed is None:
        config.data.split_seed = (
            config.seed
        )  # what the model is trained on stays that, whatever seed it is sampled with
    context = ray.train.get_context()
    device, rank, world_size = ray.train.torch.get_device(), context.get_world_rank(), context.get_world_size()
    run = _Run(
        config=config,
        url=settings["url"],
        rank=rank,
        world_size=world_size,
        device=device,
        work=tasks.make(config).open(rank, world_size, device),
        watchdog=Watchdog(config.scale.timeout),
        machine=Machine(device),
    )
    model = model_to_train(config, device)
    checkpoints = Checkpoints(run.url)
    start = checkpoints.last or config.checkpoint
    if not start and config.train.log_partition_samples:
        initialise_log_partition(
            model, config.train.log_partition_samples, random_numbers(config, "log-partition", 0, device)
        )
    # From here on all workers have the weights and the log-partition of the first.
    trainer, plateau = make_trainer(model, config, device, world_size), _plateau(run)
    rates, position, evaluating = settings["rates"], Position(epoch=0, step=0), False
    if start:
        checkpoint = read(start)
        if start == checkpoints.last:
            rates = min(rates, checkpoint.state.get("rates", 1.0))
        position = _restore(checkpoint, model, trainer, plateau, run, rates)
    else:
        trainer.scale_learning_rates(rates, rates)
    batches = run.work.batches(position)
    if start and start == checkpoints.last:
        # It may have died while it was evaluated.
        evaluating = (
            _evaluation_due(config, trainer.base_step) and config.sweep.metric not in checkpoint.state["report"]
        )
        # Or between this checkpoint and its report; or it is another trial's that was taken over.
        if not evaluating:
            ray.train.report({**checkpoint.state["report"], "checkpoint": start})
    elif trainer.base_step >= config.train.base_steps:
        report = {"base_step": trainer.base_step, **_evaluate(trainer, run, "sampled")}
        ray.train.report({**report, "checkpoint": start})
    infos: list[StepInfo] = []
    throughput = Throughput(trainer, device, world_size)
    report = checkpoint.state["report"] if start and start == checkpoints.last else {}
    clock, evaluation_seconds = time.monotonic(), report.get("seconds_an_evaluation", 0.0)
    while evaluating or trainer.base_step < config.train.base_steps:
        if not evaluating:
            try:
                with throughput.alternation():
                    infos.append(trainer.step(batches, random_numbers(config, "step", trainer.base_step, device)))
            except ValueError as error:  # chains of negatives that can start nowhere: the losses before may say why
                _require_finite(infos, trainer.base_step)
                step = trainer.base_step + 1
                raise NonFiniteLoss(
                    f"base step {step} cannot be taken: {error}; lower train.energy_lr or train.base_lr"
                ) from None
            run.watchdog.alive()
            done = trainer.base_step
            evaluating = _evaluation_due(config, done)
            preempted = done % _notice_every(config) == 0 and ray.train.get_preemption_info() is not None
            saving = evaluating or preempted or bool(config.checkpoints.every and done % config.checkpoints.every == 0)
            reporting = saving or done % config.train.report_every == 0
            if reporting or plateau.due(done):
                _require_finite(infos, done)
            # A base that stands still does not stop improving.
            if config.train.train_base and plateau.due(done) and _plateaued(plateau, trainer, run):
                trainer.scale_learning_rates(plateau.factor, plateau.factor)
            if not reporting:
                continue
            report = _progress(infos, trainer, throughput, run, time.monotonic() - clock, evaluation_seconds)
            if batches.notes:
                report |= {"bad_shards": batches.bad_shards, "notes": list(batches.notes)}
            if saving:
                # Before an evaluation, too: it may take longer than a machine is still there.
                saved = _save(checkpoints, trainer, plateau, batches, report, rates, run, score=None)
                report |= {} if evaluating and not preempted else saved
            if preempted:
                ray.train.report(report)
                raise Preempted(f"a machine is about to be taken away; base step {done} is in a checkpoint")
        done = trainer.base_step
        if evaluating:
            report |= _evaluate(trainer, run, f"step-{done:08d}")
            more = report["evaluation_seconds"] - evaluation_seconds
            evaluation_seconds = report["seconds_an_evaluation"] = report["evaluation_seconds"]
            report["seconds_left"] += more * _evaluations_left(config, done)
            score = report[config.sweep.metric] * (1 if config.sweep.mode == "min" else -1)
            report |= _save(checkpoints, trainer, plateau, batches, report, rates, run, score=score)
        ray.train.report(report)
        infos.clear()
        evaluating, clock = False, time.monotonic()
    run.watchdog.stop()


def _evaluation_due(config: schema.Config, base_step: int) -> bool:
    return base_step % config.evaluation.every == 0 or base_step >= config.train.base_steps


def _notice_every(config: schema.Config) -> int:
    """Base steps between two questions whether a machine is about to be taken away, for which all workers meet."""
    return max(1, config.train.report_every // 10)


def _save(
    checkpoints: Checkpoints,
    trainer: Trainer,
    plateau: PlateauDecay,
    batches: tasks.Batches,
    report: dict[str, Any],
    rates: float,
    run: _Run,
    *,
    score: float | None,
) -> dict[str, Any]:
    """Keep where the trial stands, on the first worker, and give what its report has to say of it.

    Raises:
        UserError: it cannot be written, and ``checkpoints.on_failure`` is ``stop``.
    """
    if run.rank != 0:
        return {}
    config, done = run.config, trainer.base_step

    def save() -> str:
        return checkpoints.save(
            done,
            model=trainer.gebm.state_dict(),
            training={"trainer": trainer.state_dict(), "plateau": plateau.state_dict()},
            state={
                "position": asdict(batches.position),
                "random": {"seed": config.seed, "base_step": done},
                "rates": rates,
                "report": report,
                "config": schema.to_dict(config),
            },
            score=score,
        )

    url, notes = _written(run, f"the checkpoint of base step {done} at {checkpoints.url}", save)
    return {"checkpoint": url} if url else {"notes": [*report.get("notes", ()), *notes]}


def _written(run: _Run, what: str, write: Callable[[], _T]) -> tuple[_T | None, list[str]]:
    """Write to where results lie; if that fails, go on without it or not, as the config says."""
    try:
        return write(), []
    except Exception as error:  # each file system has exceptions of its own
        reason = " ".join(str(error).split()) or type(error).__name__
        line = redacted(f"{what} cannot be written ({reason})")
        if run.config.checkpoints.on_failure == "stop":
            raise UserError(f"{line}; make room there, and go on with resume={run.config.output}") from error
        return None, [line]


def _restore(
    checkpoint: Checkpoint, model: GEBM, trainer: Trainer, plateau: PlateauDecay, run: _Run, rates: float
) -> Position:
    """Put everything where it stood, and say where in the data that was."""
    config = run.config
    load_state(model, checkpoint)
    trainer.load_state_dict(checkpoint.training["trainer"])
    plateau.load_state_dict(checkpoint.training["plateau"])
    before = trained_config(checkpoint).train
    # Population-based training goes on from another trial's weights at rates of its own; decays so far are kept.
    now = config.train
    factor = rates / checkpoint.state.get("rates", 1.0)
    trainer.scale_learning_rates(factor * now.energy_lr / before.energy_lr, factor * now.base_lr / before.base_lr)
    learns = trainer.objective.trains_log_partition
    if learns and not objectives.make(before.objective).trains_log_partition and config.train.log_partition_samples:
        # It stands where it was before any training. All ranks take the first one's, for their copies have to stay one.
        generator = random_numbers(config, "log-partition", trainer.base_step, run.device)
        initialise_log_partition(trainer.sampling_model(), config.train.log_partition_samples, generator)
        if run.world_size > 1:
            torch.distributed.broadcast(model.log_partition.data, src=0)
    return Position(**checkpoint.state["position"])


def _plateau(run: _Run) -> PlateauDecay:
    decay = run.config.train.learning_rate_decay
    return PlateauDecay(
        run.work.reference[: decay.num_samples],
        factor=decay.factor,
        every=decay.every,
        lag=decay.lag,
        patience=decay.patience,
    )


def _plateaued(plateau: PlateauDecay, trainer: Trainer, run: _Run) -> bool:
    """Whether the base has stopped improving, by samples from the same latents each time.

    The first worker decides for all: two that computed it for themselves could come to differ in their rates.
    """
    decision = torch.zeros((), device=run.device)
    if run.rank == 0:
        count = min(run.config.train.learning_rate_decay.num_samples, len(run.work.reference))
        generator = torch.Generator(run.device).manual_seed(run.config.seed)
        batch_size = run.config.evaluation.batch_size
        samples = trainer.sampling_model().sample_base(count, generator, batch_size=batch_size)
        decision.fill_(plateau.update(trainer.base_step, run.work.features(samples)))
        return_freed_memory()
    if run.world_size > 1:
        torch.distributed.broadcast(decision, src=0)
    return bool(decision)


def _evaluations_left(config: schema.Config, base_step: int) -> int:
    if base_step >= config.train.base_steps:
        return 0
    return -(-config.train.base_steps // config.evaluation.every) - base_step // config.evaluation.every


def _require_finite(infos: list[StepInfo], base_step: int) -> None:
    """Refuse to go on from a loss that is NaN or infinite; ``infos`` are those of the steps up to ``base_step``."""
    if not infos:
        return
    broken = torch.stack([info.num_nonfinite for info in infos]).cpu().nonzero()
    if len(broken):
        row = int(broken[0])
        raise NonFiniteLoss(
            f"a loss is not finite at base step {base_step - len(infos) + row + 1}: "
            f"energy loss {infos[row].energy_loss.item()}, base loss {infos[row].base_loss.item()}; "
            f"lower train.energy_lr or train.base_lr"
        )


def _progress(
    infos: list[StepInfo],
    trainer: Trainer,
    throughput: Throughput,
    run: _Run,
    seconds: float,
    evaluation_seconds: float,
) -> dict[str, Any]:
    """What the steps since the last report did. Only reports wait for the device, not every step."""
    seconds = max(seconds, 1e-9)
    losses = torch.stack([torch.stack([info.energy_loss, info.base_loss]) for info in infos]).float().cpu()
    newest = infos[-1]
    rate = len(infos) / seconds
    # A warm-up has many more energy steps than the base steps that are left, most of them.
    done = trainer.base_step
    seconds_a_step = seconds / max(1, _steps(trainer, done - len(infos), done))
    # A base that learns from data takes a batch where no energy step has.
    at_least = int(trainer.train_base and trainer.objective.base_learns_from == "data")
    images = sum(max(info.energy_steps, at_least) for info in infos) * run.config.train.batch_size
    found = {
        "base_step": trainer.base_step,
        "energy_loss": losses[:, 0].mean().item(),
        "base_loss": losses[:, 1].mean().item(),
        "penalty": newest.penalty.item(),
        "energy_data": newest.energy_data.item(),
        "energy_base": newest.energy_base.item(),
        "log_partition": newest.log_partition.item(),
        "base_steps_per_second": rate,
        "images_per_second": images / seconds,
        **throughput.since_last(seconds),
        "seconds_left": _steps(trainer, done, run.config.train.base_steps) * seconds_a_step
        + evaluation_seconds * _evaluations_left(run.config, done),
        "seconds_an_evaluation": evaluation_seconds,
        "energy_lr": trainer.energy_optimizer.param_groups[0]["lr"],
        "base_lr": trainer.base_optimizer.param_groups[0]["lr"],
    }
    # What there was no step for, such as an energy's under maximum likelihood, is not a number and no result.
    return {name: value for name, value in found.items() if math.isfinite(value)} | {"system": run.machine.look()}


def _steps(trainer: Trainer, start: int, stop: int) -> int:
    """Energy steps and base steps from one base step to another, those that are taken."""
    alternation = trainer.alternation
    energy_steps = alternation.energy_steps_before(stop) - alternation.energy_steps_before(start)
    return (stop - start) * trainer.train_base + energy_steps * trainer.objective.trains_energy


def _evaluate(trainer: Trainer, run: _Run, name: str) -> dict[str, Any]:
    """Evaluate, and write the pictures to the trial's folder, where the driver takes them from."""
    began = time.monotonic()
    found = run.work.evaluate(trainer.sampling_model(), advance=lambda steps: run.watchdog.alive())
    return_freed_memory()  # hundreds of chains need more than a batch
    report = {**found.scores, "chain": {str(step): value for step, value in found.chain.items()}}
    if run.work.label:
        report["extractor"] = run.work.label
    notes = found.notes
    if run.rank == 0:
        url = f"{run.url}/figures/{name}"
        figures, failed = _written(run, f"figures at {url}", lambda: write_files(found.pictures, url))
        report["figures"], notes = figures or [], notes + failed
    if notes:
        report["notes"] = notes
    return {**report, "evaluation_seconds": time.monotonic() - began}
