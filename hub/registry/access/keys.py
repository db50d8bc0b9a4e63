"""Random keys that stay the registry's own: signed uploads, sessions."""

import secrets
import sqlite3

from graft.hub.registry.storage.database import Database
from graft.hub.registry.storage.schema import write_transaction


def secret(db: Database, purpose: str) -> bytes:
    """The key for a purpose; made when first asked for. Where the registry can't be written, one that never was made is another
    at each call."""
    key = f"secret.{purpose}"
    row = db.execute("SELECT value FROM settings WHERE key = ?", [key]).fetchone()
    if row is None:
        try:
            with write_transaction(db):
                db.execute("INSERT OR IGNORE INTO settings (key, value) VALUES (?, ?)", [key, secrets.token_hex(32)])
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_READONLY:
                raise
            return secrets.token_bytes(32)
        row = db.execute("SELECT value FROM settings WHERE key = ?", [key]).fetchone()
    return bytes.fromhex(row["value"])
