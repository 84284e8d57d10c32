"""A key as a word of a command: the shell and Hydra make of it what it was."""

from __future__ import annotations

import shlex

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import QuotedString
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.config.compose import format_overrides

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(st.characters(codec="utf-8")),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text("abc_", min_size=1, max_size=5), inner, max_size=3)
    ),
    max_leaves=6,
)


def meant(parsed):
    """What Hydra's parser has read."""
    if isinstance(parsed, QuotedString):
        return parsed.text
    if isinstance(parsed, list):
        return [meant(inner) for inner in parsed]
    if isinstance(parsed, dict):
        return {meant(key): meant(inner) for key, inner in parsed.items()}
    return parsed


@settings(max_examples=500)
@given(VALUES)
def test_what_a_word_sets_is_what_it_was_made_of(value):
    [argument] = shlex.split(" ".join(format_overrides({"a.b": value})))
    override = OverridesParser.create().parse_override(argument)
    assert override.key_or_group == "a.b"
    result = meant(override.value())
    assert result == value and type(result) is type(value), argument
