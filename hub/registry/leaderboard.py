"""Scores: who is how good at what, measured on which data, by whom.

Functions over an open connection. A score means nothing without its data, so it carries the data's hash, and a
leaderboard only ranks what was measured by graft on the task's present evaluation set. Only who may evaluate records
such a score; what a card or an adapter's owner claims is kept apart as 'self-reported'.
"""

import itertools
import json
import math
import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from graft.hub.adapters.model_card import reported_scores
from graft.hub.adapters.validation import Inspection
from graft.hub.errors import ArtifactError, ConflictError, GraftError, NotFoundError
from graft.hub.evaluation.metrics import get_metric
from graft.hub.registry import search
from graft.hub.registry.access.callers import OWNER, Caller
from graft.hub.registry.access.visibility import visible
from graft.hub.registry.audit import audit
from graft.hub.registry.queries import Revision
from graft.hub.registry.storage.database import Database
from graft.hub.registry.storage.timestamps import now
from graft.hub.registry.tasks import Task, count_examples, task

MEASURED, REPORTED = "graft", "self-reported"  # what `source` may be
ROUNDING = 1e-9  # of a metric's range: a mean of equal values may miss them by that
MAX_TEXT_CHARS, MAX_EXTRA_CHARS = 300, 2000
MAX_ROW = 2**63 - 1  # number of a row
MAX_NUMBER = 2**53  # whole numbers up to here are the same in JSON, in a double and in SQLite


@dataclass(frozen=True)
class Evaluation:
    """One score. `repo` None: of the bare base. [low, high]: its confidence interval. `seconds`: how long it took.

    `who` measured it, with `engine` (graft's version, device, dtype). `predictions_hash`: of what was answered, example by
    example (metrics.hash_predictions), so that it can be measured again and compared (`graft eval --verify ID`).
    """

    task: str
    data_hash: str
    metric: str
    value: float
    n: int
    repo: str | None = None
    revision: str | None = None
    digest: str | None = None
    base_fingerprint: str | None = None
    low: float | None = None
    high: float | None = None
    seconds: float | None = None
    engine: str = ""
    predictions_hash: str | None = None
    source: str = MEASURED
    extra: dict[str, object] = field(default_factory=dict)
    who: str = ""
    created_at: str = ""
    id: int | None = None  # once it is recorded


@dataclass(frozen=True, slots=True)
class Place:
    """Where a score stands on a leaderboard; rank 0 is the bare base, which is listed where it stands and takes no rank."""

    rank: int
    id: int  # the evaluation's
    base: str
    fingerprint: str | None


@dataclass(frozen=True)
class Standing:
    """A row of a leaderboard: a place (rank) and what stands there."""

    rank: int
    evaluation: Evaluation
    base: str
    method: str
    parameters: int
    bytes: int


# What whoever measured tells of an evaluation; the rest is the registry's to say.
FIELDS = tuple(name for name in Evaluation.__dataclass_fields__ if name not in ("who", "created_at", "id"))


def of_revision(evaluation: Evaluation, revision: Revision) -> Evaluation:
    """The evaluation with the revision's own id, digest and base.

    Raises ArtifactError for a revision without an adapter, ConflictError where the evaluation names others.
    """
    if revision.digest is None:
        raise ArtifactError(f"{revision.repo}@{revision.id} holds no complete adapter, so it can't have a score.")
    if evaluation.digest not in (None, revision.digest):
        raise ConflictError(
            f"The score is of the weights {evaluation.digest}, and {revision.repo}@{revision.id} holds "
            f"{revision.digest}: name the revision that was measured."
        )
    measured_on, made_for = evaluation.base_fingerprint, revision.base_fingerprint
    if made_for and measured_on not in (None, made_for):
        raise ConflictError(
            f"The score was measured on the base {measured_on}, and {revision.repo} is for {made_for}: "
            "scores on another base are not kept."
        )
    return replace(evaluation, revision=revision.id, digest=revision.digest, base_fingerprint=made_for or measured_on)


