"""The training loop of one trial, on its workers: restore, step, report, evaluate, preempt.

``python -m pipeline.train`` and every trial of a sweep run this same loop. A trial whose checkpoint has reached
``train.base_steps`` trains no more and is only evaluated, which is how ``sweeps=mcmc`` searches a sampler's settings.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any, TypeVar

import ray.train
import ray.train.torch
import torch
from torch import Tensor

from gebm import EnergyPhase, energy_quality, objectives, penalties
from gebm.allocator import malloc_trim
from gebm.training import StepInfo, initialize_log_partition
from gebm.training.plateau import PlateauDecay
from pipeline import config as schema
from pipeline import tasks
from pipeline.data import Position
from pipeline.runtime.errors import NonFiniteLoss, Preempted, UserError, one_line
from pipeline.runtime.filesystem import write_files
from pipeline.runtime.redaction import redact
from pipeline.runtime.system_metrics import SystemMetrics
from pipeline.runtime.watchdog import Watchdog
from pipeline.training.checkpoints import Checkpoint, Checkpoints, load_state, read
from pipeline.training.energy_health import EnergyHealth
from pipeline.training.model import make_trainer, model_to_train, trained_config
from pipeline.training.progress import evaluation_due, evaluations_left, progress, require_finite
from pipeline.training.throughput import Throughput

__all__ = ["TrialRun", "step_generator", "train_loop"]

_T = TypeVar("_T")


def train_loop(settings: dict[str, Any]) -> None:
    """Train on this worker, from the last checkpoint if there is one.

    Args:
        settings: ``config`` as a nested dict; ``url``, the trial's folder; and ``rates``, a factor of both learning
            rates, for a trial that diverged at those of its config.

    Raises:
        NonFiniteLoss: A loss is NaN or infinite.
        Preempted: A machine is about to be taken away; the present step is in a checkpoint.
        UserError: The store is damaged, the checkpoint is of another architecture, or none can be written.
    """
    config = schema.from_dict(settings["config"])
    if config.data.split_seed is None:
        # What the model is trained on stays that, whatever seed it is sampled with.
        config.data.split_seed = config.seed
    TrialRun(config, settings["url"], settings["rates"]).run()


def step_generator(config: schema.Config, purpose: str, step: int, device: torch.device) -> torch.Generator:
    """Return the random numbers of one step, a function of seed and step and of nothing that came before.

    So a resumed run draws what an undisturbed one would have drawn, and a checkpoint needs no generator's state. All
    workers have the same, and each takes its own rows of what is drawn for all.

    Args:
        config: ``seed``.
        purpose: ``step``, ``log-partition`` or ``final-phase``.
        step: Base steps done before; of the final phase, energy steps.
        device: Where they are drawn.
    """
    # The zero keeps what seeds have given since there were numbers for each worker.
    text = f"{config.seed}/0/{purpose}/{step}"
    seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:7], "big")
    return torch.Generator(device).manual_seed(seed)


class TrialRun:
    """A trial on one worker: its model, data and checkpoints, and where it stands.

    Args:
        config: The experiment, with the trial's own settings.
        url: The trial's folder.
        lr_scale: A factor of both learning rates.
    """

    def __init__(self, config: schema.Config, url: str, lr_scale: float) -> None:
        context = ray.train.get_context()
        self.config, self.url, self.lr_scale = config, url, lr_scale
        self.rank, self.world_size = context.get_world_rank(), context.get_world_size()
        self.device = ray.train.torch.get_device()
        self.work = tasks.make(config).open(self.rank, self.world_size, self.device)
        self.watchdog, self.machine = Watchdog(config.scale.timeout), SystemMetrics(self.device)
        self.checkpoints = Checkpoints(url)
        self.model = model_to_train(config, self.device)
        if not (self.checkpoints.last or config.checkpoint) and config.train.log_partition_samples:
            generator = step_generator(config, "log-partition", 0, self.device)
            initialize_log_partition(self.model, config.train.log_partition_samples, generator)
        # From here on all workers have the weights and the log-partition of the first.
        self.trainer = make_trainer(self.model, config, self.device, self.world_size)
        self.plateau = self._make_plateau()
        self.health = EnergyHealth(self.trainer.objective, config.train.gradient_guard, config.train.beta2)
        self.throughput = Throughput(self.trainer, self.device, self.world_size)
        self.infos: list[StepInfo] = []
        self.report: dict[str, Any] = {}
        self.clock, self.evaluation_seconds = time.monotonic(), 0.0

    def run(self) -> None:
        """Train from where the trial stands to its last base step, and evaluate where that is due."""
        self.restore()
        while self.trainer.base_step < self.config.train.base_steps:
            self.step()
            done = self.trainer.base_step
            preempted = done % self._preemption_poll_interval == 0 and ray.train.get_preemption_info() is not None
            evaluating = evaluation_due(self.config, done)
            saving = evaluating or preempted or bool(self.config.checkpoints.every and self._is_checkpoint_step(done))
            reporting = saving or done % self.config.train.report_every == 0
            if reporting or self.plateau.due(done):
                require_finite(self.infos, done)
            self.decay_learning_rates()
            if not reporting:
                continue
            self.make_report()
            if saving:
                # Before an evaluation, too: it may take longer than a machine is still there.
                saved = self.save(score=None)
                self.report |= {} if evaluating and not preempted else saved
            if preempted:
                self.preempt()
            if evaluating:
                self.evaluate()
            self.send_report()
        self.watchdog.stop()

    def restore(self) -> None:
        """Resume from the trial's last checkpoint, or start from another model's, or from a fresh model."""
        config, trainer = self.config, self.trainer
        own = self.checkpoints.last
        start, position, checkpoint = own or config.checkpoint, Position(epoch=0, step=0), None
        if start:
            checkpoint = read(start)
            if own:
                self.lr_scale = min(self.lr_scale, checkpoint.state.get("rates", 1.0))
            position = self._load(checkpoint)
        else:
            trainer.scale_learning_rates(self.lr_scale, self.lr_scale)
        self.batches = self.work.batches(position)
        if own and checkpoint:
            self._resume_reports(checkpoint)
        elif trainer.base_step >= config.train.base_steps:
            report = {"base_step": trainer.base_step, **self._score("sampled")}
            ray.train.report({**report, "checkpoint": start})
        self.clock = time.monotonic()

    def step(self) -> None:
        """Take one base step, with the energy steps before it."""
        done = self.trainer.base_step
        try:
            with self.throughput.count_step():
                generator = step_generator(self.config, "step", done, self.device)
                self.infos.append(self.trainer.step(self.batches, generator))
        except ValueError as error:
            # Chains of negatives that can start nowhere: the losses before may say why.
            require_finite(self.infos, done)
            raise NonFiniteLoss(
                f"base step {done + 1} cannot be taken: {error}; lower train.energy_lr or train.base_lr"
            ) from None
        self.watchdog.heartbeat()

    def decay_learning_rates(self) -> None:
        """Lower both learning rates if a test is due and says that the base has stopped improving."""
        # A base that stands still does not stop improving.
        if self.config.train.train_base and self.plateau.due(self.trainer.base_step) and self._should_decay():
            self.trainer.scale_learning_rates(self.plateau.factor, self.plateau.factor)

    def make_report(self) -> None:
        """Collect the numbers of the steps since the last report; this waits for the device."""
        seconds = time.monotonic() - self.clock
        numbers = progress(
            self.infos, self.trainer, self.config, seconds=seconds, evaluation_seconds=self.evaluation_seconds
        )
        self.report = {**numbers, **self.throughput.compute(seconds), "system": self.machine.sample()}
        if self.trainer.objective.trains_energy:
            moment = self.trainer.energy_second_moment()
            self.report["energy_second_moment"] = moment.item()
            self._warn(self.health.judge_steps(self.infos, moment, self.trainer.base_step))
        if self.batches.notes:
            self.report |= {"bad_shards": self.batches.bad_shards, "notes": list(self.batches.notes)}

    def send_report(self) -> None:
        """Hand the report to the sweep, and begin the next."""
        ray.train.report(self.report)
        self.infos.clear()
        self.clock = time.monotonic()

    def preempt(self) -> None:
        """End here: where the trial stands is in a checkpoint.

        Raises:
            Preempted: Always.
        """
        ray.train.report(self.report)
        done = self.trainer.base_step
        raise Preempted(f"a machine is about to be taken away; base step {done} is in a checkpoint")

    def evaluate(self) -> None:
        """Train the energy on alone if the config asks for it, score base and GEBM, and save with the score."""
        done, train = self.trainer.base_step, self.config.train
        last = done >= train.base_steps
        if train.final_energy_steps and (last or train.final_phase.before_evaluations):
            self.report |= self.run_final_phase()
        warnings = self.report.pop("warnings", [])
        self.report |= self._score(f"step-{done:08d}")
        self._warn(warnings, first=True)
        more = self.report["evaluation_seconds"] - self.evaluation_seconds
        self.evaluation_seconds = self.report["seconds_an_evaluation"] = self.report["evaluation_seconds"]
        self.report["seconds_left"] = self.report.get("seconds_left", 0.0) + more * evaluations_left(self.config, done)
        score = self.report[self.config.sweep.metric] * (1 if self.config.sweep.mode == "min" else -1)
        self.report |= self.save(score=score)

    def run_final_phase(self) -> dict[str, float]:
        """Train the energy alone on the base as it stands, until held-out data say enough.

        Interrupted, it begins again from the checkpoint before it, and comes to the same bits.

        Returns:
            How many energy steps were kept and taken.
        """
        train, settings = self.config.train, self.config.train.final_phase
        weight = train.penalty if settings.penalty is None else settings.penalty
        phase = EnergyPhase(
            train.final_energy_steps,
            learning_rate=settings.energy_lr,
            penalty=penalties.make(train.penalty_kind, weight, every=train.penalty_every),
            check_every=settings.check_every,
            patience=settings.patience,
        )
        result = phase.run(
            self.trainer,
            self.batches,
            lambda step: step_generator(self.config, "final-phase", step, self.device),
            held_out=self.work.held_out,
            agree=self._first_workers,
            advance=lambda steps: self.watchdog.heartbeat(),
        )
        return {"final_energy_steps": result.steps, "final_energy_steps_taken": result.steps_taken}

    def save(self, *, score: float | None) -> dict[str, Any]:
        """Write a checkpoint, on the first worker.

        Args:
            score: Of the evaluation that it goes with, lower is better; None for one without.

        Returns:
            What the report has to say of it.

        Raises:
            UserError: It cannot be written, and ``checkpoints.on_failure`` is ``stop``.
        """
        if self.rank != 0:
            return {}
        done = self.trainer.base_step
        what = f"the checkpoint of base step {done} at {self.checkpoints.url}"
        url, notes = self._written(what, lambda: self._write_checkpoint(score))
        return {"checkpoint": url} if url else {"notes": [*self.report.get("notes", ()), *notes]}

    def _write_checkpoint(self, score: float | None) -> str:
        done = self.trainer.base_step
        return self.checkpoints.save(
            done,
            model=self.trainer.gebm.state_dict(),
            training={"trainer": self.trainer.state_dict(), "plateau": self.plateau.state_dict()},
            state={
                "position": asdict(self.batches.position),
                "random": {"seed": self.config.seed, "base_step": done},
                "rates": self.lr_scale,
                "report": self.report,
                "config": schema.to_dict(self.config),
            },
            score=score,
        )

    def _written(self, what: str, write: Callable[[], _T]) -> tuple[_T | None, list[str]]:
        """Write to where results are; if that fails, continue without it or not, as the config says."""
        try:
            return write(), []
        except Exception as error:  # each file system has exceptions of its own
            reason = one_line(error)
            line = redact(f"{what} cannot be written ({reason})")
            if self.config.checkpoints.on_failure == "stop":
                raise UserError(f"{line}; make room there, and go on with resume={self.config.output}") from error
            return None, [line]

    def _load(self, checkpoint: Checkpoint) -> Position:
        """Put model and trainer where the checkpoint has them, and return where in the data that was."""
        config, trainer = self.config, self.trainer
        load_state(self.model, checkpoint)
        trainer.load_state_dict(checkpoint.training["trainer"])
        self.plateau.load_state_dict(checkpoint.training["plateau"])
        before, now = trained_config(checkpoint).train, config.train
        # Population-based training resumes from another trial's weights at rates of its own; decays so far are kept.
        factor = self.lr_scale / checkpoint.state.get("rates", 1.0)
        trainer.scale_learning_rates(factor * now.energy_lr / before.energy_lr, factor * now.base_lr / before.base_lr)
        learns = trainer.objective.trains_log_partition
        if learns and not objectives.make(before.objective).trains_log_partition and now.log_partition_samples:
            # It is what it was before any training. All ranks take the first one's, for their copies stay one.
            generator = step_generator(config, "log-partition", trainer.base_step, self.device)
            initialize_log_partition(trainer.sampling_model(), now.log_partition_samples, generator)
            if self.world_size > 1:
                torch.distributed.broadcast(self.model.log_partition.data, src=0)
        return Position(**checkpoint.state["position"])

    def _resume_reports(self, checkpoint: Checkpoint) -> None:
        """Report again what the trial's own checkpoint reported, or evaluate if it died before that was done."""
        config, report = self.config, checkpoint.state["report"]
        self.evaluation_seconds = report.get("seconds_an_evaluation", 0.0)
        if evaluation_due(config, self.trainer.base_step) and config.sweep.metric not in report:
            self.report = dict(report)
            self.evaluate()
            self.send_report()
        else:
            # It may have died between this checkpoint and its report; or it is another trial's that was taken over.
            ray.train.report({**report, "checkpoint": self.checkpoints.last})

    def _score(self, name: str) -> dict[str, Any]:
        """Evaluate, and write the pictures to the trial's folder, where the driver takes them from."""
        began = time.monotonic()
        evaluation = self.work.evaluate(self.trainer.sampling_model(), advance=lambda steps: self.watchdog.heartbeat())
        malloc_trim()  # hundreds of chains need more than a batch
        report = {**evaluation.scores, "chain": {str(step): value for step, value in evaluation.chain.items()}}
        if self.work.label:
            report["extractor"] = self.work.label
        notes = evaluation.notes
        if self.rank == 0:
            report |= self._measure_energy()
            url = f"{self.url}/figures/{name}"
            figures, failed = self._written(f"figures at {url}", lambda: write_files(evaluation.pictures, url))
            report["figures"], notes = figures or [], notes + failed
        if notes:
            report["notes"] = notes
        return {**report, "evaluation_seconds": time.monotonic() - began}

    def _measure_energy(self) -> dict[str, Any]:
        """Return how much the energy knows, by data that no step saw and by as many that were trained on."""
        held_out: Tensor = self.work.held_out
        if not (len(held_out) and self.trainer.objective.trains_energy):
            return {}
        qualities = []
        for data in (held_out, self.work.seen):
            generator = torch.Generator(self.device).manual_seed(self.config.seed)
            qualities.append(energy_quality(self.trainer.sampling_model(), data, generator=generator))
        unseen, seen = qualities
        warnings = self.health.judge_quality(unseen.kale, unseen.floor_share, self.trainer.base_step)
        numbers = {
            "held_out_kale": unseen.kale,
            "train_kale": seen.kale,
            "energy_spread": unseen.spread,
            "weights_ess": unseen.weights_ess,
            "floor_share": unseen.floor_share,
        }
        return {**numbers, **({"warnings": warnings} if warnings else {})}

    def _warn(self, warnings: list[str], *, first: bool = False) -> None:
        if warnings:
            known = self.report.get("warnings", [])
            self.report["warnings"] = [*warnings, *known] if first else [*known, *warnings]

    def _make_plateau(self) -> PlateauDecay:
        decay = self.config.train.learning_rate_decay
        return PlateauDecay(
            self.work.reference[: decay.num_samples],
            factor=decay.factor,
            every=decay.every,
            lag=decay.lag,
            patience=decay.patience,
        )

    def _should_decay(self) -> bool:
        """Whether the base has stopped improving, by samples from the same latents each time.

        The first worker decides for all: two that computed it for themselves could come to differ in their rates.
        """
        decision = 0.0
        if self.rank == 0:
            count = min(self.config.train.learning_rate_decay.num_samples, len(self.work.reference))
            generator = torch.Generator(self.device).manual_seed(self.config.seed)
            batch_size = self.config.evaluation.batch_size
            samples = self.trainer.sampling_model().sample_base(count, generator, batch_size=batch_size)
            decision = float(self.plateau.update(self.trainer.base_step, self.work.features(samples)))
            malloc_trim()
        return bool(self._first_workers(decision))

    def _first_workers(self, value: float) -> float:
        """Return the first worker's value on all of them."""
        if self.world_size == 1:
            return value
        shared = torch.tensor(value, dtype=torch.float64, device=self.device)
        torch.distributed.broadcast(shared, src=0)
        return shared.item()

    def _is_checkpoint_step(self, base_step: int) -> bool:
        return base_step % (self.config.checkpoints.every or 1) == 0

    @property
    def _preemption_poll_interval(self) -> int:
        """Base steps between two questions whether a machine is about to be taken away, for which all workers meet."""
        return max(1, self.config.train.report_every // 10)
