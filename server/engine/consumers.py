"""Whose rows a step computes: generations for callers, and the engine's own errands for adapters coming in.

A `Consumer` owns one sequence. After each step that had rows of it, it observes their logits and may ask for a token
to be drawn; the engine draws for all of them at once. Runs on the engine's thread.
"""

import time
from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor

from graft.hub.adapters.probe import ProbeQuestion, Table
from graft.hub.adapters.probe_replay import log_probs_of
from graft.hub.base.model import Base
from graft.hub.errors import GraftError
from graft.server.adapters.device import Resident
from graft.server.adapters.host import Loaded
from graft.server.adapters.readiness import NO_ROWS
from graft.server.engine.request import Finished, PromptScored, Request, Started, Stream
from graft.server.engine.sampling import Draw, Token, generator_for, score
from graft.server.engine.scheduler import Chunk, SequenceState
from graft.server.errors import EngineError
from graft.server.served_version import Served
from graft.server.telemetry import Metrics

UNPLACED = Served("(not loaded)")  # in the numbers: names that stand for nothing, or for nothing that loads
LOADER = object()  # the tenant of everything the engine does for itself


class Consumer(ABC):
    """Owner of a sequence."""

    sequence: SequenceState
    loaded: Loaded | None = None  # the adapter it waits for; None: nothing to wait for
    keeps_blocks = False  # whether the cache keeps the sequence's blocks when all is computed

    @abstractmethod
    def observe(self, chunk: Chunk, logits: Tensor) -> Draw | None:
        """The wanted logits [k, V] of a chunk's last k rows. A Draw: draw a token from the last one."""

    def accept(self, token: Token) -> bool:
        """Take a drawn token; True when it was the last one. Asked only of who returned a Draw."""
        raise AssertionError(f"{type(self).__name__} draws no tokens")

    @abstractmethod
    def finish(self) -> None:
        """All is computed."""

    @abstractmethod
    def fail(self, error: GraftError) -> None: ...


class RunningRequest(Consumer):
    """A caller's request under way."""

    def __init__(self, stream: Stream, ends: frozenset[int], device: torch.device, metrics: Metrics):
        self.stream = stream
        self.cancelled = False
        self.served = Served()
        self._request = stream.request
        self._ends = stop_ids(stream.request, ends)
        self._generator = generator_for(self._request.sampling, device)
        self._metrics = metrics
        self._submitted = time.monotonic()
        self._last: float | None = None  # when the latest token came
        self._max_new = 0
        self._generated = 0
        self._begun = False
        self._reason = "length"
        self._cached = 0
        first = len(self._request.prompt) - 1
        if self._request.score_from is not None:
            first = max(0, self._request.score_from - 1)
        self.sequence = SequenceState(
            owner=None,
            tokens=list(self._request.prompt),
            max_new=0,
            logits_from=first,
            runs_last=bool(self._request.score_next),
        )

    def begin(self, loaded: Loaded | None, served: Served, max_new: int) -> SequenceState:
        """The sequence to schedule, now that the adapter is known, and with it how many tokens there is room for."""
        self.loaded, self.served = loaded, served
        self._max_new = self.sequence.max_new = max_new
        self.sequence.owner = self.sequence.tenant = loaded.digest if loaded else None
        return self.sequence

    def observe(self, chunk: Chunk, logits: Tensor) -> Draw | None:
        if not self._begun:
            self._begun = True
            self._cached = chunk.start
            self.stream.put(Started(self.served, self._cached))
        last = chunk.start + chunk.count - 1
        if self._request.score_from is not None and logits.shape[0]:
            self._score(last - logits.shape[0] + 1, logits)
        if self._request.score_next and last == len(self._request.prompt) - 1:
            self._score_next(logits[-1:])
        if self.sequence.remaining or not self._max_new:
            return None
        banned = tuple(self._ends) if self._generated < self._request.min_tokens else ()
        return Draw(self._request.sampling, self._generator, banned)

    def accept(self, token: Token) -> bool:
        now = time.monotonic()
        self._metrics.token(
            self.served, now - self._submitted if self._last is None else None, now - (self._last or now)
        )
        self._last = now
        self._generated += 1
        self.sequence.tokens.append(token.id)
        self.stream.put(token)
        if token.id in self._ends:
            self._reason = "stop"
            return True
        self.sequence.max_new = self._max_new - self._generated
        return self._generated == self._max_new

    def finish(self) -> None:
        if not self._begun:
            self.stream.put(Started(self.served))
        self._metrics.finished(self.served, self._reason, len(self._request.prompt), self._cached)
        self.stream.put(Finished(self._reason, self._cached))

    def cancel(self) -> None:
        self.cancelled = True
        self._reason = "cancelled"
        self.finish()

    def fail(self, error: GraftError) -> None:
        not_placed = self._request.model is not None and self.served.name is None
        self._metrics.failed(UNPLACED if not_placed else self.served, error.code)
        self.stream.put(error)

    def _score(self, first: int, logits: Tensor) -> None:
        """Row i of the text tells about token i + 1 of the prompt. `first`: the text's row of logits[0]."""
        targets = self._request.prompt[first + 1 : first + 1 + logits.shape[0]]
        if targets:
            count = self._request.sampling.logprobs or 0
            self.stream.put(PromptScored(tuple(score(logits[: len(targets)], targets, [count] * len(targets)))))

    def _score_next(self, logits: Tensor) -> None:
        """How likely each of `score_next` is after the whole prompt. logits: its last row, [1, V]."""
        ids = self._request.score_next
        count = self._request.sampling.logprobs or 0
        self.stream.put(PromptScored(tuple(score(logits.expand(len(ids), -1), ids, [count] * len(ids)))))


