"""Looking after a running engine's adapters: what is known of each, loading one ahead, unloading, pinning."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from graft.hub.errors import ConflictError, NotFoundError
from graft.server.requests import Request, RequestError, Served

if TYPE_CHECKING:
    from graft.server.engine import Engine


@dataclass(frozen=True)
class AdapterInfo:
    """An adapter as the engine knows it; what only a load can tell is None before the first one."""

    name: str
    digest: str | None = None
    revision: str | None = None
    method: str | None = None
    variant: str | None = None
    task: str | None = None
    state: str = "known"  # "known" | "host" | then as residency.State says
    pinned: bool = False
    requests: int = 0  # that hold it now
    host_bytes: int = 0
    device_bytes: int = 0
    virtual_tokens: int = 0
    load_seconds: float | None = None


class Adapters:
    """For callers on any thread."""

    def __init__(self, engine: Engine):
        self._engine = engine

    def describe(self) -> list[AdapterInfo]:
        """Every local name, and every name that was loaded, by name."""
        engine = self._engine
        served = {name: Served(name) for name in engine.library.names} | engine.loader.served()
        loaded = {one.digest: one for one in engine.loader.snapshot()}
        residents = engine.call(
            lambda: {one.digest: (one.state.value, one.bytes) for one in engine.residency.snapshot()}
        )
        found = []
        for name, what in sorted(served.items()):
            host = loaded.get(what.digest)
            if host is None:
                found.append(AdapterInfo(name, what.digest, what.revision))
                continue
            state, device_bytes = residents.get(what.digest, ("host", 0))
            found.append(
                AdapterInfo(
                    name=name,
                    digest=host.digest,
                    revision=what.revision,
                    method=host.method,
                    variant=host.variant,
                    task=host.task,
                    state=state,
                    pinned=host.digest in engine.loader.pinned,
                    requests=host.users,
                    host_bytes=host.bytes,
                    device_bytes=device_bytes,
                    virtual_tokens=host.virtual_rows,
                    load_seconds=host.seconds,
                )
            )
        return found

    def load(self, name: str, *, pin: bool = False) -> Served:
        """Bring an adapter to the device and prove it by serving one token. Raises what a request would meet."""
        request = Request(prompt=(min(self._engine.ends, default=0),), model=name, max_tokens=1)
        served = self._engine.generate([request])[0].served
        if pin:
            self._pin(served)
        return served

    def unload(self, name: str) -> None:
        """Free an adapter's memory everywhere; its name stays, the next request loads it again.

        Raises NotFoundError where it is not loaded, ConflictError while requests use it.
        """
        digest = self._digest(name)
        engine = self._engine
        engine.loader.pinned.discard(digest)
        if not engine.call(lambda: engine.residency.drop(digest)):
            raise ConflictError(f"{name} is in use: unload it when its requests are done.")
        engine.loader.drop(digest)

    def pin(self, name: str, pinned: bool) -> Served:
        """Keep an adapter on the device whatever else is asked for, or no longer. An unloaded one is loaded first."""
        if pinned:
            return self.load(name, pin=True)
        served = self._engine.loader.served().get(name) or Served(name)
        self._engine.loader.pinned.discard(served.digest)
        return served

    def _pin(self, served: Served) -> None:
        """Raises RequestError where pinned adapters would take more than half of the device's budget."""
        engine = self._engine
        pinned = engine.loader.pinned | {served.digest}
        held = engine.call(lambda: sum(one.bytes for one in engine.residency.snapshot() if one.digest in pinned))
        if 2 * held > engine.residency.budget_bytes:
            raise RequestError(
                f"Pinning {served.name} would leave less than half of the device's {engine.residency.budget_bytes} bytes "
                f"to other adapters: unpin one first, or raise --adapter-device-bytes."
            )
        engine.loader.pinned.add(served.digest)

    def _digest(self, name: str) -> str:
        served = self._engine.loader.served().get(name)
        if served is None:
            raise NotFoundError(f"{name!r} is not loaded.")
        return served.digest
