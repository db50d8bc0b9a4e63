"""`registry.db`: repos of adapters, their immutable revisions, and the names that move over them.

The one way in for commands, pages and the wire protocol: publishing over HTTP and from a folder is the same `commit`.
Knows neither HTTP nor torch. What a caller may do is decided before it gets here (hub/access.py); a method takes `user`
only to write down who did it. Safe for many threads and processes: each thread has its own connection, every write is
one immediate transaction, and the proof of an artifact runs before the transaction, not inside it.
"""

import json
import sqlite3
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlite_utils import Database

from graft.hub import bases, catalog, refs, scores
from graft.hub.access import OWNER, Caller, audit
from graft.hub.clock import now
from graft.hub.commits import (
    COMMIT_ID,
    Change,
    Put,
    Tree,
    changed,
    check_path,
    check_repo_name,
    check_size,
    check_start,
    commit_id,
)
from graft.hub.errors import (
    ArtifactError,
    ConflictError,
    EntryNotFoundError,
    ForbiddenError,
    GraftError,
    NotFoundError,
    RepoNotFoundError,
    StaleParentError,
)
from graft.hub.inspection import CONFIG, PROVENANCE, Inspection
from graft.hub.proof import Proven, prove
from graft.hub.schema import connect, migrate, writing
from graft.hub.spec import BaseSpec
from graft.hub.store import Blob, BlobStore

MAX_ATTEMPTS = 32  # of a commit without a parent, when others keep moving the branch
IGNORED = frozenset((".git", ".cache", "__pycache__", ".DS_Store", ".ipynb_checkpoints"))


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


@dataclass(frozen=True)
class File:
    """A file of a revision. `changed_in`: the commit that last wrote it."""

    path: str
    sha256: str
    git_oid: str
    size: int
    changed_in: str


