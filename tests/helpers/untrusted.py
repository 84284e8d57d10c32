"""Untrusted documents: mutations of valid ones."""

from __future__ import annotations

import json

from hypothesis import strategies as st

from pipeline.runtime.errors import UserError

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.just("step-00000010"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


def one_line(function, *arguments) -> None:
    """What is refused is refused with a line."""
    try:
        function(*arguments)
    except UserError as error:
        assert str(error) and "\n" not in str(error)


def paths(value: object, path: tuple = ()) -> list[tuple]:
    """The place of each part of a nested document."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, item in inner for place in paths(item, (*path, key)))]


def changed(document: object, path: tuple, other: object, how: str) -> object:
    """The document with one part another, gone, or doubled under a new name."""
    if not path:
        return other
    copy = json.loads(json.dumps(document))
    parent = copy
    for key in path[:-1]:
        parent = parent[key]
    if how == "gone":
        del parent[path[-1]]
    elif how == "more" and isinstance(parent, dict):
        parent[str(other)] = parent[path[-1]]
    else:
        parent[path[-1]] = other
    return copy
