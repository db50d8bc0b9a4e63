"""How much each key has asked for in the last minute and has under way, and whether there is room for more. Torch-free.

A limit is never passed in any 60 seconds: what may yet be used counts as used until it is known what was.
"""

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from graft.server.keys.holders import Limits
from graft.server.keys.standing import AboveLimitError, Level, RateLimitError, Standing

WINDOW_S = 60
MOST_IDLE = 10_000  # keys that are remembered though nothing of theirs counts any more
_SOON_S = 1.0  # when a place may be free again


class _Window:
    """An amount by the second in which it came, for as long as it lies within the last WINDOW_S."""

    def __init__(self) -> None:
        self._amounts: deque[tuple[int, int]] = deque()  # (second, amount)
        self.total = 0

    def add(self, now: float, amount: int) -> None:
        second = int(now)
        if self._amounts and self._amounts[-1][0] == second:
            amount_before = self._amounts.pop()[1]
            self._amounts.append((second, amount_before + amount))
        elif amount:
            self._amounts.append((second, amount))
        self.total += amount

    def forget(self, now: float) -> None:
        """What came in a second that ended more than WINDOW_S ago."""
        while self._amounts and self._amounts[0][0] + 1 + WINDOW_S <= now:
            self.total -= self._amounts.popleft()[1]

    def wait_s(self, now: float, amount: int) -> float:
        """Seconds until so much of it counts no more."""
        for second, came in self._amounts:
            amount -= came
            if amount <= 0:
                return second + 1 + WINDOW_S - now
        return float(WINDOW_S)

    def empty_s(self, now: float) -> float:
        """Seconds until none of it counts any more."""
        return self._amounts[-1][0] + 1 + WINDOW_S - now if self._amounts else 0.0


@dataclass
class _Account:
    requests: _Window = field(default_factory=_Window)
    tokens: _Window = field(default_factory=_Window)
    under_way: int = 0
    reserved: int = 0  # tokens that those under way may yet use

    @property
    def idle(self) -> bool:
        return not (self.under_way or self.reserved or self.requests.total or self.tokens.total)


class Rates:
    """Safe for many threads. There has to be one of it for all processes that answer."""

    def __init__(self, clock: Callable[[], float] = time.monotonic):
        self._accounts: dict[str, _Account] = {}
        self._clock = clock
        self._lock = threading.Lock()

    def enter(self, who: str, limits: Limits) -> Standing:
        """A request begins, to be ended by `leave`. Raises RateLimitError; then nothing was counted."""
        with self._lock:
            now = self._clock()
            account = self._account(who, now)
            if limits.concurrency is not None and account.under_way >= limits.concurrency:
                raise _refusal(who, f"{limits.concurrency} requests at once", _SOON_S, account, limits, now)
            if limits.requests is not None and (over := account.requests.total + 1 - limits.requests) > 0:
                wait_s = account.requests.wait_s(now, over)
                raise _refusal(who, f"{limits.requests} requests a minute", wait_s, account, limits, now)
            self._require_tokens(who, account, limits, 1, now)
            account.under_way += 1
            account.requests.add(now, 1)
            return _standing(account, limits, now)

    def reserve(self, who: str, limits: Limits, tokens: int) -> Standing:
        """Set tokens aside that a request under way may use. Raises RateLimitError where others have them, AboveLimitError
        where the limit has not so many."""
        with self._lock:
            now = self._clock()
            account = self._account(who, now)
            if limits.tokens is not None and tokens > limits.tokens:
                raise AboveLimitError(
                    f"This request may use {tokens} tokens, its prompt and max_tokens for each answer, and the key {who} has "
                    f"{limits.tokens} a minute: ask for less."
                )
            self._require_tokens(who, account, limits, tokens, now)
            account.reserved += tokens
            return _standing(account, limits, now)

    def leave(self, who: str, reserved: int, used: int) -> None:
        """A request has ended: what it had reserved, and what it has used of that (or beyond)."""
        with self._lock:
            now = self._clock()
            account = self._account(who, now)
            account.under_way -= 1
            account.reserved -= reserved
            account.tokens.add(now, used)

    def _require_tokens(self, who: str, account: _Account, limits: Limits, tokens: int, now: float) -> None:
        if limits.tokens is None:
            return
        over = account.tokens.total + account.reserved + tokens - limits.tokens
        if over > 0:
            # What is reserved may come back at any moment.
            wait_s = _SOON_S if account.reserved >= over else account.tokens.wait_s(now, over - account.reserved)
            raise _refusal(who, f"{limits.tokens} tokens a minute", wait_s, account, limits, now)

    def _account(self, who: str, now: float) -> _Account:
        account = self._accounts.get(who)
        if account is None:
            if len(self._accounts) >= MOST_IDLE:
                self._forget_idle(now)
            account = self._accounts[who] = _Account()
        _tidy(account, now)
        return account

    def _forget_idle(self, now: float) -> None:
        for account in self._accounts.values():
            _tidy(account, now)
        self._accounts = {who: account for who, account in self._accounts.items() if not account.idle}


def _tidy(account: _Account, now: float) -> None:
    account.requests.forget(now)
    account.tokens.forget(now)


def _standing(account: _Account, limits: Limits, now: float) -> Standing:
    held_s = float(WINDOW_S) if account.reserved else 0.0
    return Standing(
        _level(limits.requests, account.requests.total, account.requests.empty_s(now)),
        _level(limits.tokens, account.tokens.total + account.reserved, max(held_s, account.tokens.empty_s(now))),
    )


def _level(limit: int | None, used: int, reset_s: float) -> Level | None:
    return None if limit is None else Level(limit, max(0, limit - used), reset_s)


def _refusal(who: str, most: str, wait_s: float, account: _Account, limits: Limits, now: float) -> RateLimitError:
    error = RateLimitError(
        f"The key {who} has reached its limit of {most}: try again in {max(1, round(wait_s + 0.5))} s."
    )
    error.retry_s = wait_s
    error.standing = _standing(account, limits, now)
    return error
