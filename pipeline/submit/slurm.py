"""Slurm launcher: a sweep as a batch job, which starts a Ray cluster of its own on the nodes that it is allocated."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

from pipeline.config.launcher_schema import Slurm, Submission
from pipeline.config.printed_commands import quote_words
from pipeline.runtime.errors import UserError
from pipeline.submit.bundle import JOB, JobBundle, copy_code
from pipeline.submit.reachability import shared_fs

__all__ = ["render_script", "send"]

_TEMPLATE = Path(__file__).with_name("slurm_job.sh.in")
# `@` around capitals means nothing to bash, so that shellcheck reads the template as it is.
_PLACEHOLDER = re.compile("@([A-Z_]+)@")


def send(submission: Submission, overrides: dict[str, Any]) -> int:
    """Write the script with all that it needs, and with ``apply`` hand it to ``sbatch``.

    Args:
        submission: With :class:`Slurm`.
        overrides: Keys that the command line names.

    Returns:
        The exit status, 0.

    Raises:
        UserError: When the config is refused, or ``sbatch`` refuses the script.
    """
    settings = submission.launch
    assert isinstance(settings, Slurm)
    bundle = JobBundle.build(
        submission.config,
        overrides,
        nodes=settings.nodes,
        join_timeout=settings.join_timeout,
        shared=shared_fs,
        advice="",
    )
    folder = bundle.folder(settings.folder)
    copy_code(folder / "code")
    (folder / JOB).write_text(bundle.text())
    path = folder / "sweep.sh"
    path.write_text(render_script(bundle, settings, folder))
    print(f"script: {path}\nits results come to {bundle.output}")
    if not submission.apply:
        print(f"  start it: {quote_words('sbatch', str(path))}")
        return 0
    number = _sbatch(path)
    print(
        f"job {number} is with Slurm\n"
        f"  follow it: {quote_words('tail', '-F', f'{folder}/slurm-{number}.log')}\n"
        f"  find it:   squeue --job {number}, or afterwards sacct --jobs {number}\n"
        f"  stop it:   scancel --full {number}"
    )
    return 0


def render_script(bundle: JobBundle, settings: Slurm, folder: Path) -> str:
    """Return the batch script: the template ``slurm_job.sh.in`` with its placeholders filled in.

    Args:
        bundle: The sweep.
        settings: Resources to request from Slurm.
        folder: Folder of the code, the config and the log, on a file system that all nodes see.

    Raises:
        UserError: When Slurm cannot take the name of the folder, or of the working directory.
    """
    if re.search(r"[\s%'\"\\#]", str(folder)):
        raise UserError(f"launch.folder={folder}: a batch script's log cannot have blanks, quotes, # or % in its path")
    # Of an option with one, Slurm reads the part before it.
    if re.search(r"[\s'\"\\#]", str(Path.cwd())):
        raise UserError(
            f"{Path.cwd()}: a batch script's working directory cannot have blanks, quotes or # in its path; run this "
            "command from another folder"
        )
    values = {
        "SBATCH_OPTIONS": "\n".join(f"#SBATCH {option}" for option in _sbatch_options(bundle.name, settings, folder)),
        "FOLDER": shlex.quote(str(folder)),
        "PYTHON": shlex.quote(settings.python or sys.executable),
        "GPUS": str(settings.gpus_per_node),
        "SETUP": "\n  ".join(settings.setup) or ":",
        "JOB": JOB,
    }
    # One pass, so that a placeholder in a value stays text.
    return _PLACEHOLDER.sub(lambda match: values[match[1]], _TEMPLATE.read_text())


def _sbatch_options(name: str, settings: Slurm, folder: Path) -> list[str]:
    """Return the options of ``sbatch``: those of the settings, then the user's own."""
    values = {
        "job-name": name,
        "nodes": str(settings.nodes),
        "ntasks-per-node": "1",
        "time": settings.time_limit,
        "partition": settings.partition,
        "account": settings.account,
        "mem": settings.memory_per_node,
        "cpus-per-task": settings.cpus_per_node and str(settings.cpus_per_node),
        "gpus-per-node": str(settings.gpus_per_node) if settings.gpus_per_node else None,
        "chdir": str(Path.cwd()),
        "output": f"{folder}/slurm-%j.log",
        "open-mode": "append",
        "signal": "B:TERM@120",
    }
    options = [f"--{key}={value}" for key, value in values.items() if value is not None]
    return [*options, "--requeue", *([] if settings.cpus_per_node else ["--exclusive"]), *settings.options]


def _sbatch(path: Path) -> str:
    """Submit a script, and return the number of its job."""
    try:
        process = subprocess.run(["sbatch", "--parsable", str(path)], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise UserError("apply=true needs sbatch on the PATH; without it, the script is written only") from None
    if process.returncode:
        raise UserError(f"`{quote_words('sbatch', str(path))}` failed: {' '.join(process.stderr.split())[:300]}")
    return process.stdout.strip().partition(";")[0]
