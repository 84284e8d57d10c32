"""Output that nobody reads or that no disk takes: the work continues, and no traceback is printed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.config.help import COMMANDS
from tests.helpers.cli import REPOSITORY

WORK = """
import os, sys
from rich.console import Console
from pipeline.runtime.standard_streams import drop_unwritable_output

drop_unwritable_output()
for line in range(3):
    print("a line", flush=True)
    print("a note", file=sys.stderr)
    Console().print("a table")
    os.write(1, b"from C")  # by whoever has no part in it
print("buffered")
open("done", "w").write("done")
"""


def without_reader() -> int:
    """The end of a pipe that nobody reads any more."""
    reading, writing = os.pipe()
    os.close(reading)
    return writing


def run(code: str, folder: Path, **streams: int | None) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        text=True,
        check=False,
        **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **streams},
    )


@pytest.mark.parametrize("broken", [("stdout",), ("stderr",), ("stdout", "stderr")])
def test_work_whose_reader_has_ended_is_done_and_quiet(tmp_path, broken):
    # The first write from C fails where nothing has noticed before.
    process = run(WORK, tmp_path, **dict.fromkeys(broken, without_reader()))
    assert process.returncode == 0 and (tmp_path / "done").exists()
    assert process.stderr in (None, "a note\n" * 3)
    assert process.stdout is None or (process.stdout.count("a line\n") == 3 and "buffered" in process.stdout)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux alone has a disk that is always full")
def test_work_whose_log_is_on_a_full_disk_is_done_and_says_so_once(tmp_path):
    with open("/dev/full", "w") as full:
        process = run(WORK.replace("os.write", "lambda *_: 0, "), tmp_path, stdout=full.fileno())
    assert process.returncode == 0 and (tmp_path / "done").exists()
    assert process.stderr.count("a note\n") == 3 and process.stderr.count("cannot be written") == 1


def test_a_line_of_a_log_is_written_when_it_ends(tmp_path):
    code = WORK + "for stream in (sys.stdout, sys.stderr):\n    print('half a minute left', file=stream)\nos._exit(3)"
    process = run(code, tmp_path)
    assert process.returncode == 3
    assert process.stdout.endswith("half a minute left\n") and process.stderr.endswith("half a minute left\n")


def test_a_name_that_the_encoding_lacks_is_escaped(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONIOENCODING", "ascii")
    process = run(WORK + r"print('caf\xe9 \udce9')", tmp_path)
    assert process.returncode == 0 and r"caf\xe9 \udce9" in process.stdout


def test_work_whose_streams_are_closed_is_done_and_writes_into_no_file(tmp_path):
    code = f"import os\nos.closerange(0, 3)\nos.execv({sys.executable!r}, [{sys.executable!r}, '-c', {WORK!r}])"
    assert run(code, tmp_path).returncode == 0
    assert (tmp_path / "done").read_text() == "done"


def test_help_of_every_command_is_silent_where_nobody_reads_it(tmp_path):
    """All at once: each of them imports for a second."""
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", module, "--help"],
            stdout=without_reader(),
            stderr=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
            text=True,
        )
        for module in ["pipeline", *(f"pipeline.{name}" for name in COMMANDS)]
    ]
    for process in processes:
        assert (process.communicate()[1], process.returncode) == ("", 0), process.args
