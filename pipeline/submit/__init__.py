"""A sweep on somebody else's machines: a Ray cluster's job API, KubeRay, Slurm.

``settings`` says what can be set, ``parcel`` what is sent, ``places`` what the cluster has to be able to reach; each
launcher is a file of its own, and ``job`` is what all three of them run at the other end.
"""

from __future__ import annotations

from pipeline.config.launchers import KubeRay, RayJobs, Slurm, Submission

__all__ = ["KubeRay", "RayJobs", "Slurm", "Submission"]
