"""Scoring a task's whole shelf in one mixed run: every adapter and the bare base, through the same engine.

Classification: the label with the largest sum of token log-probabilities after the prompt; generation: greedy text
against the reference. Knows an engine, examples and metrics; no registry, no terminal.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from queue import SimpleQueue
from typing import Protocol

from graft.hub.chat.conversation import ChatTemplate
from graft.hub.chat.words import AdapterWords
from graft.hub.errors import GraftError
from graft.hub.evaluation.eval_prompts import example_name, label_groups, reference_of, text_of, text_prompts
from graft.hub.evaluation.metrics import Metric, Score, paired_p, score
from graft.hub.evaluation.task_data import Example
from graft.server.chat.chat_templates import ChatTemplates
from graft.server.chat.detokenizer import SpecialTokens
from graft.server.chat.speech import own_ends
from graft.server.engine.client import EngineClient
from graft.server.engine.request import Embedded, Finished, PromptScored, Request, Sink, Started, Stream
from graft.server.sampling.params import Sampling, Token
from graft.server.served_version import Served

_AHEAD = 512  # requests submitted and not answered yet


@dataclass(frozen=True)
class Answers:
    """What one system says, example by example, and what it should have; `model` None is the bare base."""

    model: str | None
    served: Served
    predictions: list[str]
    references: list[str]
    seconds: float  # since the system before it was done, the first since the run could begin


@dataclass(frozen=True)
class Evaluated:
    """One system's score; `model` None is the bare base. `p`: that it differs from the bare base, paired."""

    model: str | None
    served: Served
    score: Score
    predictions: list[str]
    seconds: float  # since the system before it was done, the first since all were loaded
    p: float | None = None


@dataclass(frozen=True)
class ShelfEvaluation:
    """A mixed run. `failed`: adapters that could not be served, and why."""

    systems: list[Evaluated]
    failed: dict[str, str]
    seconds: float


@dataclass(frozen=True)
class _Ask:
    """One request that every system gets, and which answers it gives."""

    example: int
    request: Request
    labels: tuple[tuple[str, int], ...] = ()  # (label, index of its last id in score_next)


@dataclass
class _Answer:
    """What one system says to it."""

    ask: _Ask
    scored: list[Token] = field(default_factory=list)
    drawn: list[Token] = field(default_factory=list)


class Listener(Protocol):
    """Whoever wants to know how a run goes."""

    def loaded(self, systems: int) -> None:
        """So many will be scored, the bare base among them."""

    def refused(self, model: str, why: str) -> None:
        """An adapter can't be served; the others go on."""

    def scored(self, system: Evaluated) -> None:
        """A system is done: whatever happens later, this score stands."""

    def answered(self, done: int, total: int) -> None:
        """So many requests have their answer."""


def evaluate(
    engine: EngineClient,
    models: Sequence[str],
    examples: Sequence[Example],
    metric: Metric,
    listener: Listener,
) -> ShelfEvaluation:
    """Score `models` and the bare base, which comes first; `listener` is told of each as soon as it is done.

    Raises DataError naming an example that lacks labels the metric needs, or has no room for its prompt.
    """
    began = time.monotonic()
    served, failed = _load_all(engine, models, listener)
    listener.loaded(1 + len(served))
    judge = Judge(metric)
    done: list[Evaluated] = []
    virtual = max((one.virtual_tokens for one in engine.adapters().values()), default=0)
    systems: dict[str | None, Served] = {None: Served()}
    systems.update(served)
    for answers in answer(systems, engine, examples, metric, virtual, listener.answered):
        done.append(judge.score(answers))
        listener.scored(done[-1])
    return ShelfEvaluation(done, failed, time.monotonic() - began)


def answer(
    systems: Mapping[str | None, Served],
    engine: EngineClient,
    examples: Sequence[Example],
    metric: Metric,
    virtual: int,
    progress: Callable[[int, int], None],
) -> Iterator[Answers]:
    """What each of `systems` says to the examples, one system after the other.

    All get the same prompts: `virtual` tokens, of the longest virtual prompt among all that are compared, are left free. Raises
    DataError naming an example that lacks labels the metric needs, or has no room for its prompt.
    """
    at = time.monotonic()
    room = engine.base.max_model_len - virtual
    asks = _asks_of_all(engine, [one.words for one in systems.values()], examples, metric, room)
    assert engine.base.tokenizer is not None  # examples are text
    references = [reference_of(example, engine.base.tokenizer) for example in examples]
    read = {"labels": _best_label, "text": lambda answers: _text(engine, answers)}[metric.answers]
    given = _collect_answers(engine, list(systems), asks, progress)
    for (model, served), answers in zip(systems.items(), given, strict=True):
        predictions = [read(own) for own in _by_example(answers, len(examples))]
        now = time.monotonic()
        yield Answers(model, served, predictions, references, seconds=now - at)
        at = now


class Judge:
    """Scores systems on the same examples; the bare base comes first, for the others are paired with it."""

    def __init__(self, metric: Metric):
        self._metric = metric
        self._bare: list[float] | None = None

    def score(self, answers: Answers) -> Evaluated:
        values = self._metric.values(answers.predictions, answers.references)
        p = None if self._bare is None else paired_p(self._metric, values, self._bare)
        self._bare = values if self._bare is None else self._bare
        result = score(self._metric, values)
        return Evaluated(answers.model, answers.served, result, answers.predictions, answers.seconds, p)


