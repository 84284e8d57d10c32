"""Settings of the C library's allocator, for the memory that tensors on the CPU free.

By default, glibc hands every larger block back to the system as soon as it is free and asks for it again at the next
layer. The system clears each page of it anew: an eighth of a ResNet's energy step and a fifth of its chain. On a GPU
torch keeps freed memory itself.

The settings are made when a process starts, by ``ENVIRONMENT``, or by :func:`disable_malloc_trim` before any other
thread has
allocated: a thread that has memory of its own, as glibc gives it one, cannot keep blocks above 64 MiB, and few below.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable

__all__ = ["ENVIRONMENT", "disable_malloc_trim", "malloc_trim"]

ENVIRONMENT = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**60)}
"""Environment variables of a process all of whose threads keep the memory that they free."""

# Constants of glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8
_NEVER = -1


def disable_malloc_trim() -> bool:
    """Have this process keep the memory that it frees, for what it allocates next.

    Its memory then stays at its peak, which is a little higher, since a free block does not always fit;
    :func:`malloc_trim` returns what is not in use. No result changes. Threads that have allocated before continue
    as they did. Without glibc's own allocator nothing happens.

    Returns:
        Whether there is a glibc that accepted the settings.

    Example:
        >>> _ = disable_malloc_trim()
    """
    mallopt = _of_glibc("mallopt")
    if mallopt is None:
        return False
    return all([mallopt(_M_ARENA_MAX, 1), mallopt(_M_MMAP_MAX, 0), mallopt(_M_TRIM_THRESHOLD, _NEVER)])


def malloc_trim() -> None:
    """Give the system back what this process has freed and kept, as after work that needed more than what comes next.

    Example:
        >>> malloc_trim()
    """
    malloc_trim = _of_glibc("malloc_trim")
    if malloc_trim is not None:
        malloc_trim(ctypes.c_size_t(0))


def _of_glibc(name: str) -> Callable[..., int] | None:
    try:
        library = ctypes.CDLL(None)
    except (OSError, TypeError):
        # Windows has no library of the process itself.
        return None
    # Others have a function of that name too, with options of their own.
    return getattr(library, name, None) if hasattr(library, "gnu_get_libc_version") else None
