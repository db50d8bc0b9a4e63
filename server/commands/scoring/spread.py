"""Adapters scored as tasks of a Ray cluster, one a task; the bare base is one of them.

Workers know no registry: adapters and examples travel to them, and what was answered comes back. A worker keeps its base and
engine for the next task.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from tempfile import TemporaryDirectory

from graft.hub.adapters.validation import read_virtual_tokens
from graft.hub.base.wanted_base import WantedBase, kept_base, wanted_base
from graft.hub.errors import ArtifactError, GraftError
from graft.hub.evaluation.metrics import get_metric
from graft.hub.evaluation.task_data import Example
from graft.hub.machine.folder_files import Files, read_files, write_files
from graft.hub.machine.ray_tasks import Cluster, Piece, Spread
from graft.hub.registry.interface import AnyRegistry
from graft.server.benchmark.dtype_speed import evaluating
from graft.server.commands.scoring.contest import BaseAsked, Contest, Entrant
from graft.server.commands.scoring.machinery import EVALUATING
from graft.server.commands.scoring.scorekeeping import BARE
from graft.server.engine.client import EngineClient
from graft.server.engine.engine import Engine
from graft.server.evaluation.evaluate import Answers, Judge, Listener, answer
from graft.server.served_version import Served


@dataclass(frozen=True)
class _Task:
    """What all pieces share. `virtual`: tokens of the longest virtual prompt among all that are compared."""

    base: WantedBase
    examples: tuple[Example, ...]
    metric: str
    virtual: int


@dataclass(frozen=True)
class _Asked:
    """One adapter, with its files."""

    entrant: Entrant
    files: Files


class ScorerSpread:
    """A Scorer whose workers load the base."""

    def __init__(self, asked: BaseAsked, spread: Spread, say: Callable[[str], None]):
        """Raises BaseModelError."""
        self._say, self._spread = say, spread
        self._wanted, self.spec = wanted_base(asked.folder, asked.dtype, asked.device, evaluating(), say)
        self.device, self.dtype = self._wanted.device, self._wanted.dtype

    def score(self, contest: Contest, listener: Listener) -> None:
        """Raises GraftError where no cluster can be joined, or the bare base can't be scored."""
        with Cluster(self._spread, self._say) as cluster, _lender(contest.registry) as lend:
            sound, virtual = _look(lend, contest.entrants, listener)
            shared = _Task(self._wanted, tuple(contest.examples), contest.metric.name, virtual)
            queue: deque[Piece[_Asked | None]] = deque([Piece(BARE, lambda: None)])
            queue.extend(Piece(entrant.model, partial(_ask, lend, entrant)) for entrant in sound)
            listener.loaded(total := len(queue))
            results = cluster.run(_answer, shared, queue, gpu=self.device == "cuda")
            judge = Judge(contest.metric)
            for done, answers in enumerate(_bare_first(results, listener), start=1):
                listener.scored(judge.score(answers))
                listener.answered(done, total)


def _bare_first(
    results: Iterable[tuple[Piece[_Asked | None], Answers | GraftError]], listener: Listener
) -> Iterator[Answers]:
    """What was answered; adapters wait until the bare base, which they are paired with, is there. Raises its GraftError."""
    waiting: list[Answers] = []
    bare_is_there = False
    for piece, found in results:
        if isinstance(found, GraftError):
            if piece.name == BARE:
                raise found
            listener.refused(piece.name, str(found))
            continue
        bare_is_there |= piece.name == BARE
        waiting.insert(0 if piece.name == BARE else len(waiting), found)
        if bare_is_there:
            yield from waiting
            waiting.clear()


Lend = Callable[[Entrant], AbstractContextManager[Path]]


@contextmanager
def _lender(registry: AnyRegistry) -> Iterator[Lend]:
    """Lends adapters' folders. A hub is asked for each once: it counts what it hands out."""
    with TemporaryDirectory(prefix="graft-eval-") as pulled:

        @contextmanager
        def pull(entrant: Entrant) -> Iterator[Path]:
            place = Path(pulled, entrant.repo, entrant.revision)
            if not place.exists():
                registry.pull(entrant.model, place)
            yield place

        yield pull if registry.is_far else lambda entrant: registry.lend(entrant.model)


def _look(lend: Lend, entrants: Sequence[Entrant], listener: Listener) -> tuple[list[Entrant], int]:
    """Those that hold an adapter, and the longest virtual prompt among them: all are to get the same prompts."""
    sound, virtual = [], 0
    for entrant in entrants:
        try:
            with lend(entrant) as folder:
                virtual = max(virtual, read_virtual_tokens(folder))
            sound.append(entrant)
        except GraftError as error:
            listener.refused(entrant.model, str(error))
    return sound, virtual


def _ask(lend: Lend, entrant: Entrant) -> _Asked:
    with lend(entrant) as folder:
        return _Asked(entrant, read_files(folder))


def _answer(task: _Task, asked: _Asked | None) -> Answers:
    """On a worker: one adapter's answers, or (None) the bare base's. Raises GraftError for what can't be served here."""
    engine, metric = _kept_engine(task.base), get_metric(task.metric)

    def run(model: str | None, served: Served) -> Answers:
        (answers,) = answer({model: served}, engine, task.examples, metric, task.virtual, lambda done, total: None)
        return answers

    if asked is None:
        return run(None, Served())
    model, digest = asked.entrant.model, asked.entrant.digest
    with TemporaryDirectory(prefix="graft-eval-") as folder:
        write_files(asked.files, Path(folder))
        try:
            served = replace(engine.attach(model, Path(folder)), name=model, revision=asked.entrant.revision)
            if digest not in (None, served.digest):
                raise ArtifactError(f"{model} holds the weights {served.digest}, not those of its record, {digest}.")
            return run(model, served)
        finally:
            engine.detach(model)


@lru_cache(maxsize=1)
def _kept_engine(wanted: WantedBase) -> EngineClient:
    """Of this worker, until it ends. Raises as `WantedBase.load`."""
    return EngineClient(Engine(kept_base(wanted), options=EVALUATING))
