"""A registry as it is opened and read. What changes it stands in registry.py.

Knows neither HTTP nor torch. What a caller may do is decided before it gets here (access/permissions.py); a method takes
`caller` where the answer depends on what they see.
"""

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from graft.hub.adapters.model_card import TASK_PREFIX
from graft.hub.adapters.validation import WEIGHTS, Inspection
from graft.hub.base.manifest import BaseSpec
from graft.hub.errors import DisabledRepoError, GraftError, NotFoundError
from graft.hub.machine.atomic_files import write_folder_whole
from graft.hub.registry import base_models, queries, refs, tasks
from graft.hub.registry import leaderboard as scores
from graft.hub.registry import search as catalog
from graft.hub.registry.access import tokens
from graft.hub.registry.access.callers import OWNER, Caller
from graft.hub.registry.commits.accepted_files import MAX_WEIGHTS_BYTES
from graft.hub.registry.commits.publish_folder import PULLED
from graft.hub.registry.interface import Told, tell_nobody
from graft.hub.registry.leaderboard import Evaluation, Place, Standing
from graft.hub.registry.queries import MOST_LISTED, File, Repo, Revision
from graft.hub.registry.storage.blob_store import BlobStore, Tree
from graft.hub.registry.storage.connections import Connections
from graft.hub.registry.storage.database import Database
from graft.hub.registry.storage.download_counter import DownloadCounter
from graft.hub.registry.storage.ownership import blob_folder, prepare, require_own, require_room
from graft.hub.registry.tasks import Task


