"""What can be known of an artifact without torch and without its base's weights: the publish-time proof.

An artifact is a folder of `adapter_config.json`, a safetensors file, and, where graft made it, `graft.json`
and a model card. Inspection parses strictly, recognises the method, checks every tensor's name and shape
against the base's manifest when it is known, and computes the digest that is the artifact's identity.
"""

import hashlib
import json
import math
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path

from graft.hub.adapters.methods import Method, MethodConfig, recognise
from graft.hub.adapters.methods.foreign_config import dropped_options
from graft.hub.adapters.model_card import split_card, task_of, valueless_claims
from graft.hub.adapters.safetensors_header import TensorEntry, holds_only, pieces, read_header, require_finite
from graft.hub.base.manifest import ADAPTER_CONFIG, BaseSpec
from graft.hub.errors import ArtifactError, BaseMismatchError, GraftError, UnsupportedMethodError

CONFIG = ADAPTER_CONFIG
WEIGHTS = ("adapter_model.safetensors", "adapter.safetensors")  # HF PEFT's and AdapterHub's names
PROVENANCE = "graft.json"
CARD = "README.md"
MAX_JSON_BYTES = 4 << 20
_HALF_PAIR = re.compile(r"\\u[dD][89a-fA-F]")  # how JSON spells one, or the two of a character beyond U+FFFF
_LAYER_NUMBER = re.compile(r"\.(\d+)\.")
PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt")


@dataclass(frozen=True)
class Inspection:
    """Everything known of an artifact without torch."""

    method: str
    variant: str
    config: dict[str, object]  # adapter_config.json
    base_id: str | None
    base_fingerprint: str | None
    task: str  # "untasked" if the card names none
    parameters: int
    bytes: int  # of the weights file
    max_rank: int | None
    dtype: str
    digest: str  # sha256 hex of canonical weights and load-relevant config
    tensors: dict[str, dict[str, object]]  # name in the file -> {"dtype", "shape"}
    provenance: dict[str, object]  # graft.json, {} without one
    card: dict[str, object]  # YAML front matter
    warnings: list[str]


@dataclass(frozen=True)
class Parsed:
    """An artifact's folder, read and checked in itself. `entries` go by canonical name."""

    folder: Path
    method: Method
    config: MethodConfig
    raw: dict[str, object]
    weights: Path
    entries: dict[str, TensorEntry]
    file_names: dict[str, str]  # canonical name -> name in the file
    copies: dict[str, tuple[str, TensorEntry]]  # module -> tensor in the file that claims to be its frozen weight
    provenance: dict[str, object]


def parse(folder: Path, file: BufferedReader) -> Parsed:
    """Read an artifact's folder strictly, all but whether its numbers are finite. `file` is its weights file, opened.

    Raises ArtifactError or UnsupportedMethodError.
    """
    raw = read_json(folder / CONFIG)
    method = recognise(raw)
    weights = Path(file.name)
    header, _ = read_header(file)
    if not header:
        raise ArtifactError(f"{weights.name} holds no tensor at all: the adapter was saved empty.")
    if empty := [name for name, entry in header.items() if not entry.numel]:
        raise ArtifactError(
            f"{weights.name} holds {_list_names(empty)} without a single number (shape {list(header[empty[0]].shape)}): it "
            f"was saved while its parameters were spread over processes (DeepSpeed's ZeRO-3, FSDP). Save it again with "
            f"them gathered, such as by stage3_gather_16bit_weights_on_model_save."
        )
    bases = {name: method.base_copy(name) for name in header}
    copies = {module: (name, header[name]) for name, module in bases.items() if module}
    file_names = {method.canonical_name(raw, name): name for name, module in bases.items() if not module}
    if len(file_names) + len(copies) != len(header):
        raise ArtifactError(f"{weights.name} holds two tensors that mean the same parameter.")
    entries = {canonical: header[name] for canonical, name in file_names.items()}
    config = _read_config(method, raw, {name: entry.shape for name, entry in entries.items()})
    _require_effect(method, config, file, entries)
    provenance = read_json(folder / PROVENANCE) if (folder / PROVENANCE).exists() else {}
    return Parsed(folder, method, config, raw, weights, entries, file_names, copies, provenance)


