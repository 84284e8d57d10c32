"""``--help``, ``--cfg job``, completion and mistakes of typing are answered without torch, Ray and MLflow."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.config.help import COMMANDS

REPOSITORY = Path(__file__).resolve().parents[2]
# Runs a command as `python -m` does, and prints at its end which of the heavy packages it has imported.
WRAPPER = """
import runpy, sys
module, sys.argv[1:] = sys.argv[1], sys.argv[2:]
try:
    runpy.run_module(module, run_name="__main__", alter_sys=True)
finally:
    print("imported:", *(name for name in ("torch", "ray", "mlflow") if name in sys.modules), file=sys.stderr)
"""


def started(module: str, *args: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """A command under the wrapper."""
    return subprocess.run(
        [sys.executable, "-c", WRAPPER, module, *args],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), **variables},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@pytest.mark.parametrize("command", COMMANDS)
def test_help_imports_nothing_heavy(command):
    for module, args in ((f"pipeline.{command}", ["--help"]), ("pipeline", [command, "--help"])):
        ran = started(module, *args)
        assert ran.returncode == 0 and f"python -m pipeline.{command}" in ran.stdout, ran.stderr
        assert ran.stderr == "imported:\n"


@pytest.mark.parametrize(
    ("args", "status"),
    [
        (["sweep", "--cfg", "job"], 0),
        (["submit", "launch=slurm", "--cfg", "job"], 0),
        (["sweep", "-sc", "install=bash"], 0),
        (["train", "train.base_lrr=1"], 2),
        (["evaluate", "conf=lsum"], 2),
        (["-sc", "query=bash"], 0),
        (["--help"], 0),
        ([], 0),
        (["swep"], 2),
    ],
)
def test_what_needs_no_model_imports_nothing_heavy(args, status):
    ran = started("pipeline", *args, COMP_LINE="gebm sweep conf=")
    assert ran.returncode == status, ran.stderr
    *errors, imported = ran.stderr.splitlines()
    assert imported == "imported:"
    assert len(errors) == (1 if status else 0) and all(line.startswith("error: ") for line in errors)


def test_the_overview_lists_every_command():
    printed = started("pipeline", "--help").stdout
    for command, line in COMMANDS.items():
        assert line in printed
        assert (REPOSITORY / f"pipeline/{command}.py").exists() or (
            REPOSITORY / f"pipeline/{command}/__main__.py"
        ).exists()


def test_a_command_that_does_not_exist_is_refused_by_name():
    ran = started("pipeline", "swep")
    assert ran.stderr.startswith("error: no command 'swep': choose one of sweep, train, ")
