"""How the C library keeps memory between steps. Linux with glibc; elsewhere nothing changes.

A training step allocates and frees about a gigabyte. By default glibc hands it back to the system after every step
and takes it again, page by page: in float32 a sixth of the time went into page faults. Not for the server, which
allocates little a step and was 7 % slower with it.
"""

import ctypes
import os
import platform
from functools import cache

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # malloc.h: M_TRIM_THRESHOLD, M_MMAP_THRESHOLD
_KEPT = (1 << 31) - 1  # bytes free at the heap's end before they are handed back: mallopt takes an int
_MAPPED = 32 << 20  # larger blocks are mapped one by one; the most that glibc takes


def keep_freed_memory() -> None:
    """Keep freed memory for the next allocation, in huge pages where the system grants them.

    Changes the whole process: `graft train` calls it, a library does not. Huge pages only come if torch has not
    allocated anything yet.
    """
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # torch reads it at its first allocation
    if libc := _glibc():
        libc.mallopt(_MMAP_THRESHOLD, _MAPPED)
        libc.mallopt(_TRIM_THRESHOLD, _KEPT)


def hand_back_freed_memory() -> None:
    """Give to the system what is free now."""
    if libc := _glibc():
        libc.malloc_trim(0)


@cache
def _glibc() -> ctypes.CDLL | None:
    return ctypes.CDLL(None) if platform.libc_ver()[0] == "glibc" else None
