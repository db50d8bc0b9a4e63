"""What static steps take: no more than the cache's blocks want, and no more than an engine reckons with."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from graft.hub.errors import GraftError
from graft.server.cache.step import BLOCK_ROWS
from graft.server.cache.tensors import block_bytes
from graft.server.engine import options as module
from graft.server.engine.options import GIB, Options, sizes
from graft.server.runners.cuda.draw_step import StaticDraw
from graft.server.runners.cuda.static_sizes import SIZES, input_numbers, padded, static_bytes
from graft.server.sampling.torch_sampler import Way


def test_an_engine_reckons_with_what_is_kept():
    """Two steps and three draws of every size, whose logits share their memory."""
    rows, blocks, vocabulary = 20, 33, 500
    taken = 0
    for size in (1, 2, 4, 8, 16, 24):
        logits = torch.zeros(size, vocabulary, dtype=torch.bfloat16)
        draws = [StaticDraw(logits, way)._columns.nbytes for way in Way]
        taken += logits.nbytes + sum(draws) + 2 * input_numbers(size, blocks) * torch.int64.itemsize
    assert static_bytes(rows, blocks, vocabulary, torch.bfloat16.itemsize) == taken
    assert static_bytes(10_000, 1, 1, 4) == static_bytes(SIZES[-1], 1, 1, 4)  # larger steps are not static
    assert [padded(rows) for rows in (1, 3, 17, 256)] == [1, 4, 24, 256]


@pytest.fixture
def on_gpu(llama, monkeypatch):
    """A base as if on a GPU with 8 GiB free, made for a million positions."""
    monkeypatch.setattr(module.torch.cuda, "mem_get_info", lambda device: (8 * GIB, 8 * GIB))
    spec = replace(llama.spec, max_positions=1 << 20)
    return SimpleNamespace(device=torch.device("cuda"), dtype=torch.bfloat16, spec=spec)


def test_tables_of_a_million_positions_are_counted_before_the_cache(on_gpu):
    few = sizes(Options(max_running=256, step_rows=512, max_model_len=1024, runner="eager"), on_gpu)
    fast = sizes(Options(max_running=256, step_rows=512, max_model_len=1024), on_gpu)
    tables = static_bytes(256, (1 << 20) // BLOCK_ROWS, on_gpu.spec.vocab_size, 2)
    assert tables > GIB // 2
    assert few.device_bytes - fast.device_bytes == pytest.approx(tables / 8, abs=2)
    cache = 100 * block_bytes(on_gpu.spec, on_gpu.dtype)  # with so small a cache the tables are small too
    small = sizes(Options(max_running=256, step_rows=512, max_model_len=1024, cache_bytes=cache), on_gpu)
    assert (8 * GIB - 8 * small.device_bytes) < GIB // 4


def test_where_recorded_steps_do_not_fit_an_engine_says_so(on_gpu, monkeypatch):
    monkeypatch.setattr(module.torch.cuda, "mem_get_info", lambda device: (GIB // 4, 8 * GIB))
    with pytest.raises(GraftError, match="recorded steps"):
        sizes(Options(max_running=256, step_rows=512, max_model_len=1024), on_gpu)