def record(db: Database, repo_id: int | None, evaluation: Evaluation, user: str) -> Evaluation:
    """Inside the transaction that looked the repo up: keep a score; returns it as it is kept.

    Raises NotFoundError for an unknown task, GraftError for a score of neither an adapter nor a base or outside its
    metric's range, ConflictError for a measured one on other data than the task's.
    """
    if repo_id is None and not evaluation.base_fingerprint:
        raise GraftError(
            "An evaluation is of an adapter's revision or, with base_fingerprint, of a bare base: give one."
        )
    if evaluation.source not in (MEASURED, REPORTED):
        raise GraftError(f"A score's source is {MEASURED!r} or {REPORTED!r}, not {evaluation.source!r}.")
    _check_range(evaluation)
    task(db, evaluation.task)
    if evaluation.source == MEASURED:
        _check_data(db, evaluation)
    id = _insert(db, repo_id, evaluation, user)
    search.refresh_scores(db, evaluation.task, repo_id=repo_id)
    subject = evaluation.repo or evaluation.base_fingerprint or ""
    audit(db, user, "evaluation", subject, f"{id} {evaluation.source} {evaluation.task} {evaluation.value}")
    return get(db, id)


def _check_range(evaluation: Evaluation) -> None:
    """Raises GraftError for a value or an interval that the metric can't have."""
    metric = get_metric(evaluation.metric)
    low = evaluation.value if evaluation.low is None else evaluation.low
    high = evaluation.value if evaluation.high is None else evaluation.high
    if not all(map(math.isfinite, (low, evaluation.value, high))):
        raise GraftError(f"{evaluation.value} within [{low}, {high}] is no score: it is not finite.")
    slack = ROUNDING * (metric.most - metric.least)
    bounds = (metric.least, low, evaluation.value, high, metric.most)
    if not all(lower <= upper + slack for lower, upper in itertools.pairwise(bounds)):
        raise GraftError(
            f"{evaluation.value} within [{low}, {high}] is no {metric.name}: that lies between {metric.least:g} and "
            f"{metric.most:g}, and a score within its interval."
        )
    if evaluation.n < 1:
        raise GraftError(f"A score is of one example at least, not of {evaluation.n}.")


def _check_data(db: Database, evaluation: Evaluation) -> None:
    """Raises ConflictError where a measured score is not of all the examples of a set that the task has or had."""
    examples = count_examples(db, evaluation.task, evaluation.data_hash)
    if examples is None:
        raise ConflictError(
            f"The data {evaluation.data_hash[:12]} is no evaluation set of {evaluation.task}, so nobody could measure this "
            f"again: send it as {REPORTED!r}, or give the task this set (`graft task add`)."
        )
    if evaluation.n != examples:
        raise ConflictError(
            f"That set of {evaluation.task} has {examples} examples, and the score is of {evaluation.n}."
        )


def get(db: Database, id: int, caller: Caller = OWNER) -> Evaluation:
    """By its number. Raises NotFoundError, also where the caller may not see the adapter."""
    seen, values = visible(caller, "live_repos")
    row = db.execute(
        f"{_EVALUATION} LEFT JOIN live_repos ON live_repos.id = repo_id "
        f"WHERE evaluations.id = ? AND (repo_id IS NULL OR (live_repos.id IS NOT NULL AND {seen}))",
        [min(id, MAX_ROW), *values],
    ).fetchone()
    if row is None:
        raise NotFoundError(f"There is no evaluation {id}: a task's page and `graft eval` show their numbers.")
    return _evaluation(row)


def record_reported(db: Database, repo_id: int, revision_id: str, inspection: Inspection, user: str) -> None:
    """Keep what a card's model-index claims, marked as claimed."""
    for row in reported_scores(inspection.card):
        claimed = Evaluation(
            task=row["task"],
            data_hash=row["data_hash"],
            metric=row["metric"],
            value=row["value"],
            n=0,
            revision=revision_id,
            digest=inspection.digest,
            base_fingerprint=inspection.base_fingerprint,
            source=REPORTED,
            extra={"dataset": row["dataset"]},
        )
        _insert(db, repo_id, claimed, user)


def of_repo(db: Database, repo_id: int) -> list[Evaluation]:
    """Newest first."""
    rows = db.execute(f"{_EVALUATION} WHERE repo_id = ? ORDER BY evaluations.id DESC", [repo_id])
    return [_evaluation(row) for row in rows]


