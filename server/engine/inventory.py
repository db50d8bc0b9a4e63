"""Which adapters can be named here, where they are, and moving them on request.

Reads names and host memory, which are safe for many threads; asks the engine's thread for the rest.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING

from graft.hub.adapters.probe import Verdict
from graft.hub.adapters.validation import Inspection, inspect_artifact
from graft.hub.chat.words import NO_WORDS, AdapterWords, read_words
from graft.hub.errors import ConflictError, GraftError, NotFoundError
from graft.server.adapters.names import Location
from graft.server.engine.questions import Pin, Unload
from graft.server.engine.request import Finished, Request, Sink, Started
from graft.server.errors import unless_error
from graft.server.interest import Interest
from graft.server.operations.patience import Patience
from graft.server.replica_state import BaseIdentity, ReplicaState
from graft.server.served_version import UNPLACED, Served

if TYPE_CHECKING:
    from graft.server.adapters.host import LoadResult
    from graft.server.adapters.loaded import Loaded
    from graft.server.engine.engine import Engine


class NotLoadedError(NotFoundError):
    """The adapter is known, and not in memory."""

    code = "not_loaded"


@dataclass(frozen=True)
class AdapterEntry:
    """An adapter. `error`: why it can't be served; then what was not found out is None."""

    name: str
    digest: str | None = None
    revision: str | None = None
    method: str | None = None
    variant: str | None = None
    task: str | None = None
    bytes: int | None = None  # of its weights
    error: str | None = None
    words: AdapterWords | None = None  # None: not read yet


@dataclass(frozen=True)
class Placed:
    """Where an adapter is."""

    host_bytes: int = 0
    device_bytes: int = 0
    pinned: bool = False
    virtual_tokens: int = 0
    proof: Verdict | None = None  # None: not in memory, or still under way

    @property
    def state(self) -> str:
        return "device" if self.device_bytes else "host" if self.host_bytes else "disk"