def check_against(parsed: Parsed, spec: BaseSpec, *, allow_base_mismatch: bool = False) -> None:
    """Every needed tensor present, no other, shapes as the base has them, fingerprint equal where recorded.

    Raises BaseMismatchError or ArtifactError, naming the first offence.
    """
    made_for = fingerprint_of(parsed.provenance)
    if made_for and made_for != spec.fingerprint and not allow_base_mismatch:
        raise BaseMismatchError(
            f"This adapter was made for the base {base_name(parsed.raw) or 'unknown'} (fingerprint {made_for[:12]}), "
            f"not for {spec.id or 'this base'} ({spec.fingerprint[:12]}). Serve it on its own base, or pass "
            f"--allow-base-mismatch if you know that the weights agree."
        )
    needed = parsed.method.shapes(parsed.config, spec)
    have = {name: entry.shape for name, entry in parsed.entries.items()}
    name = parsed.weights.name
    foreign = [own for module, (own, entry) in parsed.copies.items() if entry.shape != _weight_shape(spec, module)]
    if missing := sorted(needed.keys() - have.keys()):
        raise ArtifactError(
            f"{name} lacks {_list_names(missing)}, which its config asks for on {spec.id or 'this base'}. "
            f"{_describe_held(parsed, needed.keys(), foreign)}"
        )
    if extra := sorted([*(have.keys() - needed.keys()), *foreign]):
        raise ArtifactError(
            f"{name} holds {_list_names(extra)}, which nothing of its config and {spec.id or 'this base'} uses: "
            f"part of the adapter would silently have no effect."
        )
    for tensor, shape in needed.items():
        if have[tensor] != shape:
            raise BaseMismatchError(
                f"{name}: {tensor} has the shape {list(have[tensor])}, but {spec.id or 'this base'} needs "
                f"{list(shape)}. The adapter was made for another base or its config was changed."
            )


def read_virtual_tokens(folder: Path) -> int:
    """How many tokens of a sequence an adapter takes for itself. Raises ArtifactError or UnsupportedMethodError."""
    with open_weights(folder) as file:
        parsed = parse(folder, file)
    return parsed.method.virtual_tokens(parsed.config)


def inspect_artifact(folder: Path, spec: BaseSpec | None) -> Inspection:
    """The publish-time proof: parse, check against `spec` when it is known, and describe.

    Raises ArtifactError, UnsupportedMethodError or BaseMismatchError with what, why and what to do.
    """
    _require_one_file_of_weights(folder)
    with open_weights(folder) as file:
        parsed = parse(folder, file)
        require_finite(file, dict(_file_entries(parsed)))
        identity = digest(parsed, lambda name: pieces(file, parsed.entries[name]))
    if spec is not None:
        check_against(parsed, spec)
    card = split_card(read_text(folder / CARD))[0] if (folder / CARD).exists() else {}
    kinds = sorted({entry.dtype for entry in parsed.entries.values()})
    ranks = [r for name, entry in parsed.entries.items() if (r := _rank(name, entry))]
    return Inspection(
        method=parsed.method.name,
        variant=parsed.method.variant(parsed.config),
        config=parsed.raw,
        base_id=base_name(parsed.raw),
        base_fingerprint=fingerprint_of(parsed.provenance),
        task=task_of(card),
        parameters=sum(entry.numel for entry in parsed.entries.values()),
        bytes=max(entry.stop for _, entry in _file_entries(parsed)),
        max_rank=max(ranks) if ranks else None,
        dtype="/".join(kinds),
        digest=identity,
        tensors={name: {"dtype": entry.dtype, "shape": list(entry.shape)} for name, entry in _file_entries(parsed)},
        provenance=parsed.provenance,
        card=card,
        warnings=list(_warnings(parsed, spec, card)),
    )


def _require_one_file_of_weights(folder: Path) -> None:
    if all((folder / name).is_file() for name in WEIGHTS):
        raise ArtifactError(
            f"There are two files of weights, {' and '.join(WEIGHTS)}, and only the first would be used: remove the one "
            f"that is not this adapter's."
        )


