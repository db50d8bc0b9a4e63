"""What series and parallel adapters share: names, shapes, config formats, initialisation and fold.

f(x) = act(x D^T + d) U^T + u, down D [b, in], up U [out, b]. Two formats: AdapterHub's, for adapters on a
layer's blocks, and LLM-Adapters' (arXiv 2304.01933), for adapters on single linears, without biases.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from graft.hub.adapters.methods import adapterhub_format
from graft.hub.adapters.methods.foreign_config import PEFT_COMMON, refuse_options
from graft.hub.adapters.methods.method import (
    PEFT_PREFIX,
    InitContext,
    Method,
    Raw,
    Shape,
    option,
    peft_header,
    require_positive,
)  # fmt: skip
from graft.hub.adapters.methods.target_modules import Targets, match_modules, names_of
from graft.hub.base.hook_points import Tap, sublayer_out
from graft.hub.base.manifest import BaseSpec
from graft.hub.errors import ArtifactError, GraftError, UnsupportedMethodError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from graft.hub.adapters.serving_forms import LowRank
    from graft.hub.base.model import Base

_NEUTRAL = {"adapter_up.weight": 0.0, "adapter_up.bias": 0.0}
_ACTIVATIONS = ("relu", "silu", "swish", "gelu", "gelu_new", "tanh", "sigmoid", "leakyrelu")
_BLOCKS = {"attention": "attention_adapters", "mlp": "output_adapters"}
# AdapterHub options that would change what is computed, with the value that does not.
_ADAPTERHUB_PLAIN = {
    "cross_adapter": False,
    "inv_adapter": None,
    "ln_after": False,
    "ln_before": False,
    "phm_layer": False,
    "shared_W_phm": False,
    "use_gating": False,
    "adapter_residual_before_ln": False,
    "stochastic_depth": 0.0,
    "residual_before_ln": True,
    "original_ln_after": True,
}
_LLM_ADAPTERS_READ = PEFT_COMMON | {
    "bottleneck_size", "non_linearity", "adapter_dropout", "scaling", "use_parallel_adapter", "use_adapterp",
    "target_modules", "init_weights", "bias", "fan_in_fan_out", "enable_lora",
}  # fmt: skip


@dataclass(frozen=True)
class BottleneckConfig:
    """What configs of series and parallel adapters hold alike; the defaults are the method's own."""

    placement: str
    bottleneck: int
    activation: str
    reads: str
    scale: float
    targets: Targets
    leave_out: tuple[int, ...]
    init: str


B = TypeVar("B", bound=BottleneckConfig)


@dataclass(frozen=True)
class BottleneckSite:
    """One bottleneck of an adapter: the start of its tensors' names, what it reads and where it adds."""

    key: str
    reads: tuple[Tap, ...]
    adds_to: Tap


