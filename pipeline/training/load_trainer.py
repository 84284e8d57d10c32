"""Trainer with the weights of a checkpoint."""

from __future__ import annotations

from gebm import GEBM, initialize_log_partition
from gebm.training import Trainer
from pipeline import config as schema
from pipeline.config.training_parts import make_objective
from pipeline.training.build_model import trained_config
from pipeline.training.checkpoint_format import Checkpoint, load_state
from pipeline.training.import_weights import IMPORTED
from pipeline.training.step_generator import step_generator
from pipeline.training.worker import Worker

__all__ = ["load_trainer"]


def load_trainer(trainer: Trainer, model: GEBM, checkpoint: Checkpoint, config: schema.Config, worker: Worker) -> None:
    """Load a checkpoint into a model and its trainer, whose model to sample then is the one that was trained.

    Args:
        trainer: The trainer.
        model: Its model, as it was built.
        checkpoint: The checkpoint.
        config: The experiment to train on with; where its objective is the first to train a log-partition, that is
            initialized.
        worker: This worker; all of them take the first one's log-partition.

    Raises:
        UserError: The checkpoint is of another architecture.
    """
    load_state(model, checkpoint)
    trainer.load_state_dict(checkpoint.training["trainer"])
    before, now = trained_config(checkpoint).train, config.train
    learns = trainer.objective.trains_log_partition
    is_untrained = IMPORTED in checkpoint.state or not make_objective(before).trains_log_partition
    if learns and is_untrained and now.log_partition_samples:
        # It is what it was before any training. All workers take the first one's, so that their copies are equal.
        generator = step_generator(config, "log-partition", trainer.base_step)
        initialize_log_partition(trainer.sampling_model(), now.log_partition_samples, generator)
        worker.copy_from_first(model.log_partition.data)