def _warnings(parsed: Parsed, spec: BaseSpec | None, card: dict[str, object]) -> Iterator[str]:
    """What a publisher should know of a sound adapter."""
    if spec is None:
        yield "The base's manifest is not known here: tensor names and shapes were not checked against it."
    if dropped := dropped_options(parsed.raw):
        yield f"{CONFIG} sets {', '.join(dropped)}, which PEFT does not know: without effect, there as here."
    if not card:
        yield "There is no model card with YAML front matter (README.md): nobody will find it by task."
    for metric in valueless_claims(card):
        yield f"The card claims {metric or 'a metric'} without a finite number: it is kept as no score."


def _describe_held(parsed: Parsed, needed: Collection[str], foreign: Collection[str]) -> str:
    """What a file holds that lacks some tensors: other names, of which people know what their trainer called things."""
    if others := sorted([*foreign, *(own for name, own in parsed.file_names.items() if name not in needed)]):
        return (
            f"It holds {_list_names(others)} instead, which nothing uses: were they trained on another class of model?"
        )
    layers = sorted({int(match[1]) for name in parsed.entries if (match := _LAYER_NUMBER.search(name))})
    held = f"layers {', '.join(map(str, layers))}" if layers else "some"
    return (
        f"It holds {len(parsed.entries)} of {len(needed)} tensors, of {held} only: if it was trained on these, its config "
        f"must say so (layers_to_transform, target_modules); if not, it was not saved whole."
    )


def _weight_shape(spec: BaseSpec, module: str) -> tuple[int, int] | None:
    """The shape of a weight that a peer may have saved beside the adapter: a linear's or the embedding's."""
    module_spec = spec.modules.get(module)
    if module_spec is None or module_spec.kind == "norm":
        return None
    sizes = (module_spec.out_features, module_spec.in_features)
    return sizes if module_spec.kind == "linear" else sizes[::-1]


def _file_entries(parsed: Parsed) -> list[tuple[str, TensorEntry]]:
    own = [(parsed.file_names[name], entry) for name, entry in parsed.entries.items()]
    return sorted([*own, *parsed.copies.values()])


def digest(parsed: Parsed, data: Callable[[str], Iterable[bytes | bytearray]]) -> str:
    """sha256 hex over the load-relevant config and every tensor by canonical name, dtype, shape and bytes.

    `data` gives a tensor's bytes, by its canonical name. This is version 1 of the digests; another one, should there ever be
    one, bears its number, so that no digest can mean two things.
    """
    total = hashlib.sha256()
    identity = parsed.method.identity(parsed.config)
    total.update(json.dumps(identity, sort_keys=True, separators=(",", ":")).encode())
    for name, entry in sorted(parsed.entries.items()):
        total.update(f"\n{name} {entry.dtype} {list(entry.shape)} ".encode())
        for piece in data(name):
            total.update(piece)
    return total.hexdigest()


def open_weights(folder: Path) -> BufferedReader:
    """The weights of an adapter's folder. Raises ArtifactError where it lacks its config or weights."""
    if not (folder / CONFIG).exists():
        raise _missing(folder / CONFIG)
    weights = find_weights(folder)
    try:
        return weights.open("rb")
    except OSError as error:
        raise ArtifactError(f"{weights} can't be read: {error.strerror}.") from None


def find_weights(folder: Path) -> Path:
    """The folder's safetensors file. Raises ArtifactError, saying what to do about a pickle."""
    for name in WEIGHTS:
        if (folder / name).is_file():
            return folder / name
    pickles = sorted(path.name for path in folder.iterdir() if path.suffix in PICKLES) if folder.is_dir() else []
    if pickles:
        raise pickled_weights(pickles[0])
    raise ArtifactError(f"{folder} holds no weights: neither {WEIGHTS[0]} nor {WEIGHTS[1]} is there.")


