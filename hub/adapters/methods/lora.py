"""LoRA (Hu et al. 2021, arXiv 2106.09685) and its kin: rsLoRA, DoRA, LoRA bias, PEFT's overwritten biases.

y = W x + s B A x, s = alpha / r (rsLoRA: alpha / sqrt(r)). DoRA (Liu et al. 2024, arXiv 2402.09353):
y = g (W x + s B A x) + bias, g = m / ||W + s B A|| by output row. Format: HF PEFT's.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from graft.hub.adapters.methods import adapterhub_format
from graft.hub.adapters.methods.foreign_config import PEFT_COMMON, peft_name, refuse_options
from graft.hub.adapters.methods.method import PEFT_PREFIX as PREFIX
from graft.hub.adapters.methods.method import (
    TRAINING_ONLY,
    InitContext,
    Method,
    Raw,
    Shape,
    numbers_by_name,
    option,
    peft_header,
    require_positive,
)
from graft.hub.adapters.methods.target_modules import (
    ALL_LINEAR,
    Targets,
    layers_of,
    match_modules,
    names_of,
    pattern_values,
    spell_out,
)
from graft.hub.base.hook_points import Tap
from graft.hub.base.manifest import BaseSpec
from graft.hub.errors import ArtifactError, GraftError, UnsupportedMethodError

if TYPE_CHECKING:
    from torch import Tensor

    from graft.hub.adapters.serving_forms import Form
    from graft.hub.base.model import Base

_FROZEN = re.compile(re.escape(PREFIX) + r"(?P<module>[\w.]+?)(\.base_layer)?(?<!lora_[AB])\.weight")
_READ = {
    "r", "lora_alpha", "layers_pattern", "target_modules", "exclude_modules", "layers_to_transform", "rank_pattern",
    "alpha_pattern", "use_rslora", "use_dora", "lora_bias", "bias", "lora_dropout",
}  # fmt: skip
# Set by PEFT, without influence on what a loaded adapter computes.
_NEUTRAL = {
    "fan_in_fan_out", "megatron_core", "qalora_group_size", "runtime_config", "loftq_config", "ensure_weight_tying",
    "init_lora_weights", "eva_config", "velora_config",
}  # fmt: skip
# Initialisations that leave the base as it is. With others (PiSSA, OLoRA, CorDA, LoftQ, ...) A and B fit a changed base.
_BASE_KEEPING = frozenset(("true", "false", "none", "gaussian", "eva", "orthogonal", "mica"))


@dataclass(frozen=True)
class LoraConfig:
    r: int = 8
    alpha: float = 16.0
    targets: Targets = ALL_LINEAR
    rslora: bool = False
    dora: bool = False
    lora_bias: bool = False  # a trained bias on B's output
    bias: str = "none"  # "all" | "lora_only": the saved biases replace the base's
    rank_pattern: dict[str, int] = field(default_factory=dict)
    alpha_pattern: dict[str, float] = field(default_factory=dict)
    layers: tuple[int, ...] | None = None
    exclude: Targets = ()
    dropout: float = field(default=0.0, metadata=TRAINING_ONLY)
    init: str = field(default="kaiming", metadata=TRAINING_ONLY)  # | "gaussian"

    def __post_init__(self) -> None:
        require_positive("lora", r=self.r, alpha=self.alpha)
        require_positive("lora", **{f"rank_pattern[{k}]": v for k, v in self.rank_pattern.items()})
        require_positive("lora", **{f"alpha_pattern[{k}]": v for k, v in self.alpha_pattern.items()})
        if self.bias not in ("none", "all", "lora_only"):
            raise ArtifactError(f"lora: bias must be none, all or lora_only, not {self.bias!r}.")
        if not 0 <= self.dropout < 1:
            raise ArtifactError(f"lora: dropout must lie in [0, 1), not {self.dropout!r}.")
        if self.init not in ("kaiming", "gaussian"):
            raise ArtifactError(f"lora: init must be kaiming or gaussian, not {self.init!r}.")
        if self.dora and self.lora_bias:
            raise UnsupportedMethodError("lora: dora and lora_bias exclude each other, as in PEFT.")

    def ranks(self, modules: list[str]) -> dict[str, int]:
        return pattern_values(self.rank_pattern, modules, self.r)

    def scales(self, modules: list[str]) -> dict[str, float]:
        alphas = pattern_values(self.alpha_pattern, modules, self.alpha)
        ranks = self.ranks(modules)
        return {name: alphas[name] / (math.sqrt(ranks[name]) if self.rslora else ranks[name]) for name in modules}


class Lora(Method[LoraConfig]):
    name = "lora"
    title = "LoRA"
    paper = "arXiv 2106.09685"
    Config = LoraConfig
    learning_rate = 5e-4

    def recognises(self, raw: Raw) -> bool:
        return raw.get("peft_type") == "LORA" or adapterhub_format.is_lora(raw, "add")

    def read(self, raw: Raw, shapes: Mapping[str, Shape]) -> LoraConfig:
        if adapterhub_format.is_lora(raw, "add"):
            config, targets, exclude = adapterhub_format.read_lora(raw, shapes)
            r = option(config, "r", int, 8)
            return LoraConfig(r=r, alpha=option(config, "alpha", float, 8.0), targets=targets, exclude=exclude)
        init = str(raw.get("init_lora_weights", True)).lower()
        if init not in _BASE_KEEPING:
            raise UnsupportedMethodError(
                f"This LoRA was started with init_lora_weights={init[:80]!r}, which changes the base's own weights (or is "
                f"not known here), so its A and B fit no shared base. Convert it with PEFT's "
                f"path_initial_model_for_weight_conversion."
            )
        if raw.get("modules_to_save"):
            raise UnsupportedMethodError(
                f"This LoRA replaces whole modules (modules_to_save={raw['modules_to_save']}), which can't be "
                f"done for one request of a batch. Train it without modules_to_save."
            )
        refuse_options("LoRA", raw, PEFT_COMMON | _READ | _NEUTRAL)
        return LoraConfig(
            r=option(raw, "r", int, 8),
            alpha=option(raw, "lora_alpha", float, 8.0),
            targets=names_of("target_modules", raw.get("target_modules")),
            rslora=option(raw, "use_rslora", bool, False),
            dora=option(raw, "use_dora", bool, False),
            lora_bias=option(raw, "lora_bias", bool, False),
            bias=option(raw, "bias", str, "none"),
            rank_pattern=numbers_by_name(raw, "rank_pattern", int),
            alpha_pattern=numbers_by_name(raw, "alpha_pattern", float),
            layers=layers_of(raw.get("layers_to_transform")),
            exclude=names_of("exclude_modules", raw.get("exclude_modules")),
            dropout=option(raw, "lora_dropout", float, 0.0),
        )

    def canonical_name(self, raw: Raw, name: str) -> str:
        return peft_name(name) if "peft_type" in raw else adapterhub_format.lora_name(raw, name)

    def neutral_values(self, config: LoraConfig) -> dict[str, float]:
        # A gain or a replaced bias acts on its own: only with the base's weights can it be told.
        return {} if config.dora or config.bias != "none" else {"lora_B.weight": 0.0, "lora_B.bias": 0.0}

    def base_copy(self, name: str) -> str | None:
        # PEFT adds the embedding's and the output projection's own weights when one of them is a target.
        match = _FROZEN.fullmatch(peft_name(name))
        return match["module"] if match else None

    def write(self, config: LoraConfig, spec: BaseSpec) -> dict[str, object]:
        return {
            **peft_header("LORA", spec),
            "r": config.r,
            "lora_alpha": _int_if_whole(config.alpha),
            "lora_dropout": config.dropout,
            "target_modules": config.targets if isinstance(config.targets, str) else list(config.targets),
            "exclude_modules": list(config.exclude) if isinstance(config.exclude, tuple) else config.exclude,
            "layers_to_transform": None if config.layers is None else list(config.layers),
            "layers_pattern": None,
            "rank_pattern": config.rank_pattern,
            "alpha_pattern": {name: _int_if_whole(alpha) for name, alpha in config.alpha_pattern.items()},
            "use_rslora": config.rslora,
            "use_dora": config.dora,
            "lora_bias": config.lora_bias,
            "bias": config.bias,
            "fan_in_fan_out": spec.model_type == "gpt2",
            "init_lora_weights": "gaussian" if config.init == "gaussian" else True,
            "modules_to_save": None,
        }

    def resolve(self, config: LoraConfig, spec: BaseSpec) -> LoraConfig:
        return replace(config, targets=spell_out(config.targets, spec))

    def require_sensible(self, config: LoraConfig, spec: BaseSpec) -> None:
        absent = [layer for layer in config.layers or () if not 0 <= layer < spec.num_layers]
        if absent:
            raise GraftError(f"lora: there is no layer {absent[0]}; this base's are 0 to {spec.num_layers - 1}.")
        for name, r in config.ranks(self._modules(config, spec)).items():
            module = spec.modules[name]
            if r > (most := max(module.in_features, module.out_features)):
                raise GraftError(
                    f"lora: r={r} is more than {name} [{module.in_features} -> {module.out_features}] can use, which is "
                    f"{most}. Lower r, or give this module a rank of its own with rank_pattern."
                )
        super().require_sensible(config, spec)

    def variant(self, config: LoraConfig) -> str:
        flags = [
            ("DoRA", config.dora),
            ("rsLoRA", config.rslora),
            ("bias", config.lora_bias or config.bias != "none"),
        ]
        return " ".join(name for name, on in flags if on)

    def shapes(self, config: LoraConfig, spec: BaseSpec) -> dict[str, Shape]:
        shapes: dict[str, Shape] = {}
        modules = self._modules(config, spec)
        ranks = config.ranks(modules)
        for name in modules:
            module, r = spec.modules[name], ranks[name]
            shapes[f"{PREFIX}{name}.lora_A.weight"] = (r, module.in_features)
            shapes[f"{PREFIX}{name}.lora_B.weight"] = (module.out_features, r)
            if config.dora:
                shapes[f"{PREFIX}{name}.lora_magnitude_vector"] = (module.out_features,)
            if config.lora_bias:
                shapes[f"{PREFIX}{name}.lora_B.bias"] = (module.out_features,)
        for name in self._replaced_biases(config, spec, modules):
            key = f"{PREFIX}{name}.base_layer.bias" if name in modules else f"{PREFIX}{name}.bias"
            shapes[key] = (spec.modules[name].out_features,)
        return shapes

    def init(self, config: LoraConfig, context: InitContext) -> dict[str, Tensor]:
        import torch

        base, spec = context.base, context.base.spec
        modules = self._modules(config, spec)
        parameters = {}
        for key, shape in self.shapes(config, spec).items():
            if key.endswith("lora_A.weight"):
                r, size = shape
                if config.init == "gaussian":
                    value = torch.randn(shape, generator=context.generator) / r
                else:  # kaiming uniform with a = sqrt(5): U(-1/sqrt(in), 1/sqrt(in))
                    value = (torch.rand(shape, generator=context.generator) * 2 - 1) / math.sqrt(size)
            elif key.endswith("lora_magnitude_vector"):
                value = base.weight(key[len(PREFIX) :].rpartition(".")[0]).float().norm(dim=1)
            else:
                value = torch.zeros(shape)
            parameters[key] = value
        for name in self._replaced_biases(config, spec, modules):
            infix = ".base_layer" if name in modules else ""
            bias = base.bias(name)
            assert bias is not None  # only what is there is replaced
            parameters[f"{PREFIX}{name}{infix}.bias"] = bias.float().clone()
        return {key: value.to(base.device) for key, value in parameters.items()}

    def folds_with_base(self, config: LoraConfig) -> bool:
        return config.dora

    def fold(self, config: LoraConfig, tensors: Mapping[str, Tensor], base: Base) -> tuple[Form, ...]:
        from graft.hub.adapters.serving_forms import LowRank, Vector

        spec = base.spec
        modules = self._modules(config, spec)
        scales, gains = config.scales(modules), {}
        forms: list[Form] = []
        for name in modules:
            key = PREFIX + name
            A, B = tensors[f"{key}.lora_A.weight"], tensors[f"{key}.lora_B.weight"].T
            scale = scales[name]
            if config.dora:
                gains[name] = _gain(base.weight(name), A, B, scale, tensors[f"{key}.lora_magnitude_vector"])
                B = B * gains[name]
            forms.append(
                LowRank(
                    reads=(Tap(name, "in"),),
                    adds_to=Tap(name, "out"),
                    A=A,
                    B=B,
                    b=tensors[f"{key}.lora_B.bias"] if config.lora_bias else None,
                    scale=scale,
                    dropout=config.dropout,
                )
            )
        replaced = self._replaced_biases(config, spec, modules)
        for name in dict.fromkeys([*gains, *replaced]):
            infix = ".base_layer" if name in modules else ""
            old, gain = base.bias(name), gains.get(name)
            new = tensors[f"{PREFIX}{name}{infix}.bias"] if name in replaced else old
            forms.append(Vector(Tap(name, "out"), scale=gain, bias=_shift(new, old, gain)))
        return tuple(forms)

    def _modules(self, config: LoraConfig, spec: BaseSpec) -> list[str]:
        return match_modules("lora", config.targets, spec, layers=config.layers, exclude=config.exclude)

    def _replaced_biases(self, config: LoraConfig, spec: BaseSpec, modules: list[str]) -> list[str]:
        if config.bias == "none":
            return []
        names = modules if config.bias == "lora_only" else spec.modules
        return [name for name in names if spec.modules[name].bias]


def _int_if_whole(number: float) -> float | int:
    """As an int where it is one, as PEFT writes alphas."""
    return int(number) if number == int(number) else number


def _gain(W: Tensor, A: Tensor, B: Tensor, scale: float, magnitude: Tensor) -> Tensor:
    """g = m / ||W + s B A|| by output row, in float32; the norm takes no gradient (DoRA, section 4.3)."""
    weight = W.float() + scale * (B.detach().float().T @ A.detach().float())
    return magnitude / weight.norm(dim=1)


def _shift(new: Tensor | None, old: Tensor | None, gain: Tensor | None) -> Tensor | None:
    """What to add after the gain so that `new` is the bias of the result: new - gain * old."""
    if new is None or old is None:
        return None
    return new - (old.float() if gain is None else gain * old.float())
