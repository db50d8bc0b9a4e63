"""BitFit (Ben Zaken et al. 2021, arXiv 2106.10199): train the biases, add them where the base has none.

Saved is the difference to the base's bias, `base_model.model.{module}.bitfit_bias` [out], so that one
artifact means the same on bases with and without biases. PEFT has no such kind.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from graft.hub.adapters.methods.foreign_config import PEFT_COMMON, refuse_options
from graft.hub.adapters.methods.method import PEFT_PREFIX, Method, peft_header
from graft.hub.adapters.methods.target_modules import Targets, match_modules, names_of
from graft.hub.base.hook_points import Tap

_KEY = PEFT_PREFIX + "{}.bitfit_bias"


@dataclass(frozen=True)
class BitFitConfig:
    targets: Targets = "all"  # every linear and norm but the output projection


class BitFit(Method):
    name = "bitfit"
    title = "BitFit"
    paper = "arXiv 2106.10199"
    Config = BitFitConfig
    learning_rate = 1e-3

    def recognises(self, raw):
        return raw.get("peft_type") == "BITFIT"

    def read(self, raw, shapes):
        refuse_options("BitFit", raw, PEFT_COMMON | {"target_modules"})
        return BitFitConfig(targets=names_of("target_modules", raw.get("target_modules")))

    def neutral(self, config):
        return {"bitfit_bias": 0.0}

    def library(self, config):
        return "graft"

    def write(self, config, spec):
        targets = config.targets if isinstance(config.targets, str) else list(config.targets)
        return {**peft_header("BITFIT", spec), "target_modules": targets}

    def resolve(self, config, spec):
        if config.targets not in ("all", ("all",)):
            return config
        parts = spec.parts
        names = {part.rpartition(".")[2] for part in (*parts.linears, *parts.norms)}
        return replace(config, targets=tuple(sorted({*names, parts.final_norm})))

    def shapes(self, config, spec):
        return {_KEY.format(name): (spec.modules[name].out_features,) for name in self._modules(config, spec)}

    def init(self, config, context):
        import torch

        shapes = self.shapes(config, context.base.spec)
        return {name: torch.zeros(shape, device=context.base.device) for name, shape in shapes.items()}

    def fold(self, config, tensors, base):
        from graft.hub.adapters.serving_forms import Vector

        modules = self._modules(config, base.spec)
        return tuple(Vector(Tap(name, "out"), bias=tensors[_KEY.format(name)]) for name in modules)

    def _modules(self, config, spec):
        return match_modules("bitfit", config.targets, spec, kinds=("linear", "norm"))
