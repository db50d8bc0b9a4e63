"""What a PEFT method is: one file, one subclass of `Method`, one line in the METHODS table.

A method's life: `from_options` or `read` makes a Config; `init` makes the trainable parameters; `encode`
runs what is only there for training (a reparameterisation) and leaves the artifact's tensors; `fold` turns
those into serving forms. The trainer runs fold(encode(parameters)) with autograd every step, the server
runs fold(tensors) once, and both hand the forms to the same detours: served is trained by construction.

Torch-free at import: the hub checks configs, tensor names and shapes without torch. Torch is imported
inside init, encode and fold.
"""

from __future__ import annotations

import math
import re
import types
import typing
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import MISSING, Field, dataclass, fields
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Protocol, TypeVar

from graft.hub.base.manifest import BaseSpec
from graft.hub.errors import ArtifactError, GraftError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from graft.hub.adapters.serving_forms import Form
    from graft.hub.base.model import Base

Shape = tuple[int, ...]
Raw = Mapping[str, object]  # a stranger's adapter_config.json, of which nothing is known
_NAMES = re.compile(r"[\w.]+(,[\w.]+)*")
PEFT_PREFIX = "base_model.model."  # of every tensor name in a PEFT directory
# Metadata of a Config's fields, about the digest (an adapter's identity, which must never change):
TRAINING_ONLY = {"training_only": True}  # no part of what is served, so not in it
LATER = {"later": True}  # came after the first digests were given out: in it only where it is not at its default


class MethodConfig(Protocol):
    """Some method's config: a frozen dataclass."""

    __dataclass_fields__: ClassVar[dict[str, Field[object]]]


C = TypeVar("C", bound=MethodConfig)
T = TypeVar("T")


@dataclass(frozen=True)
class InitContext:
    """What an initialisation may draw on."""

    base: Base
    generator: torch.Generator  # of this adapter alone, on the CPU
    texts: tuple[tuple[int, ...], ...] = ()  # token ids of training examples, for starts from real text
    labels: tuple[str, ...] = ()  # class labels, for starts from their embeddings


