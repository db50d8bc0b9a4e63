"""The file of keys: TOML with a table [[key]] each, in which a key itself never stands, only its hash. Torch-free.

Read again when it changes while served; a file that can't be used leaves the keys as they were, and says so.
"""

import hashlib
import hmac
import logging
import os
import re
import secrets
import stat
import threading
import time
import tomllib
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from graft.hub.errors import GraftError
from graft.server.keys.holders import EVERYTHING, Holder, Limits, Profile

log = logging.getLogger(__name__)

KEY_PREFIX = "sk-graft-"
HASH_PREFIX = "sha256:"
LOOK_EVERY_S = 1.0  # how soon a change is seen
MAX_FILE_BYTES = 16 << 20
MAX_WEIGHT = 1000.0
_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,62}[A-Za-z0-9])?")
_MOST = 1 << 40


class KeyFileError(GraftError):
    """A key file that can't be used, and why."""

    code = "bad_key_file"


class UnreadKeyFileError(KeyFileError):
    """One that could not be read this time, whatever it holds."""


def new_key() -> str:
    """256 random bits."""
    return KEY_PREFIX + secrets.token_urlsafe(32)


def hash_of(key: str) -> str:
    # Keys carry 256 random bits, so a plain hash can't be searched: no slow password hash is needed.
    return HASH_PREFIX + hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()


def _read_end(value: object) -> object:
    """A date is its first moment, UTC."""
    if isinstance(value, datetime):
        if value.tzinfo is None:
            raise ValueError("needs a time zone: write 2027-01-31T12:00:00Z")
        return value
    if isinstance(value, date):
        return datetime(value.year, value.month, value.day, tzinfo=UTC)
    raise ValueError("must be a date or a time: write 2027-01-31, or 2027-01-31T12:00:00Z, without quotes")