def places(db: Database, task: Task, base: str | None, caller: Caller) -> list[Place]:
    """Each digest's, and each bare base's, latest score on the task's present data, best first. `base`: a fingerprint or id."""
    seen, values = visible(caller, "live_repos")
    latest = db.execute(
        "SELECT max(evaluations.id) AS id, value, repo_id, base_fingerprint FROM evaluations LEFT JOIN live_repos "
        f"ON live_repos.id = repo_id WHERE task = ? AND data_hash = ? AND metric = ? AND source = '{MEASURED}' "
        f"AND (repo_id IS NULL OR (live_repos.id IS NOT NULL AND {seen})) GROUP BY repo_id, digest, base_fingerprint",
        [task.slug, task.data_hash, task.metric, *values],
    ).fetchall()
    latest.sort(key=lambda row: (row["value"] if task.lower_is_better else -row["value"], row["id"]))
    found, rank, names = [], 0, _base_names(db, latest)
    for row in latest:
        name = names[_base_key(row)]
        if base in (None, name, row["base_fingerprint"]):
            rank += row["repo_id"] is not None
            found.append(Place(rank if row["repo_id"] else 0, row["id"], name, row["base_fingerprint"]))
    return found


def _base_key(row: sqlite3.Row) -> str | int:
    """What tells bases apart: the fingerprint, or the evaluation alone where there is none."""
    return row["base_fingerprint"] or row["id"]


def _base_names(db: Database, evaluations: Sequence[sqlite3.Row]) -> dict[str | int, str]:
    """What their bases are called, by `_base_key`, each looked up once; "" where neither the registry nor the adapter that was
    measured says it."""
    first = {_base_key(row): row["id"] for row in reversed(evaluations)}
    rows = db.execute(
        "SELECT evaluations.id, coalesce(bases.id, artifacts.base_id, '') AS name FROM evaluations LEFT JOIN artifacts "
        "USING (revision_id) LEFT JOIN bases ON bases.fingerprint = evaluations.base_fingerprint "
        "WHERE evaluations.id IN (SELECT value FROM json_each(?))",
        [json.dumps([*first.values()])],
    )
    names = {row["id"]: row["name"] for row in rows}
    return {key: names[id] for key, id in first.items()}


def standings(db: Database, places: Sequence[Place]) -> list[Standing]:
    """The places' details, in their order."""
    rows = db.execute(
        f"{_STANDING} WHERE evaluations.id IN (SELECT value FROM json_each(?))", [json.dumps([at.id for at in places])]
    )
    details = {row["id"]: row for row in rows}
    return [
        Standing(
            rank=place.rank,
            evaluation=_evaluation(row),
            base=place.base,
            method=row["method"] or "",
            parameters=row["parameters"] or 0,
            bytes=row["bytes"] or 0,
        )
        for place in places
        for row in [details[place.id]]
    ]


_EVALUATION = (
    "SELECT evaluations.*, repos.namespace || '/' || repos.name AS repo, evaluations.revision_id AS revision "
    "FROM evaluations LEFT JOIN repos ON repos.id = repo_id"
)
_STANDING = (
    "SELECT evaluations.*, repos.namespace || '/' || repos.name AS repo, evaluations.revision_id AS revision, "
    "artifacts.method, artifacts.parameters, artifacts.bytes FROM evaluations LEFT JOIN repos ON repos.id = repo_id "
    "LEFT JOIN artifacts ON artifacts.revision_id = evaluations.revision_id"
)


def _evaluation(row: sqlite3.Row) -> Evaluation:
    plain = {name: row[name] for name in Evaluation.__dataclass_fields__ if name != "extra"}
    return Evaluation(**plain, extra=json.loads(row["extra"]))


def _insert(db: Database, repo_id: int | None, evaluation: Evaluation, user: str) -> int:
    """Its number."""
    plain = {name: getattr(evaluation, name) for name in Evaluation.__dataclass_fields__}
    del plain["repo"], plain["id"]
    plain |= {
        "repo_id": repo_id,
        "revision_id": plain.pop("revision"),
        "extra": json.dumps(evaluation.extra, allow_nan=False),
        "who": user,
        "created_at": now(),
    }
    columns = ", ".join(plain)
    places = ", ".join("?" * len(plain))
    row = db.execute(
        f"INSERT INTO evaluations ({columns}) VALUES ({places}) RETURNING id", [*plain.values()]
    ).fetchone()
    return row["id"]
