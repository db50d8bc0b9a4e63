"""Recording where it fails, with a fake of torch's CUDA graphs that fails as they do (ATen/cuda/CUDAGraph.cpp, torch/cuda/graphs.py).

Where a launch that can't be recorded spoils a recording, ending it raises before the allocator is told and before the stream is put
back: `captures_underway` stays, emptying the cache asserts that there are none, and the pool is refused. test_gpu.py has the real ones.
"""

from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch

from graft.server.runners.cuda import graphs as module
from graft.server.runners.cuda.graphs import GraphError, Graphs


class FakeCuda:
    """One device: its stream, pools by number of users, and the pools that its two allocators believe are recorded into."""

    def __init__(self):
        self.present, self.pools, self.underway, self.pinned = "default", {}, [], []
        self.spoilt = self.capturing = False
        self.handles = iter(range(1, 100))

    def graph_pool_handle(self):
        return (0, next(self.handles))

    def Stream(self, device):
        return SimpleNamespace(wait_stream=lambda stream: None)

    def current_stream(self, device=None):
        return SimpleNamespace(name=self.present, wait_stream=lambda stream: None)

    def current_device(self):
        return 0

    @contextmanager
    def device(self, device):
        yield

    @contextmanager
    def stream(self, stream):
        before, self.present = self.present, getattr(stream, "name", "side")
        try:
            yield
        finally:
            self.present = before

    def CUDAGraph(self):
        return SimpleNamespace(replay=lambda: None)

    def graph(self, graph, pool, capture_error_mode):
        return Capture(self, pool)

    def end(self, device, pool):
        if pool not in self.underway:
            raise RuntimeError("endAllocatePool: not currently recording to mempool_id")
        self.underway.remove(pool)

    def release(self, device, pool):
        self.pools[pool] -= 1


class Capture:
    def __init__(self, cuda, pool):
        self.cuda, self.pool = cuda, pool

    def __enter__(self):
        if self.cuda.underway:
            raise RuntimeError("captures_underway.empty() INTERNAL ASSERT FAILED")
        self.before, self.cuda.present = self.cuda.present, "recording"
        if self.pool in self.cuda.pinned:
            raise RuntimeError("beginAllocateToPool: already recording to pool_id")
        self.cuda.underway.append(self.pool)
        self.cuda.pinned.append(self.pool)
        self.cuda.pools[self.pool] = self.cuda.pools.get(self.pool, 0) + 1
        self.cuda.spoilt, self.cuda.capturing = False, True

    def __exit__(self, *raised):
        self.cuda.capturing = False
        if self.cuda.spoilt:
            raise RuntimeError("CUDA error: operation failed due to a previous error during capture")
        self.cuda.underway.remove(self.pool)
        self.cuda.pinned.remove(self.pool)
        self.cuda.present = self.before


class Rows(torch.Tensor):
    """A result on the fake's device."""

    def record_stream(self, stream):
        pass


ROWS = torch.ones(2, 2).as_subclass(Rows)


@pytest.fixture
def cuda(monkeypatch):
    fake = FakeCuda()
    monkeypatch.setattr(module.torch, "cuda", fake)
    monkeypatch.setattr(module.torch._C, "_cuda_endAllocateToPool", fake.end, raising=False)
    monkeypatch.setattr(module.torch._C, "_cuda_releasePool", fake.release, raising=False)
    return fake


def refuse(cuda, *, spoils):
    """A function that fails while it is recorded, and only then."""

    def function():
        if cuda.capturing:
            cuda.spoilt = spoils
            raise torch.OutOfMemoryError("out of memory") if not spoils else RuntimeError("not permitted")
        return ROWS

    return function


@pytest.mark.parametrize("spoils", [False, True], ids=["the function fails", "the recording is spoilt"])
def test_a_failed_recording_leaves_nothing_that_the_next_fails_at(cuda, spoils):
    graphs = Graphs(torch.device("cuda"), 1e-3)
    kept = graphs.record(lambda: ROWS)
    users = sum(cuda.pools.values())
    for _ in range(3):
        with pytest.raises(GraphError):
            graphs.record(refuse(cuda, spoils=spoils))
        assert cuda.present == "default" and not cuda.underway
        assert torch.equal(graphs.record(lambda: ROWS)(), ROWS)
    assert torch.equal(kept(), ROWS)
    # a spoilt recording is no user of its pool; torch counts one that has ended for as long as the graph lives
    assert sum(cuda.pools.values()) == users + (3 if spoils else 6)


def test_a_replay_that_says_something_else_is_refused(cuda):
    graphs = Graphs(torch.device("cuda"), 1e-3)
    with pytest.raises(GraphError, match="says something else"):
        graphs.record(lambda: ROWS * (2 if cuda.capturing else 1))
    assert torch.equal(graphs.record(lambda: ROWS)(), ROWS)
