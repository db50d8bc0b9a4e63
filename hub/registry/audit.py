"""Who did what, written down."""

from graft.hub.registry.storage.database import Database
from graft.hub.registry.storage.timestamps import now


def audit(db: Database, who: str, action: str, subject: str, detail: str = "") -> None:
    """Note a write, inside its own transaction."""
    db.execute(
        "INSERT INTO audit (at, who, action, subject, detail) VALUES (?, ?, ?, ?, ?)",
        [now(), who, action, subject, detail],
    )
