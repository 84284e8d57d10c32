"""Make the pictures and the printed numbers of docs/tutorial.md again: `python tools/make_tour.py`.

The page is the single source. Its blocks of Python run in order, in one namespace; the pictures that they save land in
docs/images, and what a block prints becomes the block of text below it.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
from pathlib import Path
from typing import NamedTuple

__all__ = ["PAGE", "Block", "blocks", "pictures", "renewed", "run"]

PAGE = Path(__file__).parents[1] / "docs" / "tutorial.md"

_BLOCK = re.compile(r"^```python\n(?P<code>.*?)^```\n(?:\n```text\n(?P<printed>.*?)^```\n)?", re.MULTILINE | re.DOTALL)
_PICTURE = re.compile(r"!\[[^\]]*\]\(images/([^)]+)\)")


class Block(NamedTuple):
    """A block of Python on the page.

    Attributes:
        code: The code, which begins at the line of the page that it stands on, so that a traceback says where to look.
        printed: What the page says that it prints; empty if nothing.
    """

    code: str
    printed: str


def blocks(page: str) -> list[Block]:
    """Return the page's blocks of Python, each with the block of text that follows it, if one does.

    Args:
        page: The page's text.

    Returns:
        The blocks, in order.
    """
    return [
        Block("\n" * page.count("\n", 0, match.start("code")) + match["code"], match["printed"] or "")
        for match in _BLOCK.finditer(page)
    ]


def pictures(page: str) -> list[str]:
    """Return the names of the pictures that the page shows.

    Args:
        page: The page's text.

    Returns:
        File names, as the page's code saves them.
    """
    return _PICTURE.findall(page)


def run(page: str, folder: Path) -> tuple[list[str], dict[str, object]]:
    """Run the page's code, in a folder where it saves its pictures.

    Args:
        page: The page's text.
        folder: The working directory while it runs.

    Returns:
        What each block printed, and the names that are defined in the end.
    """
    namespace: dict[str, object] = {"__name__": "tour"}
    printed = []
    with contextlib.chdir(folder):
        for block in blocks(page):
            out = io.StringIO()
            with contextlib.redirect_stdout(out):
                exec(compile(block.code, str(PAGE), "exec"), namespace)
            printed.append(out.getvalue())
    return printed, namespace


def renewed(page: str, printed: list[str]) -> str:
    """Return the page with what its blocks printed.

    Args:
        page: The page's text.
        printed: What each block printed.

    Returns:
        The page's new text.
    """
    outputs = iter(printed)

    def with_output(match: re.Match[str]) -> str:
        output = next(outputs)
        return f"```python\n{match['code']}```\n" + (f"\n```text\n{output}```\n" if output else "")

    return _BLOCK.sub(with_output, page)


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # sums of floats depend on how many threads there are
    text = PAGE.read_text(encoding="utf-8")
    outputs, _ = run(text, PAGE.parent / "images")
    PAGE.write_text(renewed(text, outputs), encoding="utf-8")
    print("\n".join(output for output in outputs if output))