class RegistryReader:
    """An open registry, and everything that it answers. The file and the folder of blobs beside it are made when missing.

    One that this process can't write (`read_only`) is opened all the same. Safe for many threads and processes: each
    thread has its own connection.
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

    # Others than the owner

    def require_users(self) -> None:
        if not tokens.has_users(self.db):
            raise GraftError(
                f"The registry {self.path} has no users yet, so nobody has a token: `graft hub init --registry {self.path} "
                "--user NAME` makes the first."
            )

    def caller(self, token: str) -> Caller:
        return tokens.caller_of(self.db, token)

    def may_read(self, name: str, token: str, *, base: str | None = None) -> bool:
        caller = self.caller(token)
        try:
            if name.startswith(TASK_PREFIX):
                self.resolve(name, base=base, caller=caller)
            else:
                self.repo(name.partition("@")[0], caller)
        except (NotFoundError, DisabledRepoError):
            return False
        return True

    # Bases

    def bases(self) -> list[dict[str, str]]:
        """id and fingerprint of every recorded base."""
        rows = self.db.execute("SELECT id, fingerprint, created_at FROM bases ORDER BY id")
        return [dict(row) for row in rows]

    def base(self, id_or_fingerprint: str) -> BaseSpec:
        """Raises NotFoundError where none is recorded, or several bear the id."""
        return base_models.get_base(self.db, id_or_fingerprint)

    def base_name(self, spec: BaseSpec) -> str:
        return spec.fingerprint

    # Repos and revisions

    def repo(self, name: str, caller: Caller = OWNER) -> Repo:
        """Raises RepoNotFoundError when there is none, it was deleted, or `caller` may not see it."""
        return queries.repo(self.db, name, caller)

    def search(self, query: catalog.Query, caller: Caller = OWNER) -> catalog.Page:
        """A page of repos: `search(Query(text="news", task="topic", sort="score"))`."""
        return catalog.search(self.db, query, caller)

    def resolve(self, name: str, *, base: str | None = None, caller: Caller = OWNER) -> Revision:
        """'ns/name', 'ns/name@commit|branch|tag|alias', or 'task:T' (what was last promoted to production for the task).

        `base`, a fingerprint, narrows 'task:T' to one base. Raises RepoNotFoundError or RevisionNotFoundError.
        """
        if name.startswith(TASK_PREFIX):
            return self.revision(tasks.find_promoted(self.db, name.removeprefix(TASK_PREFIX), base, caller))
        repo_name, _, ref = name.partition("@")
        repo = self.repo(repo_name, caller)
        return self.revision(refs.find(self.db, repo.id, repo.name, ref or "main"))

    def revision(self, id: str) -> Revision:
        """By its full commit id, which must be one."""
        return queries.revision(self.db, id)

    def revisions(self, name: str, *, ref: str = "main", limit: int = MOST_LISTED, offset: int = 0) -> list[Revision]:
        """From `ref` back towards the first, following parents."""
        return queries.line(self.db, self.resolve(f"{name}@{ref}").id, limit, offset)

    def branch_head(self, repo: Repo, branch: str) -> str | None:
        """A branch's head; None for a branch main that has no commit yet. Raises RevisionNotFoundError."""
        return queries.branch_head(self.db, repo, branch)

    def found(self, revision_id: str) -> Inspection | None:
        """What was found in the revision's adapter when it was published."""
        return queries.inspection_of(self.db, revision_id)

    def warnings(self, name: str) -> tuple[str, ...]:
        inspection = self.found(self.resolve(name).id)
        return tuple(inspection.warnings) if inspection else ()

    # Files

    def tree(self, revision_id: str | None) -> Tree:
        """path -> sha256; empty for None."""
        return queries.tree(self.db, revision_id)

    def files(self, revision_id: str) -> list[File]:
        return queries.files(self.db, revision_id)

    def file(self, revision_id: str, path: str) -> File:
        """Raises EntryNotFoundError."""
        return queries.file(self.db, revision_id, path)

    def pull(self, name: str, folder: str | Path, *, caller: Caller = OWNER, told: Told = tell_nobody) -> Revision:
        """Write a revision's files into `folder`, every byte checked against its hash; counts as a download.

        All of them or none: what another version left there goes, and files that are no version's stay. Raises
        DamagedBlobError when a stored file has changed.
        """
        revision, folder = self.resolve(name, caller=caller), Path(folder)
        tree, size, came = self.tree(revision.id), sum(file.size for file in self.files(revision.id)), 0

        def outdated() -> list[str]:
            return [path for path in queries.unchanged_files(self.db, folder, revision.id) if path not in tree]

        with write_folder_whole(folder, last=PULLED, outdated=outdated) as staging:
            for path, sha256 in tree.items():
                self.blobs.copy_out(sha256, staging / path)
                came += (staging / path).stat().st_size
                told(came, size)
        self.count_download(revision.repo)
        return revision

    @contextmanager
    def lend(self, name: str, *, caller: Caller = OWNER) -> Iterator[Path]:
        """As AnyRegistry.lend: links to the stored files, copies where this process may not write beside them."""
        tree = self.tree(self.resolve(name, caller=caller).id)
        for path, sha256 in tree.items():
            if path not in WEIGHTS:
                self.blobs.require_sound(sha256)
        with self.blobs.lay_out(tree) if not self.read_only else self.blobs.copy_all_out(tree) as folder:
            yield folder

    def count_download(self, name: str) -> None:
        """As well as can be: never waits for a writer, never fails (DownloadCounter)."""
        self._downloads.count(self.repo(name).id)

    # Names that move

    def all_refs(self, name: str, *, limit: int = refs.ALL, offset: int = 0) -> list[refs.Ref]:
        """Every branch, tag and alias, by kind and name."""
        return refs.all_of(self.db, self.repo(name).id, limit, offset)

    def history(self, name: str, *, limit: int = MOST_LISTED, offset: int = 0) -> list[refs.Move]:
        """The moves of every branch, tag and alias, newest first: what was it when, by whom, why."""
        return refs.moves(self.db, self.repo(name).id, limit, offset)

    # Tasks and scores

    def task(self, slug: str) -> Task:
        """Raises NotFoundError."""
        return tasks.task(self.db, slug)

    def tasks(self) -> list[Task]:
        return tasks.tasks(self.db)

    def task_data(self, slug: str, data_hash: str | None = None) -> bytes:
        """An evaluation set of the task, as it was added: the present one, or the one with a hash. Raises NotFoundError."""
        return tasks.read_data(self.db, self.blobs, slug, data_hash)

    def evaluation(self, id: int, caller: Caller = OWNER) -> Evaluation:
        return scores.get(self.db, id, caller)

    def evaluations(self, name: str) -> list[Evaluation]:
        return scores.of_repo(self.db, self.repo(name).id)

    def leaderboard(self, task: str, base: str | None = None, caller: Caller = OWNER) -> list[Standing]:
        """The task's adapters and bare bases, best first, all on its present evaluation set; `base` is a fingerprint or id."""
        return self.standings(self.places(self.task(task), base, caller))

    def places(self, task: Task, base: str | None = None, caller: Caller = OWNER) -> list[Place]:
        """Of the leaderboard, without what stands there."""
        return scores.places(self.db, task, base, caller)

    def standings(self, places: Sequence[Place]) -> list[Standing]:
        return scores.standings(self.db, places)
