"""What a registry's rows mean: repos, revisions, files, and how each is read.

Functions over an open connection; nothing is written here.
"""

import json
import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from graft.hub.adapters.validation import Inspection
from graft.hub.errors import DisabledRepoError, EntryNotFoundError, RepoNotFoundError
from graft.hub.registry import refs
from graft.hub.registry.access.callers import OWNER, Caller
from graft.hub.registry.access.visibility import owned, visible
from graft.hub.registry.naming import MAIN, branch_of
from graft.hub.registry.storage.blob_store import Tree, sha256_of
from graft.hub.registry.storage.database import Database

MOST_LISTED = 1000  # rows of a history, unless more are asked for


@dataclass(frozen=True)
class Repo:
    """A repo's row. `disabled` says why an operator withdrew it."""

    id: int
    name: str  # "namespace/name"
    private: bool
    disabled: str | None
    created_at: str
    updated_at: str
    downloads: int

    @property
    def namespace(self) -> str:
        return self.name.partition("/")[0]


@dataclass(frozen=True)
class Revision:
    """One commit, and what was found in its adapter (None, where it holds no complete adapter)."""

    repo: str
    id: str
    parent: str | None
    author: str
    title: str
    message: str
    created_at: str
    digest: str | None
    method: str | None
    variant: str | None
    task: str | None
    base_id: str | None
    base_fingerprint: str | None
    parameters: int | None
    bytes: int | None
    max_rank: int | None
    dtype: str | None


# What a revision tells of its adapter: what it has in common with the adapter's inspection.
FACTS = tuple(name for name in Revision.__dataclass_fields__ if name in Inspection.__dataclass_fields__)


@dataclass(frozen=True)
class File:
    """A file of a revision. `changed_in`: the commit that last wrote it."""

    path: str
    sha256: str
    git_oid: str
    size: int
    changed_in: str


def repo(db: Database, name: str, caller: Caller) -> Repo:
    """By its name, or one it had. Raises RepoNotFoundError when there is none, it was deleted, or `caller` may not see it,
    DisabledRepoError for a withdrawn one."""
    found = repo_even_if_disabled(db, name, caller)
    if found.disabled is not None:
        raise DisabledRepoError(f"{DisabledRepoError.sentence} Why: {found.disabled}")
    return found


def repo_even_if_disabled(db: Database, name: str, caller: Caller = OWNER) -> Repo:
    """As `repo`, for who withdraws it or brings it back."""
    namespace, _, short = name.partition("/")
    seen, values = visible(caller, "repos")
    row = db.execute(
        "SELECT repos.* FROM repos AS named JOIN repos ON repos.id = coalesce(named.moved_to, named.id) "
        f"WHERE named.namespace = ? AND named.name = ? AND repos.deleted_at IS NULL AND {seen}",
        [namespace, short, *values],
    ).fetchone()
    if row is None:
        raise RepoNotFoundError(f"There is no adapter {name!r} here, or it is private and you are not signed in.")
    return _repo(row)


def is_name_of_a_repo(db: Database, name: str) -> bool:
    """Whether there is a repo of that name, or once of that name, be it hidden or withdrawn."""
    try:
        repo_even_if_disabled(db, name)
    except RepoNotFoundError:
        return False
    return True


def repos_named(db: Database, names: Sequence[str]) -> dict[str, Repo]:
    """name -> repo, of those that are there under just this name."""
    pairs = json.dumps([name.partition("/")[::2] for name in names])
    rows = db.execute(
        "SELECT live_repos.* FROM json_each(?) JOIN live_repos ON namespace = json_extract(value, '$[0]') "
        "AND name = json_extract(value, '$[1]')",
        [pairs],
    )
    return {repo.name: repo for repo in map(_repo, rows)}


def _repo(row: sqlite3.Row) -> Repo:
    return Repo(
        id=row["id"],
        name=f"{row['namespace']}/{row['name']}",
        private=bool(row["private"]),
        disabled=row["disabled"],
        created_at=row["created_at"],
        updated_at=row["updated_at"],
        downloads=row["downloads"],
    )


@dataclass(frozen=True)
class StoredRepo:
    """A repo and the bytes of all its versions, each file once; `all_bytes` of all repos that were asked for."""

    name: str
    private: bool
    updated_at: str
    bytes: int
    all_bytes: int


def stored_repos(db: Database, caller: Caller, namespace: str | None, limit: int, offset: int) -> list[StoredRepo]:
    """The caller's own repos (in one namespace), the latest first."""
    mine, values = owned(caller, "live_repos")
    rows = db.execute(
        "WITH sizes AS (SELECT namespace || '/' || name AS name, private, updated_at, (SELECT coalesce(sum(size), 0) FROM "
        "blobs WHERE sha256 IN (SELECT sha256 FROM files JOIN revisions ON revisions.id = revision_id "
        f"WHERE repo_id = live_repos.id)) AS bytes FROM live_repos WHERE {mine} AND (? IS NULL OR namespace = ?)) "
        "SELECT *, sum(bytes) OVER () AS all_bytes FROM sizes ORDER BY updated_at DESC, name LIMIT ? OFFSET ?",
        [*values, namespace, namespace, limit, offset],
    )
    return [StoredRepo(**dict(row) | {"private": bool(row["private"])}) for row in rows]


def branch_head(db: Database, repo: Repo, branch: str) -> str | None:
    """A branch's head; None for a branch main that has no commit yet. Raises RevisionNotFoundError."""
    branch = branch_of(branch)
    return refs.target(db, repo.id, "branch", branch) if branch == MAIN else refs.branch(db, repo.id, branch)


