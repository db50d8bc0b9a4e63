"""From a version to an adapter in memory, in steps on threads of their own: files fetched, then read, checked and folded.

What waits for a network, for a disk, and what computes never wait for each other: a hub that hangs takes its own few
threads, and local adapters and what the device needs go on. On every pool clients are served in turn, and none has all of
a hub's threads.
"""

import threading
import time
from collections.abc import Callable, Hashable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import torch

from graft.hub.adapters.artifact import Artifact, load_artifact
from graft.hub.adapters.serving_forms import CacheRows, Form, InputRows, LowRank, at, detours, form_bytes
from graft.hub.base.model import Base
from graft.hub.chat.words import read_words
from graft.hub.errors import ArtifactError, GraftError
from graft.hub.machine.compute_threads import compute_alone
from graft.server.adapters.loaded import Loaded
from graft.server.adapters.names import AdapterNames, Location
from graft.server.adapters.prover import Prover
from graft.server.errors import CapacityError
from graft.server.interest import Interest
from graft.server.leaving import LEAVE_S
from graft.server.stepping_back import step_back
from graft.server.work_pool import WorkPool

HUB_THREADS = 4  # look-ups that a hub answers at once; and as many downloads beside them
HUB_THREADS_EACH = HUB_THREADS - 1  # of either for one client: what it waits for holds nobody else up
_DISK_THREADS = 4
_TRIES = 3  # at a folder that is written to while it is read

Read = Loaded | GraftError


@dataclass(frozen=True, eq=False)
class _Step:
    """What comes next of a load, in a pool. In the turn of whoever waits for it and comes first: it is done once."""

    pool: WorkPool
    work: Callable[[], None]
    begun: threading.Lock = field(default_factory=threading.Lock)

    def __call__(self) -> None:
        if self.begun.acquire(blocking=False):
            self.work()


@dataclass(eq=False)
class Load:
    """A version on its way. `clients`: who wait for it."""

    location: Location
    clients: list[Hashable]
    done: Callable[[Read], None]
    step: _Step | None = None  # the last one that was put into a pool; None at the end
    lock: threading.Lock = field(default_factory=threading.Lock)  # of `clients` and `step`
    tries: int = _TRIES
    read_at: float = 0.0  # a time.monotonic()
    bytes: int = 0  # of what has been made of it
    files: ExitStack = field(default_factory=ExitStack)  # what was fetched, until it is read


