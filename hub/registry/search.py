"""Browsing: one flat, indexed row a repo, a full-text index, and the questions people ask of them.

Functions over an open connection; `list_repo` and its kin are called inside the transaction that changes a repo, so the
listing is never behind. Private repos are part of every answer to their owners and of none to others.
"""

import json
import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from graft.hub.adapters import model_card
from graft.hub.base.manifest import BaseSpec
from graft.hub.errors import GraftError
from graft.hub.registry import facet_counts
from graft.hub.registry.access.callers import Caller
from graft.hub.registry.access.visibility import EVERYTHING, visible
from graft.hub.registry.facet_counts import Condition, Narrowed
from graft.hub.registry.naming import PRODUCTION
from graft.hub.registry.storage.database import Database

MAX_PAGE = 1000
MAX_WORDS = 64  # of a text that is looked for
MAX_INDEXED_CARD_CHARS = 20_000
NO_METHOD = "none"

# Of a row of the listing: its adapter's latest score on its task's present evaluation set.
LATEST_SCORE = (
    "(SELECT value FROM evaluations e JOIN tasks ON tasks.slug = e.task WHERE e.repo_id = listing.repo_id "
    "AND e.digest = listing.digest AND e.task = listing.task AND e.data_hash = tasks.data_hash "
    "AND e.metric = tasks.metric AND e.source = 'graft' ORDER BY e.id DESC LIMIT 1)"
)


@dataclass(frozen=True)
class Sort:
    """An order of the listing, and the index that has it."""

    order: str
    index: str


# A missing score is the smallest, so it comes last.
BY_SCORE = "score"
SORTS = {
    BY_SCORE: Sort("score DESC, repo_id DESC", "listing_score"),
    "downloads": Sort("downloads DESC, repo_id DESC", "listing_downloads"),
    "created": Sort("created_at DESC, repo_id DESC", "listing_created"),
    "updated": Sort("updated_at DESC, repo_id DESC", "listing_updated"),
    "size": Sort("bytes, repo_id", "listing_bytes"),
    "name": Sort("namespace, listing.name", "listing_name"),
}


@dataclass(frozen=True)
class Query:
    """What to look for. Empty fields ask nothing; `labels` must all be there."""

    text: str = ""
    task: str = ""
    base: str = ""  # an id, or a fingerprint
    method: str = ""
    license: str = ""
    author: str = ""
    labels: tuple[str, ...] = ()
    sort: str = "updated"
    limit: int = 50
    offset: int = 0

    @property
    def is_of_one_task(self) -> bool:
        return bool(self.task) or any(label.startswith(model_card.TASK_PREFIX) for label in self.labels)


@dataclass(frozen=True)
class SearchHit:
    """A repo as browsing shows it: its main revision, flattened. `score` is on its task's present evaluation set; `production`: the
    revision that its alias of that name points at."""

    name: str
    revision_id: str
    digest: str | None
    private: bool
    task: str
    base: str
    method: str
    license: str
    parameters: int | None
    bytes: int
    score: float | None
    downloads: int
    created_at: str
    updated_at: str
    production: str | None = None


@dataclass(frozen=True)
class Page:
    """Some of the `total` repos that answer a query; of at least so many, where it is not `exact`."""

    entries: tuple[SearchHit, ...]
    total: int
    exact: bool = True


def on_base(search: Callable[[Query], Page], spec: BaseSpec, task: str = "") -> Iterator[SearchHit]:
    """Every adapter (of `task`) on a base, each once, by whichever of its names the adapter knows it: the fingerprint,
    or the id alone, as of an adapter that was published before its base was recorded."""
    seen: set[str] = set()
    for name in dict.fromkeys((spec.fingerprint, spec.id or spec.fingerprint)):
        offset, entries = 0, search(Query(task=task, base=name, sort="name", limit=MAX_PAGE)).entries
        while entries:
            yield from (entry for entry in entries if entry.name not in seen)
            seen |= {entry.name for entry in entries}
            offset += len(entries)
            entries = search(Query(task=task, base=name, sort="name", limit=MAX_PAGE, offset=offset)).entries


def search(db: Database, query: Query, caller: Caller) -> Page:
    """Raises GraftError for an unknown sort key, for a sort by scores of several tasks, and for too many words."""
    return browse(db, query, caller, counted=())[0]


