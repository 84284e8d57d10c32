"""The training loop of one trial, on its workers: restore, step, report, evaluate, preempt.

``python -m pipeline.train`` and every trial of a sweep that trains run this same loop. A trial whose checkpoint has
reached ``train.base_steps`` trains no more and is only evaluated.
"""

from __future__ import annotations

import contextlib
import time
from dataclasses import asdict, replace
from typing import Any, NamedTuple

from gebm import initialize_log_partition, samplers
from gebm.training import StepInfo
from pipeline import config as schema
from pipeline import tasks
from pipeline.data import Position
from pipeline.evaluation.base import EvaluationRun
from pipeline.runtime.errors import NonFiniteLoss, Preempted
from pipeline.runtime.system_metrics import SystemMetrics
from pipeline.runtime.watchdog import Watchdog
from pipeline.tracking.trial_reports import SINCE_FIRST_STEP
from pipeline.training.build_model import make_energy_phase, make_trainer, model_to_train, trained_config
from pipeline.training.checkpoint_format import Checkpoint, require_same_classes
from pipeline.training.checkpoints import read
from pipeline.training.energy_health import EnergyHealth
from pipeline.training.fitting_batch import out_of_memory_as_error
from pipeline.training.learning_rate_decay import LearningRateDecay
from pipeline.training.load_trainer import load_trainer
from pipeline.training.pacing import REPORT_SECONDS, Pace
from pipeline.training.progress import evaluation_due, progress, require_finite
from pipeline.training.session import Session
from pipeline.training.step_generator import step_generator
from pipeline.training.stoppable_batches import StoppableBatches
from pipeline.training.throughput import Throughput
from pipeline.training.time_left import TimeLeft
from pipeline.training.trial_evaluation import TrialEvaluation
from pipeline.training.trial_folder import TrialFolder
from pipeline.training.worker import Worker

__all__ = ["TrialRun", "train_loop"]

# A machine is taken away half a minute after its notice, and a question keeps all workers waiting.
_PREEMPTION_SECONDS = 1.0


def train_loop(work: dict[str, Any], worker: Worker, session: Session) -> None:
    """Train on this worker, from the last checkpoint if there is one.

    Args:
        work: ``config`` as nested keys; ``url``, the trial's folder; ``lr_scale``, a factor of both learning rates,
            below 1 for a trial that diverged at those of its config; and ``owner``, that of the lock of the sweep's
            folder (None where there is no lock).
        worker: This worker.
        session: Its connection with the sweep.

    Raises:
        NonFiniteLoss: A loss is NaN or infinite.
        Preempted: A machine is about to be taken away; the present step is in a checkpoint.
        UserError: The store is damaged, the checkpoint is of another architecture, or none can be written.
        LockLost: Another driver has taken over the sweep's folder.
        Stopped: The sweep has stopped the trial.
    """
    config = schema.from_dict(work["config"])
    if config.data.split_seed is None:
        # The training split stays the same, whatever seed the model is sampled with.
        config.data.split_seed = config.seed
    watchdog = Watchdog(config.scale.timeout)
    try:
        TrialRun(config, work["url"], work["lr_scale"], worker, session, watchdog, owner=work.get("owner")).run()
    finally:
        # This process may serve another trial.
        watchdog.stop()


class _Due(NamedTuple):
    """Events after a base step."""

    report: bool
    save: bool
    evaluate: bool
    preempt: bool


