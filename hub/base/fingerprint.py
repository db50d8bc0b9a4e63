"""What makes two bases the same base, and two artifacts the same artifact.

A base's fingerprint hashes its architecture, tensor names and shapes, sampled values rounded to bf16, and
its vocabulary; nothing of versions, paths or dtypes, so fp32 and bf16 copies agree. An artifact's digest
(hub/adapters/validation.py computes it without torch) hashes its canonical weights and load-relevant config.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

# Config keys that change what the base computes; one a family lacks hashes as null.
_ARCHITECTURE_KEYS = (
    "model_type",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "intermediate_size",
    "ffn_dim",
    "vocab_size",
    "hidden_act",
    "activation_function",
    "hidden_activation",
    "rms_norm_eps",
    "layer_norm_eps",
    "layer_norm_epsilon",
    "tie_word_embeddings",
    "sliding_window",
    "layer_types",
    "attn_logit_softcapping",
    "final_logit_softcapping",
    "query_pre_attn_scalar",
    "use_parallel_residual",
    "do_layer_norm_before",
    "rope_parameters",
)
# Keys of single families, hashed only where the family has them: a new one here changes no other's fingerprint.
_FAMILY_KEYS = ("scale_attn_weights", "scale_attn_by_inverse_layer_idx")  # GPT-2
_SAMPLES = 64  # values taken from each tensor
_ROWS = 4096  # of a matrix, compared at once


def fingerprint(
    config: PreTrainedConfig, parameters: Iterable[tuple[str, Tensor]], vocabulary: Mapping[str, int] | None
) -> str:
    """sha256 hex of a base. `parameters`: name and tensor, tied tensors once."""
    digest = hashlib.sha256()
    architecture = {key: getattr(config, key, None) for key in _ARCHITECTURE_KEYS}
    architecture |= {key: value for key in _FAMILY_KEYS if (value := getattr(config, key, None)) is not None}
    digest.update(json.dumps(architecture, sort_keys=True, default=str).encode())
    for name, tensor in sorted(parameters):
        digest.update(f"\n{name} {tuple(tensor.shape)} ".encode())
        digest.update(_sample(tensor))
    words = sorted((vocabulary or {}).items())
    digest.update(json.dumps(words).encode())
    return digest.hexdigest()


def same_weight(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors can be copies of one, each rounded once to its own dtype."""
    if one.shape != other.shape:
        return False
    slack = _half_step(one.dtype), _half_step(other.dtype)
    return all(_within(a, b.to(a.device), slack) for a, b in zip(one.split(_ROWS), other.split(_ROWS), strict=True))


def _within(one: Tensor, other: Tensor, slack: tuple[tuple[float, float], ...]) -> bool:
    a, b = one.detach().double(), other.detach().double()
    size = torch.maximum(a.abs(), b.abs()) * (1 + 2**-7)  # the original may be larger by a rounding
    room = sum(torch.clamp(size * relative, min=least) for relative, least in slack)
    return bool(((a - b).abs() <= room).all())


def _half_step(dtype: torch.dtype) -> tuple[float, float]:
    """How far a value may be moved by rounding to `dtype`: relative to it, and at least (below its normal range)."""
    kind = torch.finfo(dtype)
    return kind.eps / 2, kind.tiny * kind.eps / 2


def _sample(tensor: Tensor) -> bytes:
    flat = tensor.detach().reshape(-1)
    # Knuth's multiplicative hash spreads the fixed positions over the tensor.
    positions = torch.arange(_SAMPLES, dtype=torch.int64) * 2654435761 % flat.numel()
    values = flat[positions.to(flat.device)].to("cpu", torch.bfloat16)
    return values.view(torch.int16).numpy().tobytes()
