"""`registry.db`: repos of adapters, their immutable revisions, and the names that move over them.

The one way in for commands, pages and the wire protocol: publishing over HTTP and from a folder is the same `commit`.
Knows neither HTTP nor torch. What a caller may do is decided before it gets here (access/permissions.py); a method takes `user`
only to write down who did it, and `caller` where the answer depends on what they see or own. Safe for many threads and
processes: each thread has its own connection, every write is one immediate transaction, and the proof of an artifact runs
before the transaction, not inside it.
"""

import sqlite3
from collections.abc import Iterable, Sequence
from pathlib import Path

from graft.hub.adapters.validation import Inspection
from graft.hub.base.manifest import BaseSpec
from graft.hub.errors import ArtifactError, GraftError, NotFoundError
from graft.hub.machine.atomic_files import write_folder_whole
from graft.hub.registry import base_models, queries, refs, repos, tasks
from graft.hub.registry import leaderboard as scores
from graft.hub.registry import search as catalog
from graft.hub.registry.access.callers import OWNER, Caller
from graft.hub.registry.audit import audit
from graft.hub.registry.commits import accepted_files
from graft.hub.registry.commits import commit as committing
from graft.hub.registry.commits.accepted_files import MAX_WEIGHTS_BYTES
from graft.hub.registry.commits.changes import Change, Put
from graft.hub.registry.commits.commit import Intent
from graft.hub.registry.commits.publish_folder import PULLED, base_at_hand, contents
from graft.hub.registry.leaderboard import Evaluation, Standing
from graft.hub.registry.naming import branch_of, check_repo_name
from graft.hub.registry.queries import MOST_LISTED, File, Repo, Revision
from graft.hub.registry.storage.arrivals import Arrivals, Blob
from graft.hub.registry.storage.blob_store import BlobStore, Seekable, Tree
from graft.hub.registry.storage.connections import Connections
from graft.hub.registry.storage.database import Database
from graft.hub.registry.storage.download_counter import DownloadCounter
from graft.hub.registry.storage.ownership import blob_folder, prepare, require_own, require_room
from graft.hub.registry.storage.schema import write_transaction
from graft.hub.registry.tasks import Task

Names = Sequence[str] | None


