"""Texts of ``--help``: experiments, searches, commands to copy, and what a command reads and writes."""

from __future__ import annotations

from collections.abc import Mapping

from pipeline.config import compose, schema

__all__ = [
    "COMMANDS",
    "ENVIRONMENT_HELP",
    "EXIT_STATUS_HELP",
    "RESULTS_HELP",
    "RESUME_HELP",
    "SWEEP_ENVIRONMENT_HELP",
    "SWEEP_EXIT_STATUS_HELP",
    "help_text",
    "overview",
]

COMMANDS = {
    "sweep": "Search the hyper-parameters of a GEBM.",
    "train": "Train one GEBM: a sweep of a single trial.",
    "evaluate": "Score a trained GEBM along the MCMC chain, or any images against a store.",
    "sample": "Draw samples from a trained GEBM.",
    "shards": "Make an experiment's store from published data.",
    "submit": "Run a sweep on a cluster: Ray, KubeRay or Slurm.",
    "report": "Write a finished sweep as one HTML file.",
    "compare": "Compare sweeps, seeds and objectives in one table and page.",
}
"""Commands, each of which is a module of this package, with one line each."""

RESUME_HELP = """\
Ctrl-C stops everything and prints the command that resumes; after a crash, or on another machine, it is the same:
  python -m pipeline.{command} resume=<output>
Finished trials stay as they are, the others restart from their last checkpoint. Keys may be added to it.
Tracker, cluster and store are those that you chose when you started it here, whatever the folder says; for a folder
from elsewhere the command names the keys to add."""

RESULTS_HELP = """\
output=<folder or URL>  by default results/<experiment>-<time>: summary.json, config.yaml, trials/<number>/
tracking.uri=<server>   MLflow; by default results/mlflow.db, for `mlflow ui --backend-store-uri`
log=<file>              one line of JSON for each event as well; log=- prints those alone to standard output
A terminal shows one live table; a pipe, or TERM=dumb, gets plain lines."""

ENVIRONMENT_HELP = """\
GEBM_STORES                 root of the stores, a folder or a URL; by default a folder in the user's cache
GEBM_PLUGINS                your own code, as plugins=[./mine.py,my_package.parts] names it
MLFLOW_TRACKING_USERNAME,   for a tracker with a login, as MLFLOW_TRACKING_TOKEN is; tracking.uri takes no password
  MLFLOW_TRACKING_PASSWORD
AWS_ACCESS_KEY_ID,          for s3://, where the machine has no role; AWS_ENDPOINT_URL names another service
  AWS_SECRET_ACCESS_KEY"""

SWEEP_ENVIRONMENT_HELP = f"""\
{ENVIRONMENT_HELP}
RAY_ADDRESS                 a running Ray cluster, where ray.address names none"""

_EXIT_STATUS = """\
0    done
1    no result: {}
2    refused, with a one-line message on standard error that says what to do; nothing has started
130  interrupted by Ctrl-C"""

EXIT_STATUS_HELP = _EXIT_STATUS.format("an internal error")

SWEEP_EXIT_STATUS_HELP = _EXIT_STATUS.format(
    "no trial was evaluated, another process took over the folder, or an internal error"
)

_HEADINGS = {
    "conf": ("Experiments", compose.experiments),
    "sweeps": ("Searches", compose.searches),
}


def help_text(description: str, examples: list[str], groups: tuple[str, ...], sections: Mapping[str, str]) -> str:
    """Return the text of ``--help``.

    Args:
        description: One or two sentences.
        examples: Commands, each perhaps with a remark; the first names the module.
        groups: ``conf``, ``sweeps``, both or neither.
        sections: Further sections, heading to lines.

    Example:
        >>> print(help_text("Say hello.", ["python -m pipeline.hello"], (), {"Exit status": "0  done"}))
        Say hello.
        <BLANKLINE>
        Examples:
          python -m pipeline.hello
        <BLANKLINE>
        Keys:
          Any key can be overridden as key=value, such as seed=1; `--cfg job` prints all there are.
          eval "$(python -m pipeline.hello -sc install=bash)" lets the Tab key complete them in this shell.
        <BLANKLINE>
        Exit status:
          0  done
    """
    defaults = _default_choices()
    parts = [description, *_part("Examples", "\n".join(examples))]
    for group in groups:
        heading, names = _HEADINGS[group]
        lines = names()
        width = max(map(len, lines), default=0)
        table = "\n".join(f"{name:<{width}}  {line}" for name, line in lines.items())
        parts += _part(f"{heading} ({group}=..., by default {defaults[group]})", table)
    module = examples[0].split()[2]
    keys = (
        "Any key can be overridden as key=value, such as seed=1; `--cfg job` prints all there are.\n"
        f'eval "$(python -m {module} -sc install=bash)" lets the Tab key complete them in this shell.'
    )
    for heading, text in {"Keys": keys, **sections}.items():
        parts += _part(heading, text.replace("{command}", module.rpartition(".")[2]))
    return "\n".join(parts)


def overview() -> str:
    """Return the text of ``gebm --help``, which lists the commands."""
    width = max(map(len, COMMANDS))
    parts = [
        "Train, sweep and sample generalized energy-based models.",
        *_part("Commands", "\n".join(f"{name:<{width}}  {line}" for name, line in COMMANDS.items())),
        *_part(
            "Usage",
            "gebm <command> [key=value ...], which is `python -m pipeline.<command>`; gebm <command> --help\n"
            'eval "$(gebm -sc install=bash)" lets the Tab key complete commands and keys in this shell.',
        ),
    ]
    return "\n".join(parts)


def _part(heading: str, text: str) -> list[str]:
    return ["", f"{heading}:", *(f"  {line}" for line in text.splitlines())]


def _default_choices() -> dict[str, str]:
    """Return the choice of each config group where the command line makes none."""
    return {key: name for entry in schema.Primary().defaults if isinstance(entry, dict) for key, name in entry.items()}
