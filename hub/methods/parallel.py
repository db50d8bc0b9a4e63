"""Parallel adapters (He et al. 2022, arXiv 2110.04366): a scaled bottleneck beside a sublayer.

placement=mlp: d += s f(x), x the MLP's input, un-normed (reads=stream, AdapterHub's par_bn) or after its
norm (reads=normed, the paper's figure). placement=linear (LLM-Adapters, 2304.01933): y += s f(x) per linear.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from graft.hub.errors import GraftError, UnsupportedMethodError
from graft.hub.methods import adapterhub
from graft.hub.methods import bottleneck as bn
from graft.hub.methods.base import (
    PEFT_PREFIX,
    TRAINING_ONLY,
    Method,
    option,
    peft_header,
    require_positive,
    whole_numbers,
)
from graft.hub.methods.targets import Targets, match_modules
from graft.hub.sites import Tap, added, normed_in, stream_in


@dataclass(frozen=True)
class ParallelConfig:
    placement: str = "mlp"  # | "linear"
    bottleneck: int = 64
    activation: str = "relu"
    reads: str = "normed"  # | "stream"
    scale: float = 4.0
    learned_scale: bool = False  # one number a layer, trained; it starts at `scale`
    targets: Targets = ()  # placement=linear only; empty: the MLP's linears
    leave_out: tuple[int, ...] = ()
    init: str = field(default="zero", metadata=TRAINING_ONLY)  # | "truncated"

    def __post_init__(self) -> None:
        require_positive("parallel", bottleneck=self.bottleneck)
        bn.known_activation("parallel", self.activation)
        if self.placement not in ("mlp", "linear"):
            raise GraftError(f"parallel: placement must be mlp or linear, not {self.placement!r}.")
        if self.reads not in ("normed", "stream"):
            raise GraftError(f"parallel: reads must be normed or stream, not {self.reads!r}.")
        if self.learned_scale and self.placement == "linear":
            raise UnsupportedMethodError("parallel: a learned scale needs placement=mlp.")
        if self.init not in ("truncated", "zero"):
            raise GraftError(f"parallel: init must be truncated or zero, not {self.init!r}.")


class Parallel(Method):
    name = "parallel"
    title = "Parallel adapter"
    paper = "arXiv 2110.04366"
    Config = ParallelConfig
    learning_rate = 5e-4

    def recognises(self, raw):
        if bn.is_adapterhub(raw):
            return adapterhub.config_of(raw).get("is_parallel") is True
        return bn.is_llm_adapters(raw) and raw.get("use_parallel_adapter") is True

    def read(self, raw, shapes):
        if bn.is_llm_adapters(raw):
            return ParallelConfig(**bn.read_llm_adapters(raw, shapes))
        config = bn.read_adapterhub(raw)
        if option(config, "mh_adapter", bool, False):
            raise UnsupportedMethodError(
                "AdapterHub's parallel adapter beside the attention (mh_adapter) is not served."
            )
        learned = config.get("scaling") == "learned"
        return ParallelConfig(
            bottleneck=bn.bottleneck_size("AdapterHub", shapes),
            activation=option(config, "non_linearity", str, "relu").lower(),
            # AdapterHub reads the un-normed stream; ours says so in its own key, which AdapterHub ignores.
            reads=option(option(raw, "graft", dict, {}), "reads", str, "stream"),
            scale=1.0 if learned else bn.constant_scale(config),
            learned_scale=learned,
            leave_out=whole_numbers(config, "leave_out"),
        )

    def canonical(self, raw, name):
        return bn.canonical_name(raw, name)

    def neutral(self, config):
        return bn.NEUTRAL

    def write(self, config, spec):
        if config.placement == "linear":
            header = peft_header("BOTTLENECK", spec)
            return bn.llm_adapters_config(
                header, config.bottleneck, config.activation, config.scale, config.targets, parallel=True
            )
        written = bn.adapterhub_config(
            spec,
            config.bottleneck,
            is_parallel=True,
            mh_adapter=False,
            init_weights="mam_adapter",
            non_linearity=config.activation,
            original_ln_before=False,
            scaling="learned" if config.learned_scale else config.scale,
            leave_out=list(config.leave_out),
        )
        return {**written, "graft": {"reads": config.reads}}

    def resolve(self, config, spec):
        if config.placement != "linear" or config.targets:
            return config
        names = tuple(sorted(part.rpartition(".")[2] for part in spec.parts.mlp_linears))
        return replace(config, targets=names)

    def variant(self, config):
        return "per linear" if config.placement == "linear" else f"{config.reads} input"

    def identity(self, config):
        # a learned scale is a tensor; the config's is only where it starts
        return super().identity(replace(config, scale=1.0) if config.learned_scale else config)

    def shapes(self, config, spec):
        shapes = {}
        if config.placement == "linear":
            for name in match_modules("parallel", config.targets, spec):
                module = spec.modules[name]
                shapes.update(bn.linear_shapes(name, config.bottleneck, module.in_features, module.out_features))
            return shapes
        for layer in self._layers(config, spec):
            key = bn.block_key(spec, layer, "mlp")
            shapes.update(bn.block_shapes(key, config.bottleneck, spec.hidden_size))
            if config.learned_scale:
                shapes[f"{key}scaling"] = (1,)
        return shapes

    def init(self, config, context):
        import torch

        shapes = self.shapes(config, context.base.spec)
        start = bn.init_truncated if config.init == "truncated" else bn.init_up_zero
        parameters = start(shapes, context.generator)
        scales = {name: torch.full((1,), config.scale) for name in shapes if name.endswith("scaling")}
        return {name: value.to(context.base.device) for name, value in {**parameters, **scales}.items()}

    def fold(self, config, tensors, base):
        spec = base.spec
        if config.placement == "linear":
            return tuple(
                bn.low_rank(
                    tensors,
                    f"{PEFT_PREFIX}{name}.",
                    infix="",
                    reads=(Tap(name, "in"),),
                    adds_to=Tap(name, "out"),
                    activation=config.activation,
                    scale=config.scale,
                )
                for name in match_modules("parallel", config.targets, spec)
            )
        read = stream_in if config.reads == "stream" else normed_in
        forms = []
        for layer in self._layers(config, spec):
            key = bn.block_key(spec, layer, "mlp")
            scale = tensors[f"{key}scaling"] if config.learned_scale else config.scale
            forms.append(
                bn.low_rank(
                    tensors,
                    key,
                    infix=".0",
                    reads=(read(spec, layer, "mlp"),),
                    adds_to=added(spec, layer, "mlp"),
                    activation=config.activation,
                    scale=scale,
                )
            )
        return tuple(forms)

    def _layers(self, config, spec):
        return [layer for layer in range(spec.num_layers) if layer not in config.leave_out]