class Registry:
    """An open registry. The file and the folder of blobs beside it are made when missing."""

    def __init__(self, path: str | Path = "registry.db", *, create: bool = True):
        """Raises NotFoundError when the file is missing and `create` is false, GraftError for a file of another kind."""
        self.path = Path(path)
        if not create and not self.path.is_file():
            raise NotFoundError(f"There is no registry at {self.path}: publish something first, or check --registry.")
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.blobs = BlobStore(self.path.with_suffix(".blobs"))
        self._local = threading.local()
        try:
            migrate(self.db)
        except sqlite3.DatabaseError as error:
            raise GraftError(f"{self.path} is no registry, or can't be opened ({error}).") from None

    @property
    def db(self) -> Database:
        """This thread's connection."""
        if not hasattr(self._local, "db"):
            self._local.db = connect(self.path)
        return self._local.db

    def close(self) -> None:
        """Close this thread's connection; the next use opens another."""
        self.db.close()
        del self._local.db

    # Bases

    def add_base(self, spec: BaseSpec, *, user: str = OWNER.name, replace: bool = True) -> None:
        """Record a base's manifest; with `replace` false, one that is there stays as it is.

        Raises ArtifactError for a base without an id.
        """
        with writing(self.db):
            if replace or bases.find_base(self.db, fingerprint=spec.fingerprint) is None:
                bases.add_base(self.db, spec)
                audit(self.db, user, "base.add", spec.id or "", spec.fingerprint)

    def bases(self) -> list[dict[str, str]]:
        """id and fingerprint of every recorded base."""
        rows = self.db.execute("SELECT id, fingerprint, created_at FROM bases ORDER BY id")
        return [dict(row) for row in rows]

    def base(self, id_or_fingerprint: str) -> BaseSpec:
        """Raises NotFoundError where none is recorded, or several bear the id."""
        found = bases.find_base(self.db, fingerprint=id_or_fingerprint) or bases.find_base(
            self.db, id=id_or_fingerprint
        )
        if found is None:
            raise NotFoundError(
                f"No base {id_or_fingerprint!r} is recorded here: `graft base import` gives a base an id."
            )
        return found

    # Repos

    def repo(self, name: str, caller: Caller = OWNER) -> Repo:
        """Raises RepoNotFoundError when there is none, it was deleted, or `caller` may not see it."""
        namespace, _, short = name.partition("/")
        row = self.db.execute("SELECT * FROM repos WHERE namespace = ? AND name = ?", [namespace, short]).fetchone()
        if row is not None and row["moved_to"] is not None:
            row = self.db.execute("SELECT * FROM repos WHERE id = ?", [row["moved_to"]]).fetchone()
        if row is None or row["deleted_at"] or (row["private"] and not caller.owns(row["namespace"])):
            raise RepoNotFoundError(f"There is no adapter {name!r} here, or it is private and you are not signed in.")
        return _repo(row)

    def create_repo(self, name: str, *, private: bool = False, user: str = OWNER.name) -> Repo:
        """Raises ConflictError when the name is taken or ever was, by whoever."""
        with writing(self.db):
            self._insert_repo(name, private, user)
        return self.repo(name)

    def _insert_repo(self, name: str, private: bool, user: str) -> None:
        namespace, short = check_repo_name(name)
        row = self.db.execute(
            "SELECT deleted_at FROM repos WHERE namespace = ? AND name = ?", [namespace, short]
        ).fetchone()
        if row is not None:
            why = "was used before; names are not issued twice" if row["deleted_at"] else "exists already"
            raise ConflictError(f"{name} {why}: choose another name.")
        at = now()
        found = {
            "namespace": namespace,
            "name": short,
            "private": private,
            "created_at": at,
            "updated_at": at,
        }
        repo_id = self.db["repos"].insert(found).last_pk
        catalog.list_repo(self.db, repo_id, None, {}, "")
        audit(self.db, user, "repo.create", name, "private" if private else "")

    def set_private(self, name: str, private: bool, *, user: str = OWNER.name) -> None:
        repo = self.repo(name)
        with writing(self.db):
            self.db.execute("UPDATE repos SET private = ? WHERE id = ?", [private, repo.id])
            self.db.execute("UPDATE listing SET private = ? WHERE repo_id = ?", [private, repo.id])
            audit(self.db, user, "repo.private" if private else "repo.public", repo.name)

    def move_repo(self, name: str, new_name: str, *, user: str = OWNER.name) -> Repo:
        """Rename; the old name leads to the new one for ever. Raises ConflictError when the new one is taken."""
        repo = self.repo(name)
        namespace, short = check_repo_name(new_name)
        with writing(self.db):
            self._insert_repo(new_name, repo.private, user)
            new_id = self.repo(new_name).id
            # The new row's place is taken by the old one, whose id everything refers to.
            old_namespace, _, old_short = repo.name.partition("/")
            catalog.unlist_repo(self.db, new_id)
            self.db.execute("UPDATE repos SET name = ? WHERE id = ?", [f"{short}\0moving", new_id])
            self.db.execute("UPDATE repos SET namespace = ?, name = ? WHERE id = ?", [namespace, short, repo.id])
            self.db.execute(
                "UPDATE repos SET namespace = ?, name = ?, deleted_at = ?, moved_to = ? WHERE id = ?",
                [old_namespace, old_short, now(), repo.id, new_id],
            )
            catalog.rename_repo(self.db, repo.id, namespace, short)
            audit(self.db, user, "repo.move", repo.name, new_name)
        return self.repo(new_name)

    def delete_repo(self, name: str, *, user: str = OWNER.name) -> None:
        """Take a repo away; its name stays taken. Its bytes go with the next `gc`."""
        repo = self.repo(name)
        with writing(self.db):
            self.db.execute("UPDATE repos SET deleted_at = ? WHERE id = ?", [now(), repo.id])
            self.db.execute("DELETE FROM refs WHERE repo_id = ?", [repo.id])
            catalog.unlist_repo(self.db, repo.id)
            audit(self.db, user, "repo.delete", repo.name)

    # Commits

    def publish(
        self,
        folder: str | Path,
        name: str,
        *,
        tags: Sequence[str] = (),
        private: bool = False,
        user: str = OWNER.name,
        message: str = "",
    ) -> Revision:
        """Make `folder` the whole content of `name`'s main branch; the repo is made when missing.

        Raises ArtifactError and its kin with what to mend; nothing is left behind then.
        """
        check_repo_name(name)
        paths = publishable_files(Path(folder))
        if CONFIG not in paths:
            raise ArtifactError(f"{folder} holds no {CONFIG}: publish the folder that `graft train --out` wrote.")
        self._learn_base(paths[CONFIG])
        puts = [Put(path, self.store_file(path, source)) for path, source in paths.items()]
        return self.commit(
            name,
            puts,
            title=message.partition("\n")[0] or f"Publish {Path(folder).resolve().name}",
            message=message.partition("\n")[2].strip(),
            user=user,
            tags=tags,
            create=True,
            private=private,
            replace=True,
        )

    def _learn_base(self, config: Path) -> None:
        """A base that lies on this machine with its manifest beside it is recorded on the way."""
        raw = _json_or_empty(config)
        declared = bases.declared_base(raw, _json_or_empty(config.with_name(PROVENANCE)))
        spec = bases.beside_weights(Path(declared.name)) if declared.name else None
        if spec is not None and spec.id:
            self.add_base(spec, replace=False)

    def store_file(self, path: str, source: Path) -> Blob:
        """Put a file's bytes into the store as `path`. Raises ArtifactError for a kind that no repo may hold."""
        check_path(path)
        check_size(path, source.stat().st_size)
        with source.open("rb") as stream:
            check_start(path, stream.read(16))
            stream.seek(0)
            return self.blobs.put(stream, source.stat().st_size)

    def commit(
        self,
        name: str,
        changes: Sequence[Change],
        *,
        title: str,
        message: str = "",
        user: str = OWNER.name,
        branch: str = "main",
        parent: str | None = None,
        tags: Sequence[str] = (),
        create: bool = False,
        private: bool = False,
        replace: bool = False,
    ) -> Revision:
        """One new revision on `branch`, or the head as it is when nothing would change (so a repeated call is harmless).

        `parent` must be the head (StaleParentError); without it the changes go on top of whatever is there. `replace`
        drops every file that `changes` don't write. `create` makes a missing repo in the same transaction.
        Raises ArtifactError and its kin when the resulting adapter can't be proven sound.
        """
        for _ in range(MAX_ATTEMPTS):
            head = self._head(name, branch, create)
            if parent is not None and head != parent:
                return self._repeated(name, head, parent, changes)
            tree = changed({} if replace else self.tree(head), changes)
            proven = prove(self.db, self.blobs, tree)
            with writing(self.db):
                if self._head(name, branch, create) != head:
                    continue
                return self._record(name, branch, head, proven, changes, title, message, user, tags, create, private)
        raise ConflictError(f"Others kept writing to {name} for {MAX_ATTEMPTS} attempts: try again.")

    def _head(self, name: str, branch: str, create: bool) -> str | None:
        try:
            repo = self.repo(name)
        except RepoNotFoundError:
            if create:
                return None
            raise
        if repo.disabled:
            raise ForbiddenError(f"Access to this resource is disabled. {repo.disabled}")
        return self.branch_head(repo, branch)

    def _repeated(self, name: str, head: str | None, parent: str, changes: Sequence[Change]) -> Revision:
        """The answer to a commit whose parent isn't the head: the head, if it is this commit come a second time."""
        latest = self.revision(head) if head else None
        if latest and latest.parent == parent and COMMIT_ID.fullmatch(parent):
            tree = prove(self.db, self.blobs, changed(self.tree(parent), changes)).tree
            if tree == self.tree(head):
                return latest
        raise StaleParentError(f"{name} has moved on from {parent} to {head}: read it again, then repeat your change.")

    def _record(
        self,
        name: str,
        branch: str,
        head: str | None,
        proven: Proven,
        changes: Sequence[Change],
        title: str,
        message: str,
        user: str,
        tags: Sequence[str],
        create: bool,
        private: bool,
    ) -> Revision:
        """Inside the transaction: rows for what is new, the branch moved, the listing renewed."""
        before = self.tree(head)
        if create and head is None and not self._exists(name):
            self._insert_repo(name, private, user)
        repo = self.repo(name)
        if proven.tree == before and head is not None:
            revision_id = head
        else:
            at = now()
            revision_id = commit_id(repo.id, head, proven.tree, user, title, at)
            self._insert_blobs([*(c.blob for c in changes if isinstance(c, Put)), *proven.rewritten], at)
            self._insert_revision(repo, revision_id, head, proven, before, title, message, user, at)
            refs.move(self.db, repo.id, "branch", branch, revision_id, user, title)
            if branch == "main":
                catalog.list_repo(self.db, repo.id, revision_id, proven.card, proven.body)
            audit(self.db, user, "commit", repo.name, revision_id)
        for tag in tags:
            refs.create(self.db, repo.id, "tag", tag, revision_id, user, "published with this tag", same_is_fine=True)
        return self.revision(revision_id)

    def _exists(self, name: str) -> bool:
        try:
            self.repo(name)
        except RepoNotFoundError:
            return False
        return True

    def _insert_blobs(self, blobs: Iterable[Blob], at: str) -> None:
        for blob in blobs:
            if not self.blobs.has(blob.sha256):  # gc took it between upload and commit
                raise ConflictError(f"Blob {blob.sha256} is gone: upload the file again.")
            self.db.execute(
                "INSERT OR IGNORE INTO blobs (sha256, git_oid, size, created_at) VALUES (?, ?, ?, ?)",
                [blob.sha256, blob.git_oid, blob.size, at],
            )

    def _insert_revision(
        self,
        repo: Repo,
        id: str,
        parent: str | None,
        proven: Proven,
        before: Tree,
        title: str,
        message: str,
        user: str,
        at: str,
    ) -> None:
        row = {
            "id": id,
            "repo_id": repo.id,
            "parent": parent,
            "author": user,
            "title": title,
            "message": message,
        }
        self.db["revisions"].insert(row | {"created_at": at})
        last = {file.path: file.changed_in for file in self.files(parent)} if parent else {}
        self.db["files"].insert_all(
            {
                "revision_id": id,
                "path": path,
                "sha256": sha256,
                "changed_in": last[path] if before.get(path) == sha256 else id,
            }
            for path, sha256 in proven.tree.items()
        )
        self.db.execute("UPDATE repos SET updated_at = ? WHERE id = ?", [at, repo.id])
        if proven.found is not None:
            self.db["artifacts"].insert(_artifact_row(id, proven.found))
            scores.record_reported(self.db, repo.id, id, proven.found, user)

    # Reading

    def resolve(self, name: str, *, base: str | None = None, caller: Caller = OWNER) -> Revision:
        """'ns/name', 'ns/name@commit|branch|tag|alias', or 'task:T' (what was last promoted to production for the task).

        `base`, a fingerprint, narrows 'task:T' to one base. Raises RepoNotFoundError or RevisionNotFoundError.
        """
        if name.startswith("task:"):
            return self.revision(refs.promoted(self.db, name.removeprefix("task:"), base, caller))
        repo_name, _, ref = name.partition("@")
        repo = self.repo(repo_name, caller)
        return self.revision(refs.find(self.db, repo.id, repo.name, ref or "main"))

    def revision(self, id: str) -> Revision:
        row = self.db.execute(f"{_REVISION} WHERE revisions.id = ?", [id]).fetchone()
        return _revision(row)

    def revisions(self, name: str, *, ref: str = "main", limit: int = 1000) -> list[Revision]:
        """From `ref` back to the first, following parents."""
        rows = self.db.execute(
            "WITH RECURSIVE line(id, depth) AS (SELECT ?, 0 UNION ALL SELECT revisions.parent, depth + 1 FROM line "
            "JOIN revisions ON revisions.id = line.id WHERE revisions.parent IS NOT NULL AND depth < ?) "
            f"{_REVISION} JOIN line ON line.id = revisions.id ORDER BY depth",
            [self.resolve(f"{name}@{ref}").id, limit - 1],
        )
        return [_revision(row) for row in rows]

    def tree(self, revision_id: str | None) -> Tree:
        """path -> sha256; empty for None."""
        rows = self.db.execute("SELECT path, sha256 FROM files WHERE revision_id = ?", [revision_id])
        return {row["path"]: row["sha256"] for row in rows}

    def files(self, revision_id: str) -> list[File]:
        rows = self.db.execute(
            "SELECT path, blobs.sha256, git_oid, size, changed_in FROM files JOIN blobs USING (sha256) "
            "WHERE revision_id = ? ORDER BY path",
            [revision_id],
        )
        return [File(**dict(row)) for row in rows]

    def file(self, revision_id: str, path: str) -> File:
        """Raises EntryNotFoundError."""
        row = self.db.execute(
            "SELECT path, blobs.sha256, git_oid, size, changed_in FROM files JOIN blobs USING (sha256) "
            "WHERE revision_id = ? AND path = ?",
            [revision_id, path],
        ).fetchone()
        if row is None:
            raise EntryNotFoundError(f"There is no file {path!r} in revision {revision_id}.")
        return File(**dict(row))

    def found(self, revision_id: str) -> Inspection | None:
        """What was found in the revision's adapter when it was published."""
        row = self.db.execute("SELECT * FROM artifacts WHERE revision_id = ?", [revision_id]).fetchone()
        if row is None:
            return None
        plain = {key: row[key] for key in row.keys() if key not in ("revision_id", *_JSON_COLUMNS)}  # noqa: SIM118
        return Inspection(**plain, **{key: json.loads(row[key]) for key in _JSON_COLUMNS})

    def pull(self, name: str, folder: str | Path, *, caller: Caller = OWNER) -> Revision:
        """Write a revision's files into `folder`, every byte checked against its hash; counts as a download.

        Raises DamagedBlobError when a stored file has changed.
        """
        revision = self.resolve(name, caller=caller)
        for path, sha256 in self.tree(revision.id).items():
            self.blobs.copy_out(sha256, Path(folder) / path)
        self.count_download(revision.repo)
        return revision

    def count_download(self, name: str) -> None:
        repo = self.repo(name)
        with writing(self.db):
            self.db.execute("UPDATE repos SET downloads = downloads + 1 WHERE id = ?", [repo.id])
            self.db.execute("UPDATE listing SET downloads = downloads + 1 WHERE repo_id = ?", [repo.id])

    def search(self, query: "catalog.Query | None" = None, caller: Caller = OWNER, **wanted: Any) -> "catalog.Page":
        """A page of repos: `search(text="news", task="topic", sort="score")`; the fields are catalog.Query's."""
        return catalog.search(self.db, query or catalog.Query(**wanted), caller)

    # Names that move

    def promote(self, ref: str, alias: str, *, who: str = OWNER.name, why: str = "") -> Revision:
        """Point `alias` at a revision that holds an adapter. Raises ArtifactError where it holds none."""
        revision = self.resolve(ref)
        if revision.digest is None:
            raise ArtifactError(f"{ref} holds no complete adapter: publish one before you promote it.")
        repo = self.repo(revision.repo)
        with writing(self.db):
            refs.require_free(self.db, repo.id, alias, but="alias")
            refs.move(self.db, repo.id, "alias", alias, revision.id, who, why)
            audit(self.db, who, "promote", f"{repo.name}@{alias}", revision.id)
        return revision

    def rollback(self, name: str, alias: str, *, who: str = OWNER.name, why: str = "") -> Revision:
        """Undo an alias's last move. Raises NotFoundError when it has moved only once."""
        repo = self.repo(name)
        with writing(self.db):
            before = refs.previous(self.db, repo.id, repo.name, alias)
            refs.move(self.db, repo.id, "alias", alias, before, who, why or "rollback")
            audit(self.db, who, "rollback", f"{repo.name}@{alias}", before)
        return self.revision(before)

    def create_ref(self, name: str, kind: str, ref: str, at: str = "main", *, user: str = OWNER.name) -> None:
        """A new 'tag' or 'branch'. Raises ConflictError when the name is taken."""
        revision = self.resolve(f"{name}@{at}")
        repo = self.repo(name)
        with writing(self.db):
            refs.create(self.db, repo.id, kind, ref, revision.id, user, f"{kind} at {at}")
            audit(self.db, user, f"{kind}.create", f"{repo.name}@{ref}", revision.id)

    def delete_ref(self, name: str, kind: str, ref: str, *, user: str = OWNER.name) -> None:
        """Raises RevisionNotFoundError when there is none, ConflictError for the branch main."""
        repo = self.repo(name)
        with writing(self.db):
            refs.delete(self.db, repo.id, kind, ref, user)
            audit(self.db, user, f"{kind}.delete", f"{repo.name}@{ref}")

    def branch_head(self, repo: Repo, branch: str) -> str | None:
        """A branch's head; None for a branch main that has no commit yet. Raises RevisionNotFoundError."""
        return (
            refs.target(self.db, repo.id, "branch", branch)
            if branch == "main"
            else refs.branch(self.db, repo.id, branch)
        )

    def all_refs(self, name: str) -> list[refs.Ref]:
        return refs.all_of(self.db, self.repo(name).id)

    def history(self, name: str) -> list[refs.Move]:
        """Every move of every branch, tag and alias, newest first: what was it when, by whom, why."""
        return refs.moves(self.db, self.repo(name).id)

    # Tasks and scores

    def add_task(
        self, slug: str, metric: str, data: bytes, description: str, *, user: str = OWNER.name
    ) -> "scores.Task":
        """Add a task, or give it a new evaluation set (scores on the old one stay, and are not ranked with the new)."""
        return scores.add_task(self.db, self.blobs, slug, metric, data, description, user)

    def task(self, slug: str) -> "scores.Task":
        """Raises NotFoundError."""
        return scores.task(self.db, slug)

    def task_data(self, slug: str) -> bytes:
        """The task's present evaluation set, as it was added. Raises NotFoundError."""
        return self.blobs.read(self.task(slug).data_hash)

    def tasks(self) -> list["scores.Task"]:
        return scores.tasks(self.db)

    def record_evaluation(self, *, user: str = OWNER.name, **score: Any) -> None:
        """Note a score (scores.Evaluation's fields) of an adapter's revision, or of the bare base (no `repo`).

        Raises RepoNotFoundError for an unknown repo, TypeError for a field that there isn't.
        """
        evaluation = scores.Evaluation(**score)
        repo_id = self.repo(evaluation.repo).id if evaluation.repo else None
        scores.record(self.db, repo_id, evaluation, user)

    def evaluations(self, name: str) -> list["scores.Evaluation"]:
        return scores.of_repo(self.db, self.repo(name).id)

    def leaderboard(self, task: str, base: str | None = None, caller: Caller = OWNER) -> list["scores.Standing"]:
        """The task's adapters and bare bases, best first, all on its present evaluation set; `base` is a fingerprint or id."""
        return scores.leaderboard(self.db, self.task(task), base, caller)


