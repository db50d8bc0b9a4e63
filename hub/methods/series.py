"""Series adapters: a bottleneck after a sublayer, added to what it adds.

placement=houlsby (arXiv 1902.00751): d += f(d) after attention and MLP. placement=pfeiffer (2005.00247):
d += f(d) after the MLP only. reads=stream (AdapterHub's seq_bn): d += f(x + d). placement=linear
(LLM-Adapters, 2304.01933): per linear, W(x + f(x)) for those that read a sublayer's input, y + f(y) for
its last one. d is what the base adds to the stream, after a post-norm where the family has one.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from graft.hub.errors import ArtifactError, GraftError
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
from graft.hub.sites import Tap, added, stream_out

_SUBLAYERS = {"houlsby": ("attention", "mlp"), "pfeiffer": ("mlp",)}


@dataclass(frozen=True)
class SeriesConfig:
    placement: str = "houlsby"  # | "pfeiffer" | "linear"
    bottleneck: int = 32
    activation: str = "swish"
    reads: str = "sublayer"  # | "stream": x + d
    scale: float = 1.0
    targets: Targets = ()  # placement=linear only; empty: the MLP's last linear
    leave_out: tuple[int, ...] = ()  # layers without an adapter
    init: str = field(default="truncated", metadata=TRAINING_ONLY)  # | "zero": exactly the identity

    def __post_init__(self) -> None:
        require_positive("series", bottleneck=self.bottleneck)
        bn.known_activation("series", self.activation)
        if self.placement not in (*_SUBLAYERS, "linear"):
            raise GraftError(f"series: placement must be houlsby, pfeiffer or linear, not {self.placement!r}.")
        if self.reads not in ("sublayer", "stream"):
            raise GraftError(f"series: reads must be sublayer or stream, not {self.reads!r}.")
        if self.init not in ("truncated", "zero"):
            raise GraftError(f"series: init must be truncated or zero, not {self.init!r}.")


class Series(Method):
    name = "series"
    title = "Series adapter"
    paper = "arXiv 1902.00751"
    Config = SeriesConfig
    learning_rate = 1e-3

    def recognises(self, raw):
        if bn.is_adapterhub(raw):
            return adapterhub.config_of(raw).get("is_parallel") is not True
        return bn.is_llm_adapters(raw) and raw.get("use_parallel_adapter") is not True

    def read(self, raw, shapes):
        if bn.is_llm_adapters(raw):
            return SeriesConfig(**bn.read_llm_adapters(raw, shapes))
        config = bn.read_adapterhub(raw)
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

    def canonical(self, raw, name):
        return bn.canonical_name(raw, name)

    def neutral(self, config):
        return bn.NEUTRAL

    def write(self, config, spec):
        if config.placement == "linear":
            header = peft_header("BOTTLENECK", spec)
            return bn.llm_adapters_config(
                header, config.bottleneck, config.activation, config.scale, config.targets, parallel=False
            )
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

    def resolve(self, config, spec):
        if config.placement != "linear" or config.targets:
            return config
        return replace(config, targets=(spec.parts.mlp_out.rpartition(".")[2],))

    def variant(self, config):
        return config.placement + (" of the stream" if config.reads == "stream" else "")

    def shapes(self, config, spec):
        shapes = {}
        if config.placement == "linear":
            for name in match_modules("series", config.targets, spec):
                size = spec.modules[name].in_features if _at_input(spec, name) else spec.modules[name].out_features
                shapes.update(bn.linear_shapes(name, config.bottleneck, size, size))
            return shapes
        for layer, sublayer in self._blocks(config, spec):
            shapes.update(bn.block_shapes(bn.block_key(spec, layer, sublayer), config.bottleneck, spec.hidden_size))
        return shapes

    def init(self, config, context):
        shapes = self.shapes(config, context.base.spec)
        start = bn.init_truncated if config.init == "truncated" else bn.init_up_zero
        return {name: value.to(context.base.device) for name, value in start(shapes, context.generator).items()}

    def fold(self, config, tensors, base):
        spec, common = base.spec, {"activation": config.activation, "scale": config.scale}
        if config.placement == "linear":
            forms = []
            for name in match_modules("series", config.targets, spec):
                tap = Tap(name, "in" if _at_input(spec, name) else "out")
                key = f"{PEFT_PREFIX}{name}."
                forms.append(bn.low_rank(tensors, key, infix="", reads=(tap,), adds_to=tap, **common))
            return tuple(forms)
        return tuple(
            bn.low_rank(
                tensors,
                bn.block_key(spec, layer, sublayer),
                infix=".0",
                reads=stream_out(spec, layer, sublayer)
                if config.reads == "stream"
                else (added(spec, layer, sublayer),),
                adds_to=added(spec, layer, sublayer),
                **common,
            )
            for layer, sublayer in self._blocks(config, spec)
        )

    def _blocks(self, config, spec):
        layers = [layer for layer in range(spec.num_layers) if layer not in config.leave_out]
        return [(layer, sublayer) for layer in layers for sublayer in _SUBLAYERS[config.placement]]


def _at_input(spec, module: str) -> bool:
    """LLM-Adapters' rule: linears that read a sublayer's input are adapted there, its last one at its output."""
    part = module.removeprefix(spec.parts.layers + ".").partition(".")[2]
    return part in (*spec.parts.queries, *spec.parts.mlp_in)