def revision(db: Database, id: str) -> Revision:
    return revisions(db, [id])[id]


def revisions(db: Database, ids: Sequence[str]) -> dict[str, Revision]:
    """id -> revision, of those that are there."""
    rows = db.execute(f"{_REVISION} WHERE revisions.id IN (SELECT value FROM json_each(?))", [json.dumps(ids)])
    return {row["id"]: Revision(**dict(row)) for row in rows}


def line(db: Database, start: str, limit: int, offset: int = 0) -> list[Revision]:
    """From `offset` revisions before `start` back towards the first, following parents."""
    rows = db.execute(
        "WITH RECURSIVE line(id, depth) AS (SELECT ?, 0 UNION ALL SELECT revisions.parent, depth + 1 FROM line "
        "JOIN revisions ON revisions.id = line.id WHERE revisions.parent IS NOT NULL AND depth < ?) "
        f"{_REVISION} JOIN line ON line.id = revisions.id WHERE depth >= ? ORDER BY depth LIMIT ?",
        [start, offset + limit - 1, offset, limit],
    )
    return [Revision(**dict(row)) for row in rows]


def tree(db: Database, revision_id: str | None) -> Tree:
    """path -> sha256; empty for None."""
    rows = db.execute("SELECT path, sha256 FROM files WHERE revision_id = ?", [revision_id])
    return {row["path"]: row["sha256"] for row in rows}


def files(db: Database, revision_id: str | None) -> list[File]:
    return [_file(row) for row in db.execute(f"{_FILE} WHERE revision_id = ? ORDER BY path", [revision_id])]


def files_of(db: Database, revision_ids: Sequence[str]) -> dict[str, list[File]]:
    """revision id -> its files, by path."""
    rows = db.execute(
        f"{_FILE} WHERE revision_id IN (SELECT value FROM json_each(?)) ORDER BY revision_id, path",
        [json.dumps(revision_ids)],
    )
    by_revision: dict[str, list[File]] = {}
    for row in rows:
        by_revision.setdefault(row["revision_id"], []).append(_file(row))
    return by_revision


def unchanged_files(db: Database, folder: Path, revision_id: str) -> list[str]:
    """The files in `folder` that are just as one of the versions of the revision's repo has them."""
    if not folder.is_dir():
        return []
    versions = versions_of_files(db, revision_id)
    return [path for path, hashes in versions.items() if sha256_of(folder / path) in hashes]


def versions_of_files(db: Database, revision_id: str) -> dict[str, set[str]]:
    """path -> the sha256 that it has, or had, in any revision of the repo that `revision_id` is of."""
    rows = db.execute(
        "SELECT DISTINCT path, sha256 FROM files JOIN revisions ON revisions.id = files.revision_id "
        "WHERE repo_id = (SELECT repo_id FROM revisions WHERE id = ?)",
        [revision_id],
    )
    versions: dict[str, set[str]] = {}
    for row in rows:
        versions.setdefault(row["path"], set()).add(row["sha256"])
    return versions


def cards(db: Database, revision_ids: Sequence[str]) -> dict[str, dict[str, object]]:
    """revision id -> its card's front matter, of those that hold an adapter."""
    rows = db.execute(
        "SELECT revision_id, card FROM artifacts WHERE revision_id IN (SELECT value FROM json_each(?))",
        [json.dumps(revision_ids)],
    )
    return {row["revision_id"]: _read_column(row["card"]) for row in rows}


def file(db: Database, revision_id: str, path: str) -> File:
    """Raises EntryNotFoundError."""
    row = db.execute(f"{_FILE} WHERE revision_id = ? AND path = ?", [revision_id, path]).fetchone()
    if row is None:
        raise EntryNotFoundError(f"There is no file {path!r} in revision {revision_id}.")
    return _file(row)


def _file(row: sqlite3.Row) -> File:
    return File(**{name: row[name] for name in File.__dataclass_fields__})


def inspection_of(db: Database, revision_id: str) -> Inspection | None:
    """What was found in the revision's adapter when it was published."""
    row = db.execute("SELECT * FROM artifacts WHERE revision_id = ?", [revision_id]).fetchone()
    if row is None:
        return None
    plain = {name: row[name] for name in Inspection.__dataclass_fields__ if name not in _JSON_COLUMNS}
    return Inspection(**plain, **{name: _read_column(row[name]) for name in _JSON_COLUMNS})


def _read_column(text: str) -> Any:
    """JSON of a column. Registries of graft before 0.1 may hold a card's NaN, which is no JSON: it reads as null."""
    return json.loads(text, parse_constant=lambda _: None)


def artifact_row(revision_id: str, inspection: Inspection) -> dict[str, object]:
    """The row that `inspection_of` reads back."""
    row = {name: getattr(inspection, name) for name in Inspection.__dataclass_fields__}
    as_json = {name: json.dumps(row[name], allow_nan=False) for name in _JSON_COLUMNS}
    return {"revision_id": revision_id} | row | as_json


_JSON_COLUMNS = ("config", "tensors", "provenance", "card", "warnings")
_REVISION = (
    "SELECT repos.namespace || '/' || repos.name AS repo, revisions.id, parent, author, title, message, "
    f"revisions.created_at, {', '.join(FACTS)} "
    "FROM revisions JOIN repos ON repos.id = repo_id LEFT JOIN artifacts ON artifacts.revision_id = revisions.id"
)
_FILE = "SELECT revision_id, path, blobs.sha256, git_oid, size, changed_in FROM files JOIN blobs USING (sha256)"
