"""Names that point at revisions: branches move with commits, tags stay, aliases are promoted, and every move is kept.

Functions over an open connection; the writing ones are called inside a transaction.
"""

from dataclasses import dataclass

from graft.hub.errors import ConflictError, RevisionNotFoundError
from graft.hub.registry.naming import COMMIT_ID, branch_of, check_ref_name
from graft.hub.registry.storage.database import Database
from graft.hub.registry.storage.timestamps import now

SHORT_ID_CHARS = 7
ALL = -1  # as a LIMIT
MOST_NAMED = 20  # refs in the answer to who asks for another


@dataclass(frozen=True)
class Ref:
    """`kind`: branch, tag or alias."""

    kind: str
    name: str
    revision: str


@dataclass(frozen=True)
class Move:
    """A ref's way from `old` to `new`; None is "not there"."""

    kind: str
    name: str
    old: str | None
    new: str | None
    who: str
    why: str
    at: str


def target(db: Database, repo_id: int, kind: str, name: str) -> str | None:
    row = db.execute(
        "SELECT revision_id FROM refs WHERE repo_id = ? AND kind = ? AND name = ?", [repo_id, kind, name]
    ).fetchone()
    return row["revision_id"] if row else None


def branch(db: Database, repo_id: int, name: str) -> str:
    """A branch's head. Raises RevisionNotFoundError."""
    revision_id = target(db, repo_id, "branch", name)
    if revision_id is None:
        raise RevisionNotFoundError(f"There is no branch {name!r}: create it first, or commit to main.")
    return revision_id


def find(db: Database, repo_id: int, repo_name: str, ref: str) -> str:
    """A commit id, a branch (HEAD: main), tag or alias, or the unique start of a commit id. Raises RevisionNotFoundError."""
    ref = branch_of(ref)
    if COMMIT_ID.fullmatch(ref):
        rows = db.execute("SELECT id FROM revisions WHERE repo_id = ? AND id = ?", [repo_id, ref]).fetchall()
    else:
        rows = db.execute("SELECT revision_id FROM refs WHERE repo_id = ? AND name = ?", [repo_id, ref]).fetchall()
        if not rows and len(ref) >= SHORT_ID_CHARS and set(ref) <= set("0123456789abcdef"):
            rows = db.execute(
                "SELECT id FROM revisions WHERE repo_id = ? AND id BETWEEN ? AND ? LIMIT 2", [repo_id, ref, ref + "g"]
            ).fetchall()
    if len(rows) != 1:
        names = [known.name for known in all_of(db, repo_id, MOST_NAMED + 1)]
        known = ", ".join(names[:MOST_NAMED]) + (" and more" if len(names) > MOST_NAMED else "")
        hint = f"it has: {known}" if known else "it has no commit yet"
        raise RevisionNotFoundError(f"{repo_name} has no revision {ref!r}; {hint}.")
    return rows[0][0]


def move(db: Database, repo_id: int, kind: str, name: str, new: str | None, who: str, why: str) -> str:
    """Point a ref at `new` (None: take it away) and note who did it and why; returns when it was."""
    old = target(db, repo_id, kind, name)
    if new is None:
        db.execute("DELETE FROM refs WHERE repo_id = ? AND kind = ? AND name = ?", [repo_id, kind, name])
    else:
        db.table("refs").insert({"repo_id": repo_id, "kind": kind, "name": name, "revision_id": new}, replace=True)
    at = now()
    row = {"repo_id": repo_id, "kind": kind, "name": name, "old": old, "new": new, "who": who, "why": why, "at": at}
    db.table("ref_moves").insert(row)
    return at


def require_free(db: Database, repo_id: int, name: str, *, but: str | None = None) -> None:
    """Raises ConflictError when the name is a ref of another kind than `but`: a name means one thing in a repo."""
    check_ref_name(name)
    rows = db.execute("SELECT kind FROM refs WHERE repo_id = ? AND name = ?", [repo_id, name]).fetchall()
    for row in rows:
        if row["kind"] != but:
            raise ConflictError(f"{name!r} is already a {row['kind']} here: choose another name.")


def create(
    db: Database,
    repo_id: int,
    kind: str,
    name: str,
    revision_id: str,
    who: str,
    why: str,
) -> str:
    """Returns when it was. Raises ConflictError when the name is taken."""
    require_free(db, repo_id, name)
    return move(db, repo_id, kind, name, revision_id, who, why)


def delete(db: Database, repo_id: int, kind: str, name: str, who: str) -> None:
    if kind == "branch" and name == "main":
        raise ConflictError("The branch main can't be deleted: delete the repo instead.")
    if target(db, repo_id, kind, name) is None:
        raise RevisionNotFoundError(f"There is no {kind} {name!r}.")
    move(db, repo_id, kind, name, None, who, "deleted")


def find_previous(db: Database, repo_id: int, repo_name: str, alias: str) -> str:
    """Where an alias was before it last came to another revision. Raises RevisionNotFoundError when it was nowhere."""
    check_ref_name(alias)
    row = db.execute(
        "SELECT old FROM ref_moves WHERE repo_id = ? AND kind = 'alias' AND name = ? AND old IS NOT new "
        "ORDER BY id DESC LIMIT 1",
        [repo_id, alias],
    ).fetchone()
    if row is None or row["old"] is None:
        raise RevisionNotFoundError(f"{repo_name}@{alias} has no earlier revision to go back to: promote one by id.")
    return row["old"]


def all_of(db: Database, repo_id: int, limit: int = ALL, offset: int = 0) -> list[Ref]:
    """By kind and name."""
    rows = db.execute(
        "SELECT kind, name, revision_id FROM refs WHERE repo_id = ? ORDER BY kind, name LIMIT ? OFFSET ?",
        [repo_id, limit, offset],
    )
    return [Ref(row["kind"], row["name"], row["revision_id"]) for row in rows]


def moves(db: Database, repo_id: int, limit: int, offset: int = 0) -> list[Move]:
    """Newest first."""
    columns = ", ".join(Move.__dataclass_fields__)
    rows = db.execute(
        f"SELECT {columns} FROM ref_moves WHERE repo_id = ? ORDER BY id DESC LIMIT ? OFFSET ?", [repo_id, limit, offset]
    )
    return [Move(**dict(row)) for row in rows]
