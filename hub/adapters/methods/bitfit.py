"""BitFit (Ben Zaken et al. 2021, arXiv 2106.10199): train the biases, add them where the base has none.

Saved is the difference to the base's bias, `base_model.model.{module}.bitfit_bias` [out], so that one
artifact means the same on bases with and without biases. PEFT has no such kind.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from graft.hub.adapters.methods.foreign_config import PEFT_COMMON, refuse_options
from graft.hub.adapters.methods.method import PEFT_PREFIX, InitContext, Method, Raw, Shape, peft_header
from graft.hub.adapters.methods.target_modules import Targets, match_modules, names_of
from graft.hub.base.hook_points import Tap
from graft.hub.base.manifest import BaseSpec

if TYPE_CHECKING:
    from torch import Tensor

    from graft.hub.adapters.serving_forms import Form
    from graft.hub.base.model import Base

_KEY = PEFT_PREFIX + "{}.bitfit_bias"


@dataclass(frozen=True)
class BitFitConfig:
    targets: Targets = "all"  # every linear and norm but the output projection


class BitFit(Method[BitFitConfig]):
    name = "bitfit"
    title = "BitFit"
    paper = "arXiv 2106.10199"
    Config = BitFitConfig
    learning_rate = 1e-3

    def recognises(self, raw: Raw) -> bool:
        return raw.get("peft_type") == "BITFIT"

    def read(self, raw: Raw, shapes: Mapping[str, Shape]) -> BitFitConfig:
        refuse_options("BitFit", raw, PEFT_COMMON | {"target_modules"})
        return BitFitConfig(targets=names_of("target_modules", raw.get("target_modules")))

    def neutral_values(self, config: BitFitConfig) -> dict[str, float]:
        return {"bitfit_bias": 0.0}

    def library(self, config: BitFitConfig) -> str:
        return "graft"

    def write(self, config: BitFitConfig, spec: BaseSpec) -> dict[str, object]:
        targets = config.targets if isinstance(config.targets, str) else list(config.targets)
        return {**peft_header("BITFIT", spec), "target_modules": targets}

    def resolve(self, config: BitFitConfig, spec: BaseSpec) -> BitFitConfig:
        if config.targets not in ("all", ("all",)):
            return config
        parts = spec.parts
        names = {part.rpartition(".")[2] for part in (*parts.linears, *parts.norms)}
        return replace(config, targets=tuple(sorted({*names, parts.final_norm})))

    def shapes(self, config: BitFitConfig, spec: BaseSpec) -> dict[str, Shape]:
        return {_KEY.format(name): (spec.modules[name].out_features,) for name in self._modules(config, spec)}

    def init(self, config: BitFitConfig, context: InitContext) -> dict[str, Tensor]:
        import torch

        shapes = self.shapes(config, context.base.spec)
        return {name: torch.zeros(shape, device=context.base.device) for name, shape in shapes.items()}

    def fold(self, config: BitFitConfig, tensors: Mapping[str, Tensor], base: Base) -> tuple[Form, ...]:
        from graft.hub.adapters.serving_forms import Vector

        modules = self._modules(config, base.spec)
        return tuple(Vector(Tap(name, "out"), bias=tensors[_KEY.format(name)]) for name in modules)

    def _modules(self, config: BitFitConfig, spec: BaseSpec) -> list[str]:
        return match_modules("bitfit", config.targets, spec, kinds=("linear", "norm"))