def browse(
    db: Database, query: Query, caller: Caller, counted: Sequence[str] = facet_counts.FACETS
) -> tuple[Page, dict[str, list[tuple[str, int]]]]:
    """A page, and for the facets that are to be counted their values with counts (facet_counts.py). Raises GraftError as `search`
    does."""
    if query.sort not in SORTS:
        raise GraftError(f"Can't sort by {query.sort!r}: choose one of {', '.join(SORTS)}.")
    if query.sort == BY_SCORE and not query.is_of_one_task:
        raise GraftError(
            "Scores of different tasks can't be compared: give a task to sort by score (--task T, task=T)."
        )
    chosen, seen, narrowed = _chosen(db, query), _seen(caller), _narrowed(query)
    counts = facet_counts.count(db, chosen, seen, narrowed, counted)
    where = facet_counts.all_of([*([seen] if seen else []), *facet_counts.conditions(chosen), *narrowed.conditions])
    walks = _walks(db, query, counts.total)
    source = f"listing INDEXED BY {SORTS[query.sort].index}" if walks else facet_counts.source(db, chosen, narrowed)
    rows = db.execute(
        f"SELECT {_ENTRY} FROM {source} WHERE {where.sql} ORDER BY {SORTS[query.sort].order} LIMIT ? OFFSET ?",
        [*where.values, min(query.limit, MAX_PAGE), query.offset],
    )
    return Page(tuple(_entry(row) for row in rows), counts.total), counts.facets


def facets(db: Database, query: Query, caller: Caller) -> dict[str, list[tuple[str, int]]]:
    """For each facet its values with counts (facet_counts.py)."""
    return facet_counts.count(db, _chosen(db, query), _seen(caller), _narrowed(query)).facets


def _walks(db: Database, query: Query, total: int) -> bool:
    """Whether to walk the listing in the order that is asked for until the page is full, rather than sort what is found.

    Both are known: a walk looks at so many rows as hold a page's worth of what is found, if that is spread evenly.
    """
    listed = db.execute("SELECT coalesce(sum(n), 0) FROM facet_counts").fetchone()[0]
    return (query.offset + query.limit) * listed < total * total


def labels_of(db: Database, repo_ids: Sequence[int]) -> dict[int, list[str]]:
    """repo id -> its labels."""
    labels: dict[int, list[str]] = {}
    for row in db.execute(
        "SELECT repo_id, label FROM labels WHERE repo_id IN (SELECT value FROM json_each(?))", [json.dumps(repo_ids)]
    ):
        labels.setdefault(row["repo_id"], []).append(row["label"])
    return labels


def scores_of(db: Database, repo_ids: Sequence[int]) -> dict[int, float | None]:
    """repo id -> the score it is listed with."""
    rows = db.execute(
        "SELECT repo_id, score FROM listing WHERE repo_id IN (SELECT value FROM json_each(?))", [json.dumps(repo_ids)]
    )
    return {row["repo_id"]: row["score"] for row in rows}


def list_repo(db: Database, repo_id: int, revision_id: str | None, card: Mapping[str, object], body: str) -> None:
    """Renew a repo's row, labels and indexed text from its new main revision (None: it is empty)."""
    repo = db.execute("SELECT * FROM repos WHERE id = ?", [repo_id]).fetchone()
    artifact = db.execute("SELECT * FROM artifacts WHERE revision_id = ?", [revision_id]).fetchone()
    task = artifact["task"] if artifact else model_card.task_of(card)
    base = _base_name(db, artifact) if artifact else next(iter(model_card.texts(card.get("base_model"))), "")
    # Not by REPLACE, for which SQLite calls no trigger that counts the old row out.
    db.execute("DELETE FROM listing WHERE repo_id = ?", [repo_id])
    db.table("listing").insert(
        {
            "repo_id": repo_id,
            "revision_id": revision_id or "",
            "digest": artifact["digest"] if artifact else None,
            "private": repo["private"],
            "namespace": repo["namespace"],
            "name": repo["name"],
            "task": task,
            "base": base,
            "method": artifact["method"] if artifact else NO_METHOD,
            "license": next(iter(model_card.texts(card.get("license"))), "unknown"),
            "parameters": artifact["parameters"] if artifact else None,
            "bytes": artifact["bytes"] if artifact else 0,
            "score": None,
            "downloads": repo["downloads"],
            "created_at": repo["created_at"],
            "updated_at": repo["updated_at"],
        }
    )
    extra = [model_card.TASK_PREFIX + task] if task != model_card.UNTASKED else []
    extra += [artifact["method"], f"base_model:{base}", f"base_model:adapter:{base}"] if artifact else []
    labels = model_card.labels(card, extra)
    db.execute("DELETE FROM labels WHERE repo_id = ?", [repo_id])
    db.table("labels").insert_all({"label": label, "repo_id": repo_id} for label in labels)
    _index(db, repo_id, f"{repo['namespace']}/{repo['name']}", " ".join(labels), body[:MAX_INDEXED_CARD_CHARS])
    refresh_scores(db, task, repo_id=repo_id)


