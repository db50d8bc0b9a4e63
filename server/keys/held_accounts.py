"""The accounts of keys as others report to them who may go before they say so: what they hold is given back. Torch-free."""

import threading
from collections import Counter

from graft.server.keys.accounts import AnyAccounts
from graft.server.keys.holders import UNLIMITED, Limits
from graft.server.keys.standing import Standing
from graft.server.keys.usage import Usage


class AccountsHeld:
    """What requests of one front end, or one of an engine, hold, to be given back when that is gone. Safe for many threads."""

    def __init__(self, accounts: AnyAccounts):
        self._accounts = accounts
        self._under_way: Counter[tuple[str, Limits]] = Counter()
        self._reserved: Counter[tuple[str, Limits]] = Counter()
        self._lock = threading.Lock()
        self._closed = False

    def enter(self, who: str, limits: Limits) -> Standing:
        with self._lock:
            if self._closed:
                return Standing()  # nobody waits for it
            standing = self._accounts.enter(who, limits)
            self._under_way[who, limits] += 1
        return standing

    def reserve(self, who: str, limits: Limits, tokens: int) -> Standing:
        with self._lock:
            if self._closed:
                return Standing()
            standing = self._accounts.reserve(who, limits, tokens)
            self._reserved[who, limits] += tokens
        return standing

    def leave(self, who: str, limits: Limits, reserved: int, used: Usage | None) -> None:
        with self._lock:
            if self._closed:
                return  # it was given back
            if limits != UNLIMITED:  # who has none does not enter
                self._under_way[who, limits] -= 1
                self._reserved[who, limits] -= reserved
            if not self._under_way[who, limits]:
                del self._under_way[who, limits], self._reserved[who, limits]
            self._accounts.leave(who, limits, reserved, used)

    def leave_all(self) -> None:
        """Nobody got an answer of these: what had been made of them is not counted."""
        with self._lock:
            self._closed = True
            for (who, limits), count in self._under_way.items():
                for _ in range(count):
                    self._accounts.leave(who, limits, self._reserved.pop((who, limits), 0), None)
