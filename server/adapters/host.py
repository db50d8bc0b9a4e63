"""The host tier: adapters parsed, checked and folded on threads of their own, kept in memory by real bytes.

A load never runs the base and never touches the engine's thread; a broken adapter costs its own requests a clear
error, remembered for a while. Adapters in use are counted and never dropped; the others go least recently used first.
"""

import logging
import os
import sys
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from functools import partial

import torch

from graft.hub.adapters.artifact import load_artifact
from graft.hub.adapters.serving_forms import CacheRows, Form, InputRows, LowRank, at, detours, form_bytes
from graft.hub.base.model import Base
from graft.hub.errors import GraftError
from graft.server.adapters.names import AdapterNames, Location
from graft.server.adapters.prover import Case, Prover
from graft.server.adapters.workers import Workers
from graft.server.cache.step import BLOCK_ROWS
from graft.server.errors import BrokenError, CapacityError, ClosedError
from graft.server.served_version import Served

log = logging.getLogger(__name__)
FORGIVEN_AFTER_S = 30.0
_THREADS = 2
_TRIES = 3  # at a folder that is written to while it is read
_NICE, _NICEST = 10, 19  # steps further back than the engine; the last there is
_SWITCH_S = 0.0005
_END_S = 1.0  # how long the end of the server waits for a load that is under way


