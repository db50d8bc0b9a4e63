"""RMS norms (Zhang and Sennrich 2019) in two launches instead of seven: a decoding step of one row has 50 of them, each of microseconds.

transformers' modules go through float32 operation by operation. torch has the norm as one kernel; scaling stays an operation of its
own, so that values are rounded where transformers rounds them.
"""

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_TOLERANCE = 0.02  # of single values, relative: a rounding of bfloat16, where orders of additions differ


def fuse_norms(model: nn.Module) -> int:
    """Replace the forwards of a model's RMS norms, where the kernel says the same. Returns how many there are.

    Norms that are defined otherwise (Gemma scales by 1 + weight, in float32) stay what they are.
    """
    fused = 0
    for module in model.modules():
        epsilon = vars(module).get("variance_epsilon")
        weight = module._parameters.get("weight")
        if not isinstance(epsilon, float) or weight is None or weight.dim() != 1:
            continue
        forward = partial(_scaled_norm, weight, epsilon)
        if _say_the_same(module, forward, weight):
            module.forward = forward
            fused += 1
    return fused


def _scaled_norm(weight: Tensor, epsilon: float, hidden_states: Tensor) -> Tensor:
    return weight * F.rms_norm(hidden_states, weight.shape, None, epsilon)


@torch.inference_mode()
def _say_the_same(module: nn.Module, forward: "partial[Tensor]", weight: Tensor) -> bool:
    draw = torch.Generator().manual_seed(0)
    rows = torch.randn(4, len(weight), generator=draw).to(weight)
    expected, got = module(rows).float(), forward(rows).float()
    return bool(torch.allclose(got, expected, rtol=_TOLERANCE, atol=0.0))
