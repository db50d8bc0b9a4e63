"""Part names per architecture: where a decoder family keeps what adapters touch.

One `Parts` a family, one line a family in FAMILIES. To support a new family, add its line; nothing else
in the project knows a module's name. Torch-free, so that the hub can read it.
"""

from dataclasses import dataclass, replace

from graft.hub.errors import BaseModelError


@dataclass(frozen=True)
class Parts:
    """Names of a decoder's parts; layer parts are relative to one layer (`{layers}.{i}.`)."""

    layers: str  # the module list of decoder layers
    embed: str  # token embedding
    final_norm: str  # norm before the output projection
    queries: tuple[str, ...]  # linears that read the attention's normed input (one, where q, k, v are fused)
    values: str  # the linear whose output holds the values (fused or not)
    keys: str  # the linear whose output holds the keys (fused or not)
    attn_out: str  # last linear of the attention
    mlp_in: tuple[str, ...]  # linears that read the MLP's normed input
    mlp_out: str  # last linear of the MLP
    attn_norm: str  # its input is the stream entering the attention
    mlp_norm: str  # its input is the stream entering the MLP
    attn_post_norm: str | None = None  # norms the attention's output before it is added (Gemma)
    mlp_post_norm: str | None = None
    parallel_residual: bool = False  # both sublayers read the same stream (NeoX)
    norm_first: bool = True  # False: the norms come after the addition (OPT-350m)
    narrowing: str | None = None  # what OPT-350m has in the final norm's place
    lm_head: str = "lm_head"

    def in_layer(self, index: int, part: str) -> str:
        return f"{self.layers}.{index}.{part}"

    @property
    def attention_linears(self) -> tuple[str, ...]:
        return (*self.queries, self.attn_out)

    @property
    def mlp_linears(self) -> tuple[str, ...]:
        return (*self.mlp_in, self.mlp_out)

    @property
    def linears(self) -> tuple[str, ...]:
        return (*self.attention_linears, *self.mlp_linears)

    @property
    def norms(self) -> tuple[str, ...]:
        named = (self.attn_norm, self.attn_post_norm, self.mlp_norm, self.mlp_post_norm)
        return tuple(name for name in named if name)


_LLAMA = Parts(
    layers="model.layers",
    embed="model.embed_tokens",
    final_norm="model.norm",
    queries=("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    keys="self_attn.k_proj",
    values="self_attn.v_proj",
    attn_out="self_attn.o_proj",
    mlp_in=("mlp.gate_proj", "mlp.up_proj"),
    mlp_out="mlp.down_proj",
    attn_norm="input_layernorm",
    mlp_norm="post_attention_layernorm",
)
_GEMMA = replace(
    _LLAMA,
    attn_post_norm="post_attention_layernorm",
    mlp_norm="pre_feedforward_layernorm",
    mlp_post_norm="post_feedforward_layernorm",
)

FAMILIES: dict[str, Parts] = {
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "qwen2": _LLAMA,
    "qwen3": _LLAMA,
    "gemma2": _GEMMA,
    "gemma3_text": _GEMMA,
    "phi3": replace(
        _LLAMA,
        queries=("self_attn.qkv_proj",),
        keys="self_attn.qkv_proj",
        values="self_attn.qkv_proj",
        mlp_in=("mlp.gate_up_proj",),
    ),
    "gpt2": Parts(
        layers="transformer.h",
        embed="transformer.wte",
        final_norm="transformer.ln_f",
        queries=("attn.c_attn",),
        keys="attn.c_attn",
        values="attn.c_attn",
        attn_out="attn.c_proj",
        mlp_in=("mlp.c_fc",),
        mlp_out="mlp.c_proj",
        attn_norm="ln_1",
        mlp_norm="ln_2",
    ),
    "gpt_neox": Parts(
        layers="gpt_neox.layers",
        embed="gpt_neox.embed_in",
        final_norm="gpt_neox.final_layer_norm",
        queries=("attention.query_key_value",),
        keys="attention.query_key_value",
        values="attention.query_key_value",
        attn_out="attention.dense",
        mlp_in=("mlp.dense_h_to_4h",),
        mlp_out="mlp.dense_4h_to_h",
        attn_norm="input_layernorm",
        mlp_norm="post_attention_layernorm",
    ),
    "opt": Parts(
        layers="model.decoder.layers",
        embed="model.decoder.embed_tokens",
        final_norm="model.decoder.final_layer_norm",
        queries=("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
        keys="self_attn.k_proj",
        values="self_attn.v_proj",
        attn_out="self_attn.out_proj",
        mlp_in=("fc1",),
        mlp_out="fc2",
        attn_norm="self_attn_layer_norm",
        mlp_norm="final_layer_norm",
        narrowing="model.decoder.project_out",
    ),
}


def family_parts(model_type: str, *, parallel_residual: bool = False, norm_first: bool = True) -> Parts:
    """The parts of a family. Raises BaseModelError, naming the known families, for an unknown one."""
    if model_type not in FAMILIES:
        raise BaseModelError(
            f"Unknown model family {model_type!r}: graft needs the names of its parts (layers, embedding, "
            f"q/k/v, output and MLP linears, norms). Known: {', '.join(sorted(FAMILIES))}. "
            f"Add one `Parts` line to FAMILIES in hub/base/architectures.py."
        )
    return replace(FAMILIES[model_type], parallel_residual=parallel_residual, norm_first=norm_first)
