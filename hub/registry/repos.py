"""Repos as names: made, renamed, hidden, taken away. A name once used is never issued to another repo.

Functions over an open connection, called inside a transaction.
"""

from graft.hub.errors import ConflictError
from graft.hub.registry import search
from graft.hub.registry.access import quotas
from graft.hub.registry.audit import audit
from graft.hub.registry.naming import check_repo_name
from graft.hub.registry.queries import Repo
from graft.hub.registry.storage.database import Database
from graft.hub.registry.storage.timestamps import now


def insert(db: Database, name: str, private: bool, user: str) -> int:
    """A new, empty repo's id. Raises ConflictError when the name is taken or ever was, by whoever, TooLargeError where
    the user has too many."""
    quotas.require_repo(db, user)
    return _insert(db, name, private, user)


def _insert(db: Database, name: str, private: bool, user: str) -> int:
    namespace, short = check_repo_name(name)
    row = db.execute("SELECT deleted_at FROM repos WHERE namespace = ? AND name = ?", [namespace, short]).fetchone()
    if row is not None:
        why = "was used before; names are not issued twice" if row["deleted_at"] else "exists already"
        raise ConflictError(f"{name} {why}: choose another name.")
    at = now()
    repo_id: int = db.execute(
        "INSERT INTO repos (namespace, name, private, created_by, created_at, updated_at) VALUES (?, ?, ?, ?, ?, ?) "
        "RETURNING id",
        [namespace, short, private, user, at, at],
    ).fetchone()["id"]
    search.list_repo(db, repo_id, None, {}, "")
    audit(db, user, "repo.create", name, "private" if private else "")
    return repo_id


def set_private(db: Database, repo: Repo, private: bool, user: str) -> None:
    db.execute("UPDATE repos SET private = ? WHERE id = ?", [private, repo.id])
    db.execute("UPDATE listing SET private = ? WHERE repo_id = ?", [private, repo.id])
    audit(db, user, "repo.private" if private else "repo.public", repo.name)


def move(db: Database, repo: Repo, new_name: str, user: str) -> None:
    """Rename; the old name leads to the new one until the repo takes it back.

    Raises ConflictError when the new one is taken or ever was, by another repo.
    """
    namespace, short = check_repo_name(new_name)
    new_id = _row_of_earlier_name(db, repo, namespace, short) or _insert(db, new_name, repo.private, user)
    # The two rows change places: the old one keeps its id, which everything refers to, under the new name.
    old_namespace, _, old_short = repo.name.partition("/")
    search.unlist_repo(db, new_id)
    db.execute("UPDATE repos SET name = ? WHERE id = ?", [f"{short}\0moving", new_id])
    db.execute("UPDATE repos SET namespace = ?, name = ? WHERE id = ?", [namespace, short, repo.id])
    db.execute(
        "UPDATE repos SET namespace = ?, name = ?, deleted_at = ?, moved_to = ? WHERE id = ?",
        [old_namespace, old_short, now(), repo.id, new_id],
    )
    search.rename_repo(db, repo.id, namespace, short)
    audit(db, user, "repo.move", repo.name, new_name)


def _row_of_earlier_name(db: Database, repo: Repo, namespace: str, short: str) -> int | None:
    """The row that holds a name which this very repo once had; None where it never had it."""
    row = db.execute(
        "SELECT id FROM repos WHERE namespace = ? AND name = ? AND moved_to = ?", [namespace, short, repo.id]
    ).fetchone()
    return row["id"] if row else None


def delete(db: Database, repo: Repo, user: str) -> None:
    """Take a repo away; its row stays, and so its name stays taken. Its bytes go with the next `gc`.

    One that nothing was ever in is as if it had never been: its name is free again.
    """
    if _was_ever_used(db, repo):
        db.execute("UPDATE repos SET deleted_at = ? WHERE id = ?", [now(), repo.id])
    else:
        db.execute("DELETE FROM repos WHERE id = ?", [repo.id])
    db.execute("DELETE FROM refs WHERE repo_id = ?", [repo.id])
    search.unlist_repo(db, repo.id)
    audit(db, user, "repo.delete", repo.name)


def _was_ever_used(db: Database, repo: Repo) -> bool:
    """Whether it has, or had, a commit or another name."""
    return (
        db.execute(
            "SELECT 1 FROM ref_moves WHERE repo_id = ? UNION ALL SELECT 1 FROM repos WHERE moved_to = ?",
            [repo.id, repo.id],
        ).fetchone()
        is not None
    )