class Method(ABC, Generic[C]):
    """One PEFT technique, whose configs are C. Stateless; every subclass is final."""

    name: ClassVar[str]
    title: ClassVar[str]  # as in the literature
    paper: ClassVar[str]
    Config: type[C]  # a frozen dataclass whose defaults are the method's own
    learning_rate: ClassVar[float]  # AdamW, known to work (docs/methods.md says where from)

    @abstractmethod
    def recognises(self, raw: Raw) -> bool:
        """Whether an adapter_config.json is of this method."""

    @abstractmethod
    def read(self, raw: Raw, shapes: Mapping[str, Shape]) -> C:
        """Config of an adapter_config.json. `shapes`: canonical tensor names in the file.

        Raises UnsupportedMethodError naming an option that is not served, ArtifactError for nonsense.
        """

    @abstractmethod
    def write(self, config: C, spec: BaseSpec) -> dict[str, object]:
        """adapter_config.json of a config, in the format its peer library reads."""

    @abstractmethod
    def shapes(self, config: C, spec: BaseSpec) -> dict[str, Shape]:
        """Canonical name and shape of every tensor of the artifact on this base.

        Raises GraftError where the config matches nothing of the base.
        """

    @abstractmethod
    def init(self, config: C, context: InitContext) -> dict[str, Tensor]:
        """Fresh trainable parameters in float32 on the base's device."""

    @abstractmethod
    def fold(self, config: C, tensors: Mapping[str, Tensor], base: Base) -> tuple[Form, ...]:
        """The serving forms of an artifact's tensors. Differentiable."""

    def encode(self, config: C, parameters: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Parameters -> the artifact's tensors; the identity unless the method reparameterises."""
        return parameters

    def canonical_name(self, raw: Raw, name: str) -> str:
        """Canonical name of a tensor of the file (some formats put the adapter's own name into keys)."""
        return name

    def file_name(self, config: C, spec: BaseSpec, name: str) -> str:
        """The name under which `canonical_name` finds a tensor again: what is written into the file."""
        return name

    def neutral_values(self, config: C) -> dict[str, float]:
        """Endings of tensor names with the value at which they change nothing; {}: can't be told from tensors alone.

        If every tensor with such an ending holds only that value, the adapter is a no-op.
        """
        return {}

    def base_copy(self, name: str) -> str | None:
        """The module whose own frozen weight a tensor of the file claims to be; None for the adapter's tensors."""
        return None

    def folds_with_base(self, config: C) -> bool:
        """Whether `fold` computes with the base's weights, and so takes as long as those are many."""
        return False

    def virtual_tokens(self, config: C) -> int:
        """Positions that the adapter takes before the text."""
        return 0

    def library(self, config: C) -> str:
        """Whose format `write` gives, as model cards name it: peft, adapters, or graft where no other reads it."""
        return "peft"

    def variant(self, config: C) -> str:
        """A few words that tell this config from the method's plain form; "" for the plain form."""
        return ""

    def from_options(self, options: Mapping[str, str], spec: BaseSpec) -> C:
        """Config from `--set key=value` strings. Raises GraftError naming a wrong key or value."""
        return self.resolve(parse_options(self.name, self.Config, options), spec)

    def require_sensible(self, config: C, spec: BaseSpec) -> None:
        """Refuse what nobody would train on this base, though an artifact may be so. Raises GraftError."""
        size = sum(math.prod(shape) for shape in self.shapes(config, spec).values())
        if not size:
            raise GraftError(f"{self.name}: these options leave nothing to train.")
        if size > spec.parameters:
            raise GraftError(
                f"{self.name}: these options make {size:,} parameters, more than the base's own {spec.parameters:,}. "
                f"Choose smaller sizes, or train the base itself with the method full."
            )

    def resolve(self, config: C, spec: BaseSpec) -> C:
        """The config with what depends on the base spelled out."""
        return config

    def identity(self, config: C) -> dict[str, object]:
        """The load-relevant part of a config, in a canonical order: what the digest hashes.

        A field that is LATER and at its default is left out, so that adapters of before it keep their digests.
        """
        served = {f.name: getattr(config, f.name) for f in fields(config) if _is_hashed(f, getattr(config, f.name))}
        return {"method": self.name, **{key: _normalise(value) for key, value in sorted(served.items())}}


def _is_hashed(of: Field[object], value: object) -> bool:
    if of.metadata.get("training_only"):
        return False
    return not of.metadata.get("later") or value != of.default


def _normalise(value: object) -> Any:
    if isinstance(value, dict):
        return [[key, _normalise(item)] for key, item in value.items()]  # of patterns, the first that matches counts
    if isinstance(value, (list, tuple)):
        items = [_normalise(item) for item in value]
        return sorted(items) if all(isinstance(item, str) for item in items) else items
    return value


def parse_options(owner: str, config_type: type[C], options: Mapping[str, str]) -> C:
    """A frozen dataclass from strings, by its fields' types. Raises GraftError for a wrong key or value."""
    hints = typing.get_type_hints(config_type)
    known = {f.name: f for f in fields(config_type)}
    values = {}
    for key, text in options.items():
        if key not in known:
            raise GraftError(f"{owner} has no option {key!r}. Its options: {', '.join(_option_help(known))}.")
        values[key] = _parse(owner, key, text, hints[key])
    return config_type(**values)


def _option_help(known: Mapping[str, Field[object]]) -> list[str]:
    return [name if field.default is MISSING else f"{name}={field.default}" for name, field in known.items()]


def _parse(owner: str, key: str, text: str, hint: object) -> object:
    try:
        if hint == str | tuple[str, ...]:  # module targets: a pattern, or names
            return tuple(text.split(",")) if _NAMES.fullmatch(text) else text
        if typing.get_origin(hint) in (typing.Union, types.UnionType):
            (hint,) = (option for option in typing.get_args(hint) if option is not type(None))
            if text.lower() == "none":
                return None
        if hint is bool:
            return {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}[text.lower()]
        if hint in (int, float, str):
            return hint(text)
        if typing.get_origin(hint) is tuple:
            inner = typing.get_args(hint)[0]
            return tuple(inner(item) for item in text.split(",") if item)
        if typing.get_origin(hint) is dict:
            inner = typing.get_args(hint)[1]
            return {k: inner(v) for k, v in (item.split(":", 1) for item in text.split(",") if item)}
    except (KeyError, ValueError):
        raise GraftError(f"{owner}: {key}={text!r} is not a valid value: {_kind_in_words(hint)} needed.") from None
    raise GraftError(f"{owner}: {key} can't be set from the command line.")


def _kind_in_words(hint: object) -> str:
    """The kind of a field, in words."""
    words: dict[object, str] = {
        int: "a whole number is",
        float: "a number is",
        bool: "true or false is",
        tuple: "values with commas between are",
        dict: "NAME:NUMBER with commas between is",
    }
    return words.get(typing.get_origin(hint) or hint, "another one is")


def option(raw: Raw, key: str, kind: type[T], default: T) -> T:
    """A value of a stranger's config, of exactly this kind (a float may be written as an int, and is finite).

    Absent or null: the default. Raises ArtifactError naming the key.
    """
    value = raw.get(key)
    return default if value is None else _of_kind(key, value, kind)


def _of_kind(key: str, value: object, kind: type[T]) -> T:
    if kind is float and type(value) is int and abs(value) < 1 << 53:
        value = float(value)
    if type(value) is not kind or (isinstance(value, float) and not math.isfinite(value)):
        raise ArtifactError(f"{key} must be of the kind {kind.__name__}, not {str(value)[:80]!r}.")
    return value


def numbers_by_name(raw: Raw, key: str, kind: type[T]) -> dict[str, T]:
    """A table of names and numbers of a stranger's config. Raises ArtifactError naming the key."""
    return {name: _of_kind(name, value, kind) for name, value in option(raw, key, dict, {}).items()}


def whole_numbers(raw: Raw, key: str) -> tuple[int, ...]:
    """A list of whole numbers of a stranger's config. Raises ArtifactError naming the key."""
    numbers = option(raw, key, list, [])
    if not all(type(number) is int for number in numbers):
        raise ArtifactError(f"{key} must be a list of whole numbers, not {str(numbers)[:80]!r}.")
    return tuple(numbers)


def require_positive(owner: str, **numbers: int | float) -> None:
    """Raises GraftError unless every number is greater than zero."""
    for key, value in numbers.items():
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < 1 << 53:
            raise GraftError(f"{owner}: {key} must be a finite number greater than 0, not {str(value)[:80]}.")


def peft_header(peft_type: str, spec: BaseSpec) -> dict[str, object]:
    """The keys every PEFT adapter_config.json begins with."""
    return {
        "peft_type": peft_type,
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": spec.id,
        "revision": None,
        "inference_mode": True,
        "auto_mapping": None,
    }
