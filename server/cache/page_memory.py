"""Memory that the system has promised, and memory of that kind taken before it is used: otherwise whoever writes a page first waits
until it is zeroed."""

import contextlib
import ctypes
import mmap
import sys
import time

_POPULATE_WRITE = 23  # madvise(2), Linux 5.14
# Bytes of a call, a huge page: between two it is looked at the time. Who wants a mapping of this process waits for the end of one.
_PIECE = 2 << 20


def promised(size: int) -> mmap.mmap:
    """Zeros, a page's beginning first. None of them is taken before it is written, or by `take_pages`: an allocator's memory may lie in
    what was in use before. Raises MemoryError."""
    try:
        memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except OSError as error:
        raise MemoryError(f"the system does not promise {size:,} bytes: {error.strerror}") from None
    if sys.platform == "linux":
        with contextlib.suppress(OSError):  # a kernel that has no huge pages
            memory.madvise(mmap.MADV_HUGEPAGE)
    return memory


def take_pages(address: int, size: int, until: float) -> bool:
    """Take the whole pages of this memory, whatever is in them, until a time of `time.monotonic`; whether that could be done, as far
    as there was time."""
    if sys.platform != "linux":
        return False
    madvise = ctypes.CDLL(None, use_errno=True).madvise
    madvise.argtypes = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int
    first = -(-address // mmap.PAGESIZE) * mmap.PAGESIZE
    stop = (address + size) // mmap.PAGESIZE * mmap.PAGESIZE
    for at in range(first, stop, _PIECE):
        if time.monotonic() >= until:
            break
        if madvise(at, min(_PIECE, stop - at), _POPULATE_WRITE) != 0:
            return False
    return True
