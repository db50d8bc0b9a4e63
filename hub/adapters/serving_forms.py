"""The serving forms: the closed set of shapes that every PEFT method folds to.

Following the unified view of adapters (He et al. 2022, arXiv 2110.04366): a method is a small detour around
frozen weights. The trainer and the server know methods only through these forms, so what is served is what
was trained. Order at one tap: the base's value, then `Vector`, then the sum of all `LowRank` deltas.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cache
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor

from graft.hub.base.hook_points import Tap

if TYPE_CHECKING:
    from _typeshed import DataclassInstance


@dataclass(frozen=True)
class LowRank:
    """delta = scale * (act(x A^T + a) B + b), x the sum of the taps `reads`, added at `adds_to`.

    Shapes: A [r, in], B [r, out], a [r], b [out].
    """

    reads: tuple[Tap, ...]
    adds_to: Tap
    A: Tensor
    B: Tensor
    a: Tensor | None = None
    b: Tensor | None = None
    activation: str = "none"  # a key of batched_apply.ACTIVATIONS
    scale: float | Tensor = 1.0
    dropout: float = field(default=0.0, compare=False)  # training only: on x


@dataclass(frozen=True)
class Vector:
    """y = y * scale + bias, elementwise at one tap. Shapes: scale [d], bias [d]."""

    tap: Tap
    scale: Tensor | None = None
    bias: Tensor | None = None


@dataclass(frozen=True)
class InputRows:
    """Rows before the text at the base's input, in embedding space after the base's own scaling.

    Shape: rows [P, H]. Trained as they stand; the server runs them once through the base and keeps the
    resulting `CacheRows`.
    """

    rows: Tensor


@dataclass(frozen=True)
class CacheRows:
    """P key/value rows that precede the text in every layer's cache.

    Shapes: keys, values [L, P, kv_heads, head_dim], keys as the cache holds them (after any rotation).
    The text's positions begin at `text_start`.
    """

    keys: Tensor
    values: Tensor
    text_start: int


Form = LowRank | Vector | InputRows | CacheRows
F = TypeVar("F", bound="DataclassInstance")  # any one of them


def form_bytes(form: Form) -> int:
    """Bytes of a form's tensors."""
    return sum(value.nbytes for value in _tensors(form).values())


def detours(forms: Sequence[Form]) -> tuple[LowRank | Vector, ...]:
    """The forms a runner takes: those at taps, not the rows in the cache."""
    return tuple(form for form in forms if isinstance(form, (LowRank, Vector)))


def at(form: F, dtype: torch.dtype, device: torch.device | str, *, copy: bool = False) -> F:
    """The form with its tensors moved and cast; `copy`: into memory of their own even where nothing changes."""
    return replace(form, **{name: value.to(device, dtype, copy=copy) for name, value in _tensors(form).items()})


def _tensors(form: DataclassInstance) -> dict[str, Tensor]:
    """By the names of the form's fields."""
    values = {name: getattr(form, name) for name in _names(type(form))}
    return {name: value for name, value in values.items() if isinstance(value, Tensor)}


@cache
def _names(kind: type[DataclassInstance]) -> tuple[str, ...]:
    return tuple(field.name for field in fields(kind))
