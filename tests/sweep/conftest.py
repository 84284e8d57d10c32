"""A test that leaves a display open, because it failed, does not print into the next one."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True)
def no_open_display() -> Iterator[None]:
    yield
    logger = logging.getLogger("pipeline")
    for handler in list(logger.handlers):
        logger.removeHandler(handler)
    logger.propagate = True
