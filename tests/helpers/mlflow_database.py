"""MLflow's databases for tests: MLflow makes the tables of one by all its migrations, and the others are copies."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy
from mlflow.store.db import utils

__all__ = ["copied_tables", "copy_database"]


def copy_database(source: Path | str, target: Path | str) -> None:
    """Copy a SQLite database into a file that other connections may have open."""
    with contextlib.closing(sqlite3.connect(source)) as one, contextlib.closing(sqlite3.connect(target)) as other:
        one.backup(other)


@contextlib.contextmanager
def copied_tables(template: Path) -> Iterator[None]:
    """Have MLflow in this process begin new SQLite databases as copies of one that it makes itself, in this file."""
    make = utils._initialize_tables
    engine = sqlalchemy.create_engine(f"sqlite:///{template}")
    make(engine)
    engine.dispose()

    def initialize(engine: sqlalchemy.engine.Engine) -> None:
        in_a_file = engine.dialect.name == "sqlite" and engine.url.database not in (None, "", ":memory:")
        if in_a_file and not sqlalchemy.inspect(engine).get_table_names():
            copy_database(template, engine.url.database)
        else:
            make(engine)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(utils, "_initialize_tables", initialize)
        yield
