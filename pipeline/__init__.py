"""Generalized energy-based models at scale, on Ray, Hydra, MLflow, webdataset, fsspec and torch-fidelity."""

import os

# A trial is half a dozen processes, most of which wait, and Ray warns of that on a machine of few cores. It reads this
# variable when it is imported.
os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", "worker processes have been started")
