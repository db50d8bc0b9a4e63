"""Memory that the system has promised, taken before it is used: otherwise whoever writes a page first waits until it is zeroed."""

import ctypes
import mmap
import sys
import time

_POPULATE_WRITE = 23  # madvise(2), Linux 5.14
# Bytes of a call, a huge page: between two it is looked at the time. Who wants a mapping of this process waits for the end of one.
_PIECE = 2 << 20


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
