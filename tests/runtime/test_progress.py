"""Progress of a long job: its rate and its time left, whatever time its processes take to start."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.runtime import terminal
from pipeline.runtime.terminal import Progress

LINE = re.compile(r"([\d,]+) of ([\d,]+) rows, ([\d,]+) rows/s, ([\d,]+) s left")


def lines_of(start_up: float, counts: list[int], seconds: float, done: int = 0) -> list[tuple[int, ...]]:
    """Return the numbers in the lines of a job that counts every ``seconds`` once its processes have started."""
    now, lines = [1000.0], []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(terminal.time, "monotonic", lambda: now[0])
        progress = Progress(done + sum(counts), done, unit="rows", write=lines.append)
        progress._lines = True
        now[0] += start_up
        for count in counts:
            now[0] += seconds
            progress.advance(count)
            progress.advance(0)
    return [tuple(int(number.replace(",", "")) for number in LINE.fullmatch(line).groups()) for line in lines]


@given(
    start_up=st.floats(0.0, 3600.0),
    rate=st.integers(1, 10**6),
    seconds=st.integers(1, 60),
    num=st.integers(2, 40),
    done=st.integers(0, 10**6),
)
def test_the_rate_and_the_time_left_know_nothing_of_the_start_of_processes(start_up, rate, seconds, num, done):
    *lines, last = lines_of(start_up, [rate * seconds] * num, seconds, done)
    total = done + rate * seconds * num
    for counted, of, shown, left in lines:
        assert (of, shown) == (total, rate)
        assert left == round((total - counted) / rate)
    assert last == (total, total, round(rate * seconds * num / (start_up + seconds * num)), 0)
    # One at least in ten seconds and a count, after the first.
    assert len(lines) >= (num - 2) * seconds // (10 + seconds)


def test_a_job_of_one_count_has_a_line():
    assert lines_of(5.0, [10], 5.0) == [(10, 10, 1, 0)]
