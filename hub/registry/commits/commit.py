"""How a commit comes about: proven first, then recorded in one transaction, or not at all.

Functions over an open connection and the store. What a commit *is* (trees, changes, ids) stands in changes.py.
"""

from dataclasses import dataclass

from graft.hub.errors import ConflictError, RepoNotFoundError, StaleParentError, TooLargeError
from graft.hub.registry import leaderboard, queries, refs, repos, search
from graft.hub.registry.access.callers import OWNER, Caller
from graft.hub.registry.access.permissions import Action, require
from graft.hub.registry.access.tokens import require_standing
from graft.hub.registry.audit import audit
from graft.hub.registry.commits.changes import Change, Put, apply_changes, commit_id
from graft.hub.registry.commits.commit_check import Proven, prove
from graft.hub.registry.queries import Repo, Revision
from graft.hub.registry.storage.blob_rows import record_blob, require_stored
from graft.hub.registry.storage.blob_store import BlobStore, DamagedBlobError, Tree
from graft.hub.registry.storage.database import Database
from graft.hub.registry.storage.schema import write_transaction
from graft.hub.registry.storage.timestamps import now

MAX_TITLE_CHARS, MAX_MESSAGE_CHARS = 1000, 20_000
MAX_TAGS = 20  # each is a write of its own, under the lock that all writers wait for
FILE_ROW_BYTES = 200  # about what the tables keep of a file of a revision
MAX_ATTEMPTS = 32  # of a commit without a parent, when others keep moving the branch


@dataclass(frozen=True)
class Intent:
    """A commit that somebody wants made.

    `parent` must be the branch's head; None goes on top of whatever is there. `replace` drops every file that `changes`
    don't write. `caller` must be permitted. `create` makes a missing repo (then `private` or not) in the same transaction, `tags` name the result.
    """

    name: str
    changes: tuple[Change, ...]
    title: str
    message: str
    user: str
    caller: Caller
    branch: str
    parent: str | None
    tags: tuple[str, ...]
    create: bool
    private: bool
    replace: bool
    base_fingerprint: str | None = None  # of the base that lies where the adapter's config names a path


def commit(db: Database, blobs: BlobStore, intent: Intent) -> Revision:
    """The new revision, or the head as it is when nothing would change. Raises as Registry.commit says."""
    if len(intent.title) > MAX_TITLE_CHARS or len(intent.message) > MAX_MESSAGE_CHARS:
        raise TooLargeError(
            f"A commit's title may have {MAX_TITLE_CHARS:,} characters and its message {MAX_MESSAGE_CHARS:,}: say more in the "
            "model card."
        )
    if len(intent.tags) > MAX_TAGS:
        raise TooLargeError(
            f"A commit may bring {MAX_TAGS} tags and this one has {len(intent.tags):,}: set the others later."
        )
    for _ in range(MAX_ATTEMPTS):
        head = _head(db, intent)
        if intent.parent is not None and head != intent.parent:
            return _answer_repeat(db, blobs, intent, head)
        proven = _prove(db, blobs, intent, head)
        with write_transaction(db):
            if _head(db, intent) == head:
                return _record(db, blobs, intent, head, proven)
    raise ConflictError(f"Others kept writing to {intent.name} for {MAX_ATTEMPTS} attempts: try again.")


def _find_repo(db: Database, intent: Intent) -> Repo | None:
    """The repo that the name leads to now; None where it is missing and the commit may make it. Raises ForbiddenError and its
    kin where the caller may not write to it, or make it, or not any more."""
    require_standing(db, intent.caller.token)
    try:
        repo = queries.repo(db, intent.name, intent.caller)
    except RepoNotFoundError:
        if not intent.create:
            raise
        require(intent.caller, Action.REPO_CREATE, intent.name)
        return None
    require(intent.caller, Action.REPO_WRITE, repo.name)
    return repo


def _head(db: Database, intent: Intent) -> str | None:
    repo = _find_repo(db, intent)
    if repo is None:
        return None
    return queries.branch_head(db, repo, intent.branch)