def _check_name(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise ValueError("takes up to 64 letters, digits, '.', '_' and '-', the first and last of them no sign")
    return name


def _check_pattern(pattern: str) -> str:
    """Raises ValueError for what looks like more than is understood."""
    rest = pattern.removesuffix("/*").removeprefix("task:")
    if not pattern or not pattern.isprintable() or (EVERYTHING in rest and rest != EVERYTHING):
        raise ValueError(f"{pattern!r} is no name: write NAME, NS/NAME, NS/*, task:T, task:* or *")
    return pattern


Amount = Annotated[int, Field(ge=1, le=_MOST)]


class ProfileTable(BaseModel):
    """What a key is good for, as the file has it."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    adapters: list[Annotated[str, AfterValidator(_check_pattern)]] = [EVERYTHING]
    base: bool = True
    requests_per_minute: Amount | None = None
    tokens_per_minute: Amount | None = None
    concurrency: Amount | None = None
    weight: float = Field(1.0, gt=0, le=MAX_WEIGHT, allow_inf_nan=False)

    @property
    def profile(self) -> Profile:
        limits = Limits(self.requests_per_minute, self.tokens_per_minute, self.concurrency)
        return Profile(tuple(self.adapters), self.base, limits, self.weight)


class KeyTable(ProfileTable):
    """[[key]]"""

    name: Annotated[str, AfterValidator(_check_name)]
    hash: Annotated[str, Field(pattern=rf"^{HASH_PREFIX}[0-9a-f]{{64}}$")]
    admin: bool = False
    expires: Annotated[datetime, BeforeValidator(_read_end)] | None = None


class KeyTables(BaseModel):
    """The file. `hub`: the hub's tokens are keys as well, good for that."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    key: list[KeyTable] = []
    hub: ProfileTable | None = None


@dataclass(frozen=True)
class _Entry:
    hash: str
    holder: Holder
    expires: datetime | None


@dataclass(frozen=True)
class KeyBook:
    """The keys of a file as they are looked up.

    They are found by a keyed hash of what was shown, which nobody outside can compute, and then compared: how long that
    takes tells nothing of any key.
    """

    entries: Mapping[bytes, _Entry]
    secret: bytes = field(repr=False)
    hub: Profile | None = None

    def find(self, key: str) -> Holder | None:
        """None for a key that is unknown or has expired."""
        shown = hash_of(key)
        entry = self.entries.get(_blinded(self.secret, shown))
        if entry is None or not hmac.compare_digest(entry.hash, shown):
            return None
        return None if entry.expires is not None and entry.expires <= datetime.now(UTC) else entry.holder


def _blinded(secret: bytes, hash: str) -> bytes:
    return hmac.digest(secret, hash.encode(), "sha256")


def read_text(path: Path) -> str:
    """Raises KeyFileError."""
    try:
        there = path.stat()
        if not stat.S_ISREG(there.st_mode):  # reading a pipe, or a device, may never end
            raise KeyFileError(f"The key file {path} can't be read: it is no regular file.")
        if there.st_size > MAX_FILE_BYTES:
            raise KeyFileError(f"The key file {path} is larger than {MAX_FILE_BYTES} bytes.")
        return path.read_text("utf-8")
    except OSError as error:
        raise UnreadKeyFileError(f"The key file {path} can't be read: {error.strerror}.") from None
    except UnicodeDecodeError as error:
        raise KeyFileError(f"The key file {path} is no text: {error}.") from None


def read_tables(text: str, path: Path) -> KeyTables:
    """What the file has. Raises KeyFileError naming the table and the field that won't do."""
    try:
        tables = KeyTables.model_validate(tomllib.loads(text))
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise KeyFileError(f"The key file {path} is not valid TOML: {error}.") from None
    except ValidationError as error:
        raise KeyFileError(f"The key file {path}: {_first_mistake(error)}") from None
    for what in ("name", "hash"):
        [(value, count)] = Counter(getattr(table, what) for table in tables.key).most_common(1) or [("", 0)]
        if count > 1:
            raise KeyFileError(f"The key file {path}: {count} keys have the {what} {value!r}.")
    return tables


def _first_mistake(error: ValidationError) -> str:
    first = error.errors(include_url=False, include_input=False)[0]
    table, *rest = (*first["loc"], "", "")
    where = f"[[key]] number {int(rest[0]) + 1}" if table == "key" and isinstance(rest[0], int) else f"[{table}]"
    names = ".".join(str(part) for part in (rest[1:] if where.startswith("[[") else rest) if part != "")
    reasons = {"extra_forbidden": "there is no such key or table", "missing": "is required"}
    reason = reasons.get(first["type"], first["msg"].removeprefix("Value error, "))
    return f"{where}{f', {names}' if names else ''}: {reason}."


def make_book(tables: KeyTables) -> KeyBook:
    secret = secrets.token_bytes(32)
    entries = {
        _blinded(secret, table.hash): _Entry(table.hash, Holder(table.name, table.profile, table.admin), table.expires)
        for table in tables.key
    }
    return KeyBook(entries, secret, tables.hub.profile if tables.hub else None)


class KeyFile:
    """A key file that is looked after while served. Safe for many threads; looks when asked, LOOK_EVERY_S apart.

    `has_hub`: whether there is a hub whose tokens its [hub] can be about. `is_sound`: raises KeyFileError for a file that can't
    be used; else nobody has a key until it can.
    """

    def __init__(self, path: Path, *, has_hub: bool, is_sound: bool = True):
        self.path = path
        self._has_hub = has_hub
        self._lock = threading.Lock()
        self._looked = time.monotonic()
        self._state: tuple[int, ...] | None = _state_of(path)  # of the file that was read last
        self._problem: str | None = None
        self._book = make_book(KeyTables())
        if is_sound:
            self._book = self._read()
        elif not self._reload():
            self._state = None

    @property
    def problem(self) -> str | None:
        """Why the file as it is now is not what holds; None where it is."""
        self._look()
        return self._problem

    def book(self) -> KeyBook:
        """The keys that hold."""
        self._look()
        return self._book

    def _look(self) -> None:
        if time.monotonic() < self._looked + LOOK_EVERY_S or not self._lock.acquire(blocking=False):
            return
        try:
            self._looked = time.monotonic()
            state = _state_of(self.path)
            if state != self._state:
                # Of before it was read: what was written meanwhile is another state.
                self._state = state if self._reload() else None
        finally:
            self._lock.release()

    def _reload(self) -> bool:
        """Whether it was read, be it sound or not: else it is tried again, though it does not change."""
        try:
            self._book = self._read()
        except KeyFileError as error:
            if str(error) != self._problem:
                log.error("%s The keys of before go on to hold.", error)
            self._problem = str(error)
            return not isinstance(error, UnreadKeyFileError)
        self._problem = None
        log.info("the key file %s: %d keys", self.path, len(self._book.entries))
        return True

    def _read(self) -> KeyBook:
        tables = read_tables(read_text(self.path), self.path)
        if not tables.key and tables.hub is None:
            raise KeyFileError(f"The key file {self.path} holds no key: make one with `graft keys new NAME`.")
        if tables.hub is not None and not self._has_hub:
            raise KeyFileError(
                f"The key file {self.path} has a table [hub]: give --hub or --registry, whose tokens it means."
            )
        return make_book(tables)


def _state_of(path: Path) -> tuple[int, ...]:
    """What changes when a file does; of one that can't be looked at, nothing."""
    try:
        found = os.stat(path)
    except OSError:
        return ()
    return found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns  # the last: who may read it, too
