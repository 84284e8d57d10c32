"""``python -m pipeline.evaluate``: score a trained model along its chain, or any images against a store."""

from __future__ import annotations

from typing import Any

from pipeline.config import Config
from pipeline.config.command import command
from pipeline.config.help import ENVIRONMENT_HELP, EXIT_STATUS_HELP

__all__ = ["main"]


@command(
    "Score a trained GEBM against its own base, and along the MCMC chain; any sampler setting can be overridden.\n"
    "Or score images=... against=..., of which no model is needed: all of them by all metrics, unless keys say less.\n"
    "against is a store: its name (data.store), a path or a URL.",
    [
        "python -m pipeline.evaluate checkpoint=results/<sweep>/trials/000",
        "python -m pipeline.evaluate checkpoint=... 'evaluation.metrics=[fid,kid,is,prc,dc]' sampler.num_steps=300",
        "python -m pipeline.evaluate images=samples.npz against=cifar10-32",
        "python -m pipeline.evaluate images=photographs against=s3://bucket/lsun-32 'evaluation.metrics=[fid,kid]'",
    ],
    groups=(),
    sections={
        "Results": "output=<folder or URL>, by default results/evaluation-<time>.",
        "Environment": ENVIRONMENT_HELP,
        "Exit status": EXIT_STATUS_HELP,
    },
    presigned_keys=("images",),
)
def main(config: Config, overrides: dict[str, Any]) -> int:
    """Print the scores, and write them, those of a model with their figures."""
    if config.images is not None or config.against is not None:
        from pipeline.tasks.score_images import score_images

        score_images(config, overrides)
    else:
        from pipeline.training.evaluate_checkpoint import evaluate_checkpoint

        evaluate_checkpoint(config.checkpoint, overrides, config.output)
    return 0


if __name__ == "__main__":
    main()
