"""The paged KV cache: two tensors for all layers, and what fits in them.

Layout: keys and values [layers, blocks, BLOCK_ROWS, kv_heads, head_dim] in the base's dtype. Which block belongs to
whom is blocks.py's business.
"""

import math
import time
from collections.abc import Sequence

import torch

from graft.hub.adapters.serving_forms import CacheRows
from graft.hub.base.manifest import BaseSpec
from graft.server.cache.page_memory import promised, take_pages
from graft.server.cache.step import BLOCK_ROWS


def block_bytes(spec: BaseSpec, dtype: torch.dtype) -> int:
    """Bytes of one block, keys and values of all layers."""
    return 2 * spec.num_layers * BLOCK_ROWS * spec.num_kv_heads * spec.head_dim * dtype.itemsize


class KVCache:
    """Keys and values of `blocks` blocks, the trash block included."""

    def __init__(self, spec: BaseSpec, blocks: int, dtype: torch.dtype, device: torch.device | str):
        shape = (spec.num_layers, blocks, BLOCK_ROWS, spec.num_kv_heads, spec.head_dim)
        self.keys = _zeros(shape, dtype, torch.device(device))
        self.values = _zeros(shape, dtype, torch.device(device))

    @property
    def blocks(self) -> int:
        """The trash block included."""
        return self.keys.shape[1]

    @property
    def bytes(self) -> int:
        return self.keys.nbytes + self.values.nbytes

    def take_memory(self, seconds: float) -> None:
        """On a CPU: have it zeroed now instead of in the steps that write it first, as much as there is time for."""
        if self.keys.device.type == "cpu":
            until = time.monotonic() + seconds
            for tensor in (self.keys, self.values):
                take_pages(tensor.data_ptr(), tensor.nbytes, until)

    def copy(self, pairs: Sequence[tuple[int, int]]) -> None:
        """Copy whole blocks, (from, to), in every layer."""
        if pairs:
            sources, targets = (torch.tensor(blocks, device=self.keys.device) for blocks in zip(*pairs, strict=True))
            self.keys[:, targets] = self.keys[:, sources]
            self.values[:, targets] = self.values[:, sources]

    def write(self, rows: CacheRows, blocks: Sequence[int]) -> None:
        """Put P given rows into `blocks` from cache index 0 on."""
        index = torch.arange(rows.keys.shape[1], device=self.keys.device)
        table = torch.tensor(blocks, device=self.keys.device)
        where = (slice(None), table[index // BLOCK_ROWS], index % BLOCK_ROWS)
        self.keys[where] = rows.keys.to(self.keys)
        self.values[where] = rows.values.to(self.values)


def _zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Zeros; on a CPU in memory that is not taken before it is written or `take_memory`, and that begins at a page: a vector that the
    kernels load then lies in one line."""
    if device.type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    return torch.frombuffer(promised(math.prod(shape) * dtype.itemsize), dtype=dtype).view(shape)
