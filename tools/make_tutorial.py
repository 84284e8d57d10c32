"""Maker of the figures and printed numbers of docs/tutorial.md: ``python tools/make_tutorial.py``.

The page is the only source. Its blocks of Python run in order, in one namespace. The figures that they save are written
to docs/images, and the output of a block becomes the block of text below it.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
from pathlib import Path
from typing import NamedTuple

__all__ = ["PAGE", "Block", "blocks", "images", "run", "with_outputs"]

PAGE = Path(__file__).parents[1] / "docs" / "tutorial.md"

_BLOCK = re.compile(r"^```python\n(?P<code>.*?)^```\n(?:\n```text\n(?P<printed>.*?)^```\n)?", re.MULTILINE | re.DOTALL)
_IMAGE = re.compile(r"!\[[^\]]*\]\(images/([^)]+)\)")


class Block(NamedTuple):
    """A block of Python on the page.

    Attributes:
        code: The code, padded with empty lines up to its line of the page, so that a traceback points there.
        printed: The output that the page shows; empty if there is none.
    """

    code: str
    printed: str


def blocks(page: str) -> list[Block]:
    """Return the page's blocks of Python, each with the output below it.

    Args:
        page: The page's text.

    Returns:
        The blocks, in order.
    """
    return [
        Block("\n" * page.count("\n", 0, match.start("code")) + match["code"], match["printed"] or "")
        for match in _BLOCK.finditer(page)
    ]


def images(page: str) -> list[str]:
    """Return the names of the images that the page shows.

    Args:
        page: The page's text.

    Returns:
        File names, as the page's code saves them.
    """
    return _IMAGE.findall(page)


def run(page: str, folder: Path) -> tuple[list[str], dict[str, object]]:
    """Run the page's code, in a folder where it saves its figures.

    Args:
        page: The page's text.
        folder: The working directory while it runs.

    Returns:
        The output of each block, and the names that are defined at the end.
    """
    namespace: dict[str, object] = {"__name__": "tutorial"}
    printed = []
    with contextlib.chdir(folder):
        for block in blocks(page):
            out = io.StringIO()
            with contextlib.redirect_stdout(out):
                exec(compile(block.code, str(PAGE), "exec"), namespace)
            printed.append(out.getvalue())
    return printed, namespace


def with_outputs(page: str, printed: list[str]) -> str:
    """Return the page with new outputs of its blocks.

    Args:
        page: The page's text.
        printed: The output of each block.

    Returns:
        The page's new text.
    """
    outputs = iter(printed)

    def replace(match: re.Match[str]) -> str:
        output = next(outputs)
        return f"```python\n{match['code']}```\n" + (f"\n```text\n{output}```\n" if output else "")

    return _BLOCK.sub(replace, page)


if __name__ == "__main__":
    # Sums of floats depend on the number of threads.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    text = PAGE.read_text(encoding="utf-8")
    outputs, _ = run(text, PAGE.parent / "images")
    PAGE.write_text(with_outputs(text, outputs), encoding="utf-8")
    print("\n".join(output for output in outputs if output))
