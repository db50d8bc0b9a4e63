"""From a checked body to engine requests, and from their events back to the choices of one answer.

Every choice is its own engine request; all of an answer's requests report to one queue, read by the one thread that
serves the HTTP request. Stop strings are found here, in the text; the engine knows tokens alone. Knows no JSON shape
(answers.py) and no HTTP.
"""

import re
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from queue import Empty, SimpleQueue

from graft.hub.errors import GraftError
from graft.hub.evaluation.task_data import Message
from graft.hub.evaluation.tokenization import TemplateRefusalError, encode_prompt
from graft.server.engine.client import EngineClient
from graft.server.engine.request import Event, Finished, PromptScored, Request, Sink, Started, Stream, stop_ids
from graft.server.errors import ConstraintError, TooLongError
from graft.server.http.detokenizer import Detokenizer, StopStrings, TokenDecoder, certain_text, decode
from graft.server.http.schemas import BadField, ChatBody, CompletionBody, GenerationBody
from graft.server.sampling.params import Sampling, Token
from graft.server.served_version import Served

DEFAULT_COMPLETION_TOKENS = 16  # OpenAI's; a chat goes on as long as there is room
LOOK_S = 0.5  # how often a silent client is looked after while nothing comes


class Disconnected(Exception):
    """The client has gone; nobody reads the answer."""


@dataclass(frozen=True)
class AskedCompletions:
    """What a body asks of the engine. `requests`: n for each prompt, prompt after prompt."""

    requests: tuple[Request, ...]
    n: int
    stops: tuple[str, ...] = ()
    echo: bool = False
    logprobs: int | None = None
    prompt_tokens: int = 0
    ends: frozenset[int] = frozenset()
    constraint_field: str | None = None  # which field of the body asked for the requests' constraint

    def by(self, client: str) -> "AskedCompletions":
        """The same, asked by a client."""
        return replace(self, requests=tuple(replace(request, client=client) for request in self.requests))


def read_completion(body: CompletionBody, engine: EngineClient, base_name: str) -> AskedCompletions:
    """Raises BadField for a prompt that can't be used."""
    prompts = [_prompt_ids(prompt, engine) for prompt in body.prompt]
    limit = DEFAULT_COMPLETION_TOKENS if body.max_tokens is None else body.max_tokens
    if body.min_tokens > limit:
        raise BadField(f"min_tokens ({body.min_tokens}) is above max_tokens ({limit}).", "min_tokens")
    scored = body.echo and body.logprobs is not None
    return _read_completions(body, engine, base_name, prompts, limit, body.logprobs, echo=body.echo, scored=scored)


def read_chat(body: ChatBody, engine: EngineClient, base_name: str) -> AskedCompletions:
    """Raises BadField for a base that has no chat template, or messages that its template refuses."""
    tokenizer = engine.base.tokenizer
    assert tokenizer is not None  # create_app
    if not tokenizer.chat_template:
        raise BadField(
            f"{base_name} has no chat template, so it can't take messages: use /v1/completions with a prompt.",
            "messages",
        )
    used = [
        key for key in body.chat_template_kwargs if re.search(rf"\b{re.escape(key)}\b", str(tokenizer.chat_template))
    ]
    if used:
        raise BadField(f"chat_template_kwargs is not supported here: leave {used[0]} out.", "chat_template_kwargs")
    turns = [Message("system" if turn.role == "developer" else turn.role, turn.text) for turn in body.messages]
    try:
        prompt = encode_prompt(turns, tokenizer)
    except TemplateRefusalError as error:
        raise BadField(str(error), "messages") from None
    if not prompt:
        raise BadField("The base's chat template makes nothing of these messages.", "messages")
    logprobs = (body.top_logprobs or 0) if body.logprobs else None
    return _read_completions(body, engine, base_name, [tuple(prompt)], body.limit, logprobs)


