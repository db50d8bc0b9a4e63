"""IA3 (Liu et al. 2022, arXiv 2205.05638): learned vectors that scale keys, values and the MLP's inner state.

y = l * (W x) for attention linears, y = W (l * x) for feed-forward ones. Format: HF PEFT's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from graft.hub.adapters.methods import adapterhub_format
from graft.hub.adapters.methods.foreign_config import PEFT_COMMON, peft_name, refuse_options
from graft.hub.adapters.methods.method import PEFT_PREFIX, InitContext, Method, Raw, Shape, option, peft_header
from graft.hub.adapters.methods.target_modules import Targets, full_matches, match_modules, names_of
from graft.hub.base.hook_points import Tap
from graft.hub.base.manifest import BaseSpec
from graft.hub.errors import UnsupportedMethodError

if TYPE_CHECKING:
    from torch import Tensor

    from graft.hub.adapters.serving_forms import Form
    from graft.hub.base.model import Base


@dataclass(frozen=True)
class Ia3Config:
    targets: Targets = ()  # empty: keys, values and the MLP's last linear
    feedforward: Targets = ()  # those of the targets whose input is scaled
    exclude: Targets = ()


class Ia3(Method[Ia3Config]):
    name = "ia3"
    title = "IA3"
    paper = "arXiv 2205.05638"
    Config = Ia3Config
    learning_rate = 1e-2

    def recognises(self, raw: Raw) -> bool:
        return raw.get("peft_type") == "IA3" or adapterhub_format.is_lora(raw, "scale")

    def read(self, raw: Raw, shapes: Mapping[str, Shape]) -> Ia3Config:
        if adapterhub_format.is_lora(raw, "scale"):  # there all vectors scale outputs
            config, targets, exclude = adapterhub_format.read_lora(raw, shapes)
            if option(config, "alpha", float, 1.0) != 1:
                raise UnsupportedMethodError("This AdapterHub IA3 adapter sets alpha to something else than 1.")
            return Ia3Config(targets=targets, exclude=exclude)
        neutral = {
            "target_modules",
            "feedforward_modules",
            "exclude_modules",
            "fan_in_fan_out",
            "init_ia3_weights",
        }
        refuse_options("IA3", raw, PEFT_COMMON | neutral)
        return Ia3Config(
            targets=names_of("target_modules", raw.get("target_modules")),
            feedforward=names_of("feedforward_modules", raw.get("feedforward_modules")),
            exclude=names_of("exclude_modules", raw.get("exclude_modules")),
        )

    def canonical_name(self, raw: Raw, name: str) -> str:
        return peft_name(name) if "peft_type" in raw else adapterhub_format.lora_name(raw, name)

    def neutral_values(self, config: Ia3Config) -> dict[str, float]:
        return {"ia3_l": 1.0}

    def write(self, config: Ia3Config, spec: BaseSpec) -> dict[str, object]:
        def as_peft(names: Targets) -> str | list[str]:
            return names if isinstance(names, str) else list(names)

        return {
            **peft_header("IA3", spec),
            "target_modules": as_peft(config.targets),
            "feedforward_modules": as_peft(config.feedforward),
            "exclude_modules": as_peft(config.exclude),
            "fan_in_fan_out": spec.model_type == "gpt2",
            "init_ia3_weights": True,
            "modules_to_save": None,
        }

    def resolve(self, config: Ia3Config, spec: BaseSpec) -> Ia3Config:
        if config.targets:
            return config
        parts = spec.parts
        last = parts.mlp_out
        return replace(config, targets=tuple(sorted({parts.keys, parts.values, last})), feedforward=(last,))

    def shapes(self, config: Ia3Config, spec: BaseSpec) -> dict[str, Shape]:
        shapes: dict[str, Shape] = {}
        for name, feedforward in self._modules(config, spec).items():
            module = spec.modules[name]
            shape = (1, module.in_features) if feedforward else (module.out_features, 1)
            shapes[f"{PEFT_PREFIX}{name}.ia3_l"] = shape
        return shapes

    def init(self, config: Ia3Config, context: InitContext) -> dict[str, Tensor]:
        import torch

        shapes = self.shapes(config, context.base.spec)
        return {name: torch.ones(shape, device=context.base.device) for name, shape in shapes.items()}

    def fold(self, config: Ia3Config, tensors: Mapping[str, Tensor], base: Base) -> tuple[Form, ...]:
        from graft.hub.adapters.serving_forms import Vector

        return tuple(
            Vector(Tap(name, "in" if feedforward else "out"), scale=tensors[f"{PEFT_PREFIX}{name}.ia3_l"].reshape(-1))
            for name, feedforward in self._modules(config, base.spec).items()
        )

    def _modules(self, config: Ia3Config, spec: BaseSpec) -> dict[str, bool]:
        """Matched module -> whether its input (feed-forward) rather than its output is scaled."""
        modules = match_modules("ia3", config.targets, spec, exclude=config.exclude)
        if isinstance(config.feedforward, str):
            inner = full_matches(config.feedforward, modules) if config.feedforward else set()
        else:  # as PEFT: a name's end, and no dot is asked for before it
            inner = {name for name in modules if name.endswith(config.feedforward)} if config.feedforward else set()
        return {name: name in inner for name in modules}
