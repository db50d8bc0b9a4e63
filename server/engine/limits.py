"""How long a request may be here, and which tokens there are."""

from dataclasses import dataclass

from graft.server.cache.step import BLOCK_ROWS
from graft.server.engine.request import Request
from graft.server.errors import ConstraintError, RequestError, TooLongError
from graft.server.sampling.params import are_tokens


@dataclass(frozen=True)
class Limits:
    """`usable_blocks`: that one sequence may take, beside those kept for adapters."""

    vocab_size: int
    max_model_len: int
    usable_blocks: int

    def check(self, request: Request) -> None:
        """Raises RequestError where the request can't be served as it stands, whatever its adapter is."""
        if not request.prompt:
            raise RequestError("The prompt is empty: the first token needs something to follow.")
        if not all(0 <= id < self.vocab_size for id in (*request.prompt, *request.score_next)):
            raise RequestError(f"A prompt token lies outside the base's vocabulary of {self.vocab_size}.")
        if not all(0 <= id < self.vocab_size for id in request.stop_ids):
            raise RequestError(f"A token that ends the text lies outside the base's vocabulary of {self.vocab_size}.")
        edited, allowed = request.sampling.edited_ids, request.sampling.allowed_ids
        if not (all(0 <= id < self.vocab_size for id in edited) and are_tokens(allowed, self.vocab_size)):
            raise RequestError(f"A token to be drawn or not lies outside the base's vocabulary of {self.vocab_size}.")
        if request.constraint is not None and allowed:
            raise ConstraintError(
                "allowed_token_ids and a format can't both say which tokens may come: give one of them.",
                "allowed_token_ids",
            )
        if request.pooling is not None and (
            request.max_tokens != 0 or request.score_next or request.score_from is not None
        ):
            raise RequestError("Of a prompt whose hidden states are asked for, no tokens or scores can be: ask again.")
        self.new_tokens(request, 0)

    def new_tokens(self, request: Request, virtual: int) -> int:
        """How many tokens a request may get beside an adapter's virtual ones. Raises TooLongError without room."""
        usable = self.usable_blocks * BLOCK_ROWS
        prompt = len(request.prompt)
        room = min(self.max_model_len, usable) - prompt - virtual
        new = max(1, room) if request.max_tokens is None else request.max_tokens
        total = prompt + new + virtual
        beside = f" and the adapter's {virtual} virtual tokens" if virtual else ""
        if total > self.max_model_len:
            raise TooLongError(
                f"This model's maximum context length is {self.max_model_len} tokens; {prompt} of the prompt{beside} and "
                f"max_tokens={new} make {total}."
            )
        if total > usable:
            raise TooLongError(f"{total} tokens don't fit into the KV cache ({usable}; --kv-bytes).")
        return new
