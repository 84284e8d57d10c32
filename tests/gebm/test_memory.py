"""Freed memory: kept, and given back."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

PROGRAM = """
import resource, torch
from gebm.memory import keep_freed_memory, return_freed_memory

MIB, SIZE = 2**20, 80

def faults(rounds=8):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(rounds):
        torch.ones(SIZE * MIB, dtype=torch.uint8)  # larger than any block that glibc would keep unasked
    pages = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
    return pages * resource.getpagesize() / (rounds * SIZE * MIB)

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize() / MIB

faults()
unasked = faults()
assert keep_freed_memory()
faults()
asked, held = faults(), resident()
return_freed_memory()
print(unasked, asked, held - resident())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")
def test_memory_that_is_kept_is_not_cleared_again_and_can_be_given_back():
    found = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True, timeout=300)
    unasked, asked, returned = map(float, found.stdout.split())
    # Parts of what was allocated that the system had to provide: all of it each time, or none.
    assert unasked > 0.9 and asked < 0.01
    assert returned > 0.9 * 80
