"""Cross-entropy of many rows over a large vocabulary, without a float32 copy of the logits.

Rows are done in blocks that stay in the cache; the gradient is written over the logits themselves, which nobody
needs any more. For 1,024 rows of 49,152 tokens in bf16 that is 0.1 GB instead of 0.7.
"""

from typing import Protocol

import torch
from torch import Tensor

_BLOCK_VALUES = 1 << 21  # logits that are widened to float32 at once


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """-log p of each row's target. logits [n, V] (spent by the backward), targets [n] -> [n] in float32."""
    return _CrossEntropy.apply(logits, targets)


class _Saved(Protocol):
    """What the forward leaves for the backward, of torch's context (whose own type knows of one tensor only)."""

    saved_tensors: tuple[Tensor, ...]

    def save_for_backward(self, *tensors: Tensor) -> None: ...


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: _Saved, logits: Tensor, targets: Tensor) -> Tensor:
        totals = torch.empty(len(logits), dtype=torch.float32, device=logits.device)
        for rows in _blocks(logits):
            totals[rows] = logits[rows].float().logsumexp(dim=1)
        ctx.save_for_backward(logits, targets, totals)
        return totals - logits.gather(1, targets[:, None])[:, 0].float()

    @staticmethod
    def backward(ctx: _Saved, gradient: Tensor) -> tuple[Tensor, None]:
        logits, targets, totals = ctx.saved_tensors
        with torch.no_grad():
            for rows in _blocks(logits):
                share = (logits[rows].float() - totals[rows, None]).exp_()
                share[torch.arange(len(share), device=share.device), targets[rows]] -= 1
                logits[rows] = share.mul_(gradient[rows, None]).to(logits.dtype)
        return logits, None


def _blocks(logits: Tensor) -> list[slice]:
    size = max(1, _BLOCK_VALUES // logits.shape[1])
    return [slice(start, start + size) for start in range(0, len(logits), size)]
