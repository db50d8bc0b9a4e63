"""From a checked body to engine requests, and from their events back to the choices of one answer.

Every choice is its own engine request; all of an answer's requests report to one queue, read by the one thread that
serves the HTTP request. Stop strings are found here, in the text; the engine knows tokens alone. Knows no JSON shape
(response_shapes.py) and no HTTP.
"""

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from queue import Empty, SimpleQueue

from graft.hub.chat.infill import find_format, infill_ends
from graft.hub.errors import GraftError
from graft.hub.evaluation.tokenization import encode_prompt, encode_rendered
from graft.server.chat.deltas import Delta, merge
from graft.server.chat.detokenizer import Detokenizer, SpecialTokens, StopStrings, TokenDecoder, certain_text, decode
from graft.server.chat.prompts import ChatPrompt
from graft.server.chat.reply_parser import PLAIN_TEXT, ReplyParser, ReplyRules
from graft.server.chat.speech import LOOK_S, Disconnected, Speech, TextLimit
from graft.server.engine.client import EngineClient
from graft.server.engine.request import Event, Finished, PromptScored, Request, Sink, Started, Stream, stop_ids
from graft.server.errors import ConstraintError, TooLongError
from graft.server.http.sampling_fields import read_drawing
from graft.server.http.schemas import BadField, ChatBody, CompletionBody, ConversationBody, GenerationBody
from graft.server.sampling.params import Token
from graft.server.served_version import Served
from graft.server.structured.constraint import Constraint

DEFAULT_COMPLETION_TOKENS = 16  # OpenAI's; a chat goes on as long as there is room


@dataclass(frozen=True)
class AskedCompletions:
    """What a body asks of the engine. `requests`: n for each prompt, prompt after prompt; `shown` of each are given, the most
    probable ones."""

    requests: tuple[Request, ...]
    n: int
    shown: int
    stops: tuple[str, ...] = ()
    includes_stop: bool = False  # what ends a text is part of it
    echo: bool = False
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    prompt_tokens: int = 0
    ends: frozenset[int] = frozenset()
    constraint_field: str | None = None  # which field of the body asked for the requests' constraint
    rules: ReplyRules = PLAIN_TEXT

    def by(self, client: str) -> "AskedCompletions":
        """The same, asked by a client."""
        return replace(self, requests=tuple(replace(request, client=client) for request in self.requests))


def read_completion(body: CompletionBody, speech: Speech) -> AskedCompletions:
    """Raises BadField for a prompt that can't be used."""
    given, ends = (body.prompt, ()) if not body.suffix else _around_gap(body, speech)
    prompts = [prompt_ids(prompt, speech.engine, speech.limit) for prompt in given]
    limit = body.max_tokens
    if limit is None and speech.words.defaults.max_new_tokens is None:
        limit = DEFAULT_COMPLETION_TOKENS
    if limit is not None and body.min_tokens > limit:
        raise BadField(f"min_tokens ({body.min_tokens}) is above max_tokens ({limit}).", "min_tokens")
    asked = _read_completions(body, speech, prompts, limit, body.logprobs, body.constraint, echo=body.echo, ends=ends)
    return replace(asked, constraint_field=body.constraint_field)


def _around_gap(body: CompletionBody, speech: Speech) -> tuple[list[str], tuple[int, ...]]:
    """Prompts that ask for what is between the body's and its suffix, and the ids that end that. Raises BadField."""
    special = speech.tokenizer.added_tokens_encoder
    way = find_format(special)
    if way is None:
        raise BadField(
            "This base has no tokens that mark a gap, so it can't write what goes before a suffix.", "suffix"
        )
    if body.echo:
        raise BadField("A prompt around a gap is not shown: leave out echo, or suffix.", "echo")
    texts = [prompt for prompt in body.prompt if isinstance(prompt, str)]
    if len(texts) < len(body.prompt):
        raise BadField("A suffix goes with a prompt of text, not of token ids.", "suffix")
    return [way.join(text, body.suffix) for text in texts], infill_ends(special, way)


def read_chat(body: ChatBody, speech: Speech) -> AskedCompletions:
    """Raises BadField or ChatError where there is no chat template, or messages that it refuses."""
    prompt = read_conversation(body, speech, body.model, body.constraint)
    ids = tuple(encode_rendered(prompt.text, speech.tokenizer))
    logprobs = (body.top_logprobs or 0) if body.logprobs else None
    asked = _read_completions(body, speech, [ids], body.limit, logprobs, prompt.constraint)
    field = body.constraint_field or ("tools" if prompt.constraint is not None else None)
    return replace(asked, constraint_field=field, rules=prompt.rules)


def read_conversation(body: ConversationBody, speech: Speech, model: str, answer: Constraint | None) -> ChatPrompt:
    """Raises BadField, TooLongError, or ChatError where there is no chat template, or messages that it refuses."""
    if speech.template is None:
        raise BadField(
            f"{model} has no chat template, so it can't take messages: use /v1/completions with a prompt.", "messages"
        )
    prompt = speech.prompts.prompt(body.as_request(answer), speech.template)
    speech.limit.check(prompt.text, "messages")
    return prompt


