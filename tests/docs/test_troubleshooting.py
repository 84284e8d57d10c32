"""The page of messages has those that the source has."""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ROW = re.compile(r"^\| `(?P<message>[^`]+)` \| .+ \|$", re.MULTILINE)


def texts(source: str) -> Iterator[str]:
    """The texts of a module; what an f-string puts in is an ellipsis."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.JoinedStr):
            yield "".join(str(part.value) if isinstance(part, ast.Constant) else "…" for part in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


@functools.cache
def source_texts() -> tuple[str, ...]:
    paths = [path for package in ("gebm", "pipeline") for path in (ROOT / package).rglob("*.py")]
    return tuple(text for path in paths for text in texts(path.read_text(encoding="utf-8")))


def quoted() -> list[str]:
    page = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    return [match["message"] for match in ROW.finditer(page)]


@pytest.mark.parametrize("message", quoted())
def test_each_message_of_the_page_is_one_of_the_source(message):
    assert len(re.findall(r"\w+", message)) >= 4
    assert any(message in text for text in source_texts())


def test_every_row_is_checked():
    page = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    rows = [line for line in page.splitlines() if line.startswith("|") and not line.startswith(("|---", "| message"))]
    assert len(rows) == len(quoted()) == len(set(quoted())) > 25


def test_what_an_f_string_puts_in_is_an_ellipsis_and_parts_of_a_text_are_one():
    assert "a … of …: b" in [*texts('x = f"a {y} of " f"{z!r}: b"')]
