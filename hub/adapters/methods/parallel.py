"""Parallel adapters (He et al. 2022, arXiv 2110.04366): a scaled bottleneck beside a sublayer.

placement=mlp: d += s f(x), x the MLP's input, un-normed (reads=stream, AdapterHub's par_bn) or after its
norm (reads=normed, the paper's figure). placement=linear (LLM-Adapters, 2304.01933): y += s f(x) per linear.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from graft.hub.adapters.methods import bottleneck as bn
from graft.hub.adapters.methods.method import TRAINING_ONLY, InitContext, Raw, Shape, option, whole_numbers
from graft.hub.adapters.methods.target_modules import Targets
from graft.hub.base.hook_points import Tap, normed_in, stream_in
from graft.hub.base.manifest import BaseSpec
from graft.hub.errors import UnsupportedMethodError

if TYPE_CHECKING:
    from torch import Tensor

    from graft.hub.adapters.serving_forms import LowRank


@dataclass(frozen=True)
class ParallelConfig(bn.BottleneckConfig):
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
        bn.check_config("parallel", self, ("mlp", "linear"), ("normed", "stream"))
        if self.learned_scale and self.placement == "linear":
            raise UnsupportedMethodError("parallel: a learned scale needs placement=mlp.")


class Parallel(bn.Bottleneck[ParallelConfig]):
    name = "parallel"
    title = "Parallel adapter"
    paper = "arXiv 2110.04366"
    Config = ParallelConfig
    learning_rate = 5e-4
    parallel = True

    def read_blocks(self, config: Raw, raw: Raw, shapes: Mapping[str, Shape]) -> ParallelConfig:
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

    def write_blocks(self, config: ParallelConfig, spec: BaseSpec) -> dict[str, object]:
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

    def library(self, config: ParallelConfig) -> str:
        return "graft" if config.reads == "normed" else super().library(config)

    def resolve(self, config: ParallelConfig, spec: BaseSpec) -> ParallelConfig:
        return bn.with_targets(config, spec.parts.mlp_linears)

    def variant(self, config: ParallelConfig) -> str:
        return "per linear" if config.placement == "linear" else f"{config.reads} input"

    def identity(self, config: ParallelConfig) -> dict[str, object]:
        # a learned scale is a tensor; the config's is only where it starts
        return super().identity(replace(config, scale=1.0) if config.learned_scale else config)

    def shapes(self, config: ParallelConfig, spec: BaseSpec) -> dict[str, Shape]:
        shapes = super().shapes(config, spec)
        if config.learned_scale:
            shapes |= {f"{place.key}scaling": (1,) for place in self.blocks(config, spec)}
        return shapes

    def init(self, config: ParallelConfig, context: InitContext) -> dict[str, Tensor]:
        import torch

        parameters = super().init(config, context)
        scales = {name: torch.full_like(value, config.scale) for name, value in parameters.items() if "scaling" in name}
        return {**parameters, **scales}

    def fold_one(self, config: ParallelConfig, tensors: Mapping[str, Tensor], place: bn.BottleneckSite) -> LowRank:
        form = super().fold_one(config, tensors, place)
        return replace(form, scale=tensors[f"{place.key}scaling"]) if config.learned_scale else form

    def linear_taps(self, spec: BaseSpec, module: str) -> tuple[Tap, Tap]:
        return Tap(module, "in"), Tap(module, "out")

    def blocks(self, config: ParallelConfig, spec: BaseSpec) -> Iterator[bn.BottleneckSite]:
        read = stream_in if config.reads == "stream" else normed_in
        for layer in bn.layers_with(config, spec):
            yield bn.block_place(spec, layer, "mlp", (read(spec, layer, "mlp"),))
