"""Memory taken before it is used."""

import math
import mmap

import numpy as np
import psutil
import pytest

from graft.server.cache.page_memory import promised, take_pages
from tests.server.cache.conftest import populates

SIZE, LATER = 64 << 20, math.inf


def taken() -> int:
    return psutil.Process().memory_info().rss


@populates
@pytest.mark.parametrize("offset", [0, 1, 64, mmap.PAGESIZE + 3])
def test_pages_are_taken_and_what_is_in_them_stays(offset):
    memory = np.frombuffer(promised(SIZE), dtype=np.uint8)
    memory[-3:] = memory[offset : offset + 3] = 7
    before = taken()
    assert take_pages(memory.ctypes.data + offset, SIZE - offset, LATER)
    assert taken() - before > SIZE * 0.8
    assert memory.sum() == 42


def test_what_is_promised_is_nothing_that_was_in_use_before():
    """Unlike an allocator's, whose free chunks, below one that is kept, are memory that was taken long ago."""
    np.ones(30 << 20, dtype=np.uint8)  # from here on glibc's heap holds such sizes, too
    freed = [np.ones(SIZE // 4, dtype=np.uint8) for _ in range(6)]
    kept = np.ones(20 << 20, dtype=np.uint8)
    del freed
    before = taken()
    memory = np.frombuffer(promised(SIZE), dtype=np.uint8)
    assert not memory[-1] and memory.ctypes.data % mmap.PAGESIZE == 0 and kept.all()
    assert taken() - before < 4 << 20
    memory[:] = 1
    assert taken() - before > SIZE * 0.8


def test_what_nobody_can_promise_is_a_memory_error():
    with pytest.raises(MemoryError, match="does not promise"):
        promised(1 << 60)


@pytest.mark.parametrize("size", [0, 1, mmap.PAGESIZE - 1])
def test_less_than_a_page(size):
    memory = np.zeros(4 * mmap.PAGESIZE, dtype=np.uint8)
    take_pages(memory.ctypes.data, size, LATER)
    assert not memory.any()


def test_an_address_that_is_nobodys_is_an_answer():
    assert not take_pages(mmap.PAGESIZE, 4 * mmap.PAGESIZE, LATER)
