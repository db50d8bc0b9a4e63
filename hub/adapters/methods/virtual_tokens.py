"""What the methods in the sequence share: PEFT's config of virtual tokens and their checks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from graft.hub.adapters.methods.foreign_config import PEFT_COMMON
from graft.hub.adapters.methods.method import Raw, Shape, peft_header, require_positive
from graft.hub.base.manifest import BaseSpec
from graft.hub.errors import ArtifactError, GraftError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

KEY = "prompt_embeddings"
MAX_HIDDEN, MAX_LAYERS = 65_536, 64  # of an encoder: more is a slip of the finger
COMMON = PEFT_COMMON | {
    "num_virtual_tokens", "token_dim", "num_transformer_submodules", "num_attention_heads", "num_layers",
}  # fmt: skip
_FREQUENT = 5000  # Lester et al. draw from the 5,000 commonest tokens; vocabularies are ordered by merges


def tokens_of(raw: Raw, shapes: Mapping[str, Shape]) -> int:
    """num_virtual_tokens, which must agree with the rows in the file. Raises ArtifactError."""
    tokens = raw.get("num_virtual_tokens")
    if type(tokens) is not int or tokens < 1:
        raise ArtifactError(f"num_virtual_tokens must be a whole number above 0, not {tokens!r}.")
    if raw.get("num_transformer_submodules") not in (None, 1):
        raise ArtifactError("num_transformer_submodules other than 1 is for encoder-decoders, not for this base.")
    rows = shapes.get(KEY, ())
    if len(rows) == 2 and rows[0] != tokens:
        raise ArtifactError(f"num_virtual_tokens is {tokens}, but {KEY} has {rows[0]} rows: one of them was changed.")
    return tokens


def width(spec: BaseSpec) -> int:
    """Of a row at the base's input: the embedding's, which OPT-350m keeps narrower than its layers."""
    return spec.modules[spec.parts.embed].out_features


def require_room(owner: str, tokens: int, spec: BaseSpec) -> None:
    if tokens >= spec.max_positions:
        raise GraftError(
            f"{owner}: {tokens} virtual tokens leave no room in this base's {spec.max_positions} positions."
        )


def require_tokens(owner: str, tokens: int) -> None:
    require_positive(owner, tokens=tokens)


def peft_rows_header(peft_type: str, tokens: int, dim: int, heads: int, spec: BaseSpec) -> dict[str, object]:
    return {
        **peft_header(peft_type, spec),
        "num_virtual_tokens": tokens,
        "token_dim": dim,
        "num_transformer_submodules": 1,
        "num_attention_heads": heads,
        "num_layers": spec.num_layers,
        "modules_to_save": None,
    }


def frequent_ids(count: int, vocab_size: int, generator: torch.Generator) -> Tensor:
    """`count` random ids among the commonest tokens."""
    import torch

    return torch.randint(min(_FREQUENT, vocab_size), (count,), generator=generator)


def cycle_ids(ids: Sequence[int], count: int) -> list[int]:
    """The first `count` ids, repeated as often as needed."""
    return [ids[i % len(ids)] for i in range(count)]
