"""``python -m benchmarks.speed_page``: the page ``benchmarks/RESULTS.md``, from the benchmarks' JSON files.

Every table of every file, with the machine that it was measured on. Nothing is measured here.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

__all__ = ["document", "main", "table"]

HEAD = """# Speed, measured

Made by `python -m benchmarks.speed_page` from the files in `benchmarks/results`, which the benchmarks write, the newest
of each kind of machine: {commands}. Each command's `--help` says what is measured and how. A ratio is against the first
row of its table in the same run, in training and sampling the plain reference (`benchmarks/baseline.py`): the median of
the rounds' own ratios ± their interquartile range.
"""


def document(found: list[dict[str, Any]]) -> str:
    """Return the page.

    Args:
        found: contents of the JSON files.
    """
    commands = ", ".join(sorted({f"`python -m benchmarks.{result['benchmark']}`" for result in found}))
    parts = [HEAD.format(commands=commands)]
    for result in found:
        parts.append(f"## {result['benchmark'].capitalize()}, on {_name(result['machine'])}\n\n{_machine(result)}\n")
        tables = result["results"]
        tables = tables if isinstance(tables, dict) else {"": tables}
        for title, rows in tables.items():
            if isinstance(rows, dict):  # single numbers, such as ceilings
                rows = [rows]
            if rows:
                parts.append((f"### {title.capitalize()}\n\n" if title else "") + table(rows) + "\n")
    return "\n".join(parts)


def _name(machine: dict[str, Any]) -> str:
    return machine.get("gpu") or f"{machine['cores']} cores of {machine['cpu']}"


def _machine(result: dict[str, Any]) -> str:
    machine = result["machine"]
    facts = [f"{key.replace('_', ' ')} {_facts(value)}" for key, value in machine.items() if value not in (None, [])]
    settings = [f"{key.replace('_', '-')}={_facts(value)}" for key, value in result["settings"].items()]
    return f"Machine: {', '.join(facts)}.\n\nSettings: {', '.join(settings)}."


def _facts(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


def table(rows: Iterable[Mapping[str, Any]]) -> str:
    """Rows as Markdown; a timing is its median and the spread, a mean is with its standard error."""
    rows = list(rows)
    head = list(rows[0])
    lines = [head, ["---"] * len(head), *[[_cell(row[name]) for name in head] for row in rows]]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(value: Any) -> str:
    if isinstance(value, dict) and "mean" in value:
        return f"{value['mean']:.4g}" + ("" if value["error"] is None else f" ± {value['error']:.2g}")
    if isinstance(value, dict):
        return f"{value['median']:.4g} ± {value['spread']:.2g}"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def main() -> None:
    """Read the files, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", default=Path("benchmarks/results"), help="of the JSON files")
    parser.add_argument("--page", type=Path, default=Path("benchmarks/RESULTS.md"), help="the page to write")
    arguments = parser.parse_args()
    found = [json.loads(path.read_text()) for path in sorted(arguments.folder.glob("*.json"))]
    arguments.page.write_text(document(found))
    print(f"written: {arguments.page}")


if __name__ == "__main__":
    main()
