"""An artifact: what one training run leaves, and its way to and from a folder.

A folder is `adapter_config.json`, `adapter_model.safetensors`, `README.md` (the card) and `graft.json`
(provenance and probe). The LoRA family, prompts, prefixes and IA3 are valid HF PEFT directories.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from graft.hub.adapters.methods import Method, MethodConfig
from graft.hub.adapters.serving_forms import CacheRows, Form, InputRows, LowRank
from graft.hub.adapters.validation import CARD, CONFIG, PROVENANCE, WEIGHTS, check_against, digest, parse
from graft.hub.base.fingerprint import same_weight
from graft.hub.base.manifest import BaseSpec
from graft.hub.base.model import Base
from graft.hub.errors import ArtifactError, BaseMismatchError
from graft.hub.machine.atomic_files import write_folder_whole


@dataclass(frozen=True)
class Artifact:
    """A parsed and loaded adapter. `tensors` go by canonical name, on the CPU, in the file's dtypes."""

    method: Method
    config: MethodConfig
    tensors: Mapping[str, Tensor]
    digest: str
    provenance: Mapping[str, Any]
    frozen: Mapping[str, Tensor] = field(default_factory=dict)  # module -> its weight as saved beside the adapter

    @property
    def probe(self) -> Mapping[str, object] | None:
        return self.provenance.get("probe")

    @cached_property
    def bytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.tensors.values())

    def fold(self, base: Base) -> tuple[Form, ...]:
        """The serving forms on `base`, in float32 on its device.

        Raises ArtifactError for a no-op adapter, BaseMismatchError for a frozen weight that is not the base's.
        """
        for module, saved in self.frozen.items():
            if not same_weight(base.weight(module), saved):
                raise BaseMismatchError(
                    f"This adapter brings its own weight of {module}, which differs from {base.spec.id or 'this base'}'s: "
                    f"its base had other or more embeddings. It can't be served per request on this one."
                )
        with torch.no_grad():
            device = base.device  # a walk through the model
            tensors = {name: tensor.to(device, torch.float32) for name, tensor in self.tensors.items()}
            forms = self.method.fold(self.config, tensors, base)
        if all(_is_identity(form) for form in forms):
            raise ArtifactError(
                f"This {self.method.title.removesuffix(' adapter')} adapter changes nothing: every one of its detours is "
                f"zero. It was saved before training, or its weights were lost on the way."
            )
        return forms


def load_artifact(folder: str | Path, base: BaseSpec, *, allow_base_mismatch: bool = False) -> Artifact:
    """Read a folder and check it against a base: every tensor used, none missing, shapes and fingerprint equal.

    Raises ArtifactError, UnsupportedMethodError or BaseMismatchError. Nothing is ever unpickled.
    """
    parsed = parse(Path(folder))
    check_against(parsed, base, allow_base_mismatch=allow_base_mismatch)
    try:
        with safe_open(parsed.weights, framework="pt") as file:
            tensors = {name: file.get_tensor(own) for name, own in parsed.file_names.items()}
            frozen = {module: file.get_tensor(own) for module, (own, _) in parsed.copies.items()}
    except SafetensorError as error:
        raise ArtifactError(f"{parsed.weights.name} can't be read: {error}.") from None
    return Artifact(parsed.method, parsed.config, tensors, digest(parsed), parsed.provenance, frozen)


def save_artifact(
    folder: str | Path,
    method: Method,
    config: MethodConfig,
    tensors: Mapping[str, Tensor],
    spec: BaseSpec,
    *,
    provenance: Mapping[str, object] | None = None,
    card: str | None = None,
) -> None:
    """Write a folder whole; where that fails, an artifact that was there is there still.

    Raises ArtifactError for tensors that are not finite or not what the config asks for on this base, OSError for a
    full disk.
    """
    _require_sound(method, config, tensors, spec)
    names = {name: method.file_name(config, spec, name) for name in sorted(tensors)}
    contiguous = {own: tensors[name].detach().cpu().contiguous() for name, own in names.items()}
    with write_folder_whole(Path(folder), last=WEIGHTS) as staging:
        (staging / CONFIG).write_text(json.dumps(_sort_config(method.write(config, spec)), indent=2))
        if provenance is not None:
            (staging / PROVENANCE).write_text(json.dumps(provenance, indent=2))
        if card is not None:
            (staging / CARD).write_text(card, "utf-8")
        (staging / WEIGHTS[0]).write_bytes(save(contiguous, metadata={"format": "pt"}))


def _require_sound(method: Method, config: MethodConfig, tensors: Mapping[str, Tensor], spec: BaseSpec) -> None:
    needed = method.shapes(config, spec)
    have = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if have != needed:
        differing = sorted(name for name in needed.keys() | have.keys() if needed.get(name) != have.get(name))
        raise ArtifactError(f"{method.title}: {differing[0]} is not what the config asks for; nothing was saved.")
    for name, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise ArtifactError(f"{method.title}: {name} holds NaN or infinite values; nothing was saved.")


def _sort_config(config: dict[str, object]) -> dict[str, object]:
    """By key, but not within a value: of rank and alpha patterns the first that matches counts."""
    return dict(sorted(config.items()))


def _is_identity(form: Form) -> bool:
    if isinstance(form, (InputRows, CacheRows)):
        return False
    if isinstance(form, LowRank):
        scale = form.scale if isinstance(form.scale, Tensor) else torch.tensor(form.scale)
        return not scale.any() or (not form.B.any() and (form.b is None or not form.b.any()))
    return (form.scale is None or bool((form.scale == 1).all())) and (form.bias is None or not form.bias.any())
