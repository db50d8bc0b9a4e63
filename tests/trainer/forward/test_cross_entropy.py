"""Cross-entropy by blocks equals torch's."""

import pytest
import torch
import torch.nn.functional as F

import graft.trainer.forward.cross_entropy as subject
from graft.trainer.forward.cross_entropy import cross_entropy


@pytest.mark.parametrize("block", [1, 100, 1 << 21])
@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-6), (torch.bfloat16, 1e-2)])
def test_values_and_gradients_equal_torch(monkeypatch, block, dtype, tolerance):
    monkeypatch.setattr(subject, "_BLOCK_VALUES", block)
    draw = torch.Generator().manual_seed(0)
    hidden = torch.randn(7, 5, generator=draw, dtype=dtype, requires_grad=True)
    head = torch.randn(50, 5, generator=draw, dtype=dtype)
    targets = torch.randint(50, (7,), generator=draw)
    weights = torch.rand(7, generator=draw)
    expected = F.cross_entropy((hidden @ head.T).float(), targets, reduction="none")
    (wanted,) = torch.autograd.grad((expected * weights).sum(), hidden)
    found = cross_entropy(hidden @ head.T, targets)
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)
    (got,) = torch.autograd.grad((found * weights).sum(), hidden)
    torch.testing.assert_close(got, wanted, rtol=tolerance, atol=tolerance)


def test_a_row_that_is_not_finite_leaves_the_others_alone():
    logits = torch.randn(3, 10, requires_grad=True)
    broken = logits.clone()
    broken[1] = float("nan")
    found = cross_entropy(broken * 1, torch.tensor([1, 2, 3]))
    assert found[1].isnan() and found[[0, 2]].isfinite().all()
    found.sum().backward()
    assert logits.grad[[0, 2]].isfinite().all()
