"""``python -m pipeline.evaluate``: score a trained model, its base against its GEBM, along the chain."""

from __future__ import annotations

from typing import Any

from pipeline.config import Config
from pipeline.config.command import command
from pipeline.config.help import ENVIRONMENT_HELP, EXIT_STATUS_HELP

__all__ = ["main"]


@command(
    "Score a trained GEBM against its own base, and along the MCMC chain; any sampler setting can be overridden.",
    [
        "python -m pipeline.evaluate checkpoint=results/<sweep>/trials/000",
        "python -m pipeline.evaluate checkpoint=... sampler.num_steps=300 evaluation.chain_points=10",
        "python -m pipeline.evaluate checkpoint=... 'evaluation.metrics=[fid,kid,is,prc]' evaluation.num_samples=50000",
    ],
    groups=(),
    sections={
        "Results": "output=<folder or URL>, by default results/evaluation-<time>.",
        "Environment": ENVIRONMENT_HELP,
        "Exit status": EXIT_STATUS_HELP,
    },
)
def main(config: Config, overrides: dict[str, Any]) -> int:
    """Print the scores, and write them with their figures."""
    from pipeline.training.evaluate_checkpoint import evaluate_checkpoint

    evaluate_checkpoint(config.checkpoint, overrides, config.output)
    return 0


if __name__ == "__main__":
    main()
