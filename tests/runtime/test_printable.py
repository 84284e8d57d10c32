"""What is printed steers no terminal and reorders no line, whoever wrote it."""

from __future__ import annotations

import io
import logging
import unicodedata

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from rich.table import Table

from pipeline.config.command import report_error
from pipeline.runtime.errors import UserError
from pipeline.runtime.logging import ConsoleHandler, logging_to
from pipeline.runtime.printable import printable
from pipeline.runtime.terminal import PrintableConsole

STEERING = ["\x1b[2J\x1b]0;owned\x07", "\x9b31m", "\u202egnp.exe", "\u2066x\u2069", "a\rb\b", "\x00", "\u2028"]


def steers(text: str) -> bool:
    kinds = {unicodedata.category(letter) for letter in text if letter not in "\n\t"}
    return bool(kinds & {"Cc", "Cf", "Cs", "Zl", "Zp"})


@given(text=st.text())
@example(text="".join(STEERING))
@example(text="\ud800")
def test_nothing_steers_and_what_is_printed_stays_as_it_is(text):
    assert not steers(printable(text)) and printable(printable(text)) == printable(text)
    if not steers(text):
        assert printable(text) == text or any(unicodedata.category(letter) in ("Cn", "Co") for letter in text)


@pytest.mark.parametrize("text", STEERING)
def test_a_name_from_a_file_is_escaped_on_the_console_in_logs_and_in_errors(text, capsys):
    output = io.StringIO()
    console = PrintableConsole(file=output, width=100, force_terminal=True)
    table = Table(title=text)
    table.add_column(text)
    table.add_row(text)
    console.print(table)
    console.print(text, markup=False, highlight=False)
    with logging_to(ConsoleHandler(console, timestamps=True)):
        logging.getLogger("pipeline.test").warning("a name: %s", text)
    # The console's own colors are all that steers.
    assert not steers(output.getvalue().replace("\x1b[", "")) and f"a name: {printable(text)}" in output.getvalue()
    assert text not in output.getvalue()
    assert report_error(UserError(f"no image called {text}")) == 2
    assert not steers(capsys.readouterr().err)