class Loading:
    """Safe for many threads. `most_bytes`: of one adapter. `device_size`: what the runner will make of its detours.
    `has_room`: whether one more may be made, which takes no lock; `takes` is told how many bytes more, or fewer, are on
    their way."""

    def __init__(
        self,
        base: Base,
        library: AdapterNames,
        prover: Prover,
        *,
        most_bytes: int,
        allow_base_mismatch: bool,
        device_size: Callable[[Sequence[Form]], int],
        has_room: Callable[[], bool],
        takes: Callable[[int], None],
    ):
        self._base = base
        self._library = library
        self._prover = prover
        self._most_bytes = most_bytes
        self._allow_base_mismatch = allow_base_mismatch
        self._device_size = device_size
        self._takes = takes
        self._look_ups = WorkPool("graft-look-up", HUB_THREADS, step_back, each=HUB_THREADS_EACH)
        self._downloads = WorkPool("graft-download", HUB_THREADS, step_back, each=HUB_THREADS_EACH)
        self._disk = WorkPool("graft-disk", _DISK_THREADS, step_back)
        # One of each, on one core each: more of them take the cores from steps at once, and no load comes sooner.
        self._reading = WorkPool("graft-loader", 1, _compute_behind, may_begin=has_room)
        # What takes seconds, with the base's weights.
        self._folding = WorkPool("graft-fold", 1, _compute_behind, may_begin=has_room)
        self._preparing = WorkPool("graft-prepare", 1, _compute_behind)

    def look_up(
        self, client: Hashable, work: Callable[[], None], failed: Callable[[GraftError], None], interest: Interest
    ) -> None:
        """Ask a hub something, unless `interest` is over before its turn comes; `failed` is told what `work` raises."""
        self._look_ups.submit(client, work, failed, interest)

    def prepare(self, work: Callable[[], None], failed: Callable[[GraftError], None]) -> None:
        """Compute something for an adapter that is loaded already: waits for no load. `failed` is told what `work` raises."""
        self._preparing.submit("", work, failed)

    def load(self, location: Location, client: Hashable, done: Callable[[Read], None]) -> Load:
        """Call `done` on one of the threads with the adapter, or with why there is none."""
        load = Load(location, [client], done)
        self._fetch_later(load)
        return load

    def join(self, load: Load, client: Hashable) -> None:
        """One more client waits for a load: what is left of it comes in its turn too, whatever it was queued behind."""
        with load.lock:
            if client in load.clients or load.step is None:
                return
            load.clients.append(client)
            step = load.step
        step.pool.submit(client, step, partial(self._end, load))

    @property
    def stalled_s(self) -> float:
        """Seconds for which an adapter has waited for room to be made in; 0 where none does. Takes no lock."""
        return max(self._reading.stalled_s, self._folding.stalled_s)

    def look_for_room(self) -> None:
        """Another adapter may be made."""
        self._reading.look_again()
        self._folding.look_again()

    def close(self, wait_s: float = LEAVE_S) -> None:
        """Begin nothing more; wait so long at most for all that computes. What waits for an answer from elsewhere is left to
        itself, and nobody waits for it."""
        until = time.monotonic() + wait_s
        computing = (self._reading, self._folding, self._preparing)
        for pool in (self._look_ups, self._downloads, self._disk, *computing):
            pool.close(0.0)
        for pool in computing:
            pool.close(max(0.0, until - time.monotonic()))

    # Each step ends by beginning the next one, or by `done`

    def _fetch_later(self, load: Load) -> None:
        self._submit(self._downloads if self._library.is_far(load.location) else self._disk, load, self._fetch)

    def _submit(self, pool: WorkPool, load: Load, step: Callable[[Load], None]) -> None:
        """Whatever fails in a step ends the load with an error."""
        turn = _Step(pool, partial(step, load))
        with load.lock:
            load.step = turn
            clients = tuple(load.clients)
        for client in clients:
            pool.submit(client, turn, partial(self._end, load))

    def _fetch(self, load: Load) -> None:
        """On a thread that may wait."""
        folder = load.files.enter_context(self._library.fetch(load.location))
        self._submit(self._reading, load, partial(self._read, folder=folder))

    def _read(self, load: Load, folder: Path) -> None:
        """On a thread that computes."""
        load.read_at = time.monotonic()
        try:
            with torch.inference_mode():
                artifact = self._load_artifact(load.location, folder)
        except GraftError as error:
            self._end_read(load, error)
            return
        fold = partial(self._fold, artifact=artifact, folder=folder)
        if artifact.folds_with_base:
            self._submit(self._folding, load, fold)
        else:
            fold(load)

    def _fold(self, load: Load, artifact: Artifact, folder: Path) -> None:
        """On a thread that computes."""
        read: Read
        try:
            read = self._adapter(load, artifact, folder)
            self._count(load, read.host_bytes)
        except GraftError as error:
            read = error
        self._end_read(load, read)

    def _end_read(self, load: Load, read: Read) -> None:
        if load.location.folder is None:
            self._end(load, read)
        else:
            self._submit(self._disk, load, partial(self._check_unchanged, read=read))

    def _check_unchanged(self, load: Load, read: Read) -> None:
        """A folder that was written to meanwhile is read again: half of one version is neither error nor adapter."""
        written = self._library.locate_written(load.location)  # waits for who writes
        load.tries -= 1
        if written.version == load.location.version or not load.tries:
            self._end(load, read)
        else:
            self._count(load, 0)
            load.files.close()
            load.location = written
            self._fetch_later(load)

    def _end(self, load: Load, read: Read) -> None:
        with load.lock:
            load.step = None  # nothing of it is kept for a turn that is still to come
        load.files.close()
        self._count(load, 0)
        load.done(read)

    def _count(self, load: Load, size: int) -> None:
        """So many bytes of it are on their way."""
        more, load.bytes = size - load.bytes, size
        self._takes(more)

    def _load_artifact(self, location: Location, folder: Path) -> Artifact:
        artifact = load_artifact(folder, self._base.spec, allow_base_mismatch=self._allow_base_mismatch)
        if location.digest not in (None, artifact.digest):
            raise ArtifactError(
                f"{location.name} is not what was published: its digest was {location.digest} and is {artifact.digest} now. "
                "Check the registry with `graft registry check`."
            )
        return artifact

    def _adapter(self, load: Load, artifact: Artifact, folder: Path) -> Loaded:
        dtype = self._base.dtype  # once: a model looks through its parameters for it
        with torch.inference_mode():
            forms = [_copy_to_host(form, dtype) for form in artifact.fold(self._base)]
            case = self._prover.case(artifact)
        rows = [form for form in forms if isinstance(form, (InputRows, CacheRows))]
        ready = detours(forms)
        size = sum(form_bytes(form) for form in forms)
        if size > self._most_bytes:
            raise CapacityError(
                f"{load.location.name} needs {size} bytes of host memory, all adapters together may take "
                f"{self._most_bytes} (--adapter-host-bytes)."
            )
        return Loaded(
            digest=artifact.digest,
            method=artifact.method.name,
            variant=artifact.method.variant(artifact.config),
            detours=ready,
            rows=rows[0] if rows else None,
            case=case,
            bytes=size,
            device_bytes=self._device_size(ready),
            seconds=time.monotonic() - load.read_at,
            words=read_words(folder),
        )


def _copy_to_host(form: Form, dtype: torch.dtype) -> Form:
    """A form in host memory of its own, its scale multiplied in while it is still float32."""
    if isinstance(form, LowRank):
        b = None if form.b is None else form.b * form.scale
        form = replace(form, B=form.B * form.scale, b=b, scale=1.0)
    return at(form, dtype, "cpu", copy=True)


def _compute_behind() -> None:
    compute_alone()
    step_back()
