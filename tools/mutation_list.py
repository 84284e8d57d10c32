"""List of mutations: mistakes made on purpose, each with the tests that have to see it."""

from __future__ import annotations

import ast
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

__all__ = ["Mutation", "load", "problems"]


@dataclass(frozen=True)
class Mutation:
    """A mistake, and the tests that have to see it.

    Args:
        name: Its name, by which it is picked.
        file: File of the repository.
        breaks: What is broken, in a sentence.
        old: Text of the file that occurs once in it.
        new: Text in its place.
        tests: Selectors of pytest: a file and a function of it, perhaps with a case in brackets.
        reason: Why no test can see it, for a mutation that changes nothing.
    """

    name: str
    file: str
    breaks: str
    old: str
    new: str
    tests: tuple[str, ...] = ()
    reason: str = ""


def load(path: Path) -> list[Mutation]:
    """Read a list of mutations.

    Args:
        path: A TOML file with tables ``[[mutation]]``, whose keys are the fields of :class:`Mutation`.

    Raises:
        ValueError: If it is not such a list; one line says where.
    """
    mutations = []
    for number, table in enumerate(tomllib.loads(path.read_text(encoding="utf-8")).get("mutation", ()), start=1):
        known = {field.name for field in fields(Mutation)}
        if unknown := set(table) - known:
            raise ValueError(f"{path}: mutation {number} has an unknown key {min(unknown)}: use {', '.join(known)}")
        if lacking := [key for key in ("name", "file", "breaks", "old", "new") if key not in table]:
            raise ValueError(f"{path}: mutation {number} has no {lacking[0]}: add it")
        mutations.append(Mutation(**{**table, "tests": tuple(table.get("tests", ()))}))
    return mutations


def problems(mutations: Sequence[Mutation], root: Path) -> list[str]:
    """Return what is wrong with a list, a line each: old texts, selectors, names; nothing is imported or collected.

    Args:
        mutations: The list.
        root: Folder of the repository.
    """
    lines = []
    names = [mutation.name for mutation in mutations]
    lines += [f"{name}: two mutations have this name" for name in sorted({n for n in names if names.count(n) > 1})]
    functions: dict[str, set[str]] = {}
    for mutation in mutations:
        path = root / mutation.file
        count = path.read_text(encoding="utf-8").count(mutation.old) if path.is_file() else 0
        if count != 1:
            lines.append(f"{mutation.name}: the old text occurs {count} times in {mutation.file}, and has to once")
        if mutation.old == mutation.new:
            lines.append(f"{mutation.name}: the new text is the old one")
        if bool(mutation.tests) == bool(mutation.reason):
            lines.append(f"{mutation.name}: it needs tests, or a reason why there are none")
        for selector in mutation.tests:
            file, _, function = selector.partition("::")
            if file not in functions:
                functions[file] = _functions(root / file)
            if function.partition("[")[0] not in functions[file]:
                lines.append(f"{mutation.name}: there is no test {selector}")
    return lines


def _functions(path: Path) -> set[str]:
    """Return the names of a module's functions; none where there is no such file."""
    if not path.is_file():
        return set()
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
