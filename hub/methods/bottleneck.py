"""What series and parallel adapters share: names, shapes, config formats and the fold of one bottleneck.

f(x) = act(x D^T + d) U^T + u, down D [b, in], up U [out, b]. Two formats: AdapterHub's, for adapters on a
layer's blocks, and LLM-Adapters' (arXiv 2304.01933), for adapters on single linears, without biases.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from graft.hub.errors import ArtifactError, UnsupportedMethodError
from graft.hub.methods import adapterhub
from graft.hub.methods.base import PEFT_COMMON, PEFT_PREFIX, Shape, option, refuse_options
from graft.hub.methods.targets import names_of
from graft.hub.spec import BaseSpec

NEUTRAL = {"adapter_up.weight": 0.0, "adapter_up.bias": 0.0}
ACTIVATION_NAMES = ("relu", "silu", "swish", "gelu", "gelu_new", "tanh", "sigmoid", "leakyrelu")
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


def is_adapterhub(raw: Mapping[str, Any]) -> bool:
    """AdapterHub's bottleneck config."""
    return "reduction_factor" in adapterhub.config_of(raw)


def is_llm_adapters(raw: Mapping[str, Any]) -> bool:
    return raw.get("peft_type") == "BOTTLENECK"


def read_adapterhub(raw: Mapping[str, Any]) -> dict[str, Any]:
    """The method's config, after refusing what is not served. Raises UnsupportedMethodError by option name."""
    config = adapterhub.config_of(raw)
    option(config, "is_parallel", bool, False)
    adapterhub.refuse_unless_plain(config, _ADAPTERHUB_PLAIN)
    return config


def read_llm_adapters(raw: Mapping[str, Any], shapes: Mapping[str, Shape]) -> dict[str, Any]:
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


def constant_scale(config: Mapping[str, Any]) -> float:
    """`scaling`, where it is a number. Raises UnsupportedMethodError for a scale by channel or per linear."""
    if isinstance(config.get("scaling"), str):
        raise UnsupportedMethodError(f"Bottleneck adapters with scaling={config['scaling'][:80]!r} are not served.")
    return option(config, "scaling", float, 1.0)


def known_activation(owner: str, name: str) -> str:
    if name not in ACTIVATION_NAMES:
        raise UnsupportedMethodError(f"{owner}: unknown activation {name!r}. Known: {', '.join(ACTIVATION_NAMES)}.")
    return name


def bottleneck_size(owner: str, shapes: Mapping[str, Shape]) -> int:
    """b, from the first down projection in the file."""
    for name, shape in sorted(shapes.items()):
        if "adapter_down" in name and name.endswith("weight") and len(shape) == 2:
            return shape[0]
    raise ArtifactError(f"This {owner} adapter holds no adapter_down weight: tensors are missing.")


def canonical_name(raw: Mapping[str, Any], name: str) -> str:
    """AdapterHub keys carry the adapter's own name; the canonical one is NAME."""
    if not is_adapterhub(raw):
        return name
    return name.replace(f".adapters.{adapterhub.own_name(raw)}.", f".adapters.{adapterhub.NAME}.", 1)


def block_key(spec: BaseSpec, layer: int, sublayer: str) -> str:
    return f"{spec.module(layer, _BLOCKS[sublayer])}.adapters.{adapterhub.NAME}."


def block_shapes(key: str, size: int, hidden: int) -> dict[str, Shape]:
    return {
        f"{key}adapter_down.0.weight": (size, hidden),
        f"{key}adapter_down.0.bias": (size,),
        f"{key}adapter_up.weight": (hidden, size),
        f"{key}adapter_up.bias": (hidden,),
    }


def linear_shapes(module: str, size: int, reads: int, adds: int) -> dict[str, Shape]:
    key = f"{PEFT_PREFIX}{module}."
    return {f"{key}adapter_down.weight": (size, reads), f"{key}adapter_up.weight": (adds, size)}


def adapterhub_config(spec: BaseSpec, size: int, **settings: Any) -> dict[str, Any]:
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
    return adapterhub.envelope(config, spec)


def llm_adapters_config(
    base_header: dict[str, Any], size: int, activation: str, scaling: float, targets: Any, parallel: bool
) -> dict[str, Any]:
    """adapter_config.json as the LLM-Adapters fork of PEFT reads it."""
    return {
        **base_header,
        "bottleneck_size": size,
        "non_linearity": activation,
        "adapter_dropout": 0.0,
        "scaling": scaling,
        "use_parallel_adapter": parallel,
        "use_adapterp": False,
        "target_modules": targets if isinstance(targets, str) else list(targets),
        "init_weights": "bert",
        "bias": "none",
    }  # fmt: skip


def low_rank(tensors: Mapping[str, Any], key: str, *, infix: str, reads, adds_to, activation, scale):
    """The LowRank of one bottleneck. `infix` is ".0" in AdapterHub's down keys, "" in LLM-Adapters'."""
    from graft.hub.forms import LowRank

    return LowRank(
        reads=reads,
        adds_to=adds_to,
        A=tensors[f"{key}adapter_down{infix}.weight"],
        a=tensors.get(f"{key}adapter_down{infix}.bias"),
        B=tensors[f"{key}adapter_up.weight"].T,
        b=tensors.get(f"{key}adapter_up.bias"),
        activation=activation,
        scale=scale,
    )


def init_truncated(shapes: Mapping[str, Shape], generator, std: float = 1e-2) -> dict[str, Any]:
    """Houlsby et al.: weights from N(0, std) truncated at two deviations, biases zero: near the identity."""
    import torch

    parameters = {}
    for name, shape in shapes.items():
        value = torch.zeros(shape)
        if name.endswith("weight"):
            torch.nn.init.trunc_normal_(value, std=std, a=-2 * std, b=2 * std, generator=generator)
        parameters[name] = value
    return parameters


def init_up_zero(shapes: Mapping[str, Shape], generator) -> dict[str, Any]:
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
