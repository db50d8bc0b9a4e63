"""Scoring a task's whole shelf in one mixed run: every adapter and the bare base, through the same engine.

Classification: the label with the largest sum of token log-probabilities after the prompt; generation: greedy text
against the reference. Knows an engine, examples and metrics; no registry, no terminal.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from queue import SimpleQueue

from graft.hub.errors import GraftError
from graft.hub.examples import Example
from graft.hub.metrics import Metric, Score, paired_p, score
from graft.hub.scoring import label_groups, named, text_of, text_prompts
from graft.server.engine import Engine
from graft.server.requests import Finished, Request, Scored, Served, Started, Stream
from graft.server.sampling import Sampling, Token

_AHEAD = 512  # requests submitted and not answered yet


@dataclass(frozen=True)
class Evaluated:
    """One system's score; `model` None is the bare base. `p`: that it differs from the bare base, paired."""

    model: str | None
    served: Served
    score: Score
    predictions: list[str]
    p: float | None = None


@dataclass(frozen=True)
class Evaluation:
    """A mixed run. `failed`: adapters that could not be served, and why."""

    systems: list[Evaluated]
    failed: dict[str, str]
    seconds: float


@dataclass
class _Job:
    """One request of the run, and which answers it gives."""

    model: str | None
    example: int
    request: Request
    labels: tuple[tuple[str, int], ...] = ()  # (label, index of its last id in score_next)
    scored: list[Token] = field(default_factory=list)
    drawn: list[Token] = field(default_factory=list)


def evaluate(
    engine: Engine,
    models: Sequence[str],
    examples: Sequence[Example],
    metric: Metric,
    *,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Evaluation:
    """Score `models` and the bare base. `progress(done, total)` counts requests.

    Raises DataError naming an example that lacks labels the metric needs, or has no room for its prompt.
    """
    began = time.monotonic()
    served, failed = _loaded(engine, models)
    systems: list[str | None] = [None, *served]
    plan = {"labels": _label_jobs, "text": _text_jobs}[metric.answers]
    jobs = plan(engine, systems, examples)
    _run(engine, jobs, progress)
    answer = {"labels": _best_label, "text": lambda jobs: _text(engine, jobs)}[metric.answers]
    references = [example.completion for example in examples]
    found: list[Evaluated] = []
    values: dict[str | None, list[float]] = {}
    for model in systems:
        predictions = [answer(own) for own in _by_example(jobs, model, len(examples))]
        values[model] = metric.values(predictions, references)
        p = paired_p(metric, values[model], values[None]) if model is not None else None
        found.append(Evaluated(model, served.get(model, Served()), score(metric, values[model]), predictions, p))
    return Evaluation(found, failed, time.monotonic() - began)


def _loaded(engine: Engine, models: Sequence[str]) -> tuple[dict[str, Served], dict[str, str]]:
    """Load every adapter, all at once: what each stands for, and what is wrong with the others."""
    streams = {name: engine.submit(Request(prompt=(0,), model=name, max_tokens=1)) for name in models}
    served, failed = {}, {}
    for name, stream in streams.items():
        try:
            served[name] = stream.result().served
        except GraftError as error:
            failed[name] = str(error)
    return served, failed


def _room(engine: Engine) -> int:
    """Tokens that every system can take: the longest sequence less the longest virtual prompt."""
    return engine.sizes.max_model_len - max((one.virtual_rows for one in engine.loader.snapshot()), default=0)


def _label_jobs(engine: Engine, systems: Sequence[str | None], examples: Sequence[Example]) -> list[_Job]:
    """Labels that differ in their last id only are one request: the ids before it, then all the last ones."""
    room, jobs = _room(engine), []
    for index, example in enumerate(examples):
        for group in label_groups(example, engine.base.tokenizer, room, named(index)):
            request = Request(
                prompt=(*group.prompt, *group.before),
                max_tokens=0,
                score_from=len(group.prompt) if group.before else None,
                score_next=tuple(group.last.values()),
            )
            places = tuple((label, place) for place, label in enumerate(group.last))
            jobs += [_Job(model, index, replace(request, model=model), places) for model in systems]
    return jobs


def _text_jobs(engine: Engine, systems: Sequence[str | None], examples: Sequence[Example]) -> list[_Job]:
    prompts, new_tokens = text_prompts(examples, engine.base.tokenizer, _room(engine))
    jobs = []
    for index, prompt in enumerate(prompts):
        request = Request(prompt=prompt, max_tokens=new_tokens, sampling=Sampling(temperature=0))
        jobs += [_Job(model, index, replace(request, model=model)) for model in systems]
    return jobs


def _run(engine: Engine, jobs: Sequence[_Job], progress: Callable[[int, int], None]) -> None:
    """Keep the engine supplied until every job has its answer. Raises the first error, the rest cancelled."""
    sink: SimpleQueue = SimpleQueue()
    waiting: dict[Stream, _Job] = {}
    left = iter(jobs)
    done = 0

    def submit() -> None:
        job = next(left, None)
        if job is not None:
            waiting[engine.submit(job.request, sink)] = job

    try:
        for _ in range(_AHEAD):
            submit()
        while waiting:
            stream, event = sink.get()
            match event:
                case Started():
                    pass
                case Scored():
                    waiting[stream].scored += event.tokens
                case Token():
                    waiting[stream].drawn.append(event)
                case Finished():
                    del waiting[stream]
                    done += 1
                    progress(done, len(jobs))
                    submit()
                case _:
                    raise event
    finally:
        for stream in waiting:
            stream.cancel()


def _by_example(jobs: Sequence[_Job], model: str | None, count: int) -> Iterator[list[_Job]]:
    found: list[list[_Job]] = [[] for _ in range(count)]
    for job in jobs:
        if job.model == model:
            found[job.example].append(job)
    return iter(found)


def _best_label(jobs: Sequence[_Job]) -> str:
    sums: dict[str, float] = {}
    for job in jobs:
        shared = len(job.scored) - len(job.labels)
        before = sum(token.logprob for token in job.scored[:shared])
        for label, place in job.labels:
            sums[label] = before + job.scored[shared + place].logprob
    return max(sums, key=sums.__getitem__)


def _text(engine: Engine, jobs: Sequence[_Job]) -> str:
    (job,) = jobs
    ids = [token.id for token in job.drawn if token.id not in engine.ends]
    return text_of(ids, engine.base.tokenizer)
