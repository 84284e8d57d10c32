"""``python -m pipeline.compare``: compare sweeps, seeds and objectives in one table and one page."""

from __future__ import annotations

import argparse
import time

from pipeline.report.command import make_parser, run_command

__all__ = ["main"]

_EXAMPLES = """\
  python -m pipeline.compare results/digits-20260101-120000
  python -m pipeline.compare results/cifar10-convnet results/cifar10-resnet results/lsun-*
  python -m pipeline.compare s3://bucket/sweeps/seed-0 s3://bucket/sweeps/seed-1 --output comparison
"""


def main() -> None:
    """Print the tables, and write the page."""
    parser = make_parser(
        "compare",
        "Compare sweeps, and the seeds, networks and objectives in them: means and standard errors over seeds, "
        "differences paired by seed with their intervals, cost, samples side by side, and what is missing.",
        _EXAMPLES,
    )
    parser.add_argument("sweep", nargs="+", help="a sweep's folder, behind any fsspec URL; one or more of them")
    parser.add_argument("--output", help="folder for compare.html and compare.md; by default results/comparison-<time>")
    run_command(parser, _compare)


def _compare(arguments: argparse.Namespace) -> None:
    # Imported here so that --help answers at once.
    from pipeline.report.comparisons.command import compare

    compare(arguments.sweep, (arguments.output or f"results/comparison-{time.strftime('%Y%m%d-%H%M%S')}").rstrip("/"))


if __name__ == "__main__":
    main()
