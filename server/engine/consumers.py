"""Whose rows a step computes: generations for callers, and the engine's own errands for adapters coming in.

A `Consumer` owns one sequence. Before each step that has rows of it, it says what it wants to know of their logits, and
whether a token is to be drawn; the runner answers for all consumers at once. Runs on the engine's thread.
"""

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import getrandbits

from torch import Tensor

from graft.hub.adapters.probe import ProbeQuestion, Table
from graft.hub.base.model import Base
from graft.hub.errors import GraftError
from graft.server.adapters.loaded import Loaded
from graft.server.adapters.readiness import NO_ROWS
from graft.server.adapters.resident import Resident
from graft.server.engine.request import Embedded, Finished, Pooling, PromptScored, Started, Stream, stop_ids
from graft.server.engine.sequence import Chunk, SequenceState
from graft.server.errors import BrokenError, ConstraintFailedError, NotFiniteError, RequestError
from graft.server.sampling.history import TokenHistory
from graft.server.sampling.params import Draw, HiddenSum, Score, Token, mask_of
from graft.server.served_version import UNPLACED, Served
from graft.server.structured.matcher import Matcher
from graft.server.telemetry import Metrics

LOADER = object()  # the client of everything the engine does for itself


@dataclass(frozen=True, slots=True)
class Asked:
    """Of a chunk's rows that want logits: the last one's draw, and (which of them, Score) in order; or all their hidden states'
    sum."""

    draw: Draw | None = None
    scores: Sequence[tuple[int, Score]] = ()
    hidden: bool = False


NOTHING = Asked()


class Consumer(ABC):
    """Owner of a sequence."""

    sequence: SequenceState
    loaded: Loaded | None = None  # the adapter that it waits for and holds; None: nothing to wait for
    matcher: Matcher | None = None  # which of the tokens that it draws may come next; None: all
    keeps_blocks = False  # whether the cache keeps the sequence's blocks when all is computed

    @property
    def foreseeable(self) -> bool:
        """Whether it can be asked about its next token's row before it is known which token that is."""
        return False

    @abstractmethod
    def ask(self, chunk: Chunk) -> Asked:
        """What it wants of a chunk that is about to be computed."""

    def observe(self, scored: Sequence[Token]) -> None:
        """The answer to one of its scores, which come in order."""
        raise AssertionError(f"{type(self).__name__} asks for no scores")

    def pool(self, total: HiddenSum) -> None:
        """The sum of its chunk's hidden states."""
        raise AssertionError(f"{type(self).__name__} asks for no hidden states")

    def accept(self, token: Token) -> bool:
        """Take a drawn token; True when it was the last one. Called only where a draw was asked for."""
        raise AssertionError(f"{type(self).__name__} draws no tokens")

    def no_token(self) -> GraftError:
        """Why its row of logits gave no token, or no scores."""
        return NotFiniteError()

    @abstractmethod
    def finish(self) -> None:
        """All is computed."""

    @abstractmethod
    def fail(self, error: GraftError) -> None: ...


