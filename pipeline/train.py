"""``python -m pipeline.train``: train one GEBM."""

from __future__ import annotations

from typing import Any

from pipeline.config import Config
from pipeline.config.command import command
from pipeline.config.help import RESULTS_HELP, RESUME_HELP, SWEEP_ENVIRONMENT_HELP, SWEEP_EXIT_STATUS_HELP

__all__ = ["main"]


@command(
    "Train one GEBM with the experiment's own settings: a sweep of a single trial.",
    [
        "python -m pipeline.train                                    # the digits",
        "python -m pipeline.train conf=cifar10 model.networks=sngan_convnet train.energy_lr=2e-4",
        "python -m pipeline.train conf=lsun scale.num_workers=8 output=s3://bucket/runs/lsun",
        "python -m pipeline.train resume=results/<run>               # resume an interrupted run",
    ],
    groups=("conf",),
    sections={
        "Resuming": RESUME_HELP,
        "Results": RESULTS_HELP,
        "Environment": SWEEP_ENVIRONMENT_HELP,
        "Exit status": SWEEP_EXIT_STATUS_HELP,
    },
)
def main(config: Config, overrides: dict[str, Any]) -> int:
    """Run the training, and return 130 when it is interrupted and 1 when it fails."""
    from pipeline.sweep import driver

    config.sweep.space, config.sweep.scheduler, config.sweep.num_trials = {}, "none", 1
    return driver.exit_status(config, overrides, command="train")


if __name__ == "__main__":
    main()
