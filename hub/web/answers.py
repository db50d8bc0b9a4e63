"""What graft's own API answers, beside the registry's own records (Revision, Task, Evaluation, ...).

From these the descriptions in /openapi.json are made, and by them the answers are written.
"""

from dataclasses import asdict, dataclass
from typing import Literal, get_args

from flask import Response
from pydantic import TypeAdapter

from graft.hub.adapters.validation import Inspection
from graft.hub.registry.leaderboard import Evaluation, Standing
from graft.hub.registry.queries import File, Revision
from graft.hub.registry.refs import Move, Ref
from graft.hub.registry.search import SearchHit
from graft.hub.registry.tasks import Task


@dataclass(frozen=True)
class Health:
    """The registry can be read."""

    status: Literal["ok"] = "ok"


@dataclass(frozen=True)
class FacetCount:
    """How many adapters have a value, under the other facets that were chosen."""

    value: str
    count: int


@dataclass(frozen=True)
class Found:
    """A page of adapters; `total` is of all pages. No facets where they were not asked for."""

    total: int
    adapters: tuple[SearchHit, ...]
    facets: dict[str, list[FacetCount]]


@dataclass(frozen=True)
class Version(Revision):
    """A revision with its files and what was found in its adapter (null: it holds none)."""

    artifact: Inspection | None
    files: list[File]


@dataclass(frozen=True)
class History:
    """A page of each: revisions from main back, refs by kind and name, moves newest first."""

    revisions: list[Revision]
    refs: list[Ref]
    moves: list[Move]


@dataclass(frozen=True)
class Tasks:
    """Every task."""

    tasks: list[Task]


@dataclass(frozen=True)
class Leaderboard:
    """The task's adapters and bare bases, best first."""

    task: Task
    lower_is_better: bool
    standings: list[Standing]


@dataclass(frozen=True)
class Evaluations:
    """Newest first."""

    evaluations: list[Evaluation]


@dataclass(frozen=True)
class BaseRow:
    """A recorded base."""

    id: str
    fingerprint: str
    created_at: str


@dataclass(frozen=True)
class Bases:
    """Every recorded base."""

    bases: list[BaseRow]


@dataclass(frozen=True)
class BaseKey:
    """What a base is known by now."""

    id: str | None
    fingerprint: str
    for_everybody: bool  # or for its sender's own commits


@dataclass(frozen=True)
class Error:
    """What happened, why, and what to do; and graft's word for the kind of it."""

    error: str
    code: str


Answer = (
    Health
    | Found
    | Version
    | Revision
    | History
    | Tasks
    | Task
    | Leaderboard
    | Evaluations
    | Bases
    | BaseKey
    | Evaluation
)

_ADAPTERS: dict[type, TypeAdapter[Answer]] = {kind: TypeAdapter(kind) for kind in get_args(Answer)}


def answer(value: Answer) -> Response:
    """As JSON."""
    return Response(_ADAPTERS[type(value)].dump_json(value), mimetype="application/json")


def version(revision: Revision, artifact: Inspection | None, files: list[File]) -> Version:
    return Version(**asdict(revision), artifact=artifact, files=files)