class RunningRequest(Consumer):
    """A caller's request under way."""

    def __init__(self, stream: Stream, ends: frozenset[int], metrics: Metrics, vocab_size: int):
        self.stream = stream
        self.served = Served()
        self._request = stream.request
        self._ends = stop_ids(stream.request, ends)
        sampling, banned = self._request.sampling, self._ends if self._request.min_tokens else ()
        if self._request.constraint is not None:
            banned = ()  # the matcher holds the end back, as long as it can
        self._history = TokenHistory(sampling, self._request.prompt, banned)
        if self._history.exhausted:
            raise RequestError("No token may come first: bad_words and min_tokens leave none of allowed_token_ids.")
        self._allowed = mask_of(sampling.allowed_ids, vocab_size) if sampling.allowed_ids else None
        self._seed = getrandbits(64) if sampling.seed is None else sampling.seed
        self._metrics = metrics
        self._submitted = time.monotonic()
        self._last: float | None = None  # when the latest token came
        self._max_new = 0
        self._generated = 0
        self.begun = False
        self._reason = "length"
        self._cached = 0
        self._hidden: HiddenSum | None = None  # of the prompt so far, summed
        first = len(self._request.prompt) - 1
        if self._request.score_from is not None:
            first = max(0, self._request.score_from - 1)
        if self._request.pooling is Pooling.MEAN:
            first = 0
        self.sequence = SequenceState(
            owner=None,
            tokens=list(self._request.prompt),
            max_new=0,
            logits_from=first,
            client=self._request.client,
            weight=self._request.weight,
            priority=self._request.priority,
            runs_last=bool(self._request.score_next) or self._request.pooling is not None,
            hidden=self._request.pooling is not None,
        )

    def begin(self, served: Served, max_new: int) -> SequenceState:
        """The sequence to schedule, now that the adapter is there, and known how many tokens there is room for."""
        self.served, loaded = served, self.loaded
        self._max_new = self.sequence.max_new = max_new
        self.sequence.owner = self.sequence.awaits = loaded.digest if loaded else None
        return self.sequence

    @property
    def ends(self) -> frozenset[int]:
        """The ids that end its text."""
        return self._ends

    @property
    def holds_end(self) -> bool:
        """Whether a constrained text is to go on where it could end."""
        return self._request.ignore_eos or self._generated < self._request.min_tokens

    @property
    def foreseeable(self) -> bool:
        return self.matcher is None and self._history.settled

    def ask(self, chunk: Chunk) -> Asked:
        if not self.begun:
            self.begun = True
            self._cached = chunk.start
            self.stream.put(Started(self.served, self._cached))
        draw = None
        if self.sequence.remaining == 0 and self._max_new:
            allowed = self._allowed if self.matcher is None else self.matcher.allowed
            position = len(self.sequence.tokens) - len(self._request.prompt)
            draw = Draw(self._request.sampling, self._seed, position, self._history.edits, allowed)
        return Asked(draw, self._scores(chunk), hidden=self.sequence.hidden and chunk.logits > 0)

    def observe(self, scored: Sequence[Token]) -> None:
        self.stream.put(PromptScored(tuple(scored)))

    def pool(self, total: HiddenSum) -> None:
        self._hidden = total if self._hidden is None else self._hidden + total
        if self.sequence.remaining <= 0:
            count = len(self._request.prompt) if self._request.pooling is Pooling.MEAN else 1
            self.stream.put(Embedded(self._hidden / count))

    def accept(self, token: Token) -> bool:
        now = time.monotonic()
        self._metrics.token(
            self.served, now - self._submitted if self._last is None else None, now - (self._last or now)
        )
        self._last = now
        self._generated += 1
        self._history.add(token.id)
        if self._generated == self._request.min_tokens:
            self._history.unban()
        self.sequence.take(token.id)
        self.stream.put(token)
        if token.id in self._ends:
            self._reason = "stop"
            return True
        if self.matcher is not None:
            self.matcher.take(token.id, holds_end=self.holds_end)
        if self._history.exhausted:
            self._reason = "stop"
            return True
        self.sequence.max_new = self._max_new - self._generated
        return self._generated == self._max_new

    def no_token(self) -> GraftError:
        if self.matcher is not None and self._history.bans_words:
            return ConstraintFailedError("bad_words leave no token that fits it")
        return super().no_token()

    def finish(self) -> None:
        if not self.begun:
            self.stream.put(Started(self.served))
        self._metrics.finished(self.served, self._reason, len(self._request.prompt), self._cached)
        self.stream.put(Finished(self._reason, self._cached))

    def cancel(self) -> None:
        self._reason = "cancelled"
        self.finish()

    def fail(self, error: GraftError) -> None:
        self.stream.put(error)
        not_placed = self._request.model is not None and self.served.name is None
        self._metrics.failed(UNPLACED if not_placed else self.served, error.code)

    def _scores(self, chunk: Chunk) -> list[tuple[int, Score]]:
        """Row i of the text tells about token i + 1 of the prompt, the last one about those of `score_next` as well."""
        prompt, top = self._request.prompt, self._request.score_top
        if top is None:
            top = self._request.sampling.logprobs or 0
        last = chunk.start + chunk.count - 1
        scores = []
        if self._request.score_from is not None:
            first = last + 1 - chunk.logits
            targets = prompt[first + 1 : last + 2]
            scores = [(row, Score((target,), top)) for row, target in enumerate(targets)]
        if self._request.score_next and last == len(prompt) - 1:
            scores.append((chunk.logits - 1, Score(self._request.score_next, top)))
        return scores


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
            client=LOADER,
            steps_aside=True,
            inputs=rows,
        )

    def ask(self, chunk: Chunk) -> Asked:
        return NOTHING

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
        self._rows_asked = 0
        self._told: list[tuple[float, ...]] = []
        self.sequence = SequenceState(
            owner=resident.digest if resident else None,
            tokens=list(asked.ids),
            max_new=1,
            logits_from=len(asked.ids) - len(asked.tokens),
            virtual=resident.virtual if resident else NO_ROWS,
            client=LOADER,
            steps_aside=True,
        )

    def ask(self, chunk: Chunk) -> Asked:
        tokens = self._asked.tokens[self._rows_asked : self._rows_asked + chunk.logits]
        self._rows_asked += chunk.logits
        return Asked(scores=[(row, Score(ids)) for row, ids in enumerate(tokens)])

    def observe(self, scored: Sequence[Token]) -> None:
        self._told.append(tuple(token.logprob for token in scored if token.logprob is not None))

    def no_token(self) -> GraftError:
        # An adapter is not to blame, and not refused, for what the bare base says.
        return NotFiniteError() if self.sequence.owner else BrokenError("The base's own answers are not finite.")

    def finish(self) -> None:
        self._done(tuple(self._told))

    def fail(self, error: GraftError) -> None:
        self._done(error)


def ends_of(base: Base) -> frozenset[int]:
    """The ids that end a text: the model's own list, and the tokenizer's EOS."""
    configured = getattr(base.model.generation_config, "eos_token_id", None)
    ids = configured if isinstance(configured, list) else [configured]
    return frozenset(id for id in [*ids, getattr(base.tokenizer, "eos_token_id", None)] if id is not None)