def _load_all(
    engine: EngineClient, models: Sequence[str], listener: Listener
) -> tuple[dict[str, Served], dict[str, str]]:
    """Load every adapter, all at once: what each stands for, and what is wrong with the others."""
    streams = {name: engine.submit(Request(prompt=(0,), model=name, max_tokens=1)) for name in models}
    served, failed = {}, {}
    for name, stream in streams.items():
        try:
            served[name] = stream.result().served
        except GraftError as error:
            failed[name] = str(error)
            listener.refused(name, failed[name])
    return served, failed


def _asks_of_all(
    engine: EngineClient, words: Sequence[AdapterWords], examples: Sequence[Example], metric: Metric, room: int
) -> list[list[_Ask]]:
    """What each system is asked, in prompts of at most `room` tokens. Those whose words make the same of the examples share it."""
    tokenizer, vocabulary = engine.base.tokenizer, engine.base.spec.vocab_size
    assert tokenizer is not None  # examples are text
    templates, tokens = ChatTemplates(tokenizer), SpecialTokens(tokenizer)
    chats = any(not isinstance(example.prompt, str) for example in examples)
    make = {"labels": _label_asks, "text": _text_asks}[metric.answers]
    made: dict[tuple[str, tuple[int, ...]], list[_Ask]] = {}
    asks = []
    for own in words:
        template = templates.choose(own) if chats else None
        ends = tuple(id for id in own_ends(own, tokens, vocabulary) if id not in engine.base.ends)
        key = (template.text(with_tools=False) if template else "", ends)
        if key not in made:
            made[key] = make(engine, examples, room, template, ends)
        asks.append(made[key])
    return asks


def _label_asks(
    engine: EngineClient, examples: Sequence[Example], room: int, template: ChatTemplate | None, ends: tuple[int, ...]
) -> list[_Ask]:
    """Labels that differ in their last id only are one request: the ids before it, then all the last ones."""
    tokenizer = engine.base.tokenizer
    assert tokenizer is not None  # examples are text
    asks = []
    for index, example in enumerate(examples):
        for group in label_groups(example, tokenizer, room, example_name(index), template):
            request = Request(
                prompt=(*group.prompt, *group.before),
                max_tokens=0,
                score_from=len(group.prompt) if group.before else None,
                score_next=tuple(group.last.values()),
            )
            asks.append(_Ask(index, request, tuple((label, place) for place, label in enumerate(group.last))))
    return asks


def _text_asks(
    engine: EngineClient, examples: Sequence[Example], room: int, template: ChatTemplate | None, ends: tuple[int, ...]
) -> list[_Ask]:
    tokenizer = engine.base.tokenizer
    assert tokenizer is not None
    prompts, new_tokens = text_prompts(examples, tokenizer, room, template)
    return [
        _Ask(index, Request(prompt=prompt, max_tokens=new_tokens, stop_ids=ends, sampling=Sampling(temperature=0)))
        for index, prompt in enumerate(prompts)
    ]


def _collect_answers(
    engine: EngineClient,
    systems: Sequence[str | None],
    asks: Sequence[Sequence[_Ask]],
    progress: Callable[[int, int], None],
) -> Iterator[list[_Answer]]:
    """Each system's answers to its own `asks`, one system after the other, so that an end in the middle leaves whole ones.

    The engine is kept supplied across their boundaries. Raises the first error, the rest cancelled.
    """
    sink: Sink = SimpleQueue()
    waiting: dict[Stream, tuple[int, _Answer]] = {}
    given: list[list[_Answer]] = [[] for _ in systems]
    left = ((place, _Answer(ask)) for place, own in enumerate(asks) for ask in own)
    done, total = 0, sum(map(len, asks))

    def submit(place: int, answer: _Answer) -> None:
        waiting[engine.submit(replace(answer.ask.request, model=systems[place]), sink)] = (place, answer)

    try:
        for place, answer in islice(left, _AHEAD):
            submit(place, answer)
        for place in range(len(systems)):
            while len(given[place]) < len(asks[place]):
                stream, event = sink.get()
                match event:
                    case Started() | Embedded():  # hidden states, which nobody here asks for
                        pass
                    case PromptScored():
                        waiting[stream][1].scored.extend(event.tokens)
                    case Token():
                        waiting[stream][1].drawn.append(event)
                    case Finished():
                        finished, answer = waiting.pop(stream)
                        given[finished].append(answer)
                        done += 1
                        progress(done, total)
                        for follower in islice(left, 1):
                            submit(*follower)
                    case _:
                        raise event
            yield given[place]
    finally:
        for stream in waiting:
            stream.cancel()


def _by_example(answers: Sequence[_Answer], count: int) -> list[list[_Answer]]:
    by_example: list[list[_Answer]] = [[] for _ in range(count)]
    for answer in answers:
        by_example[answer.ask.example].append(answer)
    return by_example


def _best_label(answers: Sequence[_Answer]) -> str:
    sums: dict[str, float] = {}
    for answer in answers:
        labels = answer.ask.labels
        shared = len(answer.scored) - len(labels)
        before = sum(map(_logprob, answer.scored[:shared]))
        for label, place in labels:
            sums[label] = before + _logprob(answer.scored[shared + place])
    return max(sums, key=sums.__getitem__)


def _logprob(token: Token) -> float:
    assert token.logprob is not None  # of a scored one
    return token.logprob


def _text(engine: EngineClient, answers: Sequence[_Answer]) -> str:
    (answer,) = answers
    assert engine.base.tokenizer is not None
    ends = engine.base.ends | set(answer.ask.request.stop_ids)
    ids = [token.id for token in answer.drawn if token.id not in ends]
    return text_of(ids, engine.base.tokenizer)
