"""``python -m pipeline.compare``: compare sweeps, seeds and objectives in one table and one page."""

from __future__ import annotations

import argparse
import sys
import time

from pipeline.runtime.errors import UserError
from pipeline.runtime.filesystem import require_writable, write_files, writing
from pipeline.runtime.printable import printable
from pipeline.runtime.redaction import redact
from pipeline.runtime.standard_streams import drop_unwritable_output

__all__ = ["main"]

_EXAMPLES = """\
examples:
  python -m pipeline.compare results/digits-20260101-120000
  python -m pipeline.compare results/cifar10-convnet results/cifar10-resnet results/lsun-*
  python -m pipeline.compare s3://bucket/sweeps/seed-0 s3://bucket/sweeps/seed-1 --output comparison

exit status:
  0  written
  2  refused, with one line that says what to do
"""


def main() -> None:
    """Print the tables, and write the page."""
    drop_unwritable_output()
    parser = argparse.ArgumentParser(
        prog="python -m pipeline.compare",
        description="Compare sweeps, and the seeds, networks and objectives in them: means and standard errors over "
        "seeds, differences paired by seed with their intervals, cost, samples side by side, and what is missing.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("sweep", nargs="+", help="a sweep's folder, behind any fsspec URL; one or more of them")
    parser.add_argument("--output", help="folder for compare.html and compare.md; by default results/comparison-<time>")
    arguments = parser.parse_args()
    # Imported here so that --help answers at once.
    from pipeline.compare.groups import group_runs
    from pipeline.compare.page import html_page, markdown
    from pipeline.compare.printing import print_comparison
    from pipeline.compare.sweeps import load_sweeps

    output = (arguments.output or f"results/comparison-{time.strftime('%Y%m%d-%H%M%S')}").rstrip("/")
    try:
        groups = group_runs(load_sweeps(arguments.sweep))
        if not any(group.runs for group in groups):
            raise UserError("nothing to compare: no trial of these sweeps has a score yet")
        require_writable(output, "--output")
        page = html_page(groups)
        with writing(output):
            write_files({"compare.html": page, "compare.md": markdown(groups).encode()}, output)
    except UserError as error:
        print(f"error: {printable(redact(str(error)))}", file=sys.stderr)
        sys.exit(2)
    print_comparison(groups)
    print(printable(f"comparison   {output}/compare.html, {len(page) / 1e6:.1f} MB, and compare.md"))


if __name__ == "__main__":
    main()
