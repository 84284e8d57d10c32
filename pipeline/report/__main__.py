"""``python -m pipeline.report``: write the report of a sweep as one HTML file."""

from __future__ import annotations

import argparse
import re

from pipeline.report.command import make_parser, run_command
from pipeline.runtime.errors import UserError, one_line
from pipeline.runtime.filesystem import require_writable, write_file

__all__ = ["main"]

_EXAMPLES = """\
  python -m pipeline.report results/lsun-20260101-120000
  python -m pipeline.report s3://bucket/sweeps/lsun --output lsun.html
  MLFLOW_TRACKING_URI=https://mlflow.example.org python -m pipeline.report 86a90d32c579439a9302325edbe9f356
"""


def main() -> None:
    """Write the report, and print its path."""
    parser = make_parser(
        "report",
        "Write the report of a sweep as one self-contained HTML file: setup, best trial, every trial, interactive "
        "charts, and the commands for the next steps.",
        _EXAMPLES,
    )
    parser.add_argument("sweep", help="the sweep's folder, behind any fsspec URL, or the id of its run in MLflow")
    parser.add_argument(
        "--output", help="the file; by default report/report.html in the sweep's folder, where the sweep puts its own"
    )
    run_command(parser, _report)


def _report(arguments: argparse.Namespace) -> None:
    # Imported here so that --help answers at once.
    from pipeline.report.analysis import load_results
    from pipeline.report.html import report

    folder = arguments.sweep.rstrip("/")
    if re.fullmatch(r"[0-9a-f]{32}", folder):
        # Takes a second to import, and only a run's id needs it.
        from pipeline.tracking.tracker import run_folder

        folder = run_folder(folder)
    results = load_results(folder)
    path = arguments.output or f"{folder}/report/report.html"
    require_writable(path.rpartition("/")[0] or ".", "--output")
    content = report(results)["report.html"]
    try:
        write_file(path, content)
    # Each file system has exceptions of its own.
    except Exception as error:
        raise UserError(f"cannot write {path} ({one_line(error)}): choose another file with --output") from None
    print(f"report   {path}, {len(content) / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