def unlist_repo(db: Database, repo_id: int) -> None:
    for table in ("listing", "labels"):
        db.execute(f"DELETE FROM {table} WHERE repo_id = ?", [repo_id])
    db.execute("DELETE FROM texts WHERE rowid = ?", [repo_id])


def rename_repo(db: Database, repo_id: int, namespace: str, name: str) -> None:
    db.execute("UPDATE listing SET namespace = ?, name = ? WHERE repo_id = ?", [namespace, name, repo_id])
    db.execute("UPDATE texts SET name = ? WHERE rowid = ?", [f"{namespace}/{name}", repo_id])


def rename_base(db: Database, fingerprint: str, id: str) -> None:
    """A base has got its id, or another one: adapters that were listed under what their config calls it are found by it."""
    rows = db.execute(
        "SELECT repo_id FROM listing JOIN artifacts USING (revision_id) WHERE base_fingerprint = ? AND base != ?",
        [fingerprint, id],
    ).fetchall()
    for row in rows:
        db.execute("UPDATE listing SET base = ? WHERE repo_id = ?", [id, row["repo_id"]])
        for label in (f"base_model:{id}", f"base_model:adapter:{id}"):
            db.execute("INSERT OR IGNORE INTO labels (label, repo_id) VALUES (?, ?)", [label, row["repo_id"]])


def refresh_scores(db: Database, task: str, *, repo_id: int | None = None) -> None:
    """Set `listing.score` to the latest score of a listed adapter on its task's present evaluation set.

    Only scores recorded for the repo itself count: whoever copies an adapter can't score the original by its digest.
    """
    db.execute(
        f"UPDATE listing SET score = {LATEST_SCORE} WHERE task = ? AND (? IS NULL OR repo_id = ?)",
        [task, repo_id, repo_id],
    )


_ENTRY = (
    "namespace || '/' || listing.name AS name, revision_id, digest, private, task, "
    "base, method, license, parameters, bytes, score, downloads, "
    "created_at, updated_at, "
    "(SELECT refs.revision_id FROM refs WHERE refs.repo_id = listing.repo_id "
    f"AND refs.kind = 'alias' AND refs.name = '{PRODUCTION}') AS production"
)


def _entry(row: sqlite3.Row) -> SearchHit:
    return SearchHit(**dict(row) | {"private": bool(row["private"])})


def _base_name(db: Database, artifact: sqlite3.Row | dict[str, str]) -> str:
    row = db.execute("SELECT id FROM bases WHERE fingerprint = ?", [artifact["base_fingerprint"]]).fetchone()
    return row["id"] if row else artifact["base_id"] or ""


def _index(db: Database, repo_id: int, name: str, labels: str, card: str) -> None:
    db.execute("DELETE FROM texts WHERE rowid = ?", [repo_id])
    db.execute("INSERT INTO texts (rowid, name, labels, card) VALUES (?, ?, ?, ?)", [repo_id, name, labels, card])


def _chosen(db: Database, query: Query) -> dict[str, str]:
    """facet -> the value that is asked for; "" for any."""
    base = query.base and _base_name(db, {"base_fingerprint": query.base, "base_id": query.base})
    return {"task": query.task, "base": base, "method": query.method, "license": query.license}


def _seen(caller: Caller) -> Condition | None:
    """What the caller sees of the listing; None: everything."""
    condition, values = visible(caller, "listing")
    return None if condition == EVERYTHING else Condition(condition, tuple(values))


def _narrowed(query: Query) -> Narrowed:
    """What is asked for beside the facets."""
    lookups = []
    if labels := sorted(set(query.labels)):
        # One clause for however many: SQLite nests only so deep.
        lookups.append(
            Condition(
                "SELECT repo_id FROM labels WHERE label IN (SELECT value FROM json_each(?)) "
                "GROUP BY +repo_id HAVING count(*) = ?",  # +: looked up by label; grouped by an index, all labels are read
                (json.dumps(labels), len(labels)),
            )
        )
    words = query.text.replace("\0", " ").split()  # an index's query ends at a NUL
    if len(words) > MAX_WORDS:
        raise GraftError(f"{len(words)} words are too many to look for: give at most {MAX_WORDS}.")
    if words:
        match = " ".join('"' + word.replace('"', '""') + '"*' for word in dict.fromkeys(words))
        lookups.append(Condition("SELECT rowid FROM texts WHERE texts MATCH ?", (match,)))
    return Narrowed(tuple(lookups), query.author)
