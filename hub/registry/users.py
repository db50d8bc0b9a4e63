"""Who may do what: users, hashed tokens with a scope, namespaces, and private repos that look absent to strangers.

Three rules. Reading public repos needs nobody. Writing needs a token of scope write or admin, and a namespace of one's
own: admins have no way into other people's names either, they manage users and tasks. Whoever holds the file
`registry.db` (a command on this machine, or a hub with no users yet that listens on loopback) is its owner.
"""

import hashlib
import secrets
import sqlite3
from dataclasses import dataclass

from graft.hub.errors import ConflictError, ForbiddenError, GraftError, NotFoundError, UnauthorizedError
from graft.hub.registry.audit import audit
from graft.hub.registry.naming import REPO_NAME
from graft.hub.registry.storage.database import Database
from graft.hub.registry.storage.schema import write_transaction
from graft.hub.registry.storage.timestamps import now

SCOPES = ("read", "write", "admin")
TOKEN_PREFIX = "hf_graft_"


@dataclass(frozen=True)
class Caller:
    """Who asks. `namespaces` None means all of them."""

    name: str
    scope: str | None  # one of SCOPES; None for nobody in particular
    namespaces: frozenset[str] | None

    def owns(self, namespace: str) -> bool:
        return self.namespaces is None or namespace.lower() in self.namespaces

    def require(self, scope: str) -> None:
        """Raises UnauthorizedError for a stranger, ForbiddenError for a token of too small a scope."""
        if self.scope is None:
            raise UnauthorizedError("Sign in first: this needs a token (`hf auth login`, or the sign-in page).")
        if SCOPES.index(self.scope) < SCOPES.index(scope):
            raise ForbiddenError(
                f"This token's scope is {self.scope!r} and this needs {scope!r}: ask for another token."
            )

    def require_namespace(self, namespace: str) -> None:
        """Raises as `require` does, and ForbiddenError outside one's own namespaces."""
        self.require("write")
        if not self.owns(namespace):
            raise ForbiddenError(
                f"{self.name} may not write under {namespace!r}: publish under {', '.join(sorted(self.namespaces or ()))}."
            )


OWNER = Caller("owner", "admin", None)
STRANGER = Caller("", None, frozenset())


def has_users(db: Database) -> bool:
    return db.execute("SELECT 1 FROM users LIMIT 1").fetchone() is not None


def create_token(db: Database, user: str, scope: str, *, name: str = "token", namespaces: tuple[str, ...] = ()) -> str:
    """A new token for `user`, who is added where unknown. Only its hash is kept: it can't be shown again."""
    if scope not in SCOPES:
        raise GraftError(f"A token's scope is one of {', '.join(SCOPES)}, not {scope!r}.")
    for namespace in (user, *namespaces):
        if not REPO_NAME.fullmatch(namespace):
            raise GraftError(
                f"{namespace!r} can't be a user's or a namespace's name: use letters, digits, '.', '_' and '-'."
            )
    token = TOKEN_PREFIX + secrets.token_urlsafe(32)
    with write_transaction(db):
        db.execute("INSERT OR IGNORE INTO users (name, created_at) VALUES (?, ?)", [user, now()])
        user_id = db.execute("SELECT id FROM users WHERE name = ?", [user]).fetchone()["id"]
        for namespace in (user, *namespaces):
            db.execute("INSERT OR IGNORE INTO members (namespace, user_id) VALUES (?, ?)", [namespace, user_id])
        db.table("tokens").insert(
            {"user_id": user_id, "name": name, "hash": token_hash(token), "scope": scope, "created_at": now()}
        )
        audit(db, OWNER.name, "token.create", user, scope)
    return token


def first_admin(db: Database, user: str) -> str:
    """The token of a hub's first admin. Raises ConflictError once there is a user."""
    if has_users(db):
        raise ConflictError(
            "This registry has users already: `graft hub token --user NAME --scope admin` adds a token."
        )
    return create_token(db, user, "admin", name="first admin")


def revoke_tokens(db: Database, user: str, token: str | None = None) -> int:
    """Take back one token of a user's, or all of them; returns how many. Raises NotFoundError where there is none."""
    with write_transaction(db):
        revoked = db.execute(
            "UPDATE tokens SET revoked_at = ? WHERE revoked_at IS NULL AND (? IS NULL OR hash = ?) "
            "AND user_id = (SELECT id FROM users WHERE name = ?)",
            [now(), token, token_hash(token or ""), user],
        ).rowcount
        if not revoked:
            raise NotFoundError(f"{user} has no {'such token' if token else 'token'} here that is not revoked already.")
        audit(db, OWNER.name, "token.revoke", user, f"{revoked}")
    return revoked


def caller_of(db: Database, token: str) -> Caller:
    """Raises UnauthorizedError for a token that is unknown or revoked."""
    return caller_of_hash(db, token_hash(token))


def caller_of_hash(db: Database, hashed: str) -> Caller:
    """As `caller_of`, for what a sign-in cookie holds instead of the token."""
    row = db.execute(
        "SELECT users.id, users.name, tokens.scope FROM tokens JOIN users ON users.id = user_id "
        "WHERE hash = ? AND revoked_at IS NULL",
        [hashed],
    ).fetchone()
    if row is None:
        raise UnauthorizedError("Invalid credentials in Authorization header: the token is unknown or was revoked.")
    mine = db.execute("SELECT namespace FROM members WHERE user_id = ?", [row["id"]]).fetchall()
    return Caller(row["name"], row["scope"], frozenset(member["namespace"].lower() for member in mine))


def secret(db: Database, purpose: str) -> bytes:
    """A random key that stays the registry's own (signed uploads, sessions); made when first asked for.

    Where the registry can't be written, one that never was made is another at each call.
    """
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


def token_hash(token: str) -> str:
    # Tokens carry 256 random bits, so a plain hash can't be searched: no slow password hash is needed.
    return hashlib.sha256(token.encode()).hexdigest()
