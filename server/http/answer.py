"""The answer under way: from the events of its requests to the choices' text, log-probabilities and ends.

All of an answer's requests report to one queue, read by one thread at a time: the HTTP request's own, and then, where the
answer is a stream, the one that writes all of them. Stop strings are found here, in the text; the engine knows tokens alone.
Knows no JSON shape (response_shapes.py) and no HTTP.
"""

import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from queue import SimpleQueue

from graft.hub.errors import GraftError
from graft.server.chat.deltas import Delta, merge
from graft.server.chat.detokenizer import Detokenizer, SpecialTokens, StopStrings, TokenDecoder, certain_text, decode
from graft.server.chat.reply_parser import ReplyParser
from graft.server.engine.client import EngineClient
from graft.server.engine.request import Event, Finished, PromptScored, Request, Sink, Started, Stream
from graft.server.errors import ConstraintError
from graft.server.http.completions import AskedCompletions
from graft.server.operations.patience import DeadlineError, Patience
from graft.server.operations.request_log import RequestRecord
from graft.server.sampling.params import Token
from graft.server.served_version import Served


@dataclass(frozen=True)
class Mark:
    """A token of the report on log-probabilities. `offset`: where in the choice's text it begins."""

    token: Token
    offset: int


@dataclass(frozen=True)
class Piece:
    """What is new of a choice."""

    index: int
    deltas: tuple[Delta, ...]
    marks: tuple[Mark, ...]
    finish_reason: str | None


class Choice:
    """One continuation under way: tokens in, certain text out."""

    def __init__(
        self, index: int, request: Request, asked: AskedCompletions, tokenizer: TokenDecoder, special: SpecialTokens
    ):
        self.index = index
        self.served = Served()
        self.begun = False
        self.generated = 0
        self.cached = 0
        self.finish_reason: str | None = None
        self.scored: list[Token] = []  # of the prompt, from its second token on
        self._logprob = 0.0  # of what was generated
        self._min_tokens = request.min_tokens
        self._ends = asked.ends
        self._stops = StopStrings(asked.stops, included=asked.includes_stop)
        self._shows_end = asked.includes_stop
        self._reports, self._lists_end = asked.logprobs is not None, asked.lists_end
        self._top = asked.logprobs or 0
        self._shows_prompt = asked.echo and self._reports
        self._unscored = (
            len(request.prompt) - 1 if self._shows_prompt else 0
        )  # tokens whose scores come before the text
        self._early: list[Event] = []  # what came before those
        self._waiting: deque[Mark] = deque()  # their text is not given out yet
        self._certain = 0  # characters made so far, given out or held back
        self._given = 0
        self._parser = ReplyParser(asked.rules)
        self._deltas: list[Delta] = []
        self._marks: list[Mark] = []
        shown = special.among(asked.rules.marks)
        if self._shows_prompt:
            self._detokenizer = Detokenizer(tokenizer, shown=shown)
            self._push(Token(request.prompt[0]))
        else:
            self._detokenizer = Detokenizer(tokenizer, request.prompt, shown)
            if asked.echo:
                self._give(certain_text(decode(tokenizer, request.prompt)))

    def feed(self, event: Event) -> None:
        """Scores of the prompt may come from another choice of it, after some of this one's own tokens."""
        if self._unscored and isinstance(event, (Token, Finished)):
            self._early.append(event)
            return
        match event:
            case Token():
                self._generate(event)
            case Started():
                self.begun, self.served, self.cached = True, event.served, event.cached_tokens
            case PromptScored():
                self.scored.extend(event.tokens)
                if self._shows_prompt:
                    self._show_prompt(event.tokens)
            case Finished():
                self._end(event.reason)

    @property
    def stop_string(self) -> str | None:
        """The one that ended it."""
        return self._stops.match

    @property
    def mean_logprob(self) -> float:
        """Of a token, by the model's own probabilities."""
        return self._logprob / max(1, self.generated)

    def take(self) -> Piece | None:
        """What is new since the last time, None where nothing is."""
        if not (self._deltas or self._marks or self.finish_reason):
            return None
        piece = Piece(self.index, tuple(merge(self._deltas)), tuple(self._marks), self.finish_reason)
        self._deltas, self._marks = [], []
        return piece

    def give_up(self) -> None:
        """It gets no end of its own. What it has made and could not show yet is counted."""
        self.finish_reason = "cancelled"
        self.generated += sum(isinstance(event, Token) for event in self._early)
        self._early = []

    def _show_prompt(self, scored: tuple[Token, ...]) -> None:
        for token in scored:
            self._push(replace(token, top=token.top[: self._top]))
        self._unscored -= len(scored)
        early, self._early = ([], self._early) if self._unscored else (self._early, [])
        for event in early:
            if self.finish_reason is None:
                self.feed(event)

    def _generate(self, token: Token) -> None:
        self.generated += 1
        self._logprob += token.logprob or 0.0
        if token.id in self._ends and not self._shows_end:  # ends the text without being part of it
            if self._lists_end:
                self._report(token)
            return
        self._push(token, watched=self.generated >= self._min_tokens)
        if self._stops.matched or self._parser.complete:
            self._end("stop")

    def _push(self, token: Token, *, watched: bool = False) -> None:
        self._report(token)
        text = self._detokenizer.push(token.id)
        self._certain += len(text)
        self._give(self._stops.feed(text) if watched else text)

    def _report(self, token: Token) -> None:
        if self._reports:
            self._waiting.append(Mark(token, self._certain))

    def _give(self, text: str) -> None:
        self._deltas.extend(self._parser.feed(text))
        self._given += len(text)
        while self._waiting and self._waiting[0].offset < self._given:
            self._marks.append(self._waiting.popleft())

    def _end(self, reason: str) -> None:
        if not self._stops.matched:
            self._give(self._stops.flush() + self._detokenizer.flush())
            self._marks.extend(self._waiting)
        self._waiting.clear()
        self._deltas.extend(self._parser.finish())
        self.finish_reason = "tool_calls" if reason == "stop" and self._parser.called else reason