class TrialRun:
    """A trial on one worker: its model, data and checkpoints, and its state between two reports.

    Args:
        config: The experiment, with the trial's own settings.
        url: The trial's folder.
        lr_scale: Factor of both learning rates.
        worker: This worker.
        session: Its connection with the sweep.
        watchdog: Watches from before the data are opened, which may hang as well as a step. Each part that is made has
            all of the time.
        owner: Owner of the lock of the sweep's folder; None where there is no lock.
    """

    batches: tasks.Batches

    def __init__(
        self,
        config: schema.Config,
        url: str,
        lr_scale: float,
        worker: Worker,
        session: Session,
        watchdog: Watchdog,
        owner: str | None = None,
    ) -> None:
        self.config, self.lr_scale, self.worker, self.session = config, lr_scale, worker, session
        self.watchdog = watchdog
        device, world_size = worker.device, worker.world_size
        self.task = tasks.make(config).open(worker.rank, world_size, device)
        self.heartbeat()
        self.system_metrics = SystemMetrics(device)
        self.folder = TrialFolder(config, url, owner)
        self.model = model_to_train(config, device, self.task.classes)
        self.heartbeat()
        if not (self.folder.checkpoints.last or config.checkpoint) and config.train.log_partition_samples:
            generator = step_generator(config, "log-partition", 0)
            initialize_log_partition(self.model, config.train.log_partition_samples, generator)
        self.heartbeat()
        # From here on all workers have the weights and the log-partition of the first.
        self.trainer = make_trainer(self.model, config, device, world_size)
        self.heartbeat()
        self.decay = LearningRateDecay(config, self.task, self.trainer, self.worker)
        self.health = EnergyHealth(self.trainer.objective, config.train.gradient_guard, config.train.beta2)
        self.evaluation = TrialEvaluation(config, self.task, self.worker, self.trainer.objective, self.health)
        self.throughput = Throughput(self.trainer, device, world_size)
        train = config.train
        self.preemption = Pace(_PREEMPTION_SECONDS, largest=train.report_every, from_first=worker.from_first)
        self.reporting = Pace(REPORT_SECONDS, largest=max(train.base_steps, 1), from_first=worker.from_first)
        # Entries of the first report alone.
        self.at_start: dict[str, list[str]] = {}
        self.first_step_at: float | None = None
        self.infos: list[StepInfo] = []
        self.has_fitted = False
        self.report: dict[str, Any] = {}
        self.reported_at, self.time_left = time.monotonic(), TimeLeft(self.trainer, config)

    def run(self) -> None:
        """Train to the last base step, and report, save and evaluate where that is due."""
        self.restore()
        while self.trainer.base_step < self.config.train.base_steps:
            self.step()
            due = self._due()
            if due.report or self.decay.due(self.trainer.base_step):
                require_finite(self.infos, self.trainer.base_step)
            self.decay.update()
            if not due.report:
                continue
            self.await_sweep()
            self.make_report()
            if due.save:
                # Before an evaluation, too, which may outlast the machine; the report names the one after it.
                saved = self.save(score=None)
                self.report |= {} if due.evaluate and not due.preempt else saved
            if due.preempt:
                self.preempt()
            if due.evaluate:
                self.evaluate()
            self.send_report()

    def restore(self) -> None:
        """Resume from the trial's last checkpoint, or start from another model's, or from a fresh model."""
        config, trainer = self.config, self.trainer
        own = self.folder.checkpoints.last
        start, position, checkpoint = own or config.checkpoint, Position(), None
        if start:
            checkpoint = read(start)
            if own:
                self.lr_scale = min(self.lr_scale, checkpoint.state["lr_scale"])
            position = self._load(checkpoint)
        else:
            trainer.scale_learning_rates(self.lr_scale, self.lr_scale)
        if not own:
            # A resumed run keeps its own.
            position = replace(position, lanes=self.task.lanes)
            self._draw_start()
        self.batches = StoppableBatches(self.task.batches(position), self.session.require_running)
        if own and checkpoint:
            self._resume_reports(checkpoint)
        elif trainer.base_step >= config.train.base_steps:
            self.first_step_at = time.monotonic()
            report = {"base_step": trainer.base_step, **self._evaluate_model("sampled")}
            self._hand_over({**report, "checkpoint": start})
        self.reported_at = time.monotonic()

    def step(self) -> None:
        """Take one base step, with the energy steps before it."""
        done, fitting = self.trainer.base_step, contextlib.nullcontext()
        if not self.has_fitted:
            self.first_step_at = time.monotonic()
            # Earlier trials of this process may hold the memory: only in a new one is it known whether the step fits.
            if self.worker.is_fresh:
                fitting = out_of_memory_as_error(self.trainer, self.batches, self.config, self.worker)
        try:
            with fitting, self.throughput.count_step():
                generator = step_generator(self.config, "step", done)
                self.infos.append(self.trainer.step(self.batches, generator))
        except samplers.NonFiniteStart as error:
            # Chains of negatives that can start nowhere: the losses before may say why.
            require_finite(self.infos, done)
            raise NonFiniteLoss(
                f"base step {done + 1} cannot be taken: {error}; lower train.energy_lr or train.base_lr"
            ) from None
        self.has_fitted = True
        self.heartbeat()

    def heartbeat(self) -> None:
        """Show the watchdog that this worker advances, and give the trial up where the sweep has stopped it."""
        self.watchdog.heartbeat()
        self.session.require_running()

    def await_sweep(self) -> None:
        """Wait until the sweep has decided on the last report, as it may have stopped the trial there."""
        while self.session.is_behind():
            self.heartbeat()

    def make_report(self) -> None:
        """Collect the numbers of the steps since the last report; this waits for the device."""
        seconds = time.monotonic() - self.reported_at
        self.time_left.add_steps(seconds, len(self.infos))
        self.report = {
            **progress(self.infos, self.trainer, self.config, seconds=seconds),
            **self.time_left.numbers(),
            **self.throughput.compute(seconds),
            "train_precision": self.trainer.precision,
            "system": self.system_metrics.sample(),
        }
        if self.trainer.objective.trains_energy:
            moment = self.trainer.energy_second_moment()
            self.report["energy_second_moment"] = moment.item()
            self._add("warnings", self.health.judge_steps(self.infos, moment, self.trainer.base_step))
        if self.batches.notes:
            self.report["bad_shards"] = self.batches.bad_shards
        replayed = self.trainer.replayed
        if replayed.is_wanted_on(self.worker.device):
            self.report["train_path"] = replayed.replays.path
        self._add("notes", [*self.batches.notes, *replayed.replays.lines])

    def send_report(self) -> None:
        """Send the report to the sweep, and begin the next."""
        self._hand_over(self.report)
        self.infos.clear()
        self.reported_at = time.monotonic()

    def preempt(self) -> None:
        """Send the report and end the trial here, after its checkpoint.

        Raises:
            Preempted: Always.
        """
        self._hand_over(self.report)
        done = self.trainer.base_step
        raise Preempted(f"a machine is about to be taken away; base step {done} is in a checkpoint")

    def evaluate(self) -> None:
        """Train the energy on alone if the config asks for it, score base and GEBM, and save with the score."""
        done, train = self.trainer.base_step, self.config.train
        is_last = done >= train.base_steps
        if train.final_energy_steps and (is_last or train.final_phase.before_evaluations):
            self.report |= self.run_final_phase()
        earlier = {key: self.report.pop(key, []) for key in ("notes", "warnings")}
        self.report |= self._evaluate_model(f"step-{done:08d}")
        for key, messages in earlier.items():
            self._add(key, messages, first=True)
        self.time_left.add_evaluation(self.report["evaluation_seconds"])
        self.report |= self.time_left.numbers()
        score = self.report[self.config.sweep.metric] * (1 if self.config.sweep.mode == "min" else -1)
        self.report |= self.save(score=score)

    def run_final_phase(self) -> dict[str, float]:
        """Train the energy alone on the present base, with early stopping on held-out data.

        Interrupted, it restarts from the checkpoint before it, and gives the same bits.

        Returns:
            The numbers of energy steps that were kept, and that were taken.
        """
        phase = make_energy_phase(self.config)
        result = phase.run(
            self.trainer,
            self.batches,
            lambda step: step_generator(self.config, "final-phase", step),
            held_out=self.task.held_out,
            agree=self.worker.from_first,
            advance=lambda steps: self.heartbeat(),
        )
        return {"final_energy_steps": result.steps, "final_energy_steps_taken": result.steps_taken}

    def save(self, *, score: float | None) -> dict[str, Any]:
        """Write a checkpoint, on the first worker.

        Args:
            score: Score of the evaluation before it, lower is better; ``None`` without one.

        Returns:
            The report's entries: the checkpoint's URL, or notes on why there is none.

        Raises:
            UserError: It cannot be written, and ``checkpoints.on_failure`` is ``stop``.
        """
        if not self.worker.is_first:
            return {}
        done = self.trainer.base_step
        url, notes = self.folder.save_checkpoint(
            done,
            model=self.trainer.gebm.state_dict(),
            training={"trainer": self.trainer.state_dict(), "plateau": self.decay.state_dict()},
            state={
                "position": asdict(self.batches.position),
                "random": {"seed": self.config.seed, "base_step": done},
                "lr_scale": self.lr_scale,
                "report": self.report,
                "config": schema.to_dict(self.config),
                **({} if self.task.classes is None else {"classes": self.task.classes.to_dict()}),
            },
            score=score,
        )
        return {"checkpoint": url} if url else {"notes": [*self.report.get("notes", ()), *notes]}

    def _draw_start(self) -> None:
        """Write a first picture for each that evaluations draw, of the base that training starts from."""
        if self.worker.is_first:
            pictures = self.task.draw_start(self.trainer.sampling_model())
            figures, notes = self.folder.write_figures("step-00000000", pictures)
            self.at_start = {"start_figures": figures, "notes": notes}

    def _hand_over(self, report: dict[str, Any]) -> None:
        """Report to the sweep, on all workers; the first one's is what counts, and is in the trial's folder before."""
        if self.at_start:
            notes = [*report.get("notes", ()), *self.at_start.pop("notes")]
            report = {**report, **self.at_start, **({"notes": notes} if notes else {})}
            self.at_start = {}
        if self.first_step_at is not None:
            report = {**report, SINCE_FIRST_STEP: time.monotonic() - self.first_step_at}
            self.first_step_at = None
        if peak := self.system_metrics.peak():
            report = {**report, "system": {**report.get("system", {}), **peak}}
        self.session.report(self.folder.write_report(report) if self.worker.is_first else report)

    def _load(self, checkpoint: Checkpoint) -> Position:
        """Load a checkpoint into model and trainer, and return its position in the data."""
        config, trainer = self.config, self.trainer
        require_same_classes(checkpoint.url, checkpoint.classes, self.task.classes)
        load_trainer(trainer, self.model, checkpoint, config, self.worker)
        self.decay.load_state_dict(checkpoint.training["plateau"])
        before, now = trained_config(checkpoint).train, config.train
        # Population-based training resumes from another trial's weights at its own learning rates; decays are kept.
        factor = self.lr_scale / checkpoint.state["lr_scale"]
        trainer.scale_learning_rates(factor * now.energy_lr / before.energy_lr, factor * now.base_lr / before.base_lr)
        return Position(**checkpoint.state["position"])

    def _resume_reports(self, checkpoint: Checkpoint) -> None:
        """Report again what the trial's own checkpoint reported, or evaluate if it died before that was done."""
        config, report = self.config, self.folder.present_report(checkpoint.state["report"])
        self.time_left.resume(report)
        if evaluation_due(config, self.trainer.base_step) and config.sweep.metric not in report:
            self.report = dict(report)
            self.evaluate()
            self.send_report()
        else:
            # It may have died between this checkpoint and its report; or the checkpoint is another trial's.
            self._hand_over({**report, "checkpoint": self.folder.checkpoints.last})

    def _evaluate_model(self, name: str) -> dict[str, Any]:
        """Return the entries of an evaluation's report; its pictures are written to the trial's folder."""
        run = EvaluationRun(advance=lambda steps: self.heartbeat())
        return self.evaluation.report(self.trainer.sampling_model(), self.trainer.base_step, self.folder, name, run)

    def _add(self, key: str, messages: list[str], *, first: bool = False) -> None:
        """Add messages to the report's ``notes`` or ``warnings``, which it has only where there are some."""
        if messages:
            earlier = self.report.get(key, [])
            self.report[key] = [*messages, *earlier] if first else [*earlier, *messages]

    def _due(self) -> _Due:
        """Return what has to be done after the present base step; where preemption is checked, all workers meet."""
        config, done = self.config, self.trainer.base_step
        preempt = False
        if self.preemption.is_due(done):
            preempt = self.session.is_preempted()
            self.preemption.schedule_next(done)
        evaluate = evaluation_due(config, done)
        is_checkpoint_step = bool(config.checkpoints.every) and done % config.checkpoints.every == 0
        save = evaluate or preempt or is_checkpoint_step
        report = save or (done % config.train.report_every == 0 and self.reporting.is_due(done))
        if report:
            self.reporting.schedule_next(done)
        return _Due(report, save, evaluate, preempt)
