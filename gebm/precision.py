"""Precision of arithmetic: float32, TF32 or bfloat16, and the settings of torch that decide it on a GPU.

In "float32" torch lets cuDNN round the operands of a convolution to TF32, eleven bits, unless a setting forbids it;
energies are then off by about a hundredth of their spread, which an accept step, a log-partition or a likelihood shows.
Here float32 is IEEE's, and TF32 a precision of its own:

| precision | products and convolutions |
|---|---|
| ``float32`` | of 24 bits |
| ``tf32`` | of 11 bits on a GPU that has TF32, summed in float32 |
| ``bfloat16`` | of 8 bits inside the networks, by autocast or by weights; of 24 bits elsewhere |

On a CPU ``tf32`` is ``float32``. Torch's settings are those of the whole process. So while several threads compute, the
strictest precision that one of them requires holds for all; afterwards the settings are what they were.
"""

from __future__ import annotations

import contextlib
import threading
from collections import Counter
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any

import torch

__all__ = ["NAMES", "arithmetic", "as_precision", "unless_chosen"]

NAMES = ("float32", "tf32", "bfloat16")
"""The precisions of training and sampling, by name."""


def as_precision(value: str | torch.dtype) -> str:
    """Return the name of a precision.

    Args:
        value: A name of ``NAMES``, or torch's type of that name.

    Raises:
        ValueError: If there is no such precision.

    Example:
        >>> as_precision(torch.bfloat16), as_precision("tf32")
        ('bfloat16', 'tf32')
    """
    name = str(value).removeprefix("torch.")
    if name not in NAMES:
        raise ValueError(f"no precision is called {name!r}: choose one of {', '.join(NAMES)}")
    return name


_lock = threading.Lock()
# How many blocks are active that need IEEE's float32, and how many that allow TF32.
_active: Counter[str] = Counter()
_before: list[str] = []
_chosen: ContextVar[bool] = ContextVar("chosen", default=False)


@contextlib.contextmanager
def arithmetic(precision: str | torch.dtype) -> Iterator[None]:
    """Compute in a precision inside the block, backward passes included.

    A block in ``float32`` inside one in ``tf32`` is in float32, and so is one in ``tf32`` inside one in ``float32``.
    Whether networks run in bfloat16 is up to autocast and to their weights.

    Args:
        precision: A precision, see :func:`as_precision`.

    Raises:
        ValueError: If there is no such precision.

    Example:
        >>> with arithmetic("float32"):
        ...     torch.backends.cudnn.conv.fp32_precision
        'ieee'
    """
    allowed = "tf32" if as_precision(precision) == "tf32" else "ieee"
    token = _chosen.set(True)
    _enter(allowed)
    try:
        yield
    finally:
        _leave(allowed)
        _chosen.reset(token)


@contextlib.contextmanager
def unless_chosen() -> Iterator[None]:
    """Compute in float32 inside the block, unless a block around it has chosen another precision.

    Example:
        >>> with arithmetic("tf32"), unless_chosen():
        ...     torch.backends.cudnn.conv.fp32_precision
        'tf32'
    """
    if _chosen.get():
        yield
        return
    _enter("ieee")
    try:
        yield
    finally:
        _leave("ieee")


def _backends() -> tuple[Any, ...]:
    # Set when torch is imported, and missing from its own annotations.
    cudnn: Any = torch.backends.cudnn
    return torch.backends.cuda.matmul, cudnn.conv, cudnn.rnn


def _enter(allowed: str) -> None:
    with _lock:
        if not _active.total():
            _before[:] = [backend.fp32_precision for backend in _backends()]
        _active[allowed] += 1
        if _active[allowed] == 1:
            _apply()


def _leave(allowed: str) -> None:
    with _lock:
        _active[allowed] -= 1
        if not _active[allowed]:
            _apply()


def _apply() -> None:
    """Set what the blocks that are active need, or what was set before them."""
    strictest = "ieee" if _active["ieee"] else "tf32"
    settings = [strictest] * len(_before) if _active.total() else _before
    for backend, setting in zip(_backends(), settings, strict=True):
        backend.fp32_precision = setting
