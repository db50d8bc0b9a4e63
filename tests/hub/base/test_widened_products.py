"""Linears in bfloat16 where torch has no kernel for it: what float32 gives, rounded once, and gradients alike."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from transformers.pytorch_utils import Conv1D

from graft.hub.base import widened_products
from graft.hub.base.widened_products import widen_products

ULP = 2.0**-8  # of bfloat16, relative


@pytest.fixture(params=[4096, 300], ids=["whole", "pieces"])
def without_kernels(monkeypatch, request):
    monkeypatch.setattr(widened_products, "has_bfloat16_kernels", lambda: False)
    monkeypatch.setattr(widened_products, "_PIECE", request.param)


def made(kind: str, bias: bool = True) -> nn.Module:
    torch.manual_seed(0)
    module = Conv1D(40, 24) if kind == "conv" else nn.Linear(24, 40, bias=bias)
    return module.to(torch.bfloat16)


def transposed(module: nn.Module) -> torch.Tensor:
    return module.weight.T if isinstance(module, Conv1D) else module.weight


def reference(module: nn.Module, x: torch.Tensor) -> torch.Tensor:
    bias = None if module.bias is None else module.bias.detach().double()
    return F.linear(x.double(), transposed(module).detach().double(), bias)


def close(found: torch.Tensor, wanted: torch.Tensor) -> None:
    """As near as one rounding to bfloat16 is, where sums do not cancel."""
    torch.testing.assert_close(found.double(), wanted, rtol=ULP, atol=ULP * float(wanted.abs().mean()) / 8)


@pytest.mark.parametrize("rows", [1, 7, 8, 33])
@pytest.mark.parametrize(("kind", "bias"), [("linear", True), ("linear", False), ("conv", True)])
def test_one_rounding_from_the_exact_product(without_kernels, kind, bias, rows):
    module = made(kind, bias)
    x = torch.randn(1, rows, 24).bfloat16()
    widen_products(module)
    found = module(x)
    assert found.dtype == torch.bfloat16 and found.shape == (1, rows, 40)
    close(found, reference(module, x))


@pytest.mark.parametrize("trained", [False, True], ids=["frozen", "trained"])
@pytest.mark.parametrize("kind", ["linear", "conv"])
def test_gradients(without_kernels, kind, trained):
    module, x = made(kind).requires_grad_(trained), torch.randn(33, 24).bfloat16().requires_grad_()
    upstream = torch.randn(33, 40).bfloat16()
    wide = copy.deepcopy(module).double()
    exact = x.detach().double().requires_grad_()
    wide(exact).backward(upstream.double())
    widen_products(module)
    copy.deepcopy(module)  # it stays an ordinary module
    module(x).backward(upstream)
    close(x.grad, exact.grad)
    for own, theirs in zip(module.parameters(), wide.parameters(), strict=True):
        if trained:
            close(own.grad, theirs.grad)
        else:
            assert own.grad is None


def test_frozen_weights_keep_no_rows_for_the_backward(without_kernels):
    module, x = made("linear").requires_grad_(False), torch.randn(33, 24).bfloat16().requires_grad_()
    widen_products(module)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        module(x)
    assert [tensor.data_ptr() for tensor in kept] == [module.weight.data_ptr()]


def test_left_alone_where_there_is_nothing_to_gain(monkeypatch):
    class Packed(nn.Linear):
        """As a quantised linear is one."""

    both = nn.Sequential(made("linear"), Packed(4, 4).bfloat16())
    monkeypatch.setattr(widened_products, "has_bfloat16_kernels", lambda: True)
    widen_products(both)
    assert type(both[0]) is nn.Linear
    monkeypatch.setattr(widened_products, "has_bfloat16_kernels", lambda: False)
    widen_products(both.float())
    assert type(both[0]) is nn.Linear
    widen_products(both.bfloat16())
    assert type(both[0]) is not nn.Linear and type(both[1]) is Packed


def test_another_dtype_later_is_multiplied_as_ever(without_kernels):
    module, x = made("linear"), torch.randn(33, 24)
    widen_products(module)
    module.float()
    assert torch.equal(module(x), F.linear(x, module.weight, module.bias))
