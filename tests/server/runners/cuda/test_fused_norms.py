"""Fused RMS norms: the numbers of transformers' modules, and only of those that are defined so."""

import pytest
import torch

from graft.server.runners.cuda.fused_norms import fuse_norms


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("family", ["llama", "qwen2"], indirect=True)
def test_a_fused_norm_says_what_the_module_says(base, dtype):
    model = base.model.to(dtype)
    norms = {name: module for name, module in model.named_modules() if type(module).__name__.endswith("RMSNorm")}
    rows = torch.randn(7, base.spec.hidden_size, generator=torch.Generator().manual_seed(1)).to(dtype) * 3
    with torch.no_grad():
        for number, module in enumerate(norms.values()):
            module.weight.copy_(
                1 + 0.1 * torch.randn(module.weight.shape, generator=torch.Generator().manual_seed(number))
            )
        expected = {name: module(rows) for name, module in norms.items() if len(module.weight) == rows.shape[1]}
        assert fuse_norms(model) == len(norms) > 0
        seen = []
        for name, module in norms.items():
            module.register_forward_hook(lambda module, args, out: seen.append(out))  # adapters' taps are hooks
            if name in expected:
                torch.testing.assert_close(module(rows), expected[name])
    assert len(seen) == len(expected)


@pytest.mark.parametrize("family", ["gemma2", "gpt2"], indirect=True)
def test_other_norms_stay_what_they_are(base):
    assert fuse_norms(base.model) == 0
