"""The host tier: adapters kept in memory by real bytes, and brought there once for all who ask.

A load (loading.py) never runs the base and never touches the engine's thread; a broken adapter costs its own requests a clear
error, remembered for a while. Adapters in use are never dropped; the others go least recently used first. Where those in use
fill the budget, the next one is made when there is room again; and once it has waited for HOLD_BACK_S, the requests that come for
one of them wait behind it, so that there is some.
"""

import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from graft.hub.adapters.serving_forms import Form
from graft.hub.base.model import Base
from graft.hub.chat.words import AdapterWords
from graft.hub.errors import ArtifactError, GraftError
from graft.server.adapters.device import HOLD_BACK_S
from graft.server.adapters.host_memory import HostMemory
from graft.server.adapters.loaded import Loaded
from graft.server.adapters.loading import Load, Loading
from graft.server.adapters.names import AdapterNames, Location
from graft.server.adapters.prover import Prover
from graft.server.errors import BrokenError, ClosedError
from graft.server.interest import Interest
from graft.server.leaving import LEAVE_S
from graft.server.served_version import Served

log = logging.getLogger(__name__)
FORGIVEN_AFTER_S = 30.0
MOST_KNOWN = 10_000  # names and versions whose digests are remembered: of others the files are read again


@dataclass
class HostStats:
    hits: int = 0
    misses: int = 0
    failures: int = 0


LoadResult = tuple[Loaded, Served] | GraftError
Done = Callable[[LoadResult], None]
Found = TypeVar("Found")


@dataclass(frozen=True)
class _Waiting:
    """Who waits for a load."""

    load: Load
    done: list[Done]