class _EventQueue:
    """The events of an answer's streams, and who is told that there are some."""

    def __init__(self) -> None:
        queue: Sink = SimpleQueue()
        self.get, self.empty, self._put = queue.get, queue.empty, queue.put
        self.tell: Callable[[], None] | None = None

    def put(self, item: tuple[Stream, Event | GraftError], /) -> None:
        self._put(item)
        if self.tell is not None:
            self.tell()


@dataclass
class Answer:
    """All choices of one request under way. Used by one thread at a time."""

    engine: EngineClient
    asked: AskedCompletions
    patience: Patience
    special: SpecialTokens
    choices: dict[Stream, Choice] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Submits everything. Raises what the engine raises, with nothing left under way."""
        self._sink = _EventQueue()
        self.first_token: float | None = None  # when it came, a time.monotonic()
        self.error: GraftError | None = None  # what ended it on its way
        tokenizer = self.engine.base.tokenizer
        assert tokenizer is not None
        try:
            for index, request in enumerate(self.asked.requests):
                choice = Choice(index, request, self.asked, tokenizer, self.special)
                self.choices[self.engine.submit(request, self._sink)] = choice
        except BaseException:
            self.cancel()
            raise

    @property
    def served(self) -> Served:
        """What the choices run on, as far as it is known."""
        return next((choice.served for choice in self.choices.values() if choice.served.digest), Served())

    @property
    def completion_tokens(self) -> int:
        return sum(choice.generated for choice in self.choices.values())

    @property
    def begun_prompt_tokens(self) -> int:
        """Tokens of the prompts that the engine has begun with."""
        begun = {choice.index // self.asked.n for choice in self.choices.values() if choice.begun}
        return sum(len(self.asked.requests[place * self.asked.n].prompt) for place in begun)

    @property
    def complete(self) -> bool:
        """Whether every choice has come to its end."""
        return all(choice.finish_reason for choice in self.choices.values())

    @property
    def cached_tokens(self) -> int:
        """Prompt tokens that were found in the cache, each prompt counted once."""
        return sum(choice.cached for choice in self.choices.values() if choice.index % self.asked.n == 0)

    def shown(self) -> list[Choice]:
        """The choices to be given once all have ended: all, or of each prompt the most probable ones, best first."""
        made, n = list(self.choices.values()), self.asked.n
        if self.asked.shown == n:
            return made
        by_prompt = [made[first : first + n] for first in range(0, len(made), n)]
        return [
            choice
            for choices in by_prompt
            for choice in sorted(choices, key=lambda one: -one.mean_logprob)[: self.asked.shown]
        ]

    def scored_prompt(self, choice: Choice) -> list[Token]:
        """What is known of its prompt, which is asked about once."""
        return list(self.choices.values())[choice.index - choice.index % self.asked.n].scored

    def begin(self) -> list[Piece]:
        """Wait until the first choice's adapter is in place. Raises GraftError where it can't be."""
        return self._news()

    def pieces(self) -> Iterator[Piece]:
        """What is new, as it comes, until every choice has ended. Raises GraftError, or what `patience` ends with."""
        while not self.complete:
            yield from self._news()

    def tell(self, told: Callable[[], None]) -> None:
        """Have `told` called whenever something has come for `news`, on any thread."""
        self._sink.tell = told

    def news(self) -> list[Piece]:
        """What has come and is certain; does not wait. Raises GraftError."""
        return self._feed([])

    def describe(self, record: RequestRecord) -> None:
        """What is known of it, for the log."""
        record.served = self.served if self.served.digest else record.served
        record.prompt_tokens, record.cached_tokens = self.asked.prompt_tokens, self.cached_tokens
        record.completion_tokens = self.completion_tokens
        record.first_token_s = self.first_token and self.first_token - record.began
        record.finish = ",".join(
            sorted({choice.finish_reason for choice in self.choices.values() if choice.finish_reason})
        )
        record.error = self.error.code if self.error else record.error

    def cancel(self) -> None:
        """Give up what is still under way. What had been drawn of it, and nobody has looked at, is counted."""
        given_up = {stream: choice for stream, choice in self.choices.items() if choice.finish_reason is None}
        for stream, choice in given_up.items():
            choice.give_up()
            self.engine.cancel(stream)
        while given_up and not self._sink.empty():
            stream, event = self._sink.get()
            if stream in given_up:
                given_up[stream].begun |= isinstance(event, Started)
                given_up[stream].generated += isinstance(event, Token)

    def _news(self) -> list[Piece]:
        """Wait for an event, take all there are, and return what has become certain by them."""
        try:
            pending = [self.patience.take(self._sink)]
        except DeadlineError as error:
            self.error = error
            raise
        return self._feed(pending)

    def _feed(self, pending: list[tuple[Stream, Event | GraftError]]) -> list[Piece]:
        while not self._sink.empty():
            pending.append(self._sink.get())
        changed: dict[Choice, None] = {}
        for stream, event in pending:
            if isinstance(event, ConstraintError):
                event.param = event.param or self.asked.constraint_field
            if isinstance(event, GraftError):
                if self.choices[stream].finish_reason is not None:
                    continue
                self.error = event
                raise event
            if isinstance(event, Token) and self.first_token is None:
                self.first_token = time.monotonic()
            for reader in self._readers(stream, event):
                choice = self.choices[reader]
                if choice.finish_reason is not None:
                    continue  # what the engine had drawn before it knew of the end
                choice.feed(event)
                changed[choice] = None
                if choice.finish_reason is not None and not isinstance(event, Finished):
                    self.engine.cancel(reader)
        return [piece for choice in changed if (piece := choice.take())]

    def _readers(self, stream: Stream, event: Event) -> list[Stream]:
        """Whose event it is. A prompt is scored once, for all of its choices that show it."""
        if not isinstance(event, PromptScored) or not self.asked.echo:
            return [stream]
        first = self.choices[stream].index
        return [each for each, choice in self.choices.items() if first <= choice.index < first + self.asked.n]