def pickled_weights(name: str) -> ArtifactError:
    return ArtifactError(
        f"The weights are there as a pickle only ({name}), and nothing is ever unpickled here: a pickle can run code. "
        f"Save them again as safetensors (PEFT: save_pretrained(safe_serialization=True); AdapterHub: "
        f"save_adapter(use_safetensors=True); or safetensors.torch.save_file)."
    )


def read_json(path: Path) -> dict[str, object]:
    """A small JSON object. Raises ArtifactError naming the file."""
    try:
        value = strict_json(read_text(path))
    except (ValueError, RecursionError) as error:
        raise ArtifactError(f"{path.name} is not valid JSON: {error}.") from None
    if not isinstance(value, dict):
        raise ArtifactError(f"{path.name} must hold a JSON object, not a {type(value).__name__}.")
    return value


def strict_json(text: str) -> object:
    """JSON as its standard has it, of texts that can be stored.

    Raises ValueError (or RecursionError), also for NaN, Infinity, 1e999 and half a surrogate pair.
    """
    value = json.loads(text, parse_constant=_parse_finite, parse_float=_parse_finite)
    if _HALF_PAIR.search(text):
        json.dumps(value, ensure_ascii=False).encode()  # a UnicodeEncodeError is a ValueError
    return value


def _parse_finite(text: str) -> float:
    if not math.isfinite(value := float(text.replace("Infinity", "inf"))):
        raise ValueError(f"{text} is no number of JSON")
    return value


def read_text(path: Path) -> str:
    """A small UTF-8 file. Raises ArtifactError naming the file."""
    try:
        if path.stat().st_size > MAX_JSON_BYTES:
            raise ArtifactError(f"{path.name} is larger than {MAX_JSON_BYTES >> 20} MiB.")
        return path.read_text("utf-8")
    except FileNotFoundError:
        raise _missing(path) from None
    except (UnicodeDecodeError, OSError) as error:
        raise ArtifactError(f"{path.name} can't be read as text: {error}.") from None


def _missing(path: Path) -> ArtifactError:
    return ArtifactError(f"{path.parent} holds no {path.name}: it is not an adapter's folder.")


def base_name(raw: Mapping[str, object]) -> str | None:
    """The base an adapter_config.json names (PEFT's key, then AdapterHub's)."""
    name = raw.get("base_model_name_or_path") or raw.get("model_name")
    return name if isinstance(name, str) and name else None


def fingerprint_of(provenance: Mapping[str, object]) -> str | None:
    base = provenance.get("base")
    fingerprint = base.get("fingerprint") if isinstance(base, dict) else None
    return fingerprint if isinstance(fingerprint, str) else None


def _read_config(method: Method, raw: dict[str, object], shapes: Mapping[str, tuple[int, ...]]) -> MethodConfig:
    try:
        return method.read(raw, shapes)
    except (ArtifactError, UnsupportedMethodError):
        raise
    except GraftError as error:  # a value that the method's own config refuses
        raise ArtifactError(f"{CONFIG}: {error}") from None
    except (TypeError, ValueError, AttributeError, KeyError) as error:
        raise ArtifactError(f"{CONFIG} has a value of the wrong kind for {method.title}: {error}.") from None


def _require_effect(
    method: Method, config: MethodConfig, file: BufferedReader, entries: Mapping[str, TensorEntry]
) -> None:
    """Refuse an adapter whose every effective tensor is neutral, as far as the tensors alone can tell."""
    neutral = method.neutral_values(config)
    neutral_entries = [
        (entry, value) for name, entry in entries.items() for end, value in neutral.items() if name.endswith(end)
    ]
    if neutral_entries and all(holds_only(file, entry, value) for entry, value in neutral_entries):
        raise ArtifactError(
            f"This {method.title} adapter changes nothing: all its {' and '.join(neutral)} tensors are "
            f"{next(iter(neutral.values())):g}. It was saved before training, or its weights were lost on the way."
        )


def _rank(name: str, entry: TensorEntry) -> int | None:
    is_down = name.endswith(("lora_A.weight", "adapter_down.0.weight", "adapter_down.weight"))
    return entry.shape[0] if is_down and len(entry.shape) == 2 else None


def _list_names(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more tensors"
