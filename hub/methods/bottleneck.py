"""What series and parallel adapters share: names, shapes, config formats and the fold of one bottleneck.

f(x) = act(x D^T + d) U^T + u, down D [b, in], up U [out, b]. Two formats: AdapterHub's, for adapters on a
layer's blocks, and LLM-Adapters' (arXiv 2304.01933), for adapters on single linears, without biases.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from graft.hub.errors import ArtifactError, UnsupportedMethodError
from graft.hub.methods.base import PEFT_COMMON, Shape
from graft.hub.spec import BaseSpec

NAME = "graft"  # the adapter's own name within AdapterHub keys
PREFIX = "base_model.model."
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
}


def is_adapterhub(raw: Mapping[str, Any]) -> bool:
    """AdapterHub's bottleneck config: a nested `config` without PEFT's `peft_type`."""
    nested = raw.get("config")
    return "peft_type" not in raw and isinstance(nested, dict) and "reduction_factor" in nested


def is_llm_adapters(raw: Mapping[str, Any]) -> bool:
    return raw.get("peft_type") == "BOTTLENECK"


def read_adapterhub(raw: Mapping[str, Any]) -> dict[str, Any]:
    """The nested config, after refusing what is not served. Raises UnsupportedMethodError by option name."""
    config = raw["config"]
    for key, plain in _ADAPTERHUB_PLAIN.items():
        if config.get(key, plain) != plain:
            raise UnsupportedMethodError(
                f"This AdapterHub adapter sets {key}={config[key]!r}, which graft does not serve per request."
            )
    if config.get("residual_before_ln") is False or config.get("original_ln_after") is False:
        raise UnsupportedMethodError("AdapterHub's residual_before_ln/original_ln_after=false are not served.")
    return config


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
    own = raw.get("name")
    return name.replace(f".adapters.{own}.", f".adapters.{NAME}.", 1) if isinstance(own, str) and own else name


def block_key(spec: BaseSpec, layer: int, sublayer: str) -> str:
    return f"{spec.module(layer, _BLOCKS[sublayer])}.adapters.{NAME}."


def block_shapes(key: str, size: int, hidden: int) -> dict[str, Shape]:
    return {
        f"{key}adapter_down.0.weight": (size, hidden),
        f"{key}adapter_down.0.bias": (size,),
        f"{key}adapter_up.weight": (hidden, size),
        f"{key}adapter_up.bias": (hidden,),
    }


def linear_shapes(module: str, size: int, reads: int, adds: int) -> dict[str, Shape]:
    key = f"{PREFIX}{module}."
    return {f"{key}adapter_down.weight": (size, reads), f"{key}adapter_up.weight": (adds, size)}


def adapterhub_config(spec: BaseSpec, size: int, **settings: Any) -> dict[str, Any]:
    """adapter_config.json as AdapterHub 1.x reads it."""
    return {
        "config": {
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
            "original_ln_after": True,
            "output_adapter": True,
            "phm_bias": True,
            "phm_c_init": "normal",
            "phm_dim": 4,
            "phm_init_range": 0.0001,
            "phm_rank": 1,
            "residual_before_ln": True,
            "shared_phm_rule": True,
            "reduction_factor": _reduction_factor(spec.hidden_size, size),
            **settings,
        },
        "hidden_size": spec.hidden_size,
        "model_class": None,
        "model_name": spec.id or "",
        "model_type": spec.model_type,
        "name": NAME,
        "version": "adapters.1.3.0",
    }


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


LLM_ADAPTERS_KEYS = PEFT_COMMON | {
    "bottleneck_size", "non_linearity", "adapter_dropout", "scaling", "use_parallel_adapter", "use_adapterp",
    "target_modules", "init_weights", "bias", "fan_in_fan_out", "enable_lora",
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