class Bottleneck(Method[B]):
    """Series or parallel. With placement="linear" it sits on single linears, otherwise on blocks."""

    parallel: ClassVar[bool]

    @abstractmethod
    def linear_taps(self, spec: BaseSpec, module: str) -> tuple[Tap, Tap]:
        """(read, added to) of a bottleneck on one linear."""

    @abstractmethod
    def blocks(self, config: B, spec: BaseSpec) -> Iterator[BottleneckSite]:
        """The places on blocks."""

    @abstractmethod
    def read_blocks(self, config: Raw, raw: Raw, shapes: Mapping[str, Shape]) -> B:
        """The method's config of AdapterHub's `config`, which lies in the file `raw`."""

    @abstractmethod
    def write_blocks(self, config: B, spec: BaseSpec) -> dict[str, object]:
        """adapter_config.json for AdapterHub."""

    def recognises(self, raw: Raw) -> bool:
        if _is_adapterhub(raw):
            return (adapterhub_format.config_of(raw).get("is_parallel") is True) == self.parallel
        return _is_llm_adapters(raw) and (raw.get("use_parallel_adapter") is True) == self.parallel

    def read(self, raw: Raw, shapes: Mapping[str, Shape]) -> B:
        if _is_llm_adapters(raw):
            return self.Config(**_read_llm_adapters(raw, shapes))
        config = adapterhub_format.config_of(raw)
        option(config, "is_parallel", bool, False)
        adapterhub_format.refuse_unless_plain(config, _ADAPTERHUB_PLAIN)
        return self.read_blocks(config, raw, shapes)

    def write(self, config: B, spec: BaseSpec) -> dict[str, object]:
        if config.placement == "linear":
            return _llm_adapters_config(config, spec, self.parallel)
        return self.write_blocks(config, spec)

    def library(self, config: B) -> str:
        return "graft" if config.placement == "linear" else "adapters"  # LLM-Adapters' fork of PEFT has no name

    def canonical_name(self, raw: Raw, name: str) -> str:
        """AdapterHub keys carry the adapter's own name; the canonical one is NAME."""
        if not _is_adapterhub(raw):
            return name
        return name.replace(f".adapters.{adapterhub_format.own_name(raw)}.", f".adapters.{adapterhub_format.NAME}.", 1)

    def neutral_values(self, config: B) -> dict[str, float]:
        return _NEUTRAL

    def shapes(self, config: B, spec: BaseSpec) -> dict[str, Shape]:
        shapes: dict[str, Shape] = {}
        for place in self._places(config, spec):
            if config.placement == "linear":
                reads, adds = (_width(spec, tap) for tap in (place.reads[0], place.adds_to))
                shapes[f"{place.key}adapter_down.weight"] = (config.bottleneck, reads)
                shapes[f"{place.key}adapter_up.weight"] = (adds, config.bottleneck)
            else:
                shapes |= _block_shapes(place.key, config.bottleneck, spec.hidden_size)
        return shapes

    def init(self, config: B, context: InitContext) -> dict[str, Tensor]:
        start = {"truncated": _init_truncated, "zero": _init_up_zero}[config.init]
        shapes = self.shapes(config, context.base.spec)
        return {name: value.to(context.base.device) for name, value in start(shapes, context.generator).items()}

    def fold(self, config: B, tensors: Mapping[str, Tensor], base: Base) -> tuple[LowRank, ...]:
        return tuple(self.fold_one(config, tensors, place) for place in self._places(config, base.spec))

    def fold_one(self, config: B, tensors: Mapping[str, Tensor], place: BottleneckSite) -> LowRank:
        """The LowRank of one bottleneck."""
        from graft.hub.adapters.serving_forms import LowRank

        down = f"{place.key}adapter_down{'' if config.placement == 'linear' else '.0'}"
        return LowRank(
            reads=place.reads,
            adds_to=place.adds_to,
            A=tensors[f"{down}.weight"],
            a=tensors.get(f"{down}.bias"),
            B=tensors[f"{place.key}adapter_up.weight"].T,
            b=tensors.get(f"{place.key}adapter_up.bias"),
            activation=config.activation,
            scale=config.scale,
        )

    def _places(self, config: B, spec: BaseSpec) -> Iterator[BottleneckSite]:
        if config.placement != "linear":
            yield from self.blocks(config, spec)
            return
        for name in match_modules(self.name, config.targets, spec):
            reads, adds_to = self.linear_taps(spec, name)
            yield BottleneckSite(f"{PEFT_PREFIX}{name}.", (reads,), adds_to)


def check_config(owner: str, config: BottleneckConfig, placements: tuple[str, ...], reads: tuple[str, ...]) -> None:
    """What series and parallel configs ask alike. Raises GraftError naming the key."""
    require_positive(owner, bottleneck=config.bottleneck)
    if config.scale == 0 or not math.isfinite(config.scale):
        raise GraftError(f"{owner}: scale must be a finite number other than 0, not {config.scale}.")
    if config.activation not in _ACTIVATIONS:
        raise UnsupportedMethodError(
            f"{owner}: unknown activation {config.activation!r}. Known: {', '.join(_ACTIVATIONS)}."
        )
    choices = {"placement": placements, "reads": reads, "init": ("truncated", "zero")}
    for key, known in choices.items():
        if getattr(config, key) not in known:
            raise GraftError(f"{owner}: {key} must be {' or '.join(known)}, not {getattr(config, key)!r}.")


def layers_with(config: BottleneckConfig, spec: BaseSpec) -> list[int]:
    """The layers that `leave_out` leaves."""
    return [layer for layer in range(spec.num_layers) if layer not in config.leave_out]


def with_targets(config: B, parts: tuple[str, ...]) -> B:
    """placement=linear without targets means the modules of these part names."""
    if config.placement != "linear" or config.targets:
        return config
    return replace(config, targets=tuple(sorted(part.rpartition(".")[2] for part in parts)))


def _is_adapterhub(raw: Raw) -> bool:
    """AdapterHub's bottleneck config."""
    return "reduction_factor" in adapterhub_format.config_of(raw)


def _is_llm_adapters(raw: Raw) -> bool:
    return raw.get("peft_type") == "BOTTLENECK"


def _read_llm_adapters(raw: Raw, shapes: Mapping[str, Shape]) -> dict[str, Any]:
    """Fields of a config with placement="linear". Raises UnsupportedMethodError by option name."""
    refuse_options("LLM-Adapters", raw, _LLM_ADAPTERS_READ)
    option(raw, "use_parallel_adapter", bool, False)
    if option(raw, "bias", str, "none") != "none":
        raise UnsupportedMethodError(f"This LLM-Adapters adapter trains biases (bias={raw['bias']}): not served.")
    return {
        "placement": "linear",
        "bottleneck": bottleneck_size("LLM-Adapters", shapes),
        "activation": option(raw, "non_linearity", str, "tanh"),
        "scale": constant_scale(raw),
        "targets": names_of("target_modules", raw.get("target_modules")),
    }


