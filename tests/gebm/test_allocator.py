"""Freed memory: kept, and given back."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

from gebm.allocator import ENVIRONMENT

PROGRAM = """
import resource, sys, threading, torch
from gebm.allocator import disable_malloc_trim, malloc_trim

MIB, SIZE = 2**20, 80

def faults(rounds=8):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(rounds):
        torch.ones(SIZE * MIB, dtype=torch.uint8)  # larger than any block that glibc would keep unasked
    pages = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
    return pages * resource.getpagesize() / (rounds * SIZE * MIB)

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize() / MIB

def work(ask):
    faults()
    unasked = faults()
    assert not ask or disable_malloc_trim()
    faults()
    asked, held = faults(), resident()
    malloc_trim()
    print(unasked, asked, held - resident())

where = sys.argv[1]
if where == "main":
    work(True)
else:
    if where == "thread":
        disable_malloc_trim()
    thread = threading.Thread(target=work, args=[False])
    thread.start()
    thread.join()
"""


def found(where: str, **variables: str) -> list[float]:
    """Parts of what was allocated that the system had to provide, unasked and asked, and MiB that it got back."""
    line = [sys.executable, "-c", PROGRAM, where]
    environment = {key: value for key, value in os.environ.items() if not key.startswith("MALLOC_")} | variables
    done = subprocess.run(line, env=environment, capture_output=True, text=True, check=True, timeout=300)
    return [float(word) for word in done.stdout.split()]


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")
def test_memory_that_is_kept_is_not_cleared_again_and_can_be_given_back():
    unasked, asked, returned = found("main")
    assert unasked > 0.9 and asked < 0.01
    assert returned > 0.9 * 80


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")
def test_a_thread_keeps_it_too_as_a_trials_is_one():
    unasked, _, _ = found("thread alone")
    assert unasked > 0.9
    for where, variables in (("thread", {}), ("thread alone", ENVIRONMENT)):
        _, kept, returned = found(where, **variables)
        assert kept < 0.01 and returned > 0.9 * 80
