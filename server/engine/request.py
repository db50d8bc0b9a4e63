"""What a caller asks of the engine, how long that may be, and what it gets back: a request, its stream of events, its result.

Knows nothing of HTTP. A `Stream` is the only thing that two threads share: the engine puts events in, the
caller takes them out.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import Enum
from queue import SimpleQueue
from typing import Protocol

from graft.hub.errors import GraftError
from graft.server.cache.step import BLOCK_ROWS
from graft.server.errors import ConstraintError, RequestError, TooLongError
from graft.server.sampling.params import HiddenSum, Sampling, Token, are_tokens
from graft.server.served_version import Served
from graft.server.structured.constraint import Constraint


class Pooling(Enum):
    """Which of the prompt's hidden states, behind all layers, are averaged."""

    MEAN = "mean"  # all
    LAST = "last"  # the last one's


@dataclass(frozen=True)
class Request:
    """A prompt to continue. `model`: an adapter's name, None for the bare base.

    `max_tokens`: None for as many as there is room for. `score_from`: report the log-probability of every prompt
    token from this index on (the first has none), with `score_top` alternatives (None: as many as `sampling` reports).
    `pooling`: report the prompt's hidden states, averaged so; with no new tokens and no scores. `constraint`: what the new
    text has to be. `client`: who asks; clients are served in turn, by `weight`. `priority`: which of a client's own
    requests start first, the lower ones.
    """

    prompt: tuple[int, ...]
    model: str | None = None
    max_tokens: int | None = 16
    min_tokens: int = 0
    ignore_eos: bool = False
    stop_ids: tuple[int, ...] = ()
    sampling: Sampling = field(default_factory=Sampling)
    score_from: int | None = None
    score_top: int | None = None
    score_next: tuple[int, ...] = ()
    pooling: Pooling | None = None
    constraint: Constraint | None = None
    client: str = ""
    weight: float = 1.0
    priority: int = 0


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


def stop_ids(request: Request, ends: frozenset[int]) -> frozenset[int]:
    """The ids that end this request. A constrained one's text may be complete, and then has to end."""
    ignored = request.ignore_eos and request.constraint is None
    return frozenset(request.stop_ids) | (frozenset() if ignored else ends)


@dataclass(frozen=True)
class Result:
    """A finished request. `prompt`: scored prompt tokens from `score_from` on, then those of `score_next`."""

    tokens: tuple[Token, ...]
    finish_reason: str  # "stop" | "length" | "cancelled"
    served: Served
    prompt: tuple[Token, ...] = ()
    cached_tokens: int = 0
    embedding: HiddenSum | None = None

    @property
    def ids(self) -> list[int]:
        return [token.id for token in self.tokens]


@dataclass(frozen=True, slots=True)
class Started:
    """The request's first step is planned: its adapter is loaded and proven."""

    served: Served
    cached_tokens: int = 0  # prompt tokens whose keys and values were found, not computed


@dataclass(frozen=True, slots=True)
class PromptScored:
    """The next scored prompt tokens; after the last of them, those of `score_next`."""

    tokens: tuple[Token, ...]


@dataclass(frozen=True, slots=True)
class Embedded:
    """The prompt's pooled hidden states [H]."""

    vector: HiddenSum


@dataclass(frozen=True, slots=True)
class Finished:
    reason: str
    cached_tokens: int = 0  # prompt tokens whose keys and values were found, not computed


Event = Started | PromptScored | Embedded | Token | Finished

Sink = SimpleQueue[tuple["Stream", Event | GraftError]]  # of one stream or several


class Outlet(Protocol):
    """Where events go that nobody waits for at a queue."""

    def put(self, item: tuple["Stream", Event | GraftError], /) -> None:
        """On the engine's thread. May not wait, and does not raise."""


@dataclass(eq=False)
class Stream:
    """The events of one request, in order, until Finished; iterating raises GraftError where the request failed.

    Several streams may share one `sink`; whoever reads it then, tells them apart by the stream beside each event.
    """

    request: Request
    cancel: Callable[[], None]
    sink: Sink | Outlet = field(default_factory=SimpleQueue)

    def put(self, event: Event | GraftError) -> None:
        self.sink.put((self, event))

    def __iter__(self) -> Iterator[Event]:
        sink = self.sink
        assert isinstance(sink, SimpleQueue)  # what goes to an outlet is not waited for
        while True:
            _, event = sink.get()
            if isinstance(event, GraftError):
                raise event
            yield event
            if isinstance(event, Finished):
                return

    def result(self) -> Result:
        """Wait for the end."""
        served = Served()
        tokens: list[Token] = []
        prompt: list[Token] = []
        embedding: HiddenSum | None = None
        for event in self:
            match event:
                case Started():
                    served = event.served
                case PromptScored():
                    prompt.extend(event.tokens)
                case Embedded():
                    embedding = event.vector
                case Token():
                    tokens.append(event)
                case Finished():
                    return Result(tuple(tokens), event.reason, served, tuple(prompt), event.cached_tokens, embedding)
        raise AssertionError("a stream ends with Finished")


def generate(requests: Sequence[Request], submit: Callable[[Request], Stream]) -> list[Result]:
    """Serve requests together and wait for all. Raises the first one's error, the others cancelled."""
    streams: list[Stream] = []
    try:
        for request in requests:
            streams.append(submit(request))
        return [stream.result() for stream in streams]
    except BaseException:
        for stream in streams:
            stream.cancel()
        raise
