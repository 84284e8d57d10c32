"""Launchers that run a sweep on a cluster: Ray's job API, KubeRay, Slurm.

:mod:`pipeline.config.launcher_schema` has the settings, ``bundle`` builds what is sent, and ``reachability`` checks
that the cluster can reach what the config names. Each launcher is a file of its own, and all three run ``job`` on the
cluster.
"""

from __future__ import annotations

from pipeline.config.launcher_schema import KubeRay, RayJobs, Slurm, Submission

__all__ = ["KubeRay", "RayJobs", "Slurm", "Submission"]
