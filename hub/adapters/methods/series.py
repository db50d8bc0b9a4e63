"""Series adapters: a bottleneck after a sublayer, added to what it adds.

placement=houlsby (arXiv 1902.00751): d += f(d) after attention and MLP. placement=pfeiffer (2005.00247):
d += f(d) after the MLP only. reads=stream (AdapterHub's seq_bn): d += f(x + d). placement=linear
(LLM-Adapters, 2304.01933): per linear, W(x + f(x)) for those that read a sublayer's input, y + f(y) for
its last one. d is what the base adds to the stream, after a post-norm where the family has one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from graft.hub.adapters.methods import bottleneck as bn
from graft.hub.adapters.methods.method import TRAINING_ONLY, Raw, Shape, option, whole_numbers
from graft.hub.adapters.methods.target_modules import Targets
from graft.hub.base.hook_points import Tap, stream_out, sublayer_out
from graft.hub.base.manifest import BaseSpec
from graft.hub.errors import ArtifactError

_SUBLAYERS = {"houlsby": ("attention", "mlp"), "pfeiffer": ("mlp",)}


@dataclass(frozen=True)
class SeriesConfig(bn.BottleneckConfig):
    placement: str = "houlsby"  # | "pfeiffer" | "linear"
    bottleneck: int = 32
    activation: str = "swish"
    reads: str = "sublayer"  # | "stream": x + d
    scale: float = 1.0
    targets: Targets = ()  # placement=linear only; empty: the MLP's last linear
    leave_out: tuple[int, ...] = ()  # layers without an adapter
    init: str = field(default="truncated", metadata=TRAINING_ONLY)  # | "zero": exactly the identity

    def __post_init__(self) -> None:
        bn.check_config("series", self, (*_SUBLAYERS, "linear"), ("sublayer", "stream"))


class Series(bn.Bottleneck[SeriesConfig]):
    name = "series"
    title = "Series adapter"
    paper = "arXiv 1902.00751"
    Config = SeriesConfig
    learning_rate = 1e-3
    parallel = False

    def read_blocks(self, config: Raw, raw: Raw, shapes: Mapping[str, Shape]) -> SeriesConfig:
        if not option(config, "output_adapter", bool, True):
            raise ArtifactError("AdapterHub adapters after the attention only (output_adapter=false) are not served.")
        return SeriesConfig(
            placement="houlsby" if option(config, "mh_adapter", bool, False) else "pfeiffer",
            bottleneck=bn.bottleneck_size("AdapterHub", shapes),
            activation=option(config, "non_linearity", str, "relu").lower(),
            reads="stream" if option(config, "original_ln_before", bool, False) else "sublayer",
            scale=bn.constant_scale(config),
            leave_out=whole_numbers(config, "leave_out"),
        )

    def write_blocks(self, config: SeriesConfig, spec: BaseSpec) -> dict[str, object]:
        return bn.adapterhub_config(
            spec,
            config.bottleneck,
            is_parallel=False,
            mh_adapter=config.placement == "houlsby",
            non_linearity=config.activation,
            original_ln_before=config.reads == "stream",
            scaling=config.scale,
            leave_out=list(config.leave_out),
        )

    def resolve(self, config: SeriesConfig, spec: BaseSpec) -> SeriesConfig:
        return bn.with_targets(config, (spec.parts.mlp_out,))

    def variant(self, config: SeriesConfig) -> str:
        return config.placement + (" of the stream" if config.reads == "stream" else "")

    def linear_taps(self, spec: BaseSpec, module: str) -> tuple[Tap, Tap]:
        """LLM-Adapters' rule: linears that read a sublayer's input are adapted there, its last one at its output."""
        part = module.removeprefix(spec.parts.layers + ".").partition(".")[2]
        tap = Tap(module, "in" if part in (*spec.parts.queries, *spec.parts.mlp_in) else "out")
        return tap, tap

    def blocks(self, config: SeriesConfig, spec: BaseSpec) -> Iterator[bn.BottleneckSite]:
        for layer in bn.layers_with(config, spec):
            for sublayer in _SUBLAYERS[config.placement]:
                stream = config.reads == "stream"
                reads = stream_out(spec, layer, sublayer) if stream else (sublayer_out(spec, layer, sublayer),)
                yield bn.block_place(spec, layer, sublayer, reads)
