"""What holds for every test."""

from __future__ import annotations

import os

from hypothesis import settings

# An example may take as long as it takes: on a machine that is busy with other tests, time says nothing about the code.
# CI tries the same examples each time, so that what it says is about the change; at home each run tries new ones.
settings.register_profile("project", deadline=None, derandomize=bool(os.environ.get("CI")))
settings.load_profile("project")