@dataclass(eq=False)
class Loaded:
    """An adapter in host memory, in the base's dtype. `users`: requests that hold it.

    `cases`: of copies of it that bring other probes. Whoever copies an adapter can bring a wrong one, and must not get the
    original refused: it is refused only where no probe holds.
    """

    digest: str
    method: str
    variant: str
    detours: tuple[Form, ...]
    rows: InputRows | CacheRows | None
    case: Case  # its proof
    bytes: int
    seconds: float  # what the load took
    cases: list[Case] = field(default_factory=list)
    users: int = 0

    @property
    def virtual_rows(self) -> int:
        if isinstance(self.rows, InputRows):
            return self.rows.rows.shape[0]
        return 0 if self.rows is None else self.rows.keys.shape[1]

    @property
    def virtual_blocks(self) -> int:
        """Cache blocks that its virtual rows take."""
        return -(-self.virtual_rows // BLOCK_ROWS)


@dataclass
class HostStats:
    hits: int = 0
    misses: int = 0
    failures: int = 0


LoadResult = tuple[Loaded, Served] | GraftError


class HostTier:
    """Safe for many threads."""

    def __init__(
        self,
        base: Base,
        library: AdapterNames,
        prover: Prover,
        *,
        budget_bytes: int,
        allow_base_mismatch: bool = False,
        on_load: Callable[[str, float], None] = lambda name, seconds: None,
    ):
        """`on_load(name, seconds)` is told of each load."""
        self.library = library
        self.stats = HostStats()
        self.budget_bytes = budget_bytes
        self._pinned: frozenset[str] = frozenset()  # digests
        self._base = base
        self._prover = prover
        self._on_load = on_load
        self._allow_base_mismatch = allow_base_mismatch
        self._lock = threading.Lock()
        self._loaded: OrderedDict[str, Loaded] = OrderedDict()  # by digest, least recently used first
        self._served: dict[tuple[str, str], Served] = {}  # (name, version) -> what it turned out to be
        self._failed: dict[tuple[str, str], tuple[float, GraftError]] = {}
        self._waiting: dict[tuple[str, str], list[Callable[[LoadResult], None]]] = {}
        self._workers = Workers("graft-loader", _THREADS, _step_back)

    @property
    def bytes(self) -> int:
        with self._lock:
            return sum(loaded.bytes for loaded in self._loaded.values())

    def snapshot(self) -> list[Loaded]:
        with self._lock:
            return list(self._loaded.values())

    def served(self) -> dict[str, Served]:
        """What each name stood for when it was last loaded, by name."""
        with self._lock:
            return {name: served for (name, _), served in self._served.items()}

    def find(self, location: Location) -> Loaded | None:
        """A version that is in memory already, None where it isn't."""
        with self._lock:
            served = self._served.get((location.name, location.version))
            digest = served.digest if served else location.digest
            return self._loaded.get(digest) if digest else None

    def request(self, name: str, done: Callable[[LoadResult], None]) -> None:
        """Call `done` with the adapter, held for one user, or with why there is none: now or from a loader's thread."""
        if self.library.is_quick(name):
            self._begin(name, done)
        else:
            self.run_later(lambda: self._begin(name, done), done)

    def release(self, loaded: Loaded) -> None:
        """One user less."""
        with self._lock:
            loaded.users -= 1
            self._shrink()

    def keep(self, digests: frozenset[str]) -> None:
        """These adapters stay in memory, whoever uses them."""
        with self._lock:
            self._pinned = digests
            self._shrink()

    def drop(self, digest: str) -> None:
        """Forget an adapter; who holds it keeps it until done, the next request loads it anew."""
        with self._lock:
            self._loaded.pop(digest, None)
            self._served = {key: served for key, served in self._served.items() if served.digest != digest}

    def refuse(self, digest: str, error: GraftError) -> None:
        """The adapter loaded but failed its proof: remember it as a failed load."""
        with self._lock:
            for key in [key for key, served in self._served.items() if served.digest == digest]:
                self._remember(key, error)
        self.drop(digest)

    def run_later(self, work: Callable[[], None], failed: Callable[[GraftError], None]) -> None:
        """Run something on a loader's thread; `failed` is told what it raises. Raises ClosedError after `close`."""
        self._workers.submit(work, failed)

    def close(self) -> None:
        """End the loaders' threads. One that hangs (in a download, say) is left behind after a moment."""
        if not self._workers.close(_END_S):
            log.warning("a loader's thread is still busy: it is left behind")

    def _begin(self, name: str, done: Callable[[LoadResult], None]) -> None:
        try:
            location = self.library.locate(name)
            answer = self._find_or_load(location, done)
        except GraftError as error:
            answer = error
        except Exception as error:
            log.exception("looking up %s failed", name)
            answer = BrokenError(f"Looking up {name} failed: {type(error).__name__}: {error}")
        if answer is not None:
            done(answer)

    def _find_or_load(self, location: Location, done: Callable[[LoadResult], None]) -> LoadResult | None:
        """The answer; None where `done` gets it later, when the load is through."""
        key = (location.name, location.version)
        with self._lock:
            answer = self._find_answer(key, location)
            if answer is None and key in self._waiting:
                self._waiting[key].append(done)
            elif answer is None:
                self.run_later(lambda: self._load(key, location), partial(self._give_up, key))
                self._waiting[key] = [done]  # the load can't end before the lock is free
                self.stats.misses += 1
            return answer

    def _find_answer(self, key: tuple[str, str], location: Location) -> LoadResult | None:
        """The answer where there is one already, held for its user. Called with the lock."""
        if key in self._failed and self._failed[key][0] > time.monotonic():
            return self._failed[key][1]
        digest = self._served[key].digest if key in self._served else location.digest
        loaded = self._loaded.get(digest) if digest else None
        if loaded is None or (loaded.case.verdict is None and key not in self._served):
            return None  # of one that is not proven yet its own folder's probe is wanted too
        self.stats.hits += 1
        return self._hold(key, loaded, location)

    def _hold(self, key: tuple[str, str], loaded: Loaded, location: Location) -> tuple[Loaded, Served]:
        loaded.users += 1
        self._loaded.move_to_end(loaded.digest)
        served = self._served.setdefault(key, Served(location.name, loaded.digest, location.revision))
        return loaded, served

    def _remember(self, key: tuple[str, str], error: GraftError) -> None:
        """A failed load is not tried again for a while, unless the fault is the server's. Called with the lock."""
        if isinstance(error, (BrokenError, ClosedError)):
            return
        now = time.monotonic()
        self._failed = {key: kept for key, kept in self._failed.items() if kept[0] > now}
        self._failed[key] = (now + FORGIVEN_AFTER_S, error)

    def _load(self, key: tuple[str, str], location: Location) -> None:
        try:
            fresh = self._read_whole(location)
            self._on_load(location.name, fresh.seconds)
        except GraftError as error:
            self._give_up(key, error)
            return
        with self._lock:
            kept = self._loaded.setdefault(fresh.digest, fresh)
            if kept.case.verdict is None and fresh.case.probe != kept.case.probe:
                kept.cases.append(fresh.case)
            waiting = self._waiting[key]
            answers = [self._hold(key, kept, location) for _ in waiting]
            self._shrink()
            del self._waiting[key]
        _answer_all(zip(waiting, answers, strict=True))

    def _give_up(self, key: tuple[str, str], error: GraftError) -> None:
        """A load failed: whoever waits for it is told."""
        with self._lock:
            waiting = self._waiting.pop(key, [])
            self.stats.failures += 1
            self._remember(key, error)
        _answer_all((done, error) for done in waiting)

    def _read_whole(self, location: Location) -> Loaded:
        """A folder that was written to meanwhile is read again: half of one version is neither error nor adapter."""
        for _ in range(_TRIES - 1):
            read: Loaded | GraftError
            try:
                read = self._read(location)
            except GraftError as error:
                read = error
            before, location = location, self.library.locate_written(location)
            if location.version != before.version:
                continue
            if isinstance(read, GraftError):
                raise read
            return read
        return self._read(location)

    def _read(self, location: Location) -> Loaded:
        began = time.monotonic()
        with self.library.fetch(location) as folder, torch.inference_mode():
            artifact = load_artifact(folder, self._base.spec, allow_base_mismatch=self._allow_base_mismatch)
            forms = [_copy_to_host(form, self._base.dtype) for form in artifact.fold(self._base)]
            case = self._prover.case(artifact)
        rows = [form for form in forms if isinstance(form, (InputRows, CacheRows))]
        size = sum(form_bytes(form) for form in forms)
        if size > self.budget_bytes:
            raise CapacityError(
                f"{location.name} needs {size} bytes of host memory, all adapters together may take "
                f"{self.budget_bytes} (--adapter-host-bytes)."
            )
        return Loaded(
            digest=artifact.digest,
            method=artifact.method.name,
            variant=artifact.method.variant(artifact.config),
            detours=detours(forms),
            rows=rows[0] if rows else None,
            case=case,
            bytes=size,
            seconds=time.monotonic() - began,
        )

    def _shrink(self) -> None:
        """Drop what nobody uses, least recently used first, until the budget holds. Called with the lock."""
        excess = sum(loaded.bytes for loaded in self._loaded.values()) - self.budget_bytes
        for digest, loaded in list(self._loaded.items()):
            if excess <= 0:
                return
            if not loaded.users and digest not in self._pinned:
                del self._loaded[digest]
                excess -= loaded.bytes


def _copy_to_host(form: Form, dtype: torch.dtype) -> Form:
    """A form in host memory of its own, its scale multiplied in while it is still float32."""
    if isinstance(form, LowRank):
        b = None if form.b is None else form.b * form.scale
        form = replace(form, B=form.B * form.scale, b=b, scale=1.0)
    return at(form, dtype, "cpu", copy=True)


def _step_back() -> None:
    """Let the engine go first: a loader's thread takes what its steps spare of the cores, and hands on the interpreter.

    By default a thread keeps it for 5 ms after another has asked; with a lower priority it may not even run then.
    """
    sys.setswitchinterval(_SWITCH_S)
    if sys.platform == "linux":  # where a thread has a priority of its own
        this = threading.get_native_id()
        own = os.getpriority(os.PRIO_PROCESS, this)  # a server that is nicer itself may not take that back
        os.setpriority(os.PRIO_PROCESS, this, min(_NICEST, own + _NICE))


def _answer_all(answers: Iterable[tuple[Callable[[LoadResult], None], LoadResult]]) -> None:
    """Each gets its own answer, whatever becomes of the others'."""
    for done, answer in answers:
        try:
            done(answer)
        except Exception:
            log.exception("an adapter could not be handed on")
