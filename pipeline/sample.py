"""``python -m pipeline.sample``: draw samples from a trained model."""

from __future__ import annotations

from typing import Any

from pipeline.config import Config
from pipeline.config.command import command
from pipeline.config.help import ENVIRONMENT_HELP, EXIT_STATUS_HELP

__all__ = ["main"]


@command(
    "Draw samples from a trained GEBM by MCMC in latent space; any sampler setting can be overridden.",
    [
        "python -m pipeline.sample checkpoint=results/<sweep>/trials/000",
        "python -m pipeline.sample checkpoint=... sampler.name=kla sampler.step_size=1e-3 sampler.num_samples=1000",
        "python -m pipeline.sample checkpoint=s3://bucket/run/trials/000 output=s3://bucket/samples seed=7",
    ],
    groups=(),
    sections={
        "Results": "output=<folder or URL>, by default results/samples-<time>.",
        "Environment": ENVIRONMENT_HELP,
        "Exit status": EXIT_STATUS_HELP,
    },
)
def main(config: Config, overrides: dict[str, Any]) -> int:
    """Write ``samples.npy``, pictures of them, and the settings that they came from."""
    from pipeline.training.sample_checkpoint import sample_checkpoint

    sample_checkpoint(config.checkpoint, overrides, config.output)
    return 0


if __name__ == "__main__":
    main()
