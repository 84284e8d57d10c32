"""A sweep of seconds: the same code as a sweep of days. The toy needs no extractor to be trained first."""

from __future__ import annotations

# Description of a sweep's data for the tracker.
DATA = {
    "name": "digits-8",
    "url": "s3://bucket/stores/digits-8",
    "checksum": "0123456789abcdef",
    "num_samples": 1797,
    "sample_shape": [1, 8, 8],
    "dtype": "uint8",
    "num_shards": 2,
    "num_bytes": 125_000,
}
TINY = [
    "conf=toy",
    "train.base_steps=4",
    "train.warmup_energy_steps=1",
    "train.report_every=4",
    "train.batch_size=32",
    "evaluation.every=4",
    "evaluation.num_samples=100",
    "sampler.num_steps=2",
    "sweep.num_trials=1",
]