def _prompt_ids(prompt: str | tuple[int, ...], engine: EngineClient) -> tuple[int, ...]:
    tokenizer, vocabulary = engine.base.tokenizer, engine.base.spec.vocab_size
    if not isinstance(prompt, str):
        if not all(0 <= id < vocabulary for id in prompt):
            raise BadField(f"A prompt token lies outside the base's vocabulary of {vocabulary}.", "prompt")
        return prompt
    assert tokenizer is not None
    ids = tuple(encode_prompt(prompt, tokenizer))
    start = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
    if not ids and start is None:
        raise BadField("The prompt is empty, and this base has no token that begins a text.", "prompt")
    return ids or (start,)  # an empty prompt: the beginning of a text, as OpenAI takes it


def _read_completions(
    body: GenerationBody,
    engine: EngineClient,
    base_name: str,
    prompts: list[tuple[int, ...]],
    max_tokens: int | None,
    logprobs: int | None,
    *,
    echo: bool = False,
    scored: bool = False,
) -> AskedCompletions:
    vocabulary, longest = engine.base.spec.vocab_size, engine.base.max_model_len
    if not all(0 <= id < vocabulary for id in body.stop_token_ids):
        raise BadField(f"A stop token lies outside the base's vocabulary of {vocabulary}.", "stop_token_ids")
    if max(len(prompt) for prompt in prompts) + (max_tokens or 0) > longest:
        most = max(len(prompt) for prompt in prompts)
        param = "max_tokens" if most < longest else "messages" if isinstance(body, ChatBody) else "prompt"
        raise TooLongError(
            f"This server's maximum context length is {longest} tokens; the prompt has {most}, and max_tokens={max_tokens or 0}.",
            param,
        )
    requests = [
        Request(
            prompt=prompt,
            model=None if body.model == base_name else body.model,
            max_tokens=max_tokens,
            min_tokens=body.min_tokens,
            ignore_eos=body.ignore_eos,
            stop_ids=tuple(body.stop_token_ids),
            sampling=_sampling(body, logprobs, i),
            score_from=0 if scored else None,
            constraint=body.constraint,
        )
        for prompt in prompts
        for i in range(body.n)
    ]
    return AskedCompletions(
        requests=tuple(requests),
        n=body.n,
        stops=tuple(body.stop),
        echo=echo,
        logprobs=logprobs,
        prompt_tokens=sum(len(prompt) for prompt in prompts),
        ends=stop_ids(requests[0], engine.base.ends),
        constraint_field=body.constraint_field,
    )


def _sampling(body: GenerationBody, logprobs: int | None, i: int) -> Sampling:
    """`i`: which of a prompt's n choices; a seed makes them differ, and every one repeatable."""
    return Sampling(
        temperature=body.temperature,
        top_p=body.top_p,
        top_k=max(0, body.top_k),
        seed=None if body.seed is None else (body.seed + i) % (1 << 63),
        logprobs=logprobs,
    )


@dataclass(frozen=True)
class Mark:
    """A token of the report on log-probabilities. `offset`: where in the choice's text it begins."""

    token: Token
    offset: int


@dataclass(frozen=True)
class Piece:
    """What is new of a choice."""

    index: int
    text: str
    marks: tuple[Mark, ...]
    finish_reason: str | None


