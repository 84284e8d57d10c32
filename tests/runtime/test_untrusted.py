"""One door for documents of anybody: what is beyond a limit is one line, and takes no memory."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap

import fsspec
import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st

from pipeline.runtime.untrusted import CONFIG, InvalidDocument, Limits, parse_json, parse_yaml, read_bytes
from tests.helpers.untrusted import JSON

SMALL = Limits(num_bytes=10_000, values=200, depth=5)
ALIASES = "a: &a [x, x, x, x]\nb: &b [*a, *a, *a, *a]\nc: [*b, *b, *b, *b]\n"


def depth(value: object) -> int:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return max(map(depth, inner), default=0) + isinstance(value, dict | list)


@given(value=JSON)
@example(value={"a": "[[[[[[[[", "b": ['\\"[[[[[[[', '"', "\\"]})
def test_what_is_within_the_limits_is_read_as_it_is(value):
    text = json.dumps(value)
    if depth(value) > SMALL.depth:
        with pytest.raises(InvalidDocument, match="levels deep"):
            parse_json(text, SMALL)
    elif value == value:
        assert parse_json(text, SMALL) == json.loads(text)


@given(content=st.binary(max_size=200) | st.text(max_size=100).map(str.encode))
@example(content=b"[" * 10_000)
@example(content=b'{"a":' * 2_000)
@example(content=b"1" * 9_000)
@example(content=ALIASES.encode())
@example(content=b"!!python/object/apply:os.system ['true']")
@example(content=b"2026-13-45")
def test_any_bytes_are_read_or_refused_by_one_line(content):
    for parse in (parse_json, parse_yaml):
        try:
            parse(content, SMALL)
        except InvalidDocument as error:
            assert str(error) and "\n" not in str(error)


def test_aliases_are_refused_and_a_config_is_not():
    with pytest.raises(InvalidDocument, match="aliases"):
        parse_yaml(ALIASES.encode(), CONFIG)
    values = {"a": [1, 2.5, None, "x"], "b": {"c": {"d": True}}}
    assert parse_yaml(yaml.safe_dump(values).encode(), CONFIG) == values


def test_a_document_is_as_deep_as_its_limit_and_no_deeper():
    for deep in (SMALL.depth, SMALL.depth + 1):
        for text in ("[" * deep + "]" * deep, '{"a":' * deep + "1" + "}" * deep):
            for parse in (parse_json, parse_yaml):
                if deep == SMALL.depth:
                    parse(text.replace(":", ": ").encode(), SMALL)
                else:
                    with pytest.raises(InvalidDocument, match="more than 5 levels deep"):
                        parse(text.replace(":", ": ").encode(), SMALL)


def test_no_more_of_a_file_is_read_than_its_kind_may_have():
    files = fsspec.filesystem("memory")
    files.pipe_file("/untrusted/a", b"x" * 10_000)
    assert read_bytes(files, "/untrusted/a", SMALL) == b"x" * 10_000
    files.pipe_file("/untrusted/a", b"x" * 10_001)
    with pytest.raises(InvalidDocument, match="more than 10,000 bytes"):
        read_bytes(files, "/untrusted/a", SMALL)


def test_no_document_takes_more_memory_than_its_limits_allow(tmp_path):
    """In a process that may have little more than it has: a MemoryError would be a traceback."""
    with (tmp_path / "sparse").open("wb") as file:
        file.truncate(2**33)
    program = textwrap.dedent(
        """
        import resource, sys, fsspec
        from pipeline.runtime.untrusted import *
        own = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (own + 3 * 2**27, own + 3 * 2**27))
        wide = b"[" + b"[]," * (2**24) + b"[]]"
        bombs = {
            "wide": lambda: parse_json(wide, CHECKPOINT),
            "deep": lambda: parse_json(b"[" * 2**22, CHECKPOINT),
            "keys": lambda: parse_json(b"{" + b'"a":{},' * 2**21 + b'"b":1}', CHECKPOINT),
            "digits": lambda: parse_json(b"9" * 2**22, CHECKPOINT),
            "aliases": lambda: parse_yaml(sys.argv[2].encode(), CONFIG),
            "flow": lambda: parse_yaml(b"[" * 2**17, CONFIG),
            "list": lambda: parse_yaml(b"- a\\n" * 2**15, CONFIG),
            "long": lambda: parse_yaml(b"a" * 2**19, CONFIG),
            "file": lambda: read_bytes(fsspec.filesystem("file"), sys.argv[1], CHECKPOINT),
        }
        for name, bomb in bombs.items():
            try:
                bomb()
            except InvalidDocument as error:
                print(name, str(error)[:200])
        """
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "sparse"), ALIASES], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    refused = [line.split()[0] for line in done.stdout.splitlines()]
    assert refused == ["wide", "deep", "keys", "digits", "aliases", "flow", "list", "long", "file"]
