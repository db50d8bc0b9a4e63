"""What is asked of a step's logits and what comes back: how to draw a token, which log-probabilities to report.

Knows neither torch nor how it is computed: torch_sampler.py does it anywhere, runners/cpu/csrc/sampling.h on a CPU.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain

import numpy as np
from numpy.typing import NDArray

COLDEST = 1e-4  # temperatures below are greedy: dividing logits by them could overflow


@dataclass(frozen=True)
class Sampling:
    """How a request's tokens are drawn. `logprobs`: how many alternatives to report, None for no report at all.

    Applied in this order, as vLLM does: bias, repetition, frequency and presence penalties, temperature, min-p, top-k,
    top-p. Each of the last three keeps the most probable tokens, of equals those with lower ids.
    """

    temperature: float = 1.0  # 0: greedy
    top_p: float = 1.0
    top_k: int = 0  # 0: no limit
    min_p: float = 0.0  # of the most probable token's probability
    repetition_penalty: float = (
        1.0  # divides positive logits of tokens seen (prompt and output), multiplies negative ones
    )
    presence_penalty: float = 0.0  # subtracted once from each token of the output
    frequency_penalty: float = 0.0  # subtracted once for each time
    logit_bias: tuple[tuple[int, float], ...] = ()  # (token, what is added to its logit)
    allowed_ids: frozenset[int] = frozenset()  # nothing else is drawn; empty: all
    bad_words: tuple[tuple[int, ...], ...] = ()  # as tokens; the last of a word is not drawn after the others
    seed: int | None = None
    logprobs: int | None = None

    @property
    def greedy(self) -> bool:
        return self.temperature < COLDEST or self.top_k == 1

    @property
    def edited_ids(self) -> Iterator[int]:
        """Every token whose logit a rule changes."""
        return chain((id for id, _ in self.logit_bias), *self.bad_words)


GREEDY = Sampling(temperature=0)


@dataclass(frozen=True, slots=True)
class Token:
    """One token. `logprob` is the model's own, before temperature; `top` the most probable alternatives."""

    id: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


# Changes to single logits of a row: y = x + before; y = y / penalty if y > 0 else y * penalty; y + after. No id twice.
EDIT = np.dtype([("id", np.int32), ("before", np.float32), ("penalty", np.float32), ("after", np.float32)])
Edits = NDArray[np.void]  # [m] of EDIT
HiddenSum = NDArray[np.float64]  # [H]


@dataclass(frozen=True, slots=True)
class Draw:
    """A token to draw from one row of logits.

    The random number is a function of (seed, position) alone, whatever else the step computes. `allowed`: a bit for each
    token, id i's being bit i % 32 of word i // 32; None: all are. It may be written to until a step's `ready` returns.
    """

    sampling: Sampling
    seed: int = 0  # of 64 bits
    position: int = 0  # tokens drawn before
    edits: Edits | None = None
    allowed: NDArray[np.uint32] | None = None


@dataclass(frozen=True, slots=True)
class Score:
    """How probable `ids` are after one row of logits, and which `top` tokens are the most probable."""

    ids: tuple[int, ...]
    top: int = 0


@dataclass(frozen=True, slots=True)
class StepResult:
    """In the order of what was asked; None for what is not finite. `hidden`: sums [H] of rows' hidden states, for each run that
    wants them."""

    tokens: Sequence[Token | None]
    scores: Sequence[tuple[Token, ...] | None]
    hidden: Sequence[HiddenSum | None] = ()


@lru_cache(maxsize=4)  # a thousand choices of one answer may all be allowed the same 100,000 tokens
def are_tokens(ids: frozenset[int], vocab_size: int) -> bool:
    """Whether a vocabulary has all of these."""
    return all(0 <= id < vocab_size for id in ids)


@lru_cache(maxsize=4)  # as above
def mask_of(ids: frozenset[int], vocab_size: int) -> NDArray[np.uint32]:
    """A draw's `allowed` of these ids alone. Nobody writes to it."""
    bits = np.zeros(-(-vocab_size // 32) * 32, np.uint8)
    bits[list(ids)] = 1
    return np.packbits(bits, bitorder="little").view(np.uint32)


_GOLDEN = 0x9E3779B97F4A7C15
_WORD = (1 << 64) - 1


def uniform(seed: int, position: int) -> float:
    """In [0, 1), 53 bits of it: splitmix64 (Steele, Lea, Flood 2014) of the seed's own stream at `position`."""
    return (_mixed(_mixed(seed) + (position + 1) * _GOLDEN) >> 11) * 2.0**-53


def _mixed(x: int) -> int:
    x &= _WORD
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 & _WORD
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB & _WORD
    return x ^ (x >> 31)