class Registry:
    """An open registry. The file and the folder of blobs beside it are made when missing.

    One that this process can't write (`read_only`) is opened all the same, and answers everything that only reads.
    """

    is_far, trusted_s = False, 0.0  # as AnyRegistry means them

    def __init__(
        self, path: str | Path = "registry.db", *, create: bool = True, max_weights_bytes: int = MAX_WEIGHTS_BYTES
    ):
        """`max_weights_bytes`: the largest file of weights that is taken.

        Raises NotFoundError when the file is missing and `create` is false, GraftError for a file of another kind,
        ConflictError where the folder beside it holds another registry's files.
        """
        self.path = Path(path)
        self.max_weights_bytes = max_weights_bytes
        exists = self.path.exists()
        if not create and not self.path.is_file():
            raise NotFoundError(f"There is no registry at {self.path}: publish something first, or check --registry.")
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._connections = Connections(self.path)
        self.read_only = self._connections.read_only
        self.blobs = BlobStore(blob_folder(self.path), read_only=self.read_only)
        self._downloads = DownloadCounter(self.path)
        if not exists:
            require_room(self.path, self.blobs)
        try:
            (require_own if self.read_only else prepare)(self.db, self.path, self.blobs)
        except sqlite3.OperationalError as error:
            why = f"The registry {self.path} can't be opened or made ({error})"
            raise GraftError(f"{why}: is there room on its disk, and may you write there?") from None
        except sqlite3.DatabaseError as error:
            raise GraftError(f"{self.path} is no registry ({error}): check --registry.") from None

    @property
    def db(self) -> Database:
        """This thread's connection."""
        return self._connections.db

    def close(self) -> None:
        """Close this thread's connection; the next use opens another."""
        self._downloads.close()
        self._connections.close()

    def require_writer(self, names: Iterable[str]) -> None:
        """Whoever holds the file may write to all of it."""

    # Bases

    def add_base(self, spec: BaseSpec, *, user: str = OWNER.name, replace: bool = True) -> None:
        """Record a base's manifest for everybody; with `replace` false, one that is there stays as it is.

        Raises ArtifactError for a base without an id, ConflictError where another base has that id.
        """
        with write_transaction(self.db):
            base_models.add_base(self.db, spec, user, replace=replace)

    def bases(self) -> list[dict[str, str]]:
        """id and fingerprint of every recorded base."""
        rows = self.db.execute("SELECT id, fingerprint, created_at FROM bases ORDER BY id")
        return [dict(row) for row in rows]

    def base(self, id_or_fingerprint: str) -> BaseSpec:
        """Raises NotFoundError where none is recorded, or several bear the id."""
        return base_models.get_base(self.db, id_or_fingerprint)

    # Repos

    def repo(self, name: str, caller: Caller = OWNER) -> Repo:
        """Raises RepoNotFoundError when there is none, it was deleted, or `caller` may not see it."""
        return queries.repo(self.db, name, caller)

    def create_repo(self, name: str, *, private: bool = False, user: str = OWNER.name) -> Repo:
        """Raises ConflictError when the name is taken or ever was, by whoever."""
        with write_transaction(self.db):
            repos.insert(self.db, name, private, user)
            return self.repo(name)

    def set_private(self, name: str, private: bool, *, user: str = OWNER.name) -> None:
        with write_transaction(self.db):
            repos.set_private(self.db, self.repo(name), private, user)

    def move_repo(self, name: str, new_name: str, *, user: str = OWNER.name) -> Repo:
        """Rename; the old name leads to the new one for ever. Raises ConflictError when the new one is taken."""
        with write_transaction(self.db):
            repos.move(self.db, self.repo(name), new_name, user)
            return self.repo(new_name)

    def delete_repo(self, name: str, *, user: str = OWNER.name) -> None:
        """Take a repo away; its name stays taken. Its bytes go with the next `gc`."""
        with write_transaction(self.db):
            repos.delete(self.db, self.repo(name), user)

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

        What a trainer leaves beside an adapter is left out (folder.contents says what).
        Raises ArtifactError and its kin with what to mend; nothing is left behind then.
        """
        check_repo_name(name)
        files = contents(Path(folder), self.max_weights_bytes).files
        spec = base_at_hand(Path(folder))
        if spec is not None and spec.id:
            base_models.take_base(self.db, spec, user)
        with self.blobs.receive() as arrivals:
            puts = [Put(path, self.store_file(path, source, arrivals)) for path, source in files.items()]
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
            base_fingerprint=spec.fingerprint if spec else None,
        )

    def store_file(self, path: str, source: Path, into: Arrivals | None = None) -> Blob:
        """As `store`, of a file on this disk."""
        with source.open("rb") as stream:
            return self.store(path, stream, source.stat().st_size, into)

    def store(self, path: str, stream: Seekable, size: int, into: Arrivals | None = None) -> Blob:
        """Put `size` bytes into the store (or into a delivery to it), to be committed as `path`.

        Raises ArtifactError and its kin for what no repo may hold, by name, by size or by how it starts.
        """
        accepted_files.check_path(path)
        accepted_files.check_size(path, size, self.max_weights_bytes)
        accepted_files.check_start(path, stream.read(accepted_files.START_BYTES))
        stream.seek(0)
        return (into or self.blobs).put(stream, size)

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
        base_fingerprint: str | None = None,
    ) -> Revision:
        """One new revision on `branch`, or the head as it is when nothing would change (so a repeated call is harmless).

        `parent` must be the head (StaleParentError); without it the changes go on top of whatever is there. `replace`
        drops every file that `changes` don't write. `create` makes a missing repo in the same transaction.
        `base_fingerprint` is of the base that lies where the adapter's config names a path.
        Raises ArtifactError and its kin when the resulting adapter can't be proven sound.
        """
        intent = Intent(
            name=name,
            changes=tuple(changes),
            title=title,
            message=message,
            user=user,
            branch=branch_of(branch),
            parent=parent,
            tags=tuple(tags),
            create=create,
            private=private,
            replace=replace,
            base_fingerprint=base_fingerprint,
        )
        return committing.commit(self.db, self.blobs, intent)

    # Reading

    def resolve(self, name: str, *, base: str | None = None, caller: Caller = OWNER) -> Revision:
        """'ns/name', 'ns/name@commit|branch|tag|alias', or 'task:T' (what was last promoted to production for the task).

        `base`, a fingerprint, narrows 'task:T' to one base. Raises RepoNotFoundError or RevisionNotFoundError.
        """
        if name.startswith("task:"):
            return self.revision(tasks.find_promoted(self.db, name.removeprefix("task:"), base, caller))
        repo_name, _, ref = name.partition("@")
        repo = self.repo(repo_name, caller)
        return self.revision(refs.find(self.db, repo.id, repo.name, ref or "main"))

    def revision(self, id: str) -> Revision:
        """By its full commit id, which must be one."""
        return queries.revision(self.db, id)

    def revisions(self, name: str, *, ref: str = "main", limit: int = MOST_LISTED, offset: int = 0) -> list[Revision]:
        """From `ref` back towards the first, following parents."""
        return queries.line(self.db, self.resolve(f"{name}@{ref}").id, limit, offset)

    def tree(self, revision_id: str | None) -> Tree:
        """path -> sha256; empty for None."""
        return queries.tree(self.db, revision_id)

    def files(self, revision_id: str) -> list[File]:
        return queries.files(self.db, revision_id)

    def file(self, revision_id: str, path: str) -> File:
        """Raises EntryNotFoundError."""
        return queries.file(self.db, revision_id, path)

    def found(self, revision_id: str) -> Inspection | None:
        """What was found in the revision's adapter when it was published."""
        return queries.inspection_of(self.db, revision_id)

    def pull(self, name: str, folder: str | Path, *, caller: Caller = OWNER) -> Revision:
        """Write a revision's files into `folder`, every byte checked against its hash; counts as a download.

        All of them or none: what another version left there goes, and files that are no version's stay. Raises
        DamagedBlobError when a stored file has changed.
        """
        revision, folder = self.resolve(name, caller=caller), Path(folder)
        tree = self.tree(revision.id)
        outdated = [path for path in queries.unchanged_files(self.db, folder, revision.id) if path not in tree]
        with write_folder_whole(folder, last=PULLED, outdated=outdated) as staging:
            for path, sha256 in tree.items():
                self.blobs.copy_out(sha256, staging / path)
        self.count_download(revision.repo)
        return revision

    def count_download(self, name: str) -> None:
        """As well as can be: never waits for a writer, never fails (DownloadCounter)."""
        self._downloads.count(self.repo(name).id)

    def warnings(self, name: str) -> tuple[str, ...]:
        inspection = self.found(self.resolve(name).id)
        return tuple(inspection.warnings) if inspection else ()

    def base_name(self, spec: BaseSpec) -> str:
        return spec.fingerprint

    def search(self, query: catalog.Query, caller: Caller = OWNER) -> catalog.Page:
        """A page of repos: `search(Query(text="news", task="topic", sort="score"))`."""
        return catalog.search(self.db, query, caller)

    # Names that move

    def promote(
        self, ref: str, alias: str, *, who: str = OWNER.name, why: str = "", caller: Caller = OWNER
    ) -> Revision:
        """Point `alias` at a revision that holds an adapter. Raises ArtifactError where it holds none.

        Where it stands there already, that it was promoted again is kept, and no rollback leads back to it. What `task:T`
        serves follows the alias `production` where the task is the caller's.
        """
        with write_transaction(self.db):
            revision = self.resolve(ref)
            if revision.digest is None:
                raise ArtifactError(f"{ref} holds no complete adapter: publish one before you promote it.")
            repo = self.repo(revision.repo)
            refs.require_free(self.db, repo.id, alias, but="alias")
            refs.move(self.db, repo.id, "alias", alias, revision.id, who, why)
            tasks.follow_alias(self.db, caller, repo.id)
            audit(self.db, who, "promote", f"{repo.name}@{alias}", revision.id)
        return revision

    def rollback(
        self, name: str, alias: str, *, who: str = OWNER.name, why: str = "", caller: Caller = OWNER
    ) -> Revision:
        """Undo an alias's last move; `task:T` follows as in `promote`. Raises NotFoundError when it has moved only once."""
        with write_transaction(self.db):
            repo = self.repo(name)
            before = refs.find_previous(self.db, repo.id, repo.name, alias)
            refs.move(self.db, repo.id, "alias", alias, before, who, why or "rollback")
            tasks.follow_alias(self.db, caller, repo.id)
            audit(self.db, who, "rollback", f"{repo.name}@{alias}", before)
            return self.revision(before)

    def create_ref(self, name: str, kind: str, ref: str, at: str = "main", *, user: str = OWNER.name) -> None:
        """A new 'tag' or 'branch'. Raises ConflictError when the name is taken."""
        with write_transaction(self.db):
            revision = self.resolve(f"{name}@{at}")
            repo = self.repo(name)
            refs.create(self.db, repo.id, kind, ref, revision.id, user, f"{kind} at {at}")
            audit(self.db, user, f"{kind}.create", f"{repo.name}@{ref}", revision.id)

    def delete_ref(self, name: str, kind: str, ref: str, *, user: str = OWNER.name) -> None:
        """Raises RevisionNotFoundError when there is none, ConflictError for the branch main."""
        with write_transaction(self.db):
            repo = self.repo(name)
            refs.delete(self.db, repo.id, kind, ref, user)
            tasks.follow_alias(self.db, OWNER, repo.id)
            audit(self.db, user, f"{kind}.delete", f"{repo.name}@{ref}")

    def branch_head(self, repo: Repo, branch: str) -> str | None:
        """A branch's head; None for a branch main that has no commit yet. Raises RevisionNotFoundError."""
        return queries.branch_head(self.db, repo, branch)

    def all_refs(self, name: str, *, limit: int = refs.ALL, offset: int = 0) -> list[refs.Ref]:
        """Every branch, tag and alias, by kind and name."""
        return refs.all_of(self.db, self.repo(name).id, limit, offset)

    def history(self, name: str, *, limit: int = MOST_LISTED, offset: int = 0) -> list[refs.Move]:
        """The moves of every branch, tag and alias, newest first: what was it when, by whom, why."""
        return refs.moves(self.db, self.repo(name).id, limit, offset)

    # Tasks and scores

    def add_task(
        self, slug: str, metric: str, data: bytes, description: str, *, owners: Names = None, user: str = OWNER.name
    ) -> Task:
        """Add a task, or give it a new evaluation set (scores on the old one stay, and are not ranked with the new).

        `owners`: the namespaces that say what `task:T` serves; None leaves them as they are.
        """
        return tasks.add_task(self.db, self.blobs, slug, metric, data, description, user, owners)

    def set_task_owners(self, slug: str, owners: Sequence[str], *, user: str = OWNER.name) -> Task:
        return tasks.set_owners(self.db, slug, owners, user)

    def task(self, slug: str) -> Task:
        """Raises NotFoundError."""
        return tasks.task(self.db, slug)

    def task_data(self, slug: str, data_hash: str | None = None) -> bytes:
        """An evaluation set of the task, as it was added: the present one, or the one with a hash. Raises NotFoundError."""
        return tasks.read_data(self.db, self.blobs, slug, data_hash)

    def tasks(self) -> list[Task]:
        return tasks.tasks(self.db)

    def record_evaluation(self, evaluation: Evaluation, *, user: str = OWNER.name) -> Evaluation:
        """Digest and base are the stored artifact's. Raises as scores.record and scores.of_revision do."""
        with write_transaction(self.db):
            if evaluation.repo is None:
                return scores.record(self.db, None, evaluation, user)
            revision = self.resolve(f"{evaluation.repo}@{evaluation.revision or 'main'}")
            return scores.record(self.db, self.repo(revision.repo).id, scores.of_revision(evaluation, revision), user)

    def evaluation(self, id: int, caller: Caller = OWNER) -> Evaluation:
        return scores.get(self.db, id, caller)

    def evaluations(self, name: str) -> list[Evaluation]:
        return scores.of_repo(self.db, self.repo(name).id)

    def leaderboard(self, task: str, base: str | None = None, caller: Caller = OWNER) -> list[Standing]:
        """The task's adapters and bare bases, best first, all on its present evaluation set; `base` is a fingerprint or id."""
        return scores.leaderboard(self.db, self.task(task), base, caller)
