"""Tasks, their evaluation sets, and scores: who is how good at what, measured on which data.

Functions over an open connection. A score means nothing without its data, so it carries the data's hash, and a
leaderboard only ranks what was measured by graft on the task's present evaluation set; what a card claims is kept
apart as 'self-reported'.
"""

import json
import math
import sqlite3
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from graft.hub.adapters.model_card import UNTASKED, reported_scores
from graft.hub.adapters.validation import Inspection
from graft.hub.errors import ArtifactError, ConflictError, GraftError, NotFoundError
from graft.hub.evaluation.metrics import METRICS, get_metric
from graft.hub.evaluation.task_data import parse_examples
from graft.hub.registry import search
from graft.hub.registry.audit import audit
from graft.hub.registry.naming import check_slug
from graft.hub.registry.queries import Revision
from graft.hub.registry.storage.blob_rows import record_blob
from graft.hub.registry.storage.blob_store import BlobStore
from graft.hub.registry.storage.database import Database
from graft.hub.registry.storage.schema import write_transaction
from graft.hub.registry.storage.timestamps import now
from graft.hub.registry.users import Caller

MAX_NUMBER = 2**53  # whole numbers up to here are the same in JSON, in a double and in SQLite


@dataclass(frozen=True)
class Task:
    """`data_hash` is the sha256 of its evaluation set (JSONL, a blob), `examples` the set's number of lines."""

    slug: str
    metric: str
    description: str
    data_hash: str
    examples: int
    created_at: str
    updated_at: str

    @property
    def lower_is_better(self) -> bool:
        return self.metric in METRICS and METRICS[self.metric].lower_is_better


@dataclass(frozen=True)
class Evaluation:
    """One score. `repo` None: of the bare base. [low, high]: its confidence interval. `seconds`: how long it took."""

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
    source: str = "graft"
    extra: dict[str, object] = field(default_factory=dict)
    who: str = ""
    created_at: str = ""


@dataclass(frozen=True)
class Standing:
    """A row of a leaderboard; rank 0 is the bare base, which is listed where it stands and takes no rank."""

    rank: int
    evaluation: Evaluation
    base: str
    method: str
    parameters: int
    bytes: int


_TEXTS = ("task", "data_hash", "metric", "repo", "revision", "digest", "base_fingerprint", "engine")
FIELDS: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(_TEXTS, (str,)),
    **dict.fromkeys(("value", "low", "high", "seconds"), (int, float)),
    "n": (int,),
    "extra": (dict,),
}
REQUIRED = ("task", "data_hash", "metric", "value", "n")


def read_evaluation(raw: Mapping[str, object]) -> Evaluation:
    """An evaluation from a stranger's JSON. Raises GraftError naming the first field that won't do."""
    given: dict[str, Any] = {key: value for key, value in raw.items() if value is not None}
    for key in REQUIRED:
        if key not in given:
            raise GraftError(f"The evaluation lacks {key!r}.")
    for key, value in given.items():
        if key not in FIELDS:
            raise GraftError(f"An evaluation has no field {key!r}: it has {', '.join(FIELDS)}.")
        wrong_kind = isinstance(value, bool) or not isinstance(value, FIELDS[key])
        if wrong_kind or (not isinstance(value, (str, dict)) and not abs(value) < MAX_NUMBER):
            raise GraftError(f"{key!r} must be a finite {FIELDS[key][-1].__name__}, not {value!r}.")
    return Evaluation(**given)


def add_task(db: Database, blobs: BlobStore, slug: str, metric: str, data: bytes, description: str, user: str) -> Task:
    """Raises GraftError for a bad slug or an unknown metric, DataError (with the line) for a bad evaluation set."""
    check_slug(slug)
    if slug == UNTASKED:
        raise GraftError(f"{slug!r} is what adapters without a task are for: choose another slug.")
    get_metric(metric)
    examples = len(parse_examples(data, "the evaluation set"))
    blob = blobs.put_bytes(data)
    at = now()
    with write_transaction(db):
        record_blob(db, blobs, blob, at)
        db.execute(
            "INSERT INTO tasks (slug, metric, description, data_hash, examples, created_at, updated_at) "
            "VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT (slug) DO UPDATE SET metric = excluded.metric, "
            "description = excluded.description, data_hash = excluded.data_hash, examples = excluded.examples, "
            "updated_at = excluded.updated_at",
            [slug, metric, description, blob.sha256, examples, at, at],
        )
        search.refresh_scores(db, slug)
        audit(db, user, "task.add", slug, blob.sha256)
        return task(db, slug)


