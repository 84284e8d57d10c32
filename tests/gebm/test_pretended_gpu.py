"""The laws of a GPU, in a process of their own.

Torch's autograd engine counts devices once, at the first backward pass of a process: where another test was first, the
pretended one has no queue there.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

LAWS = Path(__file__).with_name("pretended_gpu_laws.py")


def test_the_laws_of_a_gpu_hold_on_the_pretended_one() -> None:
    words = ["-m", "pytest", str(LAWS), "--quiet", "-p", "no:cacheprovider", "-p", "no:xdist", "--tb=short"]
    run = subprocess.run([sys.executable, *words], capture_output=True, text=True, timeout=900, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
