"""A hub's tokens as keys: who shows one, and which of the hub's adapters they may read, as the hub itself says. Torch-free.

What a far hub has said is trusted for TRUSTED_S, and it is asked once for however many wait to know. Everything is asked by the
token that was shown, never by the server's own. Where a hub does not answer nobody is let in on what it once said, and few threads
wait for it.
"""

import hashlib
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Iterator
from concurrent.futures import Future
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Generic, TypeVar

from graft.hub.errors import GraftError, UnauthorizedError, UnavailableError, UnreachableError
from graft.hub.registry.access.callers import OWNER, Caller
from graft.hub.registry.access.permissions import Action, may
from graft.hub.registry.interface import AnyRegistry
from graft.server.errors import InvalidKeyError, NotAllowedError
from graft.server.keys.holders import Holder, Profile

TRUSTED_S = 30.0  # how long what a far hub said of a token is trusted: so long a revoked one may go on
AWAY_S = 3.0  # how long it is not asked again, whoever wants to know, after it did not answer
MOST_AT_ONCE = 8  # that ask a far hub, each for a hub's time at most
WAIT_S = 1.0  # how old what others ask may become while it is waited for
MOST_KEPT = 10_000
MOST_ASKED = 32  # adapters that a far hub is asked about for one list
MAX_TOKEN_CHARS = 500
_UNKNOWN = "The hub does not know this token: it is wrong, has expired or was revoked."
_BUSY = "The hub that tells whose token this is takes its time: try again in a moment."
_AWAY = "The hub that tells whose token this is did not answer a moment ago: try again in a few seconds."

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")


@dataclass
class _Answer(Generic[Value]):
    said: "Future[Value]"
    until: float  # time.monotonic; of one that is still asked for: for ever
    began: float = 0.0  # when it was asked for


class Remembered(Generic[Key, Value]):
    """Answers kept for a time, the least recently used forgotten first. Errors are kept as answers are, but for
    those of a hub that does not answer. Safe for many threads; who wants what is just being asked for waits for that, until it is
    WAIT_S old."""

    def __init__(self, trusted_s: float, most: int = MOST_KEPT, clock: Callable[[], float] = time.monotonic):
        self._trusted_s = trusted_s
        self._most = most
        self._clock = clock
        self._answers: OrderedDict[Key, _Answer[Value]] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: Key, ask: Callable[[], Value]) -> Value:
        """Raises the GraftError that `ask` raises, or has raised, and UnavailableError where another waits for that too long."""
        with self._lock:
            answer = self._answers.get(key)
            known = answer is not None and answer.until > self._clock()
            if answer is None or not known:
                answer = self._answers[key] = _Answer(Future(), float("inf"), self._clock())
                while len(self._answers) > self._most:
                    self._answers.popitem(last=False)
            self._answers.move_to_end(key)
        if not known:
            self._fill(answer, ask)
        try:
            error = answer.said.exception(max(0.0, answer.began + WAIT_S - self._clock()))
        except TimeoutError:
            raise UnavailableError(_BUSY) from None
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
            trusted_s = 0.0 if isinstance(error, (UnreachableError, UnavailableError)) else trusted_s
            answer.said.set_exception(error)
        except BaseException as error:
            trusted_s = 0.0
            answer.said.set_exception(error)
        answer.until = self._clock() + trusted_s


class HubLine:
    """To a far hub: so many ask at once, and what one finds out by waiting, that it is away, all know. Safe for many threads."""

    def __init__(self) -> None:
        self._began: list[float] = []  # when those under way did
        self._away_until = 0.0
        self._changed = threading.Condition()

    @contextmanager
    def asking(self) -> Iterator[None]:
        """For what may raise UnreachableError. Raises that itself while the hub is away, UnavailableError where others ask and
        none is done soon."""
        began = self._enter()
        try:
            yield
        except UnreachableError:
            self._away_until = time.monotonic() + AWAY_S  # before those who wait are woken
            raise
        finally:
            with self._changed:
                self._began.remove(began)
                self._changed.notify_all()

    def _enter(self) -> float:
        with self._changed:
            now = time.monotonic()
            until = min(self._began, default=now) + WAIT_S
            self._changed.wait_for(lambda: self._is_away or not self._is_full, max(0.0, until - now))
            if self._is_away:
                raise UnreachableError(_AWAY)
            if self._is_full:
                raise UnavailableError(_BUSY)
            self._began.append(began := time.monotonic())
            return began

    @property
    def _is_full(self) -> bool:
        return len(self._began) >= MOST_AT_ONCE

    @property
    def _is_away(self) -> bool:
        return time.monotonic() < self._away_until


class HubTokens:
    """`shelf`: the registry or hub whose tokens they are. `base`: the served one's fingerprint."""

    def __init__(self, shelf: AnyRegistry, base: str):
        self._shelf = shelf
        self._base = base
        self._asking: Callable[[], AbstractContextManager[None]] = HubLine().asking if shelf.is_far else nullcontext
        trusted_s = TRUSTED_S if shelf.is_far else 0.0
        self._callers: Remembered[bytes, Caller] = Remembered(trusted_s)
        self._rights: Remembered[tuple[bytes, str], bool] = Remembered(trusted_s)

    def holder(self, token: str, profile: Profile) -> Holder:
        """Raises InvalidKeyError for a token that the hub does not know, GraftError where it does not answer."""
        if not token or not token.isascii() or not token.isprintable() or " " in token or len(token) > MAX_TOKEN_CHARS:
            raise InvalidKeyError("What was sent as a key can't be a token of the hub.")
        try:
            caller = self._callers.get(_name_of(token), partial(self._ask, partial(self._shelf.caller, token)))
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
            ask = partial(self._shelf.may_read, name, token, base=self._base)
            return self._rights.get((_name_of(token), name), partial(self._ask, ask))
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

    def _ask(self, question: Callable[[], Value]) -> Value:
        with self._asking():
            return question()


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
