"""Tokens: made for a user, named, of one scope, with an end or without, limited to some names or not, and revoked.

Only a token's hash is kept. Making and revoking them takes the file `registry.db` itself (`graft hub token`).
"""

import hashlib
import json
import secrets
import sqlite3
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta

from graft.hub.errors import ConflictError, GraftError, NotFoundError, UnauthorizedError
from graft.hub.registry.access.callers import OWNER, Caller
from graft.hub.registry.access.permissions import SCOPES
from graft.hub.registry.access.quotas import read_quota
from graft.hub.registry.audit import audit
from graft.hub.registry.naming import REPO_NAME, check_repo_name
from graft.hub.registry.storage.database import Database
from graft.hub.registry.storage.schema import write_if_free, write_transaction
from graft.hub.registry.storage.timestamps import from_now, now

TOKEN_PREFIX = "hf_graft_"
LIMITABLE = ("read", "write")  # the other scopes reach beyond one's own names by their nature
USE_NOTED_EVERY = timedelta(hours=1)  # the time of a token's last use is known to the hour: noting it is a write
UNKNOWN = "Invalid credentials in Authorization header: the token is unknown, expired or was revoked."


@dataclass(frozen=True)
class Token:
    """A token as it is listed: everything but itself. `limits`: the only names it is good for; None: all of its user's."""

    user: str
    name: str
    scope: str
    limits: list[str] | None
    created_at: str
    last_used_at: str | None
    expires_at: str | None


def has_users(db: Database) -> bool:
    return db.execute("SELECT 1 FROM users LIMIT 1").fetchone() is not None


def create_token(
    db: Database,
    user: str,
    scope: str,
    *,
    name: str | None = None,
    namespaces: Iterable[str] = (),
    limits: Iterable[str] = (),
    life: timedelta | None = None,
) -> str:
    """A new token for `user`, who is added where unknown. Only its hash is kept: it can't be shown again.

    `namespaces` are given to the user for good, beside their own name; `limits` ("ns" or "ns/name") narrow this token.
    Raises GraftError for what can't be a name, a scope or a limit, ConflictError where the user has a token of this
    name, or a new user's name is a namespace that others share.
    """
    given, narrowed = list(namespaces), [limit.lower() for limit in limits]
    for namespace in (user, *given):
        _check_name(namespace)
    _check_scope(scope, narrowed)
    token = TOKEN_PREFIX + secrets.token_urlsafe(32)
    with write_transaction(db):
        user_id = _user_id(db, user, given)
        for namespace in given:
            db.execute("INSERT OR IGNORE INTO members (namespace, user_id) VALUES (?, ?)", [namespace, user_id])
        _require_reach(db, user, user_id, narrowed)
        db.execute(
            "INSERT INTO tokens (user_id, name, hash, scope, limits, created_at, expires_at) VALUES (?, ?, ?, ?, ?, ?, ?)",
            [
                user_id,
                _free_name(db, user, user_id, name),
                token_hash(token),
                scope,
                json.dumps(narrowed) if narrowed else None,
                now(),
                from_now(life) if life else None,
            ],
        )
        audit(db, OWNER.name, "token.create", user, " ".join((scope, *narrowed)))
    return token


def _check_scope(scope: str, limits: list[str]) -> None:
    if scope not in SCOPES:
        raise GraftError(f"A token's scope is one of {', '.join(SCOPES)}, not {scope!r}.")
    for limit in limits:
        check_repo_name(limit) if "/" in limit else _check_name(limit)
    if limits and scope not in LIMITABLE:
        raise GraftError(
            f"A token of scope {scope!r} can't be limited to names: limit one of {' or '.join(LIMITABLE)}."
        )


def _check_name(name: str) -> None:
    if not REPO_NAME.fullmatch(name):
        raise GraftError(f"{name!r} can't be a user's or a namespace's name: use letters, digits, '.', '_' and '-'.")


def _user_id(db: Database, user: str, given: list[str]) -> int:
    """The user's id; a new one owns the namespace of their own name, unless others have it already."""
    row = db.execute("SELECT id FROM users WHERE name = ?", [user]).fetchone()
    if row is not None:
        return row["id"]
    if user.lower() == OWNER.name:
        raise ConflictError(f"{user!r} is who the registry's file belongs to, in every history: choose another name.")
    shared = db.execute("SELECT 1 FROM members WHERE namespace = ?", [user]).fetchone() is not None
    if shared and user.lower() not in (name.lower() for name in given):
        raise ConflictError(
            f"{user!r} is a namespace that others share, and a new user of that name would own it: choose another name, "
            f"or say that they are to share it (--namespace {user})."
        )
    db.execute("INSERT INTO users (name, created_at) VALUES (?, ?)", [user, now()])
    user_id: int = db.execute("SELECT id FROM users WHERE name = ?", [user]).fetchone()["id"]
    db.execute("INSERT OR IGNORE INTO members (namespace, user_id) VALUES (?, ?)", [user, user_id])
    return user_id


def _require_reach(db: Database, user: str, user_id: int, limits: list[str]) -> None:
    mine = _namespaces(db, user_id)
    for limit in limits:
        if limit.partition("/")[0] not in mine:
            raise GraftError(f"{user} doesn't own {limit!r}, so no token of theirs can be for it: see --namespace.")