def _tree(db: Database, intent: Intent, parent: str | None) -> Tree:
    """What the commit makes of `parent`'s files."""
    return apply_changes({} if intent.replace else queries.tree(db, parent), intent.changes)


def _prove(db: Database, blobs: BlobStore, intent: Intent, parent: str | None) -> Proven:
    """The tree that the commit makes of `parent`'s. Raises ConflictError where `gc` took a file of it that had just come."""
    try:
        return prove(db, blobs, _tree(db, intent, parent), intent.user, made_for=intent.base_fingerprint)
    except DamagedBlobError:
        for change in intent.changes:
            if isinstance(change, Put):
                require_stored(blobs, change.blob)
        raise


def _answer_repeat(db: Database, blobs: BlobStore, intent: Intent, head: str | None) -> Revision:
    """The answer to a commit whose parent isn't the head: the head, if it is this commit come a second time."""
    latest = queries.revision(db, head) if head else None
    if latest is not None and latest.parent == intent.parent:
        tree = _prove(db, blobs, intent, intent.parent).tree
        if tree == queries.tree(db, head):
            return latest
    raise StaleParentError(
        f"{intent.name} has moved on from {intent.parent} to {head}: read it again, then repeat your change."
    )


def _record(db: Database, blobs: BlobStore, intent: Intent, head: str | None, proven: Proven) -> Revision:
    """Inside the transaction: rows for what is new, the branch moved, the listing renewed, the tags set."""
    if _find_repo(db, intent) is None:
        repos.insert(db, intent.name, intent.private, intent.user)
    repo = queries.repo(db, intent.name, OWNER)
    if head is not None and proven.tree == queries.tree(db, head):
        made = head
        _record_blobs(db, blobs, intent, proven, now())  # what is stored is somebody's, also where it changes nothing
    else:
        made = _insert(db, blobs, intent, repo, head, proven)
        refs.move(db, repo.id, "branch", intent.branch, made, intent.user, intent.title)
        if intent.branch == "main":
            search.list_repo(db, repo.id, made, proven.card, proven.body)
        audit(db, intent.user, "commit", repo.name, made)
    for tag in intent.tags:
        if refs.target(db, repo.id, "tag", tag) != made:
            at = refs.create(db, repo.id, "tag", tag, made, intent.user, "published with this tag")
            audit(db, intent.user, "tag.create", f"{repo.name}@{tag}", made, at=at)
    return queries.revision(db, made)


def _insert(db: Database, blobs: BlobStore, intent: Intent, repo: Repo, head: str | None, proven: Proven) -> str:
    """The rows of a new revision; its id."""
    at = now()
    id = commit_id(repo.id, head, proven.tree, intent.user, intent.title, at)
    _record_blobs(db, blobs, intent, proven, at)
    found = queries.artifact_row(id, proven.inspection) if proven.inspection else {}
    texts = (intent.title, intent.message, *(text for text in found.values() if isinstance(text, str)))
    row = {"id": id, "repo_id": repo.id, "parent": head, "author": intent.user, "title": intent.title}
    row |= {
        "message": intent.message,
        "created_at": at,
        "row_bytes": sum(map(len, texts)) + FILE_ROW_BYTES * len(proven.tree),
    }
    db.table("revisions").insert(row)
    before = {file.path: file for file in queries.files(db, head)}
    db.table("files").insert_all(
        {
            "revision_id": id,
            "path": path,
            "sha256": sha256,
            "changed_in": before[path].changed_in if path in before and before[path].sha256 == sha256 else id,
        }
        for path, sha256 in proven.tree.items()
    )
    db.execute("UPDATE repos SET updated_at = ? WHERE id = ?", [at, repo.id])
    if proven.inspection is not None:
        db.table("artifacts").insert(found)
        leaderboard.record_reported(db, repo.id, id, proven.inspection, intent.user)
    return id


def _record_blobs(db: Database, blobs: BlobStore, intent: Intent, proven: Proven, at: str) -> None:
    for blob in (*(change.blob for change in intent.changes if isinstance(change, Put)), *proven.rewritten):
        record_blob(db, blobs, blob, intent.user, at)
