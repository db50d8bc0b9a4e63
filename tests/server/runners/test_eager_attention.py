"""The generic runner's fused attention of prompts: heads that share keys, masks and windows, in both ways a device may want them."""

import pytest
import torch

from graft.server.runners.eager.attention import attend_fused


def by_definition(q, k, v, mask, scaling):
    k, v = (x.double().repeat_interleave(q.shape[1] // x.shape[1], dim=1) for x in (k, v))
    scores = q.double() @ k.transpose(2, 3) * scaling
    return scores.masked_fill(~mask, float("-inf")).softmax(-1) @ v


@pytest.mark.parametrize("apart", [False, True], ids=["as on a CPU", "as on a GPU"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kv_heads", [1, 2, 6])
@pytest.mark.parametrize(("start", "window"), [(0, None), (0, 5), (20, None), (20, 7)])
def test_shared_heads_and_masks_say_what_the_definition_does(apart, dtype, kv_heads, start, window):
    rows, scaling, draw = 9, 0.3, torch.Generator().manual_seed(0)
    q, k, v = (
        torch.randn(1, heads, length, 16, generator=draw).to(dtype)
        for heads, length in ((6, rows), (kv_heads, start + rows), (kv_heads, start + rows))
    )
    distance = torch.arange(start, start + rows)[:, None] - torch.arange(start + rows)
    mask = ((distance >= 0) & (distance < (window or 1 << 30)))[None, None]
    given = None if start == 0 and window is None else mask
    got = attend_fused(q, k, v, given, scaling, apart=apart)
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    torch.testing.assert_close(got.double(), by_definition(q, k, v, mask, scaling), atol=tolerance, rtol=tolerance)
    assert torch.equal(got, attend_fused(q, k, v, given, scaling, apart=not apart))


def test_where_a_device_wants_them_apart_no_masked_call_has_shared_heads(monkeypatch):
    """What torch's fused kernels on a GPU refuse, so that it would hold every score."""
    module, calls = torch.nn.functional, []
    plain = module.scaled_dot_product_attention

    def watched(query, keys, values, **options):
        calls.append((query.shape[1] == keys.shape[1], options["enable_gqa"]))
        return plain(query, keys, values, **options)

    monkeypatch.setattr(module, "scaled_dot_product_attention", watched)
    q, k = torch.randn(1, 4, 3, 8), torch.randn(1, 2, 3, 8)
    mask = torch.ones(1, 1, 3, 3, dtype=torch.bool)
    attend_fused(q, k, k, mask, 1.0, apart=True)
    attend_fused(q, k, k, mask, 1.0, apart=False)
    attend_fused(q, k, k, None, 1.0, apart=True)
    assert calls == [(True, False), (False, True), (False, True)]
