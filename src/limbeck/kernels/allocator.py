"""Memory allocator settings that the program makes for itself at its start.

The first touch of new pages is slow (1.6 GB/s on the machine of the baselines), and glibc gives every large freed block
back to the system, so a training step pays for its large tensors again each time. Here freed memory is kept instead:
large blocks come from the heap (M_MMAP_MAX 0) and the heap is not trimmed (M_TRIM_THRESHOLD). Many block sizes fragment
the heap, so that a process would grow for hours: what is free is given back where another kind
of work begins, as around an evaluation. ``LIMBECK_ALLOCATOR=system`` leaves the allocator alone.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Mapping

__all__ = ["give_back_freed_memory", "keep_freed_memory"]

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # malloc.h
_KEEP_BYTES = 2**31 - 1
_OWN_SETTINGS = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_MAX_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES")


def keep_freed_memory(environment: Mapping[str, str] | None = None, library: ctypes.CDLL | None = None) -> bool:
    """Tell glibc to keep freed memory for reuse; call once, before large tensors are made.

    Nothing happens on other systems or C libraries, or where the environment sets the allocator's own variables.

    Args:
        environment: read for LIMBECK_ALLOCATOR ("keep", the default, or "system"); None: the process's.
        library: C library of the process; None: found.

    Returns:
        Whether the settings were made.

    Raises:
        ValueError: LIMBECK_ALLOCATOR is neither.
    """
    env = os.environ if environment is None else environment
    chosen = env.get("LIMBECK_ALLOCATOR", "keep")
    if chosen not in ("keep", "system"):
        raise ValueError(f"LIMBECK_ALLOCATOR is '{chosen}': it must be 'keep' or 'system'")
    if chosen == "system" or any(name in env for name in _OWN_SETTINGS) or not sys.platform.startswith("linux"):
        return False
    libc = ctypes.CDLL(None) if library is None else library
    if not hasattr(libc, "gnu_get_libc_version"):
        return False
    made = [libc.mallopt(_M_MMAP_MAX, 0), libc.mallopt(_M_TRIM_THRESHOLD, _KEEP_BYTES)]
    return all(made)


def give_back_freed_memory(library: ctypes.CDLL | None = None) -> bool:
    """Give the pages of freed blocks back to the system, wherever they lie; what is used again is touched anew.

    Args:
        library: C library of the process; None: found.

    Returns:
        Whether the C library can do so (glibc), is not to be left alone (LIMBECK_ALLOCATOR), and gave something back.
    """
    if os.environ.get("LIMBECK_ALLOCATOR") == "system":
        return False
    libc = ctypes.CDLL(None) if library is None else library
    return hasattr(libc, "malloc_trim") and bool(libc.malloc_trim(0))
