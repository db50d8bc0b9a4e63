"""An adapter moved to another format (PEFT, AdapterHub): its tensors and config written as the other library wants them."""

import inspect
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from graft.hub.adapters.artifact import Artifact, save_artifact
from graft.hub.adapters.methods import MethodConfig
from graft.hub.adapters.methods.prefix_tuning import PrefixConfig
from graft.hub.adapters.methods.virtual_tokens import KEY
from graft.hub.base.model import Base
from graft.hub.chat.words import NO_WORDS, AdapterWords
from graft.hub.errors import UnsupportedMethodError

_LIBRARIES = {"peft": "peft", "adapterhub": "adapters"}  # a format's name on the command line, on a card


def convert(artifact: Artifact, base: Base, to: str, folder: str | Path, words: AdapterWords = NO_WORDS) -> None:
    """Write the adapter in another library's format, `to` "peft" or "adapterhub", with the same answers and its words.

    Raises UnsupportedMethodError where the format has no place for it.
    """
    config, tensors = artifact.config, dict(artifact.tensors)
    if isinstance(config, PrefixConfig):
        config, tensors = _move_prefix(config, tensors, base, shifts_text=to == "peft")
    _require_format(artifact, config, to)
    provenance = {"format": 1, "base": artifact.provenance.get("base", {}), "parents": [{"digest": artifact.digest}]}
    save_artifact(folder, artifact.method, config, tensors, base.spec, provenance=provenance, words=words)
    if to == "adapterhub":  # the name that `adapters` looks for
        (Path(folder) / "adapter_model.safetensors").rename(Path(folder) / "adapter.safetensors")


def _require_format(artifact: Artifact, config: MethodConfig, to: str) -> None:
    method = artifact.method
    if method.library(config) != _LIBRARIES[to]:
        kind = f"{method.title} {method.variant(config)}".strip()
        raise UnsupportedMethodError(f"{kind} can't be written for {to}: it has no place for this kind.")


def _move_prefix(
    config: PrefixConfig, tensors: Mapping[str, Tensor], base: Base, *, shifts_text: bool
) -> tuple[PrefixConfig, dict[str, Tensor]]:
    """The prefix with the text at position P (PEFT) or 0 (AdapterHub): rotary keys turn with the text."""
    if config.shifts_text == shifts_text:
        return config, dict(tensors)
    if not base.spec.rotary:
        raise UnsupportedMethodError(
            f"A prefix can't be moved on a {base.spec.model_type} base: its learned positions make the text's place "
            f"matter, and only rotary keys can be turned."
        )
    spec = base.spec
    shape = (config.tokens, spec.num_layers, 2, spec.num_kv_heads, spec.head_dim)
    rows = tensors[KEY].float().reshape(shape).clone()
    by = config.tokens if shifts_text else -config.tokens
    for layer in range(spec.num_layers):
        rows[:, layer, 0] = _rotate(rows[:, layer, 0], by, layer, base)
    flat = rows.reshape(config.tokens, -1)
    return replace(config, shifts_text=shifts_text), {KEY: flat if shifts_text else flat.reshape(-1)}


def _rotate(keys: Tensor, by: int, layer: int, base: Base) -> Tensor:
    """Rotary keys [P, kv_heads, D] moved by `by` positions, with the base's own rotary tables."""
    rotary = base.model.get_submodule(base.spec.parts.layers.rpartition(".")[0] + ".rotary_emb")
    kinds = base.model.config.layer_types[layer : layer + 1] if _takes_layer_type(rotary) else []
    position = torch.tensor([[abs(by)]], device=base.device)
    cos, sin = (part[0, 0].float() for part in rotary(torch.zeros(1, device=base.device), position, *kinds))
    size = (cos**2 + sin**2).sqrt()  # some tables scale the attention too
    cos, sin = cos / size, sin / size * (1 if by > 0 else -1)
    turned, rest = keys[..., : len(cos)], keys[..., len(cos) :]  # some families rotate only a part
    first, second = turned.chunk(2, dim=-1)
    return torch.cat([turned * cos + torch.cat([-second, first], dim=-1) * sin, rest], dim=-1)


def _takes_layer_type(rotary: nn.Module) -> bool:
    return "layer_type" in inspect.signature(rotary.forward).parameters
