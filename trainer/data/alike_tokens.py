"""Tokens that a base never met and training data asks for: their rows of its output projection are still one another's."""

from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from graft.trainer.data.sequences import TokenSequence

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_SAME = 0.01  # of a row's length: so far apart are rows that training never moved, and rounding did
_AT_ONCE = 8192  # rows


def alike_tokens(
    tokenizer: "PreTrainedTokenizerBase", rows: Tensor, sequences: Iterable[TokenSequence]
) -> dict[str, int]:
    """The tokens, added to the base's vocabulary and learned from `sequences`, that share their row of the output projection,
    `rows` [V, H], and with how many others. Whatever hidden states an adapter makes, it makes all of them equally probable."""
    added = tokenizer.added_tokens_decoder
    learned = sorted({id for each in sequences for id in each.ids[each.answer_start :]} & added.keys())
    wanted = rows[learned].float()
    known = rows[: len(tokenizer)].split(_AT_ONCE)  # rows behind are of no token
    exact = "donot_use_mm_for_euclid_dist"
    apart = torch.cat([torch.cdist(part.float(), wanted, compute_mode=exact) for part in known])  # [V, learned]
    others = (apart <= _SAME * wanted.norm(dim=1)).sum(dim=0) - 1  # but for itself
    return {added[id].content: count for id, count in zip(learned, others.tolist(), strict=True) if count}