def task(db: Database, slug: str) -> Task:
    row = db.execute("SELECT * FROM tasks WHERE slug = ?", [slug]).fetchone()
    if row is None:
        known = ", ".join(other.slug for other in tasks(db)) or "none yet"
        raise NotFoundError(f"There is no task {slug!r} (there are: {known}): `graft task add` adds one.")
    return Task(**dict(row))


def tasks(db: Database) -> list[Task]:
    return [Task(**dict(row)) for row in db.execute("SELECT * FROM tasks ORDER BY slug")]


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


def record(db: Database, repo_id: int | None, evaluation: Evaluation, user: str) -> None:
    """Inside the transaction that looked the repo up. Raises GraftError for a score of neither an adapter nor a base."""
    if repo_id is None and not evaluation.base_fingerprint:
        raise GraftError(
            "An evaluation is of an adapter's revision or, with base_fingerprint, of a bare base: give one."
        )
    if not all(math.isfinite(number) for number in (evaluation.value, evaluation.low or 0, evaluation.high or 0)):
        raise GraftError(
            f"{evaluation.value} within [{evaluation.low}, {evaluation.high}] is no score: it is not finite."
        )
    _insert(db, repo_id, evaluation, user)
    search.refresh_scores(db, evaluation.task, repo_id=repo_id)
    audit(db, user, "evaluation", evaluation.repo or evaluation.base_fingerprint or "", evaluation.task)


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
            source="self-reported",
            extra={"dataset": row["dataset"]},
        )
        _insert(db, repo_id, claimed, user)


def of_repo(db: Database, repo_id: int) -> list[Evaluation]:
    """Newest first."""
    rows = db.execute(f"{_EVALUATION} WHERE repo_id = ? ORDER BY evaluations.id DESC", [repo_id])
    return [_evaluation(row) for row in rows]


def leaderboard(db: Database, task: Task, base: str | None, caller: Caller) -> list[Standing]:
    """Each digest's, and each bare base's, latest score on the task's present data, best first."""
    rows = db.execute(
        f"{_STANDING} WHERE evaluations.id IN (SELECT max(id) FROM evaluations WHERE task = ? AND data_hash = ? AND metric = ? "
        "AND source = 'graft' GROUP BY repo_id, digest, base_fingerprint) AND repos.deleted_at IS NULL",
        [task.slug, task.data_hash, task.metric],
    )
    kept = [
        row
        for row in rows
        if (not row["private"] or caller.owns(row["namespace"]))
        and base in (None, row["base"], row["base_fingerprint"])
    ]
    kept.sort(key=lambda row: (row["value"] if task.lower_is_better else -row["value"], row["id"]))
    standings, rank = [], 0
    for row in kept:
        rank += row["repo"] is not None
        standings.append(
            Standing(
                rank=rank if row["repo"] else 0,
                evaluation=_evaluation(row),
                base=row["base"] or "",
                method=row["method"] or "",
                parameters=row["parameters"] or 0,
                bytes=row["bytes"] or 0,
            )
        )
    return standings


_EVALUATION = (
    "SELECT evaluations.*, repos.namespace || '/' || repos.name AS repo, evaluations.revision_id AS revision "
    "FROM evaluations LEFT JOIN repos ON repos.id = repo_id"
)
_STANDING = (
    "SELECT evaluations.*, repos.namespace || '/' || repos.name AS repo, evaluations.revision_id AS revision, "
    "repos.namespace, repos.private, coalesce(bases.id, artifacts.base_id) AS base, artifacts.method, artifacts.parameters, "
    "artifacts.bytes FROM evaluations LEFT JOIN repos ON repos.id = evaluations.repo_id "
    "LEFT JOIN artifacts ON artifacts.revision_id = evaluations.revision_id "
    "LEFT JOIN bases ON bases.fingerprint = evaluations.base_fingerprint"
)


def _evaluation(row: sqlite3.Row) -> Evaluation:
    plain = {name: row[name] for name in Evaluation.__dataclass_fields__ if name != "extra"}
    return Evaluation(**plain, extra=json.loads(row["extra"]))


def _insert(db: Database, repo_id: int | None, evaluation: Evaluation, user: str) -> None:
    plain = {name: getattr(evaluation, name) for name in Evaluation.__dataclass_fields__}
    del plain["repo"]
    plain |= {
        "repo_id": repo_id,
        "revision_id": plain.pop("revision"),
        "extra": json.dumps(evaluation.extra, allow_nan=False),
        "who": user,
        "created_at": now(),
    }
    db.table("evaluations").insert(plain)
