"""AdapterHub's config format (`adapters` 1.x) and the tensor names that carry an adapter's own name. Torch-free.

Its adapter_config.json shares PEFT's file name but not its schema: the method's config lies under "config",
beside the adapter's "name". LoRA and IA3 are one architecture there, told apart by `composition_mode`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from graft.hub.adapters.methods.method import PEFT_PREFIX, Raw, Shape, whole_numbers
from graft.hub.base.manifest import BaseSpec
from graft.hub.errors import ArtifactError, UnsupportedMethodError

NAME = "graft"  # the adapter's own name in what we write
VERSION = "adapters.1.3.0"
_LORA_KEY = re.compile(r"(?P<module>[\w.]+)\.loras\.(?P<name>[\w\-]+)\.lora_(?P<part>[AB])")
_LAYER = re.compile(r"(?P<before>.*?\.)(?P<index>\d+)\.(?P<part>.*)")
# What LoRA and IA3 may set there: read, or without influence once loaded.
_LORA_PLAIN = {
    "alpha", "architecture", "attn_matrices", "composition_mode", "dropout", "dtype", "init_weights",
    "init_weights_seed", "intermediate_lora", "leave_out", "output_lora", "r", "selfattn_lora",
}  # fmt: skip


def config_of(raw: Raw) -> Raw:
    """The method's own config; {} where this is no AdapterHub config."""
    nested = raw.get("config")
    return nested if "peft_type" not in raw and isinstance(nested, dict) else {}


def own_name(raw: Raw) -> str:
    """The adapter's name, as its tensors carry it. Raises ArtifactError where there is none."""
    name = raw.get("name")
    if not isinstance(name, str) or not name:
        raise ArtifactError("This AdapterHub config names no adapter: its key `name` is missing.")
    return name


def envelope(config: Raw, spec: BaseSpec) -> dict[str, object]:
    """adapter_config.json around a method's config."""
    return {
        "config": dict(config),
        "hidden_size": spec.hidden_size,
        "model_class": None,
        "model_name": spec.id or "",
        "model_type": spec.model_type,
        "name": NAME,
        "version": VERSION,
    }


def refuse_unless_plain(config: Raw, plain: Raw) -> None:
    """Raises UnsupportedMethodError naming an option that is set to something else than its plain value."""
    for key, value in plain.items():
        if config.get(key, value) != value:
            raise UnsupportedMethodError(
                f"This AdapterHub adapter sets {key}={str(config[key])[:80]}, which graft does not serve per request. "
                f"Train it without."
            )


def is_lora(raw: Raw, composition: str) -> bool:
    """LoRA ("add") or IA3 ("scale")."""
    config = config_of(raw)
    return config.get("architecture") == "lora" and config.get("composition_mode") == composition


def read_lora(raw: Raw, shapes: Mapping[str, Shape]) -> tuple[Raw, tuple[str, ...], tuple[str, ...]]:
    """(config, targets, modules left out). Which linears "attention" means is told by the tensors' names.

    Raises UnsupportedMethodError or ArtifactError.
    """
    config = config_of(raw)
    for key, value in config.items():
        if key not in _LORA_PLAIN and value not in (None, False):
            raise UnsupportedMethodError(f"This AdapterHub adapter sets {key}={str(value)[:80]}, which is not served.")
    matches = [match for name in shapes if (match := _LAYER.fullmatch(name.removeprefix(PEFT_PREFIX)))]
    parts = {match["part"].removesuffix(".ia3_l").partition(".lora_")[0] for match in matches}
    left_out = {
        f"{match['before']}{layer}.{part}"
        for match in matches
        for layer in whole_numbers(config, "leave_out")
        for part in parts
    }
    return config, tuple(sorted(parts)), tuple(sorted(left_out))


def lora_name(raw: Raw, name: str) -> str:
    """PEFT's name of an AdapterHub LoRA or IA3 tensor; other names as they are."""
    match = _LORA_KEY.fullmatch(name)
    if not match or not (is_lora(raw, "add") or is_lora(raw, "scale")) or match["name"] != own_name(raw):
        return name
    end = "ia3_l" if is_lora(raw, "scale") else f"lora_{match['part']}.weight"
    return f"{PEFT_PREFIX}{match['module']}.{end}"