class RowsJob(Consumer):
    """Runs an adapter's soft prompt through the base with the adapter's own detours; the cache keeps its rows."""

    keeps_blocks = True

    def __init__(
        self,
        resident: Resident,
        rows: Tensor,
        done: Callable[[list[int] | GraftError], None],
        detach: Callable[[SequenceState], list[int]],
    ):
        self._done, self._detach = done, detach
        self.sequence = SequenceState(
            owner=resident.digest,
            tokens=[0] * rows.shape[0],
            max_new=0,
            logits_from=rows.shape[0],
            tenant=LOADER,
            inputs=rows,
        )

    def observe(self, chunk: Chunk, logits: Tensor) -> None:
        pass

    def finish(self) -> None:
        self._done(self._detach(self.sequence))

    def fail(self, error: GraftError) -> None:
        self._done(error)


class Question(Consumer):
    """A probe's question, put to an adapter (None: to the bare base) on the path that serves it.

    `done` gets the answers, a row for each row of the question, or what went wrong.
    """

    def __init__(self, asked: ProbeQuestion, resident: Resident | None, done: Callable[[Table | GraftError], None]):
        self._asked, self._done = asked, done
        self._told: list[tuple[float, ...]] = []
        self.sequence = SequenceState(
            owner=resident.digest if resident else None,
            tokens=list(asked.ids),
            max_new=1,
            logits_from=len(asked.ids) - len(asked.tokens),
            virtual=resident.virtual if resident else NO_ROWS,
            tenant=LOADER,
        )

    def observe(self, chunk: Chunk, logits: Tensor) -> None:
        for row in logits:
            self._told.append(log_probs_of(row, self._asked.tokens[len(self._told)]))

    def finish(self) -> None:
        self._done(tuple(self._told))

    def fail(self, error: GraftError) -> None:
        self._done(error)


def ends_of(base: Base) -> frozenset[int]:
    """The ids that end a text: the model's own list, and the tokenizer's EOS."""
    configured = getattr(base.model.generation_config, "eos_token_id", None)
    ids = configured if isinstance(configured, list) else [configured]
    return frozenset(id for id in [*ids, getattr(base.tokenizer, "eos_token_id", None)] if id is not None)


def stop_ids(request: Request, ends: frozenset[int]) -> frozenset[int]:
    """The ids that end this request."""
    return frozenset(request.stop_ids) | (frozenset() if request.ignore_eos else ends)


def not_finite_error() -> EngineError:
    return EngineError("The logits are not finite: this adapter overflows on this prompt. Train it at a lower rate.")
