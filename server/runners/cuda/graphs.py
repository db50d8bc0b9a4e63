"""CUDA graphs: a function's launches recorded once, and replayed in a single call.

Every graph is compared with the plain call when it is recorded. One that can't be recorded leaves nothing behind that the
next one would fail at. Knows nothing of what it records.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from graft.hub.errors import GraftError


class GraphError(GraftError):
    """A function can't be recorded, or its replay does something else than the call."""


class Graphs:
    """Recorded functions that share one pool of memory: only one of them runs at a time. `tolerance`: relative error."""

    def __init__(self, device: torch.device, tolerance: float):
        self._device, self._tolerance = device, tolerance
        self._pool = torch.cuda.graph_pool_handle()
        self._latest: torch.cuda.CUDAGraph | None = (
            None  # kept: a pool that no graph uses any more can't be recorded into
        )
        self._spoilt: list[torch.cuda.CUDAGraph] = []  # kept: torch's allocator of pinned memory goes on asking them

    def record(self, function: Callable[[], Tensor]) -> Callable[[], Tensor]:
        """A replay of `function`, which must be the same on the same inputs. Its result lies where the next one will.

        Raises GraphError where it can't be recorded: it waits for the device, say, or memory is short.
        """
        try:
            expected = self._rehearse(function)
            replay = self._record(function)
            error = relative_error(replay(), expected)
        except Exception as failure:  # whatever a model's own code does while it is recorded
            raise GraphError(f"The step can't be recorded: {type(failure).__name__}: {failure}") from failure
        if not error <= self._tolerance:
            raise GraphError(f"A recorded step says something else than the step itself (relative error {error:.1g}).")
        return replay

    def _rehearse(self, function: Callable[[], Tensor]) -> Tensor:
        """A plain call on another stream, as a recording needs before it: kernels are compiled and libraries set up."""
        stream, present = torch.cuda.Stream(self._device), torch.cuda.current_stream(self._device)
        stream.wait_stream(present)
        try:
            with torch.cuda.stream(stream):
                result = function()
        finally:  # what it has begun reads and writes memory that others have next
            present.wait_stream(stream)
        result.record_stream(present)
        return result

    def _record(self, function: Callable[[], Tensor]) -> Callable[[], Tensor]:
        graph, present = torch.cuda.CUDAGraph(), torch.cuda.current_stream(self._device)
        with torch.cuda.device(self._device):
            try:
                # present: a recording that is spoilt leaves its own stream in place
                # thread_local: the loader's threads may take memory and copy adapters while the engine's records
                with (
                    torch.cuda.stream(present),
                    torch.cuda.graph(graph, self._pool, capture_error_mode="thread_local"),
                ):
                    result = function()
            except BaseException:
                self._clear_away(graph)
                raise
        self._latest = graph

        def replay() -> Tensor:
            graph.replay()
            return result

        return replay

    def _clear_away(self, graph: torch.cuda.CUDAGraph) -> None:
        """What torch leaves undone where a launch that can't be recorded spoils a recording, as ending it fails then: the allocator
        would never again give back memory that another stream has used, nor record into the pool, nor empty its cache."""
        device = torch.cuda.current_device()
        try:
            torch._C._cuda_endAllocateToPool(device, self._pool)
        except RuntimeError:
            return  # it was ended: the function failed otherwise
        torch._C._cuda_releasePool(device, self._pool)
        self._spoilt.append(graph)
        self._pool = torch.cuda.graph_pool_handle()  # the allocator of pinned memory doesn't take the old one any more


def call_directly(function: Callable[[], Tensor]) -> Callable[[], Tensor]:
    """What takes the place of a recording where there are no graphs: the function itself."""
    return function


def relative_error(got: Tensor, expected: Tensor) -> float:
    """Of the rows [n, d] that are finite in `expected`; a NaN where only `got` has one."""
    finite = expected.isfinite().all(dim=1)
    got, expected = got[finite].float(), expected[finite].float()
    return float((got - expected).norm() / expected.norm().clamp(min=1e-12))
