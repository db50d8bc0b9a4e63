"""A hub's tokens as keys: who shows one, and which of the hub's adapters they may read, as the hub itself says. Torch-free.

What a far hub has said is trusted for TRUSTED_S, and it is asked once for however many wait to know. Everything is asked by the
token that was shown, never by the server's own. Where a hub does not answer nobody is let in on what it once said.
"""

import hashlib
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Generic, TypeVar

from graft.hub.errors import GraftError, UnauthorizedError, UnreachableError
from graft.hub.registry.access.callers import OWNER, Caller
from graft.hub.registry.access.permissions import Action, may
from graft.hub.registry.interface import AnyRegistry
from graft.server.errors import InvalidKeyError, NotAllowedError
from graft.server.keys.holders import Holder, Profile

TRUSTED_S = 30.0  # how long what a far hub said of a token is trusted: so long a revoked one may go on
AWAY_S = 3.0  # how long it is not asked again after it did not answer
MOST_KEPT = 10_000
MOST_ASKED = 32  # adapters that a far hub is asked about for one list
MAX_TOKEN_CHARS = 500
_UNKNOWN = "The hub does not know this token: it is wrong, has expired or was revoked."

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")


@dataclass
class _Answer(Generic[Value]):
    said: "Future[Value]"
    until: float  # time.monotonic; of one that is still asked for: for ever


class Remembered(Generic[Key, Value]):
    """Answers kept for a time, the least recently used forgotten first. Errors are kept as answers are, `UnreachableError` for
    AWAY_S. Safe for many threads; who wants what is just being asked for waits for that."""

    def __init__(self, trusted_s: float, most: int = MOST_KEPT, clock: Callable[[], float] = time.monotonic):
        self._trusted_s = trusted_s
        self._most = most
        self._clock = clock
        self._answers: OrderedDict[Key, _Answer[Value]] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: Key, ask: Callable[[], Value]) -> Value:
        """Raises the GraftError that `ask` raises, or has raised."""
        with self._lock:
            answer = self._answers.get(key)
            known = answer is not None and answer.until > self._clock()
            if answer is None or not known:
                answer = self._answers[key] = _Answer(Future(), float("inf"))
                while len(self._answers) > self._most:
                    self._answers.popitem(last=False)
            self._answers.move_to_end(key)
        if not known:
            self._fill(answer, ask)
        error = answer.said.exception()
        if isinstance(error, GraftError):
            raise type(error)(str(error))
        return answer.said.result()

    def holds(self, key: Key) -> bool:
        """Whether it would be answered without being asked for."""
        with self._lock:
            answer = self._answers.get(key)
            return answer is not None and answer.until > self._clock()

    def _fill(self, answer: _Answer[Value], ask: Callable[[], Value]) -> None:
        trusted_s = self._trusted_s
        try:
            answer.said.set_result(ask())
        except GraftError as error:
            trusted_s = AWAY_S if isinstance(error, UnreachableError) else trusted_s
            answer.said.set_exception(error)
        except BaseException as error:
            trusted_s = 0.0
            answer.said.set_exception(error)
        answer.until = self._clock() + trusted_s


class HubTokens:
    """`shelf`: the registry or hub whose tokens they are. `base`: the served one's fingerprint."""

    def __init__(self, shelf: AnyRegistry, base: str):
        self._shelf = shelf
        self._base = base
        trusted_s = TRUSTED_S if shelf.is_far else 0.0
        self._callers: Remembered[bytes, Caller] = Remembered(trusted_s)
        self._rights: Remembered[tuple[bytes, str], bool] = Remembered(trusted_s)

    def holder(self, token: str, profile: Profile) -> Holder:
        """Raises InvalidKeyError for a token that the hub does not know, GraftError where it does not answer."""
        if not token or not token.isascii() or not token.isprintable() or " " in token or len(token) > MAX_TOKEN_CHARS:
            raise InvalidKeyError("What was sent as a key can't be a token of the hub.")
        try:
            caller = self._callers.get(_name_of(token), lambda: self._shelf.caller(token))
        except UnauthorizedError:
            raise InvalidKeyError(_UNKNOWN) from None
        if caller.name == OWNER.name:  # a hub without users says so of everybody; no user can be called that
            raise InvalidKeyError("The hub has no users any more, so its tokens tell nobody apart.")
        if not may(caller, Action.MODEL_ASK):
            raise NotAllowedError("This token's scope gives no right to ask models: get another one of the hub.")
        admin = may(caller, Action.MODEL_MANAGE)
        return Holder(f"hub:{caller.name}", profile, admin, _Bearer(self, token))

    def may_read(self, name: str, token: str) -> bool:
        """Raises InvalidKeyError for a token that is no good any more, GraftError where the hub does not answer."""
        name = name.partition("@")[0]  # all versions are read by whoever reads one
        try:
            return self._rights.get((_name_of(token), name), lambda: self._shelf.may_read(name, token, base=self._base))
        except UnauthorizedError:
            raise InvalidKeyError(_UNKNOWN) from None

    def readable(self, names: Iterable[str], token: str) -> set[str]:
        """Of names, those that may be read. A far hub is asked about MOST_ASKED that are not known; the others are left out."""
        found, asked = set(), 0
        for name in names:
            known = self._rights.holds((_name_of(token), name.partition("@")[0]))
            asked += self._shelf.is_far and not known
            if (known or asked <= MOST_ASKED) and self.may_read(name, token):
                found.add(name)
        return found


@dataclass(frozen=True)
class _Bearer:
    """A Reader."""

    tokens: HubTokens
    token: str

    def may_read(self, name: str) -> bool:
        return self.tokens.may_read(name, self.token)

    def readable(self, names: Iterable[str]) -> set[str]:
        return self.tokens.readable(names, self.token)

    def __repr__(self) -> str:  # it may come into a log; the token must not
        return "_Bearer()"


def _name_of(token: str) -> bytes:
    """What a token is kept under: not itself."""
    return hashlib.sha256(token.encode()).digest()
