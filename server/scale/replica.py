"""A replica of Ray Serve: an actor that looks after one engine's process, and tells what that has at hand."""

import asyncio
import os
import shutil
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from dataclasses import asdict, dataclass

import ray
from pydantic import TypeAdapter

from graft.server.replica_state import ReplicaState
from graft.server.scale.engine_process import ASK_S, EngineCommand, EngineProcess
from graft.server.scale.scaling import REQUESTS

LOOK_S = 5.0  # how often it is looked whether the hub can be reached and the disk has room
_STATE, _READY = TypeAdapter(ReplicaState), TypeAdapter(dict[str, str])
_DISK_MARGIN = 64 << 20  # bytes: less, and a base's or adapter's files can't be written whole


@dataclass(frozen=True)
class Needs:
    """What a replica's machine must have: a hub to be reached (None: there is none), a folder to be written to."""

    hub: str | None

    def missing(self) -> list[str]:
        """In words."""
        return [*self._hub(), *self._disk()]

    def _hub(self) -> list[str]:
        if self.hub is None:
            return []
        try:
            urllib.request.urlopen(self.hub, timeout=LOOK_S).close()
        except urllib.error.HTTPError:
            return []  # it answers
        except (OSError, ValueError) as error:
            return [f"the hub {self.hub} can't be reached from there ({error}): what it has in memory goes on"]
        return []

    def _disk(self) -> list[str]:
        there = tempfile.gettempdir()  # where what is fetched of a hub lies
        free = shutil.disk_usage(there).free
        if free >= _DISK_MARGIN:
            return []
        return [
            f"its disk is full ({free >> 20} MiB free below {there}): adapters that it does not have can't be fetched"
        ]


class EngineReplica:
    """One engine. Ends with it: Serve then starts another one in its place."""

    def __init__(self, command: EngineCommand, needs: Needs, drain_s: float):
        """Waits until the engine is there. Raises EngineFailure where it does not start, which is what Serve shows of the
        deployment."""
        self._engine = EngineProcess(command, ray.util.get_node_ip_address())  # on the loop's thread, which stays
        self._drain_s = drain_s
        self._needs = needs
        self._missing: list[str] = []
        self._looked = -LOOK_S
        self._beat = 0
        self._requests = 0.0
        self._ending = False
        self._url = self._engine.await_ready()
        self._base = self._state(None).base  # all of its weights may be read for that
        self._model = _READY.validate_json(self._engine.ask("/ready"))["model"]
        threading.Thread(target=self._watch, name="graft-engine-watch", daemon=True).start()

    def record_replica_metadata(self) -> dict[str, object]:
        """Once, for all who pick replicas: where the engine is, what it asks for and what it serves."""
        return {"url": self._url, "secret": self._engine.secret, "base": asdict(self._base), "model": self._model}

    async def record_routing_stats(self) -> dict[str, object]:
        """Once a second, for all who pick replicas: what is in memory, how much room, how busy (fleet.Seen)."""
        state = await asyncio.to_thread(self._state)
        if time.monotonic() > self._looked + LOOK_S:
            self._looked = time.monotonic()
            self._missing = await asyncio.to_thread(self._needs.missing)
        self._beat += 1
        self._requests = float(state.under_way)
        told = {name: value for name, value in asdict(state).items() if name != "base"}
        return told | {"beat": self._beat, "missing": self._missing}

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """For scaling.py, as of the last report."""
        return {REQUESTS: self._requests}

    async def check_health(self) -> None:
        """Raises EngineFailure where the engine takes no requests: it hangs."""
        if not self._ending:
            await asyncio.to_thread(self._engine.ask, "/ready")

    async def __del__(self) -> None:
        """By Serve, when nobody picks it any more: the engine ends what it has under way."""
        self._ending = True
        await asyncio.to_thread(self._engine.end, self._drain_s)

    def _state(self, timeout: float | None = ASK_S) -> ReplicaState:
        return _STATE.validate_json(self._engine.ask("/replica", timeout))

    def _watch(self) -> None:
        self._engine.wait()
        if not self._ending:
            print(self._engine.last_words(), file=sys.stderr, flush=True)
            os._exit(1)  # Serve sees at once that the replica has gone
