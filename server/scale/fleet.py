"""The engines that an ingress sends requests to, as it sees them: what they say of themselves, and what it has under way there.

Ray-free. The ingress's router (router.py) tells it of replicas, on the router's thread; the ingress counts what it sends.
"""

import threading
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from pydantic import TypeAdapter

from graft.server.replica_state import BaseIdentity
from graft.server.scale.placement import Replica, preferred


@dataclass(frozen=True)
class Seen:
    """A replica. `model`: what it calls its base; `secret`: what is to be shown to it; `beat`: how many reports it has made; `missing`: what it can't do, in words."""

    id: str
    url: str
    base: BaseIdentity
    model: str
    secret: str = field(default="", repr=False)
    beat: int = 0
    under_way: int = 0
    limit: int = 1
    resident: Mapping[str, int] = field(default_factory=dict)
    room: int = 0
    pinned: Sequence[str] = ()
    missing: Sequence[str] = ()


_SEEN = TypeAdapter(Seen)


def read_seen(told: Mapping[str, object]) -> Seen:
    """Of what a replica says."""
    return _SEEN.validate_python(told)


@dataclass(frozen=True)
class Asked:
    """What a replica is looked for: an adapter's digest (None: the bare base), but none of those that were tried."""

    digest: str | None
    tried: frozenset[str] = frozenset()


class Fleet:
    """Safe for many threads. `declared`: what is known of the base before any replica; None: the most of them decide."""

    def __init__(self, declared: "Declared | None" = None):
        self._declared = declared
        self._seen: dict[str, Seen] = {}
        self._sizes: dict[str, int] = {}  # of adapters that were seen anywhere
        self._mine: Counter[str] = Counter()  # requests of this ingress
        self._others: dict[str, int] = {}  # requests of others, as of the last report
        self._away: dict[str, int] = {}  # replica that did not answer -> the report that must have come since
        self._lock = threading.Lock()

    def see(self, replicas: Sequence[Seen]) -> None:
        """All that there are now."""
        with self._lock:
            for one in replicas:
                before = self._seen.get(one.id)
                if before is None or before.beat != one.beat:
                    self._others[one.id] = max(0, one.under_way - self._mine[one.id])
                    self._sizes |= one.resident
                if self._away.get(one.id, one.beat) < one.beat:
                    del self._away[one.id]
            self._seen = {one.id: one for one in replicas}
            self._others = {id: count for id, count in self._others.items() if id in self._seen}
            self._away = {id: beat for id, beat in self._away.items() if id in self._seen}

    def choose(self, asked: Asked) -> list[str]:
        """Ids of those that may be asked, best first."""
        with self._lock:
            base = self._base()
            open_to = [
                Replica(one.id, self._mine[one.id] + self._others.get(one.id, 0), one.limit, one.resident, one.room)
                for one in self._seen.values()
                if one.base == base and one.id not in self._away and one.id not in asked.tried
            ]
            size = self._sizes.get(asked.digest or "", 0)
        return [one.id for one in preferred(open_to, asked.digest, size=size)]

    def avoid(self, id: str) -> None:
        """It did not answer: nothing goes there until it has made a report that was begun since."""
        with self._lock:
            if id in self._seen:
                self._away[id] = self._seen[id].beat + 1

    @contextmanager
    def under_way(self, id: str) -> Iterator[None]:
        """A request is being answered there."""
        with self._lock:
            self._mine[id] += 1
        try:
            yield
        finally:
            with self._lock:
                self._mine[id] -= 1
                if not self._mine[id]:
                    del self._mine[id]

    @property
    def requests(self) -> Mapping[str, int]:
        """Of this ingress, by replica."""
        with self._lock:
            return dict(self._mine)

    def replicas(self) -> list[Seen]:
        """All, by id."""
        with self._lock:
            return sorted(self._seen.values(), key=lambda one: one.id)

    def lacks(self, one: Seen) -> list[str]:
        """What keeps a replica from answering, or from answering all, in words."""
        with self._lock:
            base = self._base()
            away = one.id in self._away
        wrong = [_difference(one.base, base)] if base is not None and one.base != base else []
        return [*wrong, *(["it does not answer"] if away else []), *one.missing]

    def serving(self) -> list[Seen]:
        """Those that requests go to."""
        with self._lock:
            base = self._base()
            return [one for one in self._seen.values() if one.base == base and one.id not in self._away]

    def _base(self) -> BaseIdentity | None:
        """What all must be: as declared; of several such what most are, of as many the first by name."""
        told = Counter(
            one.base for one in self._seen.values() if self._declared is None or self._declared.fits(one.base)
        )
        return min(told, key=lambda base: (-told[base], str(base)), default=None)


@dataclass(frozen=True)
class Declared:
    """What was known of the base when the deployment was made. None: any."""

    fingerprint: str | None = None
    dtype: str | None = None

    def fits(self, base: BaseIdentity) -> bool:
        return self.fingerprint in (None, base.fingerprint) and self.dtype in (None, base.dtype)


_NAMES = {"fingerprint": "is another model", "dtype": "is computed in another dtype", "content": "has other weights"}


def _difference(own: BaseIdentity, base: BaseIdentity) -> str:
    told = [
        f"{text} ({name} {getattr(own, name)[:16]}, the others' {getattr(base, name)[:16]})"
        for name, text in _NAMES.items()
        if getattr(own, name) != getattr(base, name)
    ]
    return f"refused: its base {' and '.join(told)}: serve the same everywhere (--base, --dtype)"


_here = Fleet()


def process_fleet() -> Fleet:
    """This process's."""
    return _here


def declare(declared: Declared) -> Fleet:
    """This process's from now on, of such a base."""
    global _here
    _here = Fleet(declared)
    return _here
