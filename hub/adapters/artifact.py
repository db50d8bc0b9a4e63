"""An artifact: what one training run leaves, and its way to and from a folder.

A folder is `adapter_config.json`, `adapter_model.safetensors`, `README.md` (the card) and `graft.json`
(provenance and probe). The LoRA family, prompts, prefixes and IA3 are valid HF PEFT directories.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from io import BufferedReader
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from graft.hub.adapters.methods import Method, MethodConfig
from graft.hub.adapters.safetensors_header import TensorEntry, read_tensor, require_finite
from graft.hub.adapters.serving_forms import CacheRows, Form, InputRows, LowRank
from graft.hub.adapters.validation import CARD, CONFIG, PROVENANCE, WEIGHTS, check_against, digest, open_weights, parse
from graft.hub.base.fingerprint import same_weight
from graft.hub.base.manifest import BaseSpec
from graft.hub.base.model import Base
from graft.hub.chat.words import NO_WORDS, AdapterWords
from graft.hub.errors import ArtifactError, BaseMismatchError
from graft.hub.machine.atomic_files import write_folder_whole

_ATTEMPTS = 3  # to read a folder that somebody is writing
_DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
    "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip


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

    @property
    def folds_with_base(self) -> bool:
        """Whether `fold` takes as long as the base's weights are many."""
        return bool(self.frozen) or self.method.folds_with_base(self.config)

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
            device = base.device  # a property that walks over all parameters: read once
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

    What is written there meanwhile or later changes nothing: config and weights are of one moment, the digest is of the
    bytes that the tensors are made of, and none of them is a view of the file.
    Raises ArtifactError, UnsupportedMethodError or BaseMismatchError. Nothing is ever unpickled.
    """
    for _ in range(_ATTEMPTS):
        with open_weights(Path(folder)) as file:
            before = os.fstat(file.fileno())
            artifact = _read(Path(folder), file, base, allow_base_mismatch)
            if _is_unchanged(Path(file.name), before):
                return artifact
    raise ArtifactError(f"{folder} is being written: try again once that is done.")


def _read(folder: Path, file: BufferedReader, base: BaseSpec, allow_base_mismatch: bool) -> Artifact:
    parsed = parse(folder, file)
    check_against(parsed, base, allow_base_mismatch=allow_base_mismatch)
    data = {name: read_tensor(file, entry) for name, entry in parsed.entries.items()}
    copies = {module: read_tensor(file, entry) for module, (_, entry) in parsed.copies.items()}
    require_finite(file, parsed.entries, data)
    require_finite(file, {module: entry for module, (_, entry) in parsed.copies.items()}, copies)
    tensors = {name: _tensor(parsed.entries[name], held) for name, held in data.items()}
    frozen = {module: _tensor(parsed.copies[module][1], held) for module, held in copies.items()}
    identity = digest(parsed, lambda name: [data[name]])
    return Artifact(parsed.method, parsed.config, tensors, identity, parsed.provenance, frozen)


def _tensor(entry: TensorEntry, data: bytearray) -> Tensor:
    """Of the file's dtype, over `data` itself."""
    return torch.frombuffer(data, dtype=_DTYPES[entry.dtype]).reshape(entry.shape)


def _is_unchanged(path: Path, before: os.stat_result) -> bool:
    """Whether the file at `path` is the one that was opened, as it was then. (Who writes a folder takes its weights
    away first: hub/machine/atomic_files.py.)"""
    try:
        now = path.stat()
    except FileNotFoundError:
        return False
    return os.path.samestat(before, now) and (before.st_mtime_ns, before.st_size) == (now.st_mtime_ns, now.st_size)


def save_artifact(
    folder: str | Path,
    method: Method,
    config: MethodConfig,
    tensors: Mapping[str, Tensor],
    spec: BaseSpec,
    *,
    provenance: Mapping[str, object] | None = None,
    card: str | None = None,
    words: AdapterWords = NO_WORDS,
) -> None:
    """Write a folder whole; where that fails, an artifact that was there is there still. `words`: what it brings for text.

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
        for name, text in words.to_files().items():
            (staging / name).write_text(text, "utf-8")
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
