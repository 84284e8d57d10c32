"""Comparison of sweeps from their folders to the terminal and a page."""

from __future__ import annotations

import math
from collections.abc import Sequence

from pipeline.report.comparisons.groups import group_runs
from pipeline.report.comparisons.page import html_page, markdown
from pipeline.report.comparisons.printing import print_comparison
from pipeline.report.comparisons.sweeps import load_sweeps
from pipeline.runtime.errors import UserError
from pipeline.runtime.filesystem import require_writable, write_files, writing
from pipeline.runtime.printable import printable

__all__ = ["compare"]


def compare(folders: Sequence[str], output: str) -> None:
    """Compare sweeps, write ``compare.html`` and ``compare.md``, and print the tables and the path of the page.

    Args:
        folders: Folders of the sweeps, behind any fsspec URLs.
        output: Folder of the page.

    Raises:
        UserError: A folder has no sweep, sweeps are not measured alike, no trial has a score, or the page cannot be
            written.
    """
    groups = group_runs(load_sweeps(folders))
    if not any(group.runs for group in groups):
        raise UserError("nothing to compare: no trial of these sweeps has a score yet")
    require_writable(output, "--output")
    page = html_page(groups)
    with writing(output):
        write_files({"compare.html": page, "compare.md": markdown(groups).encode()}, output)
    print_comparison(groups)
    print(printable(f"comparison   {output}/compare.html, {math.ceil(len(page) / 1000):,} kB, and compare.md"))
