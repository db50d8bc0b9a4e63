"""Memory taken before it is used."""

import math
import mmap

import numpy as np
import psutil
import pytest

from graft.server.cache.page_memory import take_pages
from tests.server.cache.conftest import populates

SIZE, LATER = 64 << 20, math.inf


def taken() -> int:
    return psutil.Process().memory_info().rss


@populates
@pytest.mark.parametrize("offset", [0, 1, 64, mmap.PAGESIZE + 3])
def test_pages_are_taken_and_what_is_in_them_stays(offset):
    memory = np.zeros(SIZE, dtype=np.uint8)
    memory[-3:] = memory[offset : offset + 3] = 7
    before = taken()
    assert take_pages(memory.ctypes.data + offset, SIZE - offset, LATER)
    assert taken() - before > SIZE * 0.8
    assert memory.sum() == 42


@pytest.mark.parametrize("size", [0, 1, mmap.PAGESIZE - 1])
def test_less_than_a_page(size):
    memory = np.zeros(4 * mmap.PAGESIZE, dtype=np.uint8)
    take_pages(memory.ctypes.data, size, LATER)
    assert not memory.any()


def test_an_address_that_is_nobodys_is_an_answer():
    assert not take_pages(mmap.PAGESIZE, 4 * mmap.PAGESIZE, LATER)
