"""Where the cache's memory lies, and when it is taken."""

import psutil
import pytest
import torch

from graft.server.cache.tensors import KVCache, block_bytes
from tests.conftest import tiny_base
from tests.server.cache.conftest import populates


@pytest.mark.parametrize("blocks", [2, 3, 17, 4097])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_cache_begins_at_a_line_of_memory(blocks, dtype):
    cache = KVCache(tiny_base("llama").spec, blocks, dtype, "cpu")
    for tensor in (cache.keys, cache.values):
        assert tensor.data_ptr() % 64 == 0
        assert tensor.is_contiguous() and not tensor.any()


def test_memory_is_taken_when_it_is_written(llama):
    blocks = (1 << 30) // block_bytes(llama.spec, torch.float32)
    before = psutil.Process().memory_info().rss
    cache = KVCache(llama.spec, blocks, torch.float32, "cpu")
    assert cache.bytes > 0.9 * (1 << 30)
    assert psutil.Process().memory_info().rss - before < 32 << 20
    cache.keys[:, 5] = 1.0
    assert cache.keys[:, 5].all() and not cache.keys[:, 6].any()


@populates
@pytest.mark.parametrize(("seconds", "least", "most"), [(60, 0.8, 1.1), (0, 0, 0.1)])
def test_memory_is_taken_as_long_as_there_is_time(llama, seconds, least, most):
    """What has been written stays."""
    cache = KVCache(llama.spec, (128 << 20) // block_bytes(llama.spec, torch.float32), torch.float32, "cpu")
    for block in range(1, 9):
        cache.keys[:, -block] = block
    before = psutil.Process().memory_info().rss
    cache.take_memory(seconds)
    assert least * cache.bytes <= psutil.Process().memory_info().rss - before <= most * cache.bytes
    assert all((cache.keys[:, -block] == block).all() for block in range(1, 9)) and not cache.values.any()