class Choice:
    """One continuation under way: tokens in, certain text out."""

    def __init__(self, index: int, request: Request, asked: AskedCompletions, tokenizer: TokenDecoder):
        self.index = index
        self.served = Served()
        self.generated = 0
        self.cached = 0
        self.finish_reason: str | None = None
        self._min_tokens = request.min_tokens
        self._ends = asked.ends
        self._stops = StopStrings(asked.stops)
        self._reports = asked.logprobs is not None
        self._waiting: deque[Mark] = deque()  # their text is not given out yet
        self._certain = 0  # characters made so far, given out or held back
        self._given = 0
        self._text = ""
        self._marks: list[Mark] = []
        if asked.echo and self._reports:
            self._detokenizer = Detokenizer(tokenizer)
            self._push(Token(request.prompt[0]))
        else:
            self._detokenizer = Detokenizer(tokenizer, request.prompt)
            if asked.echo:
                self._give(certain_text(decode(tokenizer, request.prompt)))

    def feed(self, event: Event) -> None:
        match event:
            case Started():
                self.served, self.cached = event.served, event.cached_tokens
            case PromptScored():
                for token in event.tokens:
                    self._push(token)
            case Token():
                self._generate(event)
            case Finished():
                self._end(event.reason)

    def take(self) -> Piece | None:
        """What is new since the last time, None where nothing is."""
        if not (self._text or self._marks or self.finish_reason):
            return None
        piece = Piece(self.index, self._text, tuple(self._marks), self.finish_reason)
        self._text, self._marks = "", []
        return piece

    def _generate(self, token: Token) -> None:
        self.generated += 1
        if token.id in self._ends:  # ends the text without being part of it
            self._report(token)
            return
        self._push(token, watched=self.generated >= self._min_tokens)
        if self._stops.matched:
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
        self._text += text
        self._given += len(text)
        while self._waiting and self._waiting[0].offset < self._given:
            self._marks.append(self._waiting.popleft())

    def _end(self, reason: str) -> None:
        if not self._stops.matched:
            self._give(self._stops.flush() + self._detokenizer.flush())
            self._marks.extend(self._waiting)
        self._waiting.clear()
        self.finish_reason = reason


@dataclass
class Answer:
    """All choices of one request under way. `gone()`: whether the client has left. Used by one thread."""

    engine: EngineClient
    asked: AskedCompletions
    gone: Callable[[], bool]
    choices: dict[Stream, Choice] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Submits everything. Raises what the engine raises, with nothing left under way."""
        self._sink: Sink = SimpleQueue()
        tokenizer = self.engine.base.tokenizer
        assert tokenizer is not None
        try:
            for index, request in enumerate(self.asked.requests):
                choice = Choice(index, request, self.asked, tokenizer)
                self.choices[self.engine.submit(request, self._sink)] = choice
        except GraftError:
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
    def cached_tokens(self) -> int:
        """Prompt tokens that were found in the cache, each prompt counted once."""
        return sum(choice.cached for choice in self.choices.values() if choice.index % self.asked.n == 0)

    def begin(self) -> list[Piece]:
        """Wait until the first choice's adapter is in place. Raises GraftError where it can't be."""
        return self._news()

    def pieces(self) -> Iterator[Piece]:
        """What is new, as it comes, until every choice has ended. Raises GraftError, or Disconnected."""
        while not all(choice.finish_reason for choice in self.choices.values()):
            yield from self._news()

    def cancel(self) -> None:
        """Give up what is still under way."""
        for stream, choice in self.choices.items():
            if choice.finish_reason is None:
                choice.finish_reason = "cancelled"
                self.engine.cancel(stream)

    def _news(self) -> list[Piece]:
        """Wait for an event, take all there are, and return what has become certain by them."""
        pending = [self._next()]
        while not self._sink.empty():
            pending.append(self._sink.get())
        changed: dict[Choice, None] = {}
        for stream, event in pending:
            choice = self.choices[stream]
            if choice.finish_reason is not None:
                continue  # what the engine had drawn before it knew of the end
            if isinstance(event, ConstraintError):
                event.param = event.param or self.asked.constraint_field
            if isinstance(event, GraftError):
                raise event
            choice.feed(event)
            changed[choice] = None
            if choice.finish_reason is not None and not isinstance(event, Finished):
                self.engine.cancel(stream)
        return [piece for choice in changed if (piece := choice.take())]

    def _next(self) -> tuple[Stream, Event | GraftError]:
        while True:
            if self.gone():
                raise Disconnected
            try:
                return self._sink.get(timeout=LOOK_S)
            except Empty:
                continue
