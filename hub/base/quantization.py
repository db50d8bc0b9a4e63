"""Loading a base with 4- or 8-bit weights (QLoRA, arXiv 2305.14314) through bitsandbytes: frozen weights need no more.

Which weights are quantised, and how, is all that is known here; adapters stay in float32 and notice nothing.
"""

import torch
from torch import nn

from graft.hub.errors import BaseModelError

KINDS = ("4bit", "8bit")


def loading_options(kind: str, dtype: torch.dtype, device: str) -> dict[str, object]:
    """What `from_pretrained` needs to quantise linears: NF4 with doubly quantised scales, or LLM.int8().

    Raises BaseModelError for an unknown kind, and without the package bitsandbytes.
    """
    if kind not in KINDS:
        raise BaseModelError(f"Unknown quantisation {kind!r}. Known: {', '.join(KINDS)}.")
    try:
        import bitsandbytes  # noqa: F401 (asked for early: transformers would fail in the middle of loading)
    except ImportError:
        raise BaseModelError(
            f"A {kind} base needs the package bitsandbytes: pip install bitsandbytes, or leave --quantize out."
        ) from None
    from transformers import BitsAndBytesConfig

    options: dict[str, dict[str, object]] = {
        "4bit": {
            "load_in_4bit": True,
            "bnb_4bit_quant_type": "nf4",
            "bnb_4bit_use_double_quant": True,
            "bnb_4bit_compute_dtype": dtype,
        },
        "8bit": {"load_in_8bit": True},
    }
    return {"quantization_config": BitsAndBytesConfig(**options[kind]), "device_map": {"": device}}


def keep_differentiable(model: nn.Module) -> None:
    """4-bit linears in eval mode repack themselves, on a CPU and once and for all, for a kernel without a gradient."""
    from bitsandbytes.nn import Linear4bit

    for module in model.modules():
        if isinstance(module, Linear4bit):
            module.train()  # it has no dropout: nothing else changes
