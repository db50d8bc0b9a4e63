"""`registry.db`: repos of adapters, their immutable revisions, and the names that move over them.

The one way in for commands, pages and the wire protocol: publishing over HTTP and from a folder is the same `commit`. What
it answers stands in reader.py. A method takes `user` only to write down who did it, and `caller` to ask whether they may: of a
repo that is asked under the write lock, whatever was asked before, since a name leads on to a repo that has moved, and it may
move to others at any moment. Every write is one immediate transaction, and the proof of an artifact runs before the
transaction, not inside it.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path

from graft.hub.base.manifest import BaseSpec
from graft.hub.errors import ArtifactError
from graft.hub.registry import base_models, refs, repos, tasks
from graft.hub.registry import leaderboard as scores
from graft.hub.registry.access.callers import OWNER, Caller
from graft.hub.registry.access.permissions import Action, may, require
from graft.hub.registry.access.tokens import require_standing
from graft.hub.registry.audit import audit
from graft.hub.registry.commits import accepted_files
from graft.hub.registry.commits import commit as committing
from graft.hub.registry.commits.changes import Change, Put
from graft.hub.registry.commits.commit import Intent
from graft.hub.registry.commits.publish_folder import base_at_hand, contents
from graft.hub.registry.leaderboard import MEASURED, Evaluation
from graft.hub.registry.naming import branch_of, check_repo_name
from graft.hub.registry.queries import Repo, Revision
from graft.hub.registry.reader import RegistryReader
from graft.hub.registry.storage.arrivals import Arrivals, Blob
from graft.hub.registry.storage.blob_store import Seekable
from graft.hub.registry.storage.schema import write_transaction
from graft.hub.registry.tasks import Task


class Registry(RegistryReader):
    """An open registry, to be read and changed."""

    def require_writer(self, names: Iterable[str]) -> None:
        """Whoever holds the file may write to all of it."""

    def _permitted_repo(self, name: str, caller: Caller, action: Action) -> Repo:
        """For a transaction: the repo that `name` leads to now. Raises RepoNotFoundError where the caller sees none,
        ForbiddenError and UnauthorizedError where they may not do that to it, or not any more."""
        require_standing(self.db, caller.token)
        repo = self.repo(name, caller)
        require(caller, action, repo.name)
        return repo

    # Bases

    def add_base(self, spec: BaseSpec, *, user: str = OWNER.name, replace: bool = True) -> None:
        """Record a base's manifest for everybody; with `replace` false, one that is there stays as it is.

        Raises ArtifactError for a base without an id, ConflictError where another base has that id.
        """
        with write_transaction(self.db):
            base_models.add_base(self.db, spec, user, replace=replace)

    # Repos

    def create_repo(self, name: str, *, private: bool = False, user: str = OWNER.name) -> Repo:
        """Raises ConflictError when the name is taken or ever was, by whoever."""
        with write_transaction(self.db):
            repos.insert(self.db, name, private, user)
            return self.repo(name)

    def set_private(self, name: str, private: bool, *, user: str = OWNER.name, caller: Caller = OWNER) -> None:
        with write_transaction(self.db):
            repos.set_private(self.db, self._permitted_repo(name, caller, Action.REPO_WRITE), private, user)

    def move_repo(self, name: str, new_name: str, *, user: str = OWNER.name, caller: Caller = OWNER) -> Repo:
        """Rename; the old name leads to the new one for ever. Raises ConflictError when the new one is taken."""
        with write_transaction(self.db):
            repos.move(self.db, self._permitted_repo(name, caller, Action.REPO_MOVE), new_name, user)
            return self.repo(new_name)

    def delete_repo(self, name: str, *, user: str = OWNER.name, caller: Caller = OWNER) -> None:
        """Take a repo away; its name stays taken. Its bytes go with the next `gc`."""
        with write_transaction(self.db):
            repos.delete(self.db, self._permitted_repo(name, caller, Action.REPO_DELETE), user)

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
        caller: Caller = OWNER,
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
            caller=caller,
            branch=branch_of(branch),
            parent=parent,
            tags=tuple(tags),
            create=create,
            private=private,
            replace=replace,
            base_fingerprint=base_fingerprint,
        )
        return committing.commit(self.db, self.blobs, intent)

    # Names that move

    def promote(
        self, ref: str, alias: str, *, who: str = OWNER.name, why: str = "", caller: Caller = OWNER
    ) -> Revision:
        """Point `alias` at a revision that holds an adapter. Raises ArtifactError where it holds none.

        Where it stands there already, that it was promoted again is kept, and no rollback leads back to it. What `task:T`
        serves follows the alias `production` where the task is the caller's.
        """
        with write_transaction(self.db):
            revision = self.resolve(ref, caller=caller)
            repo = self._permitted_repo(revision.repo, caller, Action.REPO_WRITE)
            if revision.digest is None:
                raise ArtifactError(f"{ref} holds no complete adapter: publish one before you promote it.")
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
            repo = self._permitted_repo(name, caller, Action.REPO_WRITE)
            before = refs.find_previous(self.db, repo.id, repo.name, alias)
            refs.move(self.db, repo.id, "alias", alias, before, who, why or "rollback")
            tasks.follow_alias(self.db, caller, repo.id)
            audit(self.db, who, "rollback", f"{repo.name}@{alias}", before)
            return self.revision(before)

    def create_ref(
        self, name: str, kind: str, ref: str, at: str = "main", *, user: str = OWNER.name, caller: Caller = OWNER
    ) -> None:
        """A new 'tag' or 'branch'. Raises ConflictError when the name is taken."""
        with write_transaction(self.db):
            repo = self._permitted_repo(name, caller, Action.REPO_WRITE)
            revision = self.resolve(f"{repo.name}@{at}")
            refs.create(self.db, repo.id, kind, ref, revision.id, user, f"{kind} at {at}")
            audit(self.db, user, f"{kind}.create", f"{repo.name}@{ref}", revision.id)

    def delete_ref(self, name: str, kind: str, ref: str, *, user: str = OWNER.name, caller: Caller = OWNER) -> None:
        """Raises RevisionNotFoundError when there is none, ConflictError for the branch main."""
        with write_transaction(self.db):
            repo = self._permitted_repo(name, caller, Action.REPO_WRITE)
            refs.delete(self.db, repo.id, kind, ref, user)
            tasks.follow_alias(self.db, OWNER, repo.id)
            audit(self.db, user, f"{kind}.delete", f"{repo.name}@{ref}")

    # Tasks and scores

    def add_task(
        self,
        slug: str,
        metric: str,
        data: bytes,
        description: str,
        *,
        owners: Sequence[str] | None = None,
        user: str = OWNER.name,
    ) -> Task:
        """Add a task, or give it a new evaluation set (scores on the old one stay, and are not ranked with the new).

        `owners`: the namespaces that say what `task:T` serves; None leaves them as they are.
        """
        return tasks.add_task(self.db, self.blobs, slug, metric, data, description, user, owners)

    def set_task_owners(self, slug: str, owners: Sequence[str], *, user: str = OWNER.name) -> Task:
        return tasks.set_owners(self.db, slug, owners, user)

    def record_evaluation(
        self, evaluation: Evaluation, *, user: str = OWNER.name, caller: Caller = OWNER
    ) -> Evaluation:
        """Digest and base are the stored artifact's. A score that counts as measured, or is of a bare base, takes the right to
        measure. Raises as scores.record and scores.of_revision do."""
        with write_transaction(self.db):
            if evaluation.repo is None or evaluation.source == MEASURED:
                require(caller, Action.SCORE_MEASURE)
            if evaluation.repo is None:
                return scores.record(self.db, None, evaluation, user)
            action = Action.SCORE_MEASURE if may(caller, Action.SCORE_MEASURE) else Action.SCORE_CLAIM
            repo = self._permitted_repo(evaluation.repo, caller, action)
            revision = self.resolve(f"{repo.name}@{evaluation.revision or 'main'}")
            return scores.record(self.db, repo.id, scores.of_revision(evaluation, revision), user)
