"""Runs generalized energy-based models at scale: Ray, Hydra, MLflow, webdataset, fsspec and torch-fidelity."""

import os

# A trial is half a dozen processes, most of which wait; Ray warns of that on a machine of few cores. It reads this when
# it is imported.
os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", "worker processes have been started")