class HostTier:
    """Safe for many threads."""

    def __init__(
        self,
        base: Base,
        library: AdapterNames,
        prover: Prover,
        *,
        budget_bytes: int,
        device_size: Callable[[Sequence[Form]], int],
        allow_base_mismatch: bool = False,
        on_load: Callable[[str, float], None] = lambda name, seconds: None,
    ):
        """`device_size`: bytes that the runner takes for detours. `on_load(name, seconds)` is told of each load."""
        self.library = library
        self.stats = HostStats()
        self.budget_bytes = budget_bytes
        self._on_load = on_load
        self._lock = threading.Lock()
        self._memory = HostMemory()
        self._served: OrderedDict[tuple[str, str], Served] = (
            OrderedDict()
        )  # (name, version) -> what it turned out to be
        self._failed: dict[tuple[str, str], tuple[float, GraftError]] = {}
        self._waiting: dict[tuple[str, str], _Waiting] = {}
        self._gave_way_at = 0.0  # when the last one in use left memory for others
        self._loading = Loading(
            base,
            library,
            prover,
            most_bytes=budget_bytes,
            allow_base_mismatch=allow_base_mismatch,
            device_size=device_size,
            has_room=self._has_room,
            takes=self._expect,
        )

    @property
    def bytes(self) -> int:
        return self._memory.bytes

    def snapshot(self) -> list[Loaded]:
        with self._lock:
            return list(self._memory)

    def served(self) -> dict[str, Served]:
        """What each name stood for when it was last loaded, by name."""
        with self._lock:
            return {name: served for (name, _), served in self._served.items()}

    def find(self, location: Location) -> Loaded | None:
        """A version that is in memory already, None where it isn't."""
        with self._lock:
            served = self._served.get((location.name, location.version))
            digest = served.digest if served else location.digest
            return self._memory.get(digest) if digest else None

    def words(self, location: Location) -> AdapterWords | None:
        """A version's own words, None where it has not been loaded."""
        with self._lock:
            served = self._served.get((location.name, location.version))
            return served.words if served else None

    def request(self, name: str, client: Hashable, done: Done, interest: Interest) -> None:
        """Call `done` with the adapter, held for one user, or with why there is none: now or from a loader's thread; or not at
        all where `interest` is over by then.

        Clients are served in turn where several wait for loads.
        """
        self.locate(name, client, lambda located: self._begin(located, client, done, interest), interest)

    def locate(
        self, name: str, client: Hashable, done: Callable[[Location | GraftError], None], interest: Interest
    ) -> None:
        """Call `done` with what a name stands for now: at once, or where a hub has to be asked in the client's turn, from another
        thread; or not at all where `interest` is over by then."""
        located = _told(self.library.locate_at_once, name)
        if located is None:
            self._loading.look_up(client, lambda: done(_told(self.library.locate, name)), done, interest)
        else:
            done(located)

    def hold(self, loaded: Loaded) -> None:
        """One user more, of an adapter that has some."""
        with self._lock:
            self._memory.hold(loaded)

    def release(self, loaded: Loaded) -> None:
        """One user less."""
        with self._making_room():
            self._memory.release(loaded)

    def keep(self, digests: frozenset[str]) -> None:
        """These adapters stay in memory, whoever uses them."""
        with self._making_room():
            self._memory.pin(digests)

    def settle(self, loaded: Loaded) -> None:
        """Its proof has ended: what was kept for that is gone, where it is served."""
        with self._making_room():
            if loaded.case.verdict is not None and not loaded.refused:
                loaded.cases.clear()
            self._memory.recount(loaded)

    def drop(self, digest: str) -> None:
        """Forget an adapter; who holds it keeps it until done, the next request loads it anew."""
        with self._making_room():
            self._memory.forget(digest)
            for key in [key for key, served in self._served.items() if served.digest == digest]:
                del self._served[key]

    def refuse(self, digest: str, error: GraftError) -> None:
        """The adapter loaded but failed its proof: remember it as a failed load."""
        with self._lock:
            present = self._memory.get(digest)
            if isinstance(error, ArtifactError) and present is not None and not present.refused:
                return  # another copy has taken its place, and is still to be proven
            for key in [key for key, served in self._served.items() if served.digest == digest]:
                self._remember(key, error)
        self.drop(digest)

    def prepare(self, work: Callable[[], None], failed: Callable[[GraftError], None]) -> None:
        """Compute something for an adapter that is loaded, on a thread that no load is waited for on; `failed` is told what it raises.

        Raises ClosedError after `close`.
        """
        self._loading.prepare(work, failed)

    def close(self, wait_s: float = LEAVE_S) -> None:
        self._loading.close(wait_s)

    def _begin(self, located: Location | GraftError, client: Hashable, done: Done, interest: Interest) -> None:
        answer: LoadResult | None
        try:
            answer = located if isinstance(located, GraftError) else self._find_or_load(located, client, done, interest)
        except GraftError as error:
            answer = error
        except Exception as error:
            log.exception("loading an adapter could not begin")
            answer = BrokenError(f"Loading could not begin: {type(error).__name__}: {error}")
        if answer is not None:
            done(answer)

    def _find_or_load(self, location: Location, client: Hashable, done: Done, interest: Interest) -> LoadResult | None:
        """The answer; None where `done` gets it later, when the load is through."""
        key = (location.name, location.version)
        with self._lock:
            answer = self._find_answer(key, location)
            if answer is None and key in self._waiting:
                self._loading.join(self._waiting[key].load, client)
                self._waiting[key].done.append(done)
            elif answer is None:
                load = self._loading.load(location, client, partial(self._end_load, key, location))
                self._waiting[key] = _Waiting(load, [done])  # the load can't end before the lock is free
                self.stats.misses += 1
        if answer is None:
            interest.then(partial(self._forget, key, done))
        return answer

    def _forget(self, key: tuple[str, str], done: Done) -> None:
        """One less waits for a version. The last one is told all the same: its load goes on, for who asks next."""
        with self._lock:
            waiting = self._waiting[key].done if key in self._waiting else []
            if done in waiting and len(waiting) > 1:
                waiting.remove(done)

    def _find_answer(self, key: tuple[str, str], location: Location) -> LoadResult | None:
        """The answer where there is one already, held for its user. Called with the lock."""
        if key in self._failed and self._failed[key][0] > time.monotonic():
            return self._failed[key][1]
        if key not in self._served:
            return None  # its own folder's words are wanted, and of one that is not proven yet its probe, whoever has its digest
        digest = self._served[key].digest
        loaded = self._memory.get(digest) if digest else None
        if loaded is None or loaded.refused or self._gives_way(loaded):
            return None
        self.stats.hits += 1
        return self._hold(key, loaded, location, self._served[key].words)

    def _gives_way(self, loaded: Loaded) -> bool:
        """Whether one in memory leaves it for one that has waited long enough for room: who asks for it anew waits behind that one;
        who has it keeps it until done. Called with the lock."""
        if self._loading.stalled_s < HOLD_BACK_S or self._memory.is_pinned(loaded.digest):
            return False
        now = time.monotonic()
        if self._memory.staying() <= self.budget_bytes and now < self._gave_way_at + HOLD_BACK_S:
            return False  # there will be room; where that takes its time another one makes some too
        self._memory.forget(loaded.digest)
        self._gave_way_at = now
        return True

    def _hold(
        self, key: tuple[str, str], loaded: Loaded, location: Location, words: AdapterWords
    ) -> tuple[Loaded, Served]:
        self._memory.hold(loaded)
        served = self._served.setdefault(key, Served(location.name, loaded.digest, location.revision, words))
        self._served.move_to_end(key)
        while len(self._served) > MOST_KNOWN:
            self._served.popitem(last=False)
        return loaded, served

    def _remember(self, key: tuple[str, str], error: GraftError) -> None:
        """A failed load is not tried again for a while, unless the fault is the server's. Called with the lock."""
        if isinstance(error, (BrokenError, ClosedError)):
            return
        now = time.monotonic()
        self._failed = {key: kept for key, kept in self._failed.items() if kept[0] > now}
        self._failed[key] = (now + FORGIVEN_AFTER_S, error)

    def _end_load(self, key: tuple[str, str], location: Location, read: Loaded | GraftError) -> None:
        """Tell all who wait for a version. Where that fails on the way it is called again, with the error."""
        with self._making_room():
            waiting = self._waiting[key].done if key in self._waiting else []
            answers: list[LoadResult] = []
            if isinstance(read, GraftError):
                self.stats.failures += 1
                self._remember(key, read)
                answers = [read] * len(waiting)
            else:
                kept = self._keep(read)
                answers = [self._hold(key, kept, location, read.words) for _ in waiting]
            self._waiting.pop(key, None)
        _answer_all(zip(waiting, answers, strict=True))
        if isinstance(read, Loaded):
            self._on_load(location.name, read.seconds)

    def _keep(self, read: Loaded) -> Loaded:
        """What has been read, or the same that is there already, with one probe more. Called with the lock."""
        kept = self._memory.get(read.digest)
        if kept is None or kept.refused:  # just now: this one brings another probe
            self._memory.put(read)
            return read
        if kept.case.verdict is None and read.case.probe not in [case.probe for case in (kept.case, *kept.cases)]:
            kept.cases.append(read.case)
            self._memory.recount(kept)
        return kept

    def _has_room(self) -> bool:
        """Whether one more adapter may be made: not all that is in memory is in use, or it is less than the budget."""
        return self._memory.bytes <= self.budget_bytes

    def _expect(self, size: int) -> None:
        with self._making_room():
            self._memory.expect(size)

    @contextmanager
    def _making_room(self) -> Iterator[None]:
        """With the lock: what is done in it may leave too much in memory, or make room for those who wait for it."""
        with self._lock:
            full = not self._has_room()
            yield
            self._memory.shrink(self.budget_bytes)
            opened = full and self._has_room()
        if opened:
            self._loading.look_for_room()


def _told(locate: Callable[[str], Found], name: str) -> Found | GraftError:
    """What is found, or why nothing is."""
    try:
        return locate(name)
    except GraftError as error:
        return error
    except Exception as error:
        log.exception("looking up %s failed", name)
        return BrokenError(f"Looking up {name} failed: {type(error).__name__}: {error}")


def _answer_all(answers: Iterable[tuple[Done, LoadResult]]) -> None:
    """Each gets its own answer, whatever becomes of the others'."""
    for done, answer in answers:
        try:
            done(answer)
        except Exception:
            log.exception("an adapter could not be handed on")
