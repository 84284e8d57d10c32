"""``python -m pipeline.sweep``: search an experiment's hyper-parameters."""

from __future__ import annotations

from typing import Any

from pipeline.config import Config
from pipeline.config.command import command
from pipeline.config.help import RESULTS_HELP, RESUME_HELP, SWEEP_ENVIRONMENT_HELP, SWEEP_EXIT_STATUS_HELP

__all__ = ["main"]


@command(
    "Search the hyper-parameters of a GEBM: each trial trains base and energy, samples both, and is scored by FID.",
    [
        "python -m pipeline.sweep                                    # the digits, a few minutes on a laptop",
        "python -m pipeline.sweep conf=lsun sweeps=optuna            # LSUN bedrooms, on the GPUs of this machine",
        "python -m pipeline.sweep conf=cifar10 ray.address=auto scale.num_workers=4 sweep.num_trials=64",
        "python -m pipeline.sweep '++sweep.space={train.energy_lr:{log_uniform:[1e-5,1e-3]}}' log=events.jsonl",
        "python -m pipeline.sweep sweeps=mcmc checkpoint=results/<sweep>/trials/000   # the sampler's settings alone",
        "python -m pipeline.sweep resume=results/<sweep>             # resume an interrupted run",
    ],
    sections={
        "Resuming": RESUME_HELP,
        "Results": RESULTS_HELP,
        "Environment": SWEEP_ENVIRONMENT_HELP,
        "Exit status": SWEEP_EXIT_STATUS_HELP,
    },
)
def main(config: Config, overrides: dict[str, Any]) -> int:
    """Run the sweep, and return 130 when it is interrupted and 1 when no trial was evaluated."""
    from pipeline.sweep import driver

    return driver.exit_status(config, overrides, command="sweep")


if __name__ == "__main__":
    main()