def prompt_ids(
    prompt: str | tuple[int, ...], engine: EngineClient, limit: TextLimit, param: str = "prompt"
) -> tuple[int, ...]:
    """`param`: the field that it came in. Raises BadField or TooLongError."""
    tokenizer, vocabulary = engine.base.tokenizer, engine.base.spec.vocab_size
    if not isinstance(prompt, str):
        if not all(0 <= id < vocabulary for id in prompt):
            raise BadField(f"A prompt token lies outside the base's vocabulary of {vocabulary}.", param)
        return prompt
    assert tokenizer is not None
    limit.check(prompt, param)
    ids = tuple(encode_prompt(prompt, tokenizer))
    start = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
    if not ids and start is None:
        raise BadField("The prompt is empty, and this base has no token that begins a text.", param)
    return ids or (start,)  # an empty prompt: the beginning of a text, as OpenAI takes it


def _read_completions(
    body: GenerationBody,
    speech: Speech,
    prompts: list[tuple[int, ...]],
    max_tokens: int | None,
    logprobs: int | None,
    constraint: Constraint | None,
    *,
    echo: bool = False,
    ends: tuple[int, ...] = (),
) -> AskedCompletions:
    """`ends`: ids that end an answer beside the base's and the adapter's own."""
    engine, words, tokenizer = speech.engine, speech.words, speech.tokenizer
    vocabulary, longest = engine.base.spec.vocab_size, engine.base.max_model_len
    if not all(0 <= id < vocabulary for id in body.stop_token_ids):
        raise BadField(f"A stop token lies outside the base's vocabulary of {vocabulary}.", "stop_token_ids")
    most = max(len(prompt) for prompt in prompts)
    if max_tokens is None and words.defaults.max_new_tokens is not None:
        max_tokens = max(1, min(words.defaults.max_new_tokens, longest - most))
    if most + (max_tokens or 0) > longest:
        param = "max_tokens" if most < longest else "messages" if isinstance(body, ChatBody) else "prompt"
        # LangChain goes by "prompt is too long", LiteLLM and others by the beginning.
        beside = f"and max_tokens={max_tokens or 0} is beside it"
        why = f"the prompt {'is too long: it ' if most >= longest else ''}has {most}, {beside}"
        raise TooLongError(f"This model's maximum context length is {longest} tokens; {why}.", param)
    drawn_logprobs = 0 if logprobs is None and body.made > body.n else logprobs  # by which the best ones are known
    drawing = read_drawing(body, words.defaults, tokenizer, vocabulary, drawn_logprobs)
    shows_prompt = echo and logprobs is not None
    requests = [
        Request(
            prompt=prompt,
            model=None if body.model == speech.base_name else body.model,
            max_tokens=max_tokens,
            min_tokens=body.min_tokens,
            ignore_eos=body.ignore_eos,
            stop_ids=(*body.stop_token_ids, *(() if body.ignore_eos else (*speech.stop_ids, *ends))),
            sampling=drawing.choice(i),
            score_from=0 if shows_prompt or (body.prompt_logprobs is not None and i == 0) else None,
            score_top=max(logprobs or 0, body.prompt_logprobs or 0),
            constraint=constraint,
        )
        for prompt in prompts
        for i in range(body.made)
    ]
    return AskedCompletions(
        requests=tuple(requests),
        n=body.made,
        shown=body.n,
        stops=tuple(body.stop) or words.stop_strings,
        includes_stop=body.include_stop_str_in_output,
        echo=echo,
        logprobs=logprobs,
        prompt_logprobs=body.prompt_logprobs,
        prompt_tokens=sum(len(prompt) for prompt in prompts),
        ends=stop_ids(requests[0], engine.base.ends),
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
        self.generated = 0
        self.cached = 0
        self.finish_reason: str | None = None
        self.scored: list[Token] = []  # of the prompt, from its second token on
        self._logprob = 0.0  # of what was generated
        self._min_tokens = request.min_tokens
        self._ends = asked.ends
        self._stops = StopStrings(asked.stops, included=asked.includes_stop)
        self._shows_end = asked.includes_stop
        self._reports = asked.logprobs is not None
        self._top = asked.logprobs or 0
        self._shows_prompt = asked.echo and self._reports
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
        match event:
            case Started():
                self.served, self.cached = event.served, event.cached_tokens
            case PromptScored():
                self.scored.extend(event.tokens)
                for token in event.tokens if self._shows_prompt else ():
                    self._push(replace(token, top=token.top[: self._top]))
            case Token():
                self._generate(event)
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

    def _generate(self, token: Token) -> None:
        self.generated += 1
        self._logprob += token.logprob or 0.0
        if token.id in self._ends and not self._shows_end:  # ends the text without being part of it
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


@dataclass
class Answer:
    """All choices of one request under way. `gone()`: whether the client has left. Used by one thread."""

    engine: EngineClient
    asked: AskedCompletions
    gone: Callable[[], bool]
    special: SpecialTokens
    choices: dict[Stream, Choice] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Submits everything. Raises what the engine raises, with nothing left under way."""
        self._sink: Sink = SimpleQueue()
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
        pending = [await_event(self._sink, self.gone)]
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


def await_event(sink: Sink, gone: Callable[[], bool]) -> tuple[Stream, Event | GraftError]:
    """The next event of a sink's streams. Raises Disconnected when the client has hung up."""
    while True:
        if gone():
            raise Disconnected
        try:
            return sink.get(timeout=LOOK_S)
        except Empty:
            continue
