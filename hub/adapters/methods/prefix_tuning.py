"""Prefix tuning (Li & Liang 2021, arXiv 2101.00190): learned keys and values before the text in every layer.

projection=true: P' -> Linear(H, hidden) -> tanh -> Linear(2 L K D), the paper's reparameterisation, folded
away when saved; flat otherwise. init=real starts from the keys and values of real text (the paper: decisive
with little data; with a projection, the network is first fitted to them). Format: HF PEFT's
`prompt_embeddings` [P, L * 2 * K * D], key then value within a layer, keys as the cache holds them. A prefix that
does not shift the text's positions (`text_start` 0) is AdapterHub's, and goes in its format: the same numbers, flat.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from graft.hub.adapters.methods import adapterhub_format
from graft.hub.adapters.methods import virtual_tokens as rows
from graft.hub.adapters.methods.foreign_config import refuse_options
from graft.hub.adapters.methods.method import TRAINING_ONLY, InitContext, Method, Raw, Shape, option
from graft.hub.base.manifest import BaseSpec
from graft.hub.errors import GraftError

if TYPE_CHECKING:
    from torch import Tensor

    from graft.hub.adapters.serving_forms import Form
    from graft.hub.base.model import Base

_FIT_STEPS = 500  # Li & Liang's code fits the network to real activations by 500 steps of MSE, Adam 1e-4
_FIT_RATE = 1e-3
_ADAPTERHUB_KEY = "prefix_tuning.prefix_tunings.{}.self_prefix.control_trans"
_ADAPTERHUB_FLAT: Raw = {
    "flat": True, "cross_prefix": True, "encoder_prefix": True, "dropout": 0.0, "init_weights_seed": None,
    "leave_out": [], "non_linearity": "tanh", "shared_gating": True, "use_gating": False,
}  # fmt: skip


@dataclass(frozen=True)
class PrefixConfig:
    tokens: int = 20
    shifts_text: bool = True  # the text's positions begin after the prefix (False: at 0, AdapterHub)
    projection: bool = field(default=False, metadata=TRAINING_ONLY)
    hidden: int = field(default=512, metadata=TRAINING_ONLY)  # of the projection
    init: str = field(default="real", metadata=TRAINING_ONLY)  # | "random"

    def __post_init__(self) -> None:
        rows.require_tokens("prefix", self.tokens)
        if self.init not in ("real", "random"):
            raise GraftError(f"prefix: init must be real or random, not {self.init!r}.")
        if not 1 <= self.hidden <= rows.MAX_HIDDEN:
            raise GraftError(f"prefix: hidden must lie in 1..{rows.MAX_HIDDEN}.")


class Prefix(Method[PrefixConfig]):
    name = "prefix"
    title = "Prefix tuning"
    paper = "arXiv 2101.00190"
    Config = PrefixConfig
    learning_rate = 5e-3

    def recognises(self, raw: Raw) -> bool:
        return raw.get("peft_type") in ("PREFIX_TUNING", "CARTRIDGE") or _is_adapterhub(raw)

    def read(self, raw: Raw, shapes: Mapping[str, Shape]) -> PrefixConfig:
        if _is_adapterhub(raw):
            config = adapterhub_format.config_of(raw)
            adapterhub_format.refuse_unless_plain(config, {"flat": True, "use_gating": False, "leave_out": []})
            return PrefixConfig(tokens=option(config, "prefix_length", int, 30), shifts_text=False)
        neutral = {"encoder_hidden_size", "prefix_projection", "init_weights", "num_frozen_tokens"}
        refuse_options("prefix tuning", raw, rows.COMMON | neutral)
        return PrefixConfig(tokens=rows.tokens_of(raw, shapes))

    def canonical_name(self, raw: Raw, name: str) -> str:
        if _is_adapterhub(raw) and name.endswith(_ADAPTERHUB_KEY.format(adapterhub_format.own_name(raw))):
            return rows.KEY
        return name

    def file_name(self, config: PrefixConfig, spec: BaseSpec, name: str) -> str:
        if config.shifts_text:
            return name
        stem = spec.parts.layers.rpartition(".")[0]
        return f"{stem}.{_ADAPTERHUB_KEY.format(adapterhub_format.NAME)}"

    def write(self, config: PrefixConfig, spec: BaseSpec) -> dict[str, object]:
        if not config.shifts_text:
            own = {"architecture": "prefix_tuning", "prefix_length": config.tokens, "bottleneck_size": config.hidden}
            return adapterhub_format.envelope({**_ADAPTERHUB_FLAT, **own}, spec)
        dim = spec.num_kv_heads * spec.head_dim
        header = rows.peft_rows_header("PREFIX_TUNING", config.tokens, dim, spec.num_kv_heads, spec)
        # The saved rows are flat whatever made them: PEFT must not run a projection over them again.
        return {**header, "encoder_hidden_size": config.hidden, "prefix_projection": False}

    def library(self, config: PrefixConfig) -> str:
        return "peft" if config.shifts_text else "adapters"

    def variant(self, config: PrefixConfig) -> str:
        return "MLP" if config.projection else ""

    def virtual_tokens(self, config: PrefixConfig) -> int:
        return config.tokens

    def shapes(self, config: PrefixConfig, spec: BaseSpec) -> dict[str, Shape]:
        rows.require_room("prefix", config.tokens, spec)
        width = _width(spec)
        return {rows.KEY: (config.tokens, width) if config.shifts_text else (config.tokens * width,)}

    def init(self, config: PrefixConfig, context: InitContext) -> dict[str, Tensor]:
        import torch

        base = context.base
        self.shapes(config, base.spec)  # refuses what leaves no room for text
        width = _width(base.spec)
        if config.init == "real":
            target = _real_activations(config, context)
        else:
            target = torch.randn(config.tokens, width, generator=context.generator).to(base.device)
        if not config.projection:
            return {rows.KEY: target}
        hidden, size = config.hidden, base.spec.hidden_size
        draw = {
            "embedding": torch.randn(config.tokens, size, generator=context.generator),
            "in.weight": torch.randn(hidden, size, generator=context.generator) / size**0.5,
            "in.bias": torch.zeros(hidden),
            "out.weight": torch.randn(width, hidden, generator=context.generator) / hidden**0.5,
            "out.bias": torch.zeros(width),
        }
        parameters = {name: value.to(base.device) for name, value in draw.items()}
        return _fit(self, config, parameters, target) if config.init == "real" else parameters

    def encode(self, config: PrefixConfig, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
        import torch.nn.functional as F

        if config.projection:
            inner = F.linear(parameters["embedding"], parameters["in.weight"], parameters["in.bias"]).tanh()
            made = F.linear(inner, parameters["out.weight"], parameters["out.bias"])
        else:
            made = parameters[rows.KEY]
        return {rows.KEY: made if config.shifts_text else made.reshape(-1)}

    def fold(self, config: PrefixConfig, tensors: Mapping[str, Tensor], base: Base) -> tuple[Form, ...]:
        from graft.hub.adapters.serving_forms import CacheRows

        spec = base.spec
        shape = (config.tokens, spec.num_layers, 2, spec.num_kv_heads, spec.head_dim)
        keys, values = tensors[rows.KEY].view(shape).permute(2, 1, 0, 3, 4)
        return (CacheRows(keys, values, text_start=config.tokens if config.shifts_text else 0),)


def _is_adapterhub(raw: Raw) -> bool:
    return adapterhub_format.config_of(raw).get("architecture") == "prefix_tuning"


def _width(spec: BaseSpec) -> int:
    """Numbers of one virtual token: a key and a value in every layer."""
    return spec.num_layers * 2 * spec.num_kv_heads * spec.head_dim


def _real_activations(config: PrefixConfig, context: InitContext) -> Tensor:
    """Keys and values of the first P tokens of real text (random common tokens where there is none)."""
    import torch

    from graft.hub.adapters.packed_attention import cache_rows

    base = context.base
    text = [id for ids in context.texts for id in ids][: config.tokens]
    if len(text) < config.tokens:
        text += rows.frequent_ids(config.tokens - len(text), base.spec.vocab_size, context.generator).tolist()
    with torch.no_grad():
        made = cache_rows(base, base.embed(torch.tensor(text, device=base.device)))
    return torch.stack([made.keys, made.values]).permute(2, 1, 0, 3, 4).reshape(config.tokens, -1).float()


def _fit(method: Prefix, config: PrefixConfig, parameters: Mapping[str, Tensor], target: Tensor) -> dict[str, Tensor]:
    """The projection's parameters after fitting its output to `target` by mean squared error."""
    import torch

    parameters = {name: value.requires_grad_() for name, value in parameters.items()}
    optimizer = torch.optim.Adam(parameters.values(), lr=_FIT_RATE)
    for _ in range(_FIT_STEPS):
        optimizer.zero_grad()
        torch.nn.functional.mse_loss(method.encode(config, parameters)[rows.KEY], target).backward()
        optimizer.step()
    return {name: value.detach() for name, value in parameters.items()}
