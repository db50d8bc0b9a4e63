"""Who uploaded a blob, and so may name it in a commit."""

from graft.hub.registry.access.callers import Caller
from graft.hub.registry.access.visibility import visible
from graft.hub.registry.storage.database import Database
from graft.hub.registry.storage.schema import write_transaction
from graft.hub.registry.storage.timestamps import now


def note_upload(db: Database, sha256: str, size: int, who: str) -> None:
    """Remember who brought bytes that no commit names yet."""
    row = [sha256, size, who, now()]
    with write_transaction(db):
        db.execute("INSERT OR REPLACE INTO uploads (sha256, size, who, created_at) VALUES (?, ?, ?, ?)", row)


def has_brought(db: Database, sha256: str, who: str) -> bool:
    """Whether `who` uploaded these bytes, and no `gc` has forgotten it."""
    row = db.execute("SELECT 1 FROM uploads WHERE sha256 = ? AND who = ?", [sha256, who]).fetchone()
    return row is not None


def may_name(db: Database, caller: Caller, sha256: str) -> bool:
    """Whether `caller` may commit a blob by its hash: they uploaded it, or may read a repo that holds it."""
    if has_brought(db, sha256, caller.name):
        return True
    seen, values = visible(caller, "live_repos")
    readable = db.execute(
        "SELECT 1 FROM files JOIN revisions ON revisions.id = revision_id "
        f"JOIN live_repos ON live_repos.id = repo_id WHERE sha256 = ? AND {seen} LIMIT 1",
        [sha256, *values],
    )
    return readable.fetchone() is not None