_JSON_COLUMNS = ("config", "tensors", "provenance", "card", "warnings")
_REVISION = (
    "SELECT repos.namespace || '/' || repos.name AS repo, revisions.id, parent, author, title, message, "
    "revisions.created_at, digest, method, variant, task, base_id, base_fingerprint, parameters, bytes, max_rank, dtype "
    "FROM revisions JOIN repos ON repos.id = repo_id LEFT JOIN artifacts ON artifacts.revision_id = revisions.id"
)


def _repo(row: Any) -> Repo:
    return Repo(
        id=row["id"],
        name=f"{row['namespace']}/{row['name']}",
        private=bool(row["private"]),
        disabled=row["disabled"],
        created_at=row["created_at"],
        updated_at=row["updated_at"],
        downloads=row["downloads"],
    )


def _revision(row: Any) -> Revision:
    return Revision(**dict(row))


def _artifact_row(revision_id: str, found: Inspection) -> dict[str, Any]:
    row = {"revision_id": revision_id} | {key: getattr(found, key) for key in Inspection.__dataclass_fields__}
    return row | {key: json.dumps(row[key], default=str) for key in _JSON_COLUMNS}


def publishable_files(folder: Path) -> dict[str, Path]:
    """Repo path -> file, for all that is to be published. Raises ArtifactError for an absent folder or a link."""
    if not folder.is_dir():
        raise ArtifactError(f"{folder} is no folder: give the one that holds {CONFIG}.")
    found = {}
    for path in sorted(folder.rglob("*")):
        relative = path.relative_to(folder)
        if IGNORED & set(relative.parts):
            continue
        if path.is_symlink():
            raise ArtifactError(f"{path} is a symbolic link: put the file itself there.")
        if path.is_file():
            found[relative.as_posix()] = path
    return found


def _json_or_empty(path: Path) -> dict[str, Any]:
    """Only to look for a base; the proof reports what is wrong with the file."""
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
