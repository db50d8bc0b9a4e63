"""Linears in bfloat16 on a CPU that has no instructions for it: multiplied in float32, rounded once.

Where oneDNN has no bfloat16 kernel for a CPU, torch multiplies in a loop that takes eight times as long as float32 does.
A weight that is widened on the way, a piece at a time, costs a fifth more than float32, and no second copy of the base.
Like any bfloat16 kernel it adds up in float32.
"""

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

_PIECE = 1 << 22  # weights that are widened at once
_FEW_ROWS = 8  # below, widening a weight takes longer than torch's loop


def widen_products(model: nn.Module) -> None:
    """Let the model's linears compute so, where it is in bfloat16 on a CPU for which torch has no kernel of that dtype."""
    parameter = next(model.parameters())
    if parameter.dtype != torch.bfloat16 or not parameter.is_cpu or has_bfloat16_kernels():
        return
    for module in model.modules():
        if type(module) in _WIDENED:  # not their subclasses, whose weights are packed
            module.__class__ = _WIDENED[type(module)]


def has_bfloat16_kernels() -> bool:
    """Whether torch multiplies bfloat16 by oneDNN on this CPU."""
    return torch.backends.mkldnn.is_available() and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


class _WidenedLinear(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        return _product(input, self.weight, self.bias)


class _WidenedConv1D(Conv1D):
    def forward(self, x: Tensor) -> Tensor:
        return _product(x, self.weight.T, self.bias)


_WIDENED: dict[type[nn.Module], type[nn.Module]] = {nn.Linear: _WidenedLinear, Conv1D: _WidenedConv1D}


def _product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x [..., in] times weight [out, in], plus bias [out] -> [..., out], in x's dtype."""
    rows = x.reshape(-1, x.shape[-1])
    if x.dtype != torch.bfloat16 or len(rows) < _FEW_ROWS:
        return F.linear(x, weight, bias)
    return _Widened.apply(rows, weight, bias).view(*x.shape[:-1], len(weight))


class _Saved(Protocol):
    """What the forward leaves for the backward, of torch's context (whose own type knows of one tensor only)."""

    saved_tensors: tuple[Tensor | None, ...]
    needs_input_grad: tuple[bool, bool, bool]

    def save_for_backward(self, *tensors: Tensor | None) -> None: ...


class _Widened(torch.autograd.Function):
    @staticmethod
    def forward(ctx: _Saved, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x if ctx.needs_input_grad[1] else None, weight)
        wide, made = x.float(), x.new_empty(len(x), len(weight))
        for piece in _pieces(weight):
            made[:, piece] = F.linear(wide, weight[piece].float(), None if bias is None else bias[piece].float())
        return made

    @staticmethod
    def backward(ctx: _Saved, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        assert weight is not None
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad
        of_x = gradient.new_zeros(len(gradient), weight.shape[1], dtype=torch.float32) if needs_x else None
        of_weight = torch.empty_like(weight) if needs_weight else None
        wide = None if x is None else x.float()
        for piece in _pieces(weight):
            part = gradient[:, piece].float()
            if of_x is not None:
                of_x.addmm_(part, weight[piece].float())
            if of_weight is not None and wide is not None:
                of_weight[piece] = part.T @ wide
        of_bias = gradient.float().sum(0).to(gradient.dtype) if needs_bias else None
        return None if of_x is None else of_x.to(gradient.dtype), of_weight, of_bias


def _pieces(weight: Tensor) -> list[slice]:
    """Of the rows of a weight [out, in]."""
    size = max(1, _PIECE // weight.shape[1])
    return [slice(start, start + size) for start in range(0, len(weight), size)]
