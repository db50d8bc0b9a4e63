"""Who asks, so that clients are served in turn, and how many answers each may have under way."""

import threading
from collections import Counter
from collections.abc import Sequence
from ipaddress import IPv4Network, IPv6Address, IPv6Network, ip_address
from typing import Protocol

Network = IPv4Network | IPv6Network

GUESTS = 8  # answers beyond the most at once, for clients that have none under way
SPARE_THREADS = 16  # of each process, beyond those that answer completions: lists, health, metrics, refusals
_MAX_CHARS = 64


def client_of(address: str, forwarded: str, trusted: Sequence[Network]) -> str:
    """The client's address: of the connection, or, where that is a trusted proxy's, what the proxy says.

    `forwarded`: X-Forwarded-For, to which every proxy appends whom it was asked by. It is read from its end as long as trusted
    proxies wrote it; what stands before that, anybody may have written.
    """
    said = [part.strip() for part in forwarded.split(",") if part.strip()]
    while said and _is_trusted(address, trusted):
        address = said.pop()
    return address[:_MAX_CHARS]


def _is_trusted(address: str, trusted: Sequence[Network]) -> bool:
    try:
        parsed = ip_address(address)
    except ValueError:  # a name, or a port beside it: no proxy that was listed
        return False
    if isinstance(parsed, IPv6Address) and parsed.ipv4_mapped is not None:
        parsed = parsed.ipv4_mapped
    return any(parsed in network for network in trusted)


class Places(Protocol):
    """The places for answers, which all processes of a server share."""

    def enter(self, client: str) -> bool:
        """Take a place, to be left with `leave`; False where there is none."""
        ...

    def leave(self, client: str) -> None: ...


class AnswerPlaces:
    """Answers under way: `most` in all; a client that has none may have one beyond. Safe for many threads."""

    def __init__(self, most: int):
        self._most = most
        self._taken: Counter[str] = Counter()
        self._lock = threading.Lock()

    def enter(self, client: str) -> bool:
        with self._lock:
            most = self._most + (0 if client in self._taken else GUESTS)
            if self._taken.total() >= most:
                return False
            self._taken[client] += 1
            return True

    def leave(self, client: str) -> None:
        with self._lock:
            self._taken[client] -= 1
            if not self._taken[client]:
                del self._taken[client]