def _free_name(db: Database, user: str, user_id: int, name: str | None) -> str:
    """A name that no other usable token of the user has."""
    rows = db.execute("SELECT name FROM tokens WHERE user_id = ? AND revoked_at IS NULL", [user_id])
    taken = {row["name"] for row in rows}
    if name is None:
        return next(free for number in range(1, len(taken) + 2) if (free := f"token-{number}") not in taken)
    if name in taken:
        raise ConflictError(f"{user} has a token {name!r} already: revoke it, or choose another --name.")
    return name


def first_admin(db: Database, user: str) -> str:
    """The token of a hub's first admin. Raises ConflictError once there is a user."""
    if has_users(db):
        raise ConflictError(
            "This registry has users already: `graft hub token --user NAME --scope admin` adds a token."
        )
    return create_token(db, user, "admin", name="first admin")


def list_tokens(db: Database, user: str | None = None) -> list[Token]:
    """Those that are not revoked, of `user` or of all, in the order of their users' names."""
    rows = db.execute(
        "SELECT users.name AS user, tokens.name, scope, limits, tokens.created_at, last_used_at, expires_at "
        "FROM tokens JOIN users ON users.id = user_id WHERE revoked_at IS NULL AND (? IS NULL OR users.name = ?) "
        "ORDER BY users.name, tokens.id",
        [user, user],
    )
    return [Token(**{**dict(row), "limits": _read_limits(row["limits"])}) for row in rows]


def revoke_tokens(db: Database, user: str, *, name: str | None = None, token: str | None = None) -> int:
    """Take back a user's tokens: the one called `name`, or `token` itself, or all; returns how many. Sign-ins by them end.

    Raises NotFoundError where there is none.
    """
    with write_transaction(db):
        revoked = db.execute(
            "UPDATE tokens SET revoked_at = ? WHERE revoked_at IS NULL AND (? IS NULL OR name = ?) "
            "AND (? IS NULL OR hash = ?) AND user_id = (SELECT id FROM users WHERE name = ?)",
            [now(), name, name, token, token_hash(token or ""), user],
        ).rowcount
        if not revoked:
            which = f"token {name!r}" if name else "such token" if token else "token"
            raise NotFoundError(
                f"{user} has no {which} here that is not revoked already: `graft hub tokens` lists them."
            )
        audit(db, OWNER.name, "token.revoke", user, name or f"{revoked}")
    return revoked


def caller_of(db: Database, token: str) -> Caller:
    """Raises UnauthorizedError for a token that is unknown, expired or revoked."""
    return find_caller(db, "tokens.hash = ?", [token_hash(token)])


def find_caller(db: Database, condition: str, values: list[str]) -> Caller:
    """The caller whose usable token fulfils a condition over `tokens` and `users`. Raises UnauthorizedError."""
    row = db.execute(
        "SELECT tokens.id, user_id, users.name, scope, limits, last_used_at FROM tokens JOIN users ON users.id = user_id "
        f"WHERE {condition} AND revoked_at IS NULL AND (tokens.expires_at IS NULL OR tokens.expires_at > ?)",
        [*values, now()],
    ).fetchone()
    if row is None:
        raise UnauthorizedError(UNKNOWN)
    _note_use(db, row["id"], row["last_used_at"])
    mine, limits = _namespaces(db, row["user_id"]), _read_limits(row["limits"])
    quota = read_quota(db, row["name"])
    if limits is None:
        return Caller(row["name"], row["scope"], mine, quota=quota, token=row["id"])
    reached = frozenset(limit for limit in limits if limit.partition("/")[0] in mine)
    single = frozenset(name for name in reached if "/" in name)
    return Caller(row["name"], row["scope"], reached - single, single, quota, row["id"])


def require_standing(db: Database, token: int | None) -> None:
    """Raises UnauthorizedError where a token that was good when a request began has been revoked since, or has expired.

    `token`: its number; None: of the registry's owner, who needs none.
    """
    standing = "SELECT 1 FROM tokens WHERE id = ? AND revoked_at IS NULL AND (expires_at IS NULL OR expires_at > ?)"
    if token is not None and db.execute(standing, [token, now()]).fetchone() is None:
        raise UnauthorizedError(UNKNOWN)


def _note_use(db: Database, id: int, last: str | None) -> None:
    """Best effort: a registry that can't be written now is still read."""
    if last is not None and last > from_now(-USE_NOTED_EVERY):
        return
    with suppress(sqlite3.OperationalError), write_if_free(db):
        db.execute("UPDATE tokens SET last_used_at = ? WHERE id = ?", [now(), id])


def _namespaces(db: Database, user_id: int) -> frozenset[str]:
    rows = db.execute("SELECT namespace FROM members WHERE user_id = ?", [user_id])
    return frozenset(row["namespace"].lower() for row in rows)


def _read_limits(column: str | None) -> list[str] | None:
    return None if column is None else json.loads(column)


def token_hash(token: str) -> str:
    # Tokens carry 256 random bits, so a plain hash can't be searched: no slow password hash is needed.
    return hashlib.sha256(token.encode()).hexdigest()