def constant_scale(config: Raw) -> float:
    """`scaling`, where it is a number. Raises UnsupportedMethodError for a scale by channel or per linear."""
    if isinstance(scaling := config.get("scaling"), str):
        raise UnsupportedMethodError(f"Bottleneck adapters with scaling={scaling[:80]!r} are not served.")
    return option(config, "scaling", float, 1.0)


def bottleneck_size(owner: str, shapes: Mapping[str, Shape]) -> int:
    """b, from the first down projection in the file."""
    for name, shape in sorted(shapes.items()):
        if "adapter_down" in name and name.endswith("weight") and len(shape) == 2:
            return shape[0]
    raise ArtifactError(f"This {owner} adapter holds no adapter_down weight: tensors are missing.")


def block_place(spec: BaseSpec, layer: int, sublayer: str, reads: tuple[Tap, ...]) -> BottleneckSite:
    """A bottleneck whose output joins what the sublayer adds to the stream."""
    return BottleneckSite(_block_key(spec, layer, sublayer), reads, sublayer_out(spec, layer, sublayer))


def _block_key(spec: BaseSpec, layer: int, sublayer: str) -> str:
    return f"{spec.module(layer, _BLOCKS[sublayer])}.adapters.{adapterhub_format.NAME}."


def _block_shapes(key: str, size: int, hidden: int) -> dict[str, Shape]:
    return {
        f"{key}adapter_down.0.weight": (size, hidden),
        f"{key}adapter_down.0.bias": (size,),
        f"{key}adapter_up.weight": (hidden, size),
        f"{key}adapter_up.bias": (hidden,),
    }


def adapterhub_config(spec: BaseSpec, size: int, **settings: object) -> dict[str, object]:
    """adapter_config.json as AdapterHub 1.x reads it."""
    config = {
        **_ADAPTERHUB_PLAIN,
        "dropout": 0.0,
        "factorized_phm_W": True,
        "factorized_phm_rule": False,
        "hypercomplex_nonlinearity": "glorot-uniform",
        "init_weights": "bert",
        "init_weights_seed": None,
        "inv_adapter_reduction_factor": None,
        "learn_phm": True,
        "leave_out": [],
        "output_adapter": True,
        "phm_bias": True,
        "phm_c_init": "normal",
        "phm_dim": 4,
        "phm_init_range": 0.0001,
        "phm_rank": 1,
        "shared_phm_rule": True,
        "reduction_factor": _reduction_factor(spec.hidden_size, size),
        **settings,
    }
    return adapterhub_format.envelope(config, spec)


def _llm_adapters_config(config: BottleneckConfig, spec: BaseSpec, parallel: bool) -> dict[str, object]:
    """adapter_config.json as the LLM-Adapters fork of PEFT reads it."""
    return {
        **peft_header("BOTTLENECK", spec),
        "bottleneck_size": config.bottleneck,
        "non_linearity": config.activation,
        "adapter_dropout": 0.0,
        "scaling": config.scale,
        "use_parallel_adapter": parallel,
        "use_adapterp": False,
        "target_modules": config.targets if isinstance(config.targets, str) else list(config.targets),
        "init_weights": "bert",
        "bias": "none",
    }


def _width(spec: BaseSpec, tap: Tap) -> int:
    module = spec.modules[tap.module]
    return module.in_features if tap.side == "in" else module.out_features


def _init_truncated(shapes: Mapping[str, Shape], generator: torch.Generator, std: float = 1e-2) -> dict[str, Tensor]:
    """Houlsby et al.: weights from N(0, std) truncated at two deviations, biases zero: near the identity."""
    import torch

    parameters = {}
    for name, shape in shapes.items():
        value = torch.zeros(shape)
        if name.endswith("weight"):
            torch.nn.init.trunc_normal_(value, std=std, a=-2 * std, b=2 * std, generator=generator)
        parameters[name] = value
    return parameters


def _init_up_zero(shapes: Mapping[str, Shape], generator: torch.Generator) -> dict[str, Tensor]:
    """He et al.: down kaiming-uniform (a = sqrt(5)), everything else zero: exactly the identity."""
    import torch

    parameters = {}
    for name, shape in shapes.items():
        down = name.endswith("weight") and "adapter_down" in name
        noise = torch.rand(shape, generator=generator) * 2 - 1 if down else torch.zeros(shape)
        parameters[name] = noise / math.sqrt(shape[-1]) if down else noise
    return parameters


def _reduction_factor(hidden: int, size: int) -> float:
    """A factor for which AdapterHub's int(hidden // factor) gives back `size`."""
    factor = hidden / size
    return factor if int(hidden // factor) == size else math.nextafter(factor, 0)
