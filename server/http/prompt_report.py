"""Log-probabilities of a prompt's tokens, as vLLM reports them (`prompt_logprobs`)."""

import math
from collections.abc import Sequence

from graft.server.chat.detokenizer import Names
from graft.server.errors import NotFiniteError
from graft.server.sampling.params import Token

LEAST_LOGPROB = -9999.0  # OpenAI's and vLLM's stand-in for minus infinity, which JSON has no word for

PromptReport = list[dict[str, dict[str, object]] | None]


def finite_logprob(logprob: float) -> float:
    """As JSON can write it. Raises NotFiniteError for what is no number."""
    if math.isnan(logprob):
        raise NotFiniteError()
    return max(logprob, LEAST_LOGPROB)


def prompt_report(scored: Sequence[Token], top: int, names: Names) -> PromptReport:
    """One entry a token, by id: itself, then the `top` most probable ones; None for the first, which follows nothing.

    `scored`: the prompt's tokens from the second on. A token's rank among all is told where it is one of the `top`.
    """
    return [None, *(_entries(token, top, names) for token in scored)]


def _entries(token: Token, top: int, names: Names) -> dict[str, dict[str, object]]:
    ranked = {id: (rank, logprob) for rank, (id, logprob) in enumerate(token.top[:top], 1)}
    assert token.logprob is not None  # it was scored
    own = ranked.pop(token.id, (None, token.logprob))
    return {
        str(id): {"logprob": finite_logprob(logprob), "rank": rank, "decoded_token": names.name(id)[0]}
        for id, (rank, logprob) in {token.id: own, **ranked}.items()
    }
