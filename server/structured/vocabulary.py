"""A base's tokens as the grammar library reads them: the bytes of each, and which are special."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from llguidance import LLTokenizer
from numpy.typing import NDArray

from graft.server.errors import ConstraintError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Mask = NDArray[np.uint32]  # [W]: a bit for each token (sampling.params.Draw.allowed)


@dataclass(frozen=True)
class Vocabulary:
    """`ends`: ids that end a text, none of them part of one."""

    tokens: LLTokenizer
    special: dict[str, int]  # text -> id
    ends: frozenset[int]

    @property
    def words(self) -> int:
        """The length of a mask: of all the model's logits at least."""
        return -(-self.tokens.vocab_size // 32)

    def mask(self, ids: frozenset[int]) -> Mask:
        """Just these tokens."""
        bits = np.zeros(self.words * 32, np.uint8)
        bits[[*ids]] = 1
        return np.packbits(bits, bitorder="little").view(np.uint32)


def read_vocabulary(tokenizer: "PreTrainedTokenizerBase | None", size: int, ends: frozenset[int]) -> Vocabulary:
    """`size`: how many logits a row has. Takes a second or two for a large one. Raises ConstraintError for a base whose texts can't be constrained."""
    from llguidance.hf import from_tokenizer
    from transformers import PreTrainedTokenizerFast

    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise ConstraintError("This base's tokenizer has no description of its tokens' bytes: it can't be constrained.")
    if not ends:
        raise ConstraintError("This base has no token that ends a text, so a constrained one could never end.")
    tokens = from_tokenizer(tokenizer, n_vocab=max(size, len(tokenizer)), eos_token=sorted(ends))
    added = tokenizer.added_tokens_decoder
    special = {token.content: id for id, token in added.items() if tokens.is_special_token(id)}
    return Vocabulary(tokens, special, ends)
