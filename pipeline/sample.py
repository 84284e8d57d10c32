"""``python -m pipeline.sample``: draw samples from a trained model."""

from __future__ import annotations

from typing import Any

from pipeline.config.command import command
from pipeline.config.help import ENVIRONMENT_HELP, EXIT_STATUS_HELP
from pipeline.config.sampling_schema import CLASS, CONFIG_NAME, SamplingRequest

__all__ = ["main"]


@command(
    "Draw samples from a trained GEBM by MCMC in latent space; any sampler setting can be overridden.",
    [
        "python -m pipeline.sample checkpoint=results/<sweep>/trials/000",
        "python -m pipeline.sample checkpoint=... sampler.name=kla sampler.step_size=1e-3 sampler.num_samples=1000",
        "python -m pipeline.sample checkpoint=s3://bucket/run/trials/000 output=s3://bucket/samples seed=7",
        "python -m pipeline.sample checkpoint=... class=3  # of a conditional model, by number or name",
    ],
    groups=(),
    sections={
        "Results": "output=<folder or URL>, by default results/samples-<time>.",
        "Classes": "class=<name or number> samples one class of a conditional model; by default all, in the data's "
        "proportions.",
        "Environment": ENVIRONMENT_HELP,
        "Exit status": EXIT_STATUS_HELP,
    },
    config_name=CONFIG_NAME,
    parse=SamplingRequest.from_dict,
    more_text_keys=frozenset({CLASS}),
)
def main(request: SamplingRequest, overrides: dict[str, Any]) -> int:
    """Write ``samples.npy``, pictures of them, and the settings that they came from."""
    from pipeline.training.sample_checkpoint import sample_checkpoint

    overrides = {key: value for key, value in overrides.items() if key != CLASS}
    sample_checkpoint(request.config.checkpoint, overrides, request.config.output, request.class_name)
    return 0


if __name__ == "__main__":
    main()
