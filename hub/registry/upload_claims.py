"""Who uploaded a blob, and so may name it in a commit."""

from graft.hub.registry.storage.database import Database
from graft.hub.registry.storage.schema import write_transaction
from graft.hub.registry.storage.timestamps import now
from graft.hub.registry.users import Caller


def note_upload(db: Database, sha256: str, who: str) -> None:
    """Remember who brought bytes that no commit names yet."""
    with write_transaction(db):
        db.execute("INSERT OR REPLACE INTO uploads (sha256, who, created_at) VALUES (?, ?, ?)", [sha256, who, now()])


def may_name(db: Database, caller: Caller, sha256: str) -> bool:
    """Whether `caller` may commit a blob by its hash: they uploaded it, or may read a repo that holds it."""
    if db.execute("SELECT 1 FROM uploads WHERE sha256 = ? AND who = ?", [sha256, caller.name]).fetchone():
        return True
    rows = db.execute(
        "SELECT DISTINCT namespace, private FROM files JOIN revisions ON revisions.id = revision_id "
        "JOIN repos ON repos.id = repo_id WHERE sha256 = ? AND deleted_at IS NULL AND disabled IS NULL",
        [sha256],
    )
    return any(not row["private"] or caller.owns(row["namespace"]) for row in rows)
