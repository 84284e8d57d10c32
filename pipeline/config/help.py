"""What ``--help`` teaches: the experiments, the searches, commands to copy, and what a command reads and leaves."""

from __future__ import annotations

from collections.abc import Mapping

from pipeline.config import compose, schema

__all__ = ["ENVIRONMENT_HELP", "EXIT_STATUS_HELP", "RESULTS_HELP", "RESUME_HELP", "help_text"]

RESUME_HELP = """\
Ctrl-C stops everything and prints the command that goes on; after a crash, or on another machine, it is the same:
  python -m pipeline.{verb} resume=<output>
Trials that have ended stay ended, the others go on from their last checkpoint. Keys may be added to it."""

RESULTS_HELP = """\
output=<folder or URL>  by default results/<experiment>-<time>: summary.json, config.yaml, trials/<number>/
tracking.uri=<server>   MLflow; by default results/mlflow.db, for `mlflow ui --backend-store-uri`
log=<file>              a line of JSON for each event as well; log=- prints those alone to standard output
A terminal shows one live table; a pipe, or TERM=dumb, gets plain lines."""

ENVIRONMENT_HELP = """\
GEBM_STORES                 where stores lie, a folder or a URL; by default a folder in the user's cache
MLFLOW_TRACKING_USERNAME,   for a tracker that asks, as MLFLOW_TRACKING_TOKEN is; tracking.uri takes no password
  MLFLOW_TRACKING_PASSWORD
AWS_ACCESS_KEY_ID,          for s3://, where the machine has no role; AWS_ENDPOINT_URL names another service
  AWS_SECRET_ACCESS_KEY
RAY_ADDRESS                 a Ray cluster that is up, where ray.address names none"""

EXIT_STATUS_HELP = """\
0    done
1    nothing came of it: no trial was evaluated, or a mistake of ours
2    refused, with one line on standard error that says what to do; nothing has started
130  stopped by Ctrl-C"""

_HEADINGS = {
    "conf": ("Experiments", compose.experiments),
    "sweeps": ("Searches", compose.searches),
}


def help_text(description: str, examples: list[str], groups: tuple[str, ...], sections: Mapping[str, str]) -> str:
    """The text of ``--help``.

    Args:
        description: one or two sentences.
        examples: commands, each perhaps with a remark.
        groups: ``conf``, ``sweeps``, both or neither.
        sections: heading to lines.

    Example:
        >>> print(help_text("Say hello.", ["python -m pipeline.hello"], (), {"Exit status": "0  done"}))
        Say hello.
        <BLANKLINE>
        Examples:
          python -m pipeline.hello
        <BLANKLINE>
        Keys:
          Any key can be overridden as key=value, such as train.energy_lr=3e-4; `--cfg job` prints all there are.
          eval "$(python -m pipeline.hello -sc install=bash)" lets the tabulator complete them in this shell.
        <BLANKLINE>
        Exit status:
          0  done
    """
    usual = _usual()
    parts = [description, *_part("Examples", "\n".join(examples))]
    for group in groups:
        heading, names = _HEADINGS[group]
        lines = names()
        width = max(map(len, lines), default=0)
        table = "\n".join(f"{name:<{width}}  {line}" for name, line in lines.items())
        parts += _part(f"{heading} ({group}=..., by default {usual[group]})", table)
    module = examples[0].split()[2]
    keys = (
        "Any key can be overridden as key=value, such as train.energy_lr=3e-4; `--cfg job` prints all there are.\n"
        f'eval "$(python -m {module} -sc install=bash)" lets the tabulator complete them in this shell.'
    )
    for heading, text in {"Keys": keys, **sections}.items():
        parts += _part(heading, text.replace("{verb}", module.rpartition(".")[2]))
    return "\n".join(parts)


def _part(heading: str, text: str) -> list[str]:
    return ["", f"{heading}:", *(f"  {line}" for line in text.splitlines())]


def _usual() -> dict[str, str]:
    """What each group is where the command line does not say."""
    return {key: name for entry in schema.Primary().defaults if isinstance(entry, dict) for key, name in entry.items()}
