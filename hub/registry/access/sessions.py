"""Signing in on the pages: a token, shown once, becomes a session that a cookie names.

The cookie holds random bits and no token; the registry keeps their hash, so a stolen file opens no session. A session
ends at sign-out, at its time, and with the token it came from.
"""

import secrets
from datetime import timedelta

from graft.hub.registry.access.callers import Caller
from graft.hub.registry.access.tokens import caller_of, find_caller, token_hash
from graft.hub.registry.storage.database import Database
from graft.hub.registry.storage.schema import write_transaction
from graft.hub.registry.storage.timestamps import from_now, now

SESSION_LIFE = timedelta(days=7)
MAX_SESSIONS = 20  # of one token: the oldest ends where one more begins


def start_session(db: Database, token: str) -> str:
    """What the cookie of a new session holds. Raises UnauthorizedError for a token that is no good."""
    caller_of(db, token)
    id = secrets.token_urlsafe(32)
    with write_transaction(db):
        db.execute("DELETE FROM sessions WHERE expires_at <= ?", [now()])
        db.execute(
            "INSERT INTO sessions (hash, token_id, created_at, expires_at) SELECT ?, id, ?, ? FROM tokens WHERE hash = ?",
            [token_hash(id), now(), from_now(SESSION_LIFE), token_hash(token)],
        )
        theirs = (
            "SELECT hash FROM sessions WHERE token_id = (SELECT id FROM tokens WHERE hash = ?) ORDER BY created_at DESC"
        )
        db.execute(
            f"DELETE FROM sessions WHERE hash IN ({theirs} LIMIT -1 OFFSET ?)", [token_hash(token), MAX_SESSIONS]
        )
    return id


def caller_of_session(db: Database, id: str) -> Caller:
    """Raises UnauthorizedError for a session that ended."""
    open_session = "tokens.id = (SELECT token_id FROM sessions WHERE sessions.hash = ? AND sessions.expires_at > ?)"
    return find_caller(db, open_session, [token_hash(id), now()])


def end_session(db: Database, id: str) -> None:
    with write_transaction(db):
        db.execute("DELETE FROM sessions WHERE hash = ?", [token_hash(id)])
