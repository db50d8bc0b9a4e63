"""A base's weights handed to the kernels: which families they know, and where each keeps what they need.

The kernels compute a decoder with RMS norms, rotary positions, grouped-query attention and a gated MLP, with the
options seen in FAMILIES. Every other family, and every option not read here, is the eager runner's.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Protocol

import torch
from torch import Tensor
from transformers import PreTrainedConfig

from graft.hub.base.model import Base


@dataclass(frozen=True)
class Family:
    """How a family differs from Llama."""

    norm_offset: float = 0.0  # Gemma's norms multiply by 1 + weight
    window_of_config: bool = False  # one window for all layers, kept in the config only


FAMILIES = {
    "llama": Family(),
    "mistral": Family(window_of_config=True),
    "qwen2": Family(),
    "qwen3": Family(),
    "gemma2": Family(norm_offset=1.0),
    "gemma3_text": Family(norm_offset=1.0),
    "phi3": Family(window_of_config=True),
}
_ACTIVATIONS = {"silu", "gelu", "gelu_pytorch_tanh", "relu"}


class KernelModel(Protocol):
    """kernels.Model_DTYPE (csrc/bindings.cpp)."""

    def add_layer(self, **parts: object) -> None: ...

    def set_head(self, norm: Tensor, weights: tuple[Tensor, Tensor | None]) -> None: ...

    def set_rotations(self, tables: Sequence[tuple[Tensor, Tensor]]) -> None: ...

    def require_fits(self, adapter: object) -> None:
        """Raises ValueError for an adapter of other taps or widths."""
        ...

    def step(
        self,
        rows: Tensor,
        keys: Tensor,
        values: Tensor,
        runs: Sequence[object],
        tables: Sequence[Sequence[int]],
        adapters: Sequence[object],
    ) -> Tensor:
        """The logits [n, V]. Raises ValueError for what does not fit together, MemoryError; nothing is written then."""
        ...


def obstacle(base: Base) -> str | None:
    """Why the kernels can't run this base, None where they can."""
    spec, config = base.spec, base.model.config
    if base.device.type != "cpu":
        return f"it is on {base.device.type}"
    if base.dtype not in (torch.float32, torch.bfloat16):
        return f"its dtype is {base.dtype}"
    if spec.model_type not in FAMILIES:
        return f"they don't know the family {spec.model_type}"
    if _activation(config) not in _ACTIVATIONS:
        return f"they don't know the activation {_activation(config)}"
    linears = {name: module for name, module in spec.modules.items() if module.kind == "linear"}
    if any(module.in_features % 2 for module in linears.values()):
        return "a linear has an odd number of inputs"
    for name in linears:
        if base.weight(name).dtype != base.dtype:
            return f"{name} is {base.weight(name).dtype} in a base of {base.dtype}"
    return None


def pack_model(
    kernels: ModuleType, base: Base, positions: int, packed: Callable[[str], None] = lambda name: None
) -> KernelModel:
    """The base as a model of the kernels, its weights packed. `positions`: length of the rotation tables; `packed` is told
    the name of each linear that is in the kernels now."""
    config, spec, family = base.model.config, base.spec, FAMILIES[base.spec.model_type]
    dtype = base.dtype_name
    kinds = list(dict.fromkeys(_kinds(config, spec.num_layers)))
    tables = [_rotation(base, positions, kind) for kind in kinds]
    attention = base.model.get_submodule(spec.module(0, spec.parts.attn_out).rpartition(".")[0])
    shape = kernels.Shape(
        hidden=spec.hidden_size,
        intermediate=spec.modules[spec.module(0, spec.parts.mlp_out)].in_features,
        heads=spec.num_heads,
        kv_heads=spec.num_kv_heads,
        head_dim=spec.head_dim,
        rotary=tables[0][0].shape[1],
        epsilon=config.rms_norm_eps,
        scale=attention.scaling,
        softcap=getattr(config, "attn_logit_softcapping", None) or 0.0,
        final_softcap=getattr(config, "final_logit_softcapping", None) or 0.0,
        activation=_activation(config),
    )
    model: KernelModel = getattr(kernels, f"Model_{dtype}")(shape)
    for layer, kind in enumerate(_kinds(config, spec.num_layers)):
        _add_layer(model, base, family, layer, kinds.index(kind))
        for part in spec.parts.linears:
            packed(spec.module(layer, part))
    model.set_head(_norm(base, family, spec.parts.final_norm), _weights(base, spec.parts.lm_head))
    packed(spec.parts.lm_head)
    model.set_rotations(tables)
    return model


def _add_layer(model: KernelModel, base: Base, family: Family, layer: int, rotation: int) -> None:
    spec, parts = base.spec, base.spec.parts
    attention = spec.module(layer, parts.attn_out).rpartition(".")[0]

    def weights(part: str) -> tuple[Tensor, Tensor | None]:
        return _weights(base, spec.module(layer, part))

    def norm(part: str | None) -> Tensor | None:
        return _norm(base, family, spec.module(layer, part)) if part else None

    def head_norm(name: str) -> Tensor | None:
        module = f"{attention}.{name}"
        return _norm(base, family, module) if module in spec.modules else None

    source = base.model.config if family.window_of_config else base.model.get_submodule(attention)
    model.add_layer(
        queries=[weights(part) for part in parts.queries],
        attn_out=weights(parts.attn_out),
        mlp_in=[weights(part) for part in parts.mlp_in],
        mlp_out=weights(parts.mlp_out),
        attn_norm=norm(parts.attn_norm),
        attn_post=norm(parts.attn_post_norm),
        mlp_norm=norm(parts.mlp_norm),
        mlp_post=norm(parts.mlp_post_norm),
        query_norm=head_norm("q_norm"),
        key_norm=head_norm("k_norm"),
        window=getattr(source, "sliding_window", None) or 0,
        rotation=rotation,
    )


def _activation(config: PreTrainedConfig) -> str:
    return getattr(config, "hidden_activation", None) or config.hidden_act


def _kinds(config: PreTrainedConfig, layers: int) -> list[str | None]:
    """Each layer's kind of rotation: by layer type where the config has several, else all the same."""
    several = "rope_type" not in (config.rope_parameters or {})
    return list(config.layer_types) if several else [None] * layers


def _rotation(base: Base, positions: int, kind: str | None) -> tuple[Tensor, Tensor]:
    """Cosines and sines [positions, rotary], rounded as the base's own."""
    rotary = base.model.get_submodule(f"{base.spec.parts.layers.rpartition('.')[0]}.rotary_emb")
    like, ids = torch.empty(1, dtype=base.dtype), torch.arange(positions)[None]
    cosine, sine = rotary(like, ids) if kind is None else rotary(like, ids, kind)
    return cosine[0], sine[0]


def _weights(base: Base, module: str) -> tuple[Tensor, Tensor | None]:
    return base.weight(module), base.bias(module)


def _norm(base: Base, family: Family, module: str) -> Tensor:
    return base.weight(module).float() + family.norm_offset
