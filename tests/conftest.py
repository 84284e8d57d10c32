"""What holds for every test."""

from __future__ import annotations

from hypothesis import settings

# An example may take as long as it takes: on a machine that is busy with other tests, time says nothing about the code.
settings.register_profile("project", deadline=None)
settings.load_profile("project")