class Inventory:
    """Safe for many threads."""

    def __init__(self, engine: "Engine"):
        self._engine = engine
        # local name -> (version, what it is, its words)
        self._inspected: dict[str, tuple[str, Inspection | GraftError, AdapterWords]] = {}

    def entries(self) -> list[AdapterEntry]:
        """Every adapter that can be named: local ones, those on the shelf (registries only; a remote hub's as far as
        they have been asked for, as they stood then). No hub is asked."""
        entries = {entry.name: entry for entry in self._shelf_entries()}
        served = self._engine.loader.served()
        for name in {*self._engine.library.names, *(served.keys() - entries.keys())}:
            with suppress(NotFoundError):  # it stands for nothing any more, or has just been taken back
                entries[name] = self._known_entry(name, served)
        return [entry for _, entry in sorted(entries.items())]

    def entry(self, name: str, client: str, patience: Patience) -> AdapterEntry:
        """One adapter by any of its names; where a hub has to be asked, in the client's turn. Raises NotFoundError, or what
        `patience` ends with."""
        try:
            return self._entry(name, self._locate(name, client, patience))
        except NotFoundError as error:
            return self._missing(name, error)

    def asks_hub(self, name: str) -> bool:
        """Whether `entry` has to ask a hub."""
        with suppress(GraftError):
            return self._engine.library.locate_at_once(name) is None
        return False

    def known_entry(self, name: str) -> AdapterEntry:
        """Of what is known without a hub. Raises NotFoundError."""
        return self._known_entry(name, self._engine.loader.served())

    def _known_entry(self, name: str, served: Mapping[str, Served]) -> AdapterEntry:
        try:
            location = self._last_known(name, served)
        except NotFoundError as error:
            return self._missing(name, error)
        return AdapterEntry(name) if location is None else self._entry(name, location)

    def _missing(self, name: str, error: NotFoundError) -> AdapterEntry:
        """Of a name that stands for nothing: raises the error, but for those that are given here."""
        if name not in self._engine.library.names:
            raise error
        return AdapterEntry(name, error="The adapter is gone.")

    def _entry(self, name: str, location: Location) -> AdapterEntry:
        if location.folder is not None:
            return self._local_entry(location, location.folder)
        loaded = next((one for one in self._engine.loader.snapshot() if one.digest == location.digest), None)
        return AdapterEntry(
            name=name,
            digest=location.digest,
            revision=location.revision,
            method=loaded.method if loaded else None,
            variant=loaded.variant if loaded else None,
            bytes=loaded.bytes if loaded else None,
            words=self._engine.loader.words(location),
        )

    def served(self, name: str) -> Served:
        """What a request for a name runs on, as far as that can be told without a network."""
        location: Location | None = None
        with suppress(GraftError):
            location = self._engine.library.locate_at_once(name)
        if location is None:
            return Served()
        loaded = self._engine.loader.find(location)
        return Served(name, loaded.digest if loaded else location.digest, location.revision)

    def shelf_names(self, names: Sequence[str]) -> dict[str, str]:
        """What names are called on the shelf, of those that are looked up there."""
        called = {name: self._engine.library.shelf_name(name) for name in names}
        return {name: shelved for name, shelved in called.items() if shelved is not None}

    def ask_words(
        self, name: str, client: str, done: Callable[[AdapterWords | GraftError], None], interest: Interest
    ) -> None:
        """Bring an adapter to host memory, and call `done` with its words, or with why it can't be had: now, or from a
        loader's thread; or not at all once `interest` is over."""

        def answer(result: "LoadResult") -> None:
            if isinstance(result, GraftError):
                self._engine.metrics.failed(UNPLACED, result.code)
                done(result)
                return
            loaded, served = result
            self._engine.loader.release(loaded)
            done(served.words)

        self._engine.loader.request(name, client, answer, interest)

    def placements(self) -> dict[str, Placed]:
        """Digest -> where it is, of all in memory. Waits for no step."""
        residency = self._engine.residency
        device, pinned = {one.digest: one.bytes for one in residency.snapshot()}, residency.pinned
        return {
            one.digest: Placed(
                one.host_bytes, device.get(one.digest, 0), one.digest in pinned, one.virtual_rows, one.case.verdict
            )
            for one in self._engine.loader.snapshot()
        }

    def replica_state(self) -> ReplicaState:
        """Its base, and what is in host memory, for which room is short. Waits for no step."""
        engine, scheduler = self._engine, self._engine.scheduler
        return ReplicaState(
            BaseIdentity(engine.base.spec.fingerprint, engine.base.dtype_name, engine.prover.base_content),
            scheduler.running + scheduler.waiting,
            engine.options.max_running,
            {one.digest: one.bytes for one in engine.loader.snapshot()},
            engine.sizes.host_bytes,
            tuple(sorted(engine.residency.pinned)),
        )

    def load(self, name: str, client: str, weight: float, patience: Patience) -> Served:
        """Bring an adapter to the device and prove it, in the client's turn. Raises the GraftError that a request for it would get,
        or what `patience` ends with: where the server is about to end another one may as well have it."""
        start = next(iter(self._engine.ends), 0)
        asked = Request((start, start), name, max_tokens=0, score_from=0, client=client, weight=weight)
        sink: Sink = SimpleQueue()
        stream, served = self._engine.submit(asked, sink), Served()
        try:
            while True:
                _, event = patience.take(sink, elsewhere=True)
                match event:
                    case Started():
                        served = event.served
                    case Finished():
                        return served
                    case GraftError():
                        raise event
        except BaseException:
            stream.cancel()
            raise

    def unload(self, name: str) -> Served:
        """Take an adapter out of memory, unpinned; it stays known, and comes back when asked for.

        Raises NotLoadedError, or ConflictError while requests use it.
        """
        loaded, served = self._find_loaded(name)
        if not self._engine.ask(Unload(loaded)):
            raise ConflictError(f"{name} is in use: unload it when its requests are done.")
        return served

    def pin(self, name: str, pinned: bool, client: str, weight: float, patience: Patience) -> Served:
        """Keep the version that the name stands for now in memory, or let it go again.

        Raises ConflictError where pins would take more than their share of memory, and as `load`.
        """
        if not pinned:
            loaded, served = self._find_loaded(name)
            self._engine.ask(Pin(loaded, False))
            return served
        self.load(name, client, weight, patience)
        loaded, served = self._find_loaded(name)
        if not self._engine.ask(Pin(loaded, True)):
            raise ConflictError(
                f"Pinning {name} would leave too little room for other adapters: unpin one first, or start the "
                f"server with larger --adapter-device-bytes and --adapter-host-bytes."
            )
        return served

    def attach(
        self, name: str, target: Path | str, client: str, weight: float, patience: Patience, *, replace: bool
    ) -> Served:
        """Bring an adapter (a folder, or a name on the shelf) to the device, prove it, and give it a name of its own.

        Raises ConflictError for a name that stands for something, NotFoundError where there is no adapter, and as `load`;
        then the name is what it was.
        """

        def is_taken() -> bool:
            try:
                self._locate(name, client, patience)
            except NotFoundError:
                return False
            return True

        with self._engine.library.attaching(name, target, is_taken, replace=replace) as trial:
            return self.load(trial, client, weight, patience)

    def detach(self, name: str) -> bool:
        """Take an attached name back, and its adapter out of memory if it is neither pinned nor in use. False where it is none."""
        loaded: Loaded | None = None
        with suppress(GraftError):  # what can't be found is in nobody's way
            loaded, _ = self._find_loaded(name)
        if not self._engine.library.detach(name):
            return False
        self._inspected.pop(name, None)
        if loaded is not None and not self.placements().get(loaded.digest, Placed()).pinned:
            self._engine.ask(Unload(loaded))
        return True

    def _locate(self, name: str, client: str, patience: Patience) -> Location:
        """What a name stands for now; where a hub has to be asked, in the client's turn. Raises NotFoundError, or what `patience`
        ends with."""
        told: SimpleQueue[Location | GraftError] = SimpleQueue()
        interest = Interest()
        self._engine.loader.locate(name, client, told.put, interest)
        try:
            return unless_error(patience.take(told, elsewhere=True) if told.empty() else told.get())
        finally:
            interest.end()

    def _last_known(self, name: str, served: Mapping[str, Served]) -> Location | None:
        """What a name stood for when it was asked for last; where only versions of it were, the one that was loaded last. Asks no hub.
        `served`: what was loaded last, by name. Raises NotFoundError."""
        location = self._engine.library.last_known(name)
        if location is None and (last := served.get(name)) is not None and last.revision is not None:
            return Location(name, last.revision, revision=last.revision, digest=last.digest)
        return location

    def _find_loaded(self, name: str) -> "tuple[Loaded, Served]":
        """By what the name stood for last: no hub is asked. Raises NotFoundError for an unknown name, NotLoadedError for an adapter
        that isn't in memory."""
        location = self._last_known(name, self._engine.loader.served())
        loaded = self._engine.loader.find(location) if location is not None else None
        if location is None or loaded is None:
            raise NotLoadedError(f"{name} is not loaded.")
        return loaded, Served(name, loaded.digest, location.revision)

    def _local_entry(self, location: Location, folder: Path) -> AdapterEntry:
        version, inspection, words = self._inspected.get(location.name, ("", GraftError(), NO_WORDS))
        if version != location.version:
            words = read_words(folder)
            try:
                inspection = inspect_artifact(folder, self._engine.base.spec)
            except GraftError as error:
                inspection = error
            self._inspected[location.name] = (location.version, inspection, words)
        if isinstance(inspection, GraftError):
            return AdapterEntry(location.name, error=str(inspection))
        return AdapterEntry(
            location.name,
            inspection.digest,
            None,
            inspection.method,
            inspection.variant,
            inspection.task,
            inspection.bytes,
            None,
            words,
        )

    def _shelf_entries(self) -> Iterator[AdapterEntry]:
        for row in self._engine.library.search_shelf(self._engine.base.spec):
            if row.digest:
                yield AdapterEntry(row.name, row.digest, row.revision_id, row.method, None, row.task, row.bytes)
