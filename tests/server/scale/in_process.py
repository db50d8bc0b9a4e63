"""An ingress without Ray, in front of engines of this process: everything but how Serve starts, watches and picks them."""

import asyncio
import threading
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

from aiohttp import web
from multidict import CIMultiDict

from graft.server.commands.http_server import bind, port_of
from graft.server.engine.client import EngineClient
from graft.server.keys.access import Access
from graft.server.scale.callers import Opening, make_visits
from graft.server.scale.door import listen
from graft.server.scale.exchange import Engine, Exchange
from graft.server.scale.fleet import Asked, Declared, Fleet, Seen
from graft.server.scale.front import Front
from tests.server.live import Live, Reply

SECRET = "between the ingress and its engines"


@dataclass(frozen=True)
class InProcess(Live):
    """A running ingress, asked as any live server is; it has no engine of its own. What it says of replicas, and for
    them, the engines' /openapi.json does not tell."""

    described: ClassVar[bool] = False
    fleet: Fleet
    front: Front

    def send(self, request: urllib.request.Request) -> Reply:
        """aiohttp writes headers' names as it knows them, which are the same in small letters."""
        reply = super().send(request)
        return replace(reply, headers=CIMultiDict(reply.headers))


def seen(id: str, live: Live, beat: int = 1, model: str = "test/llama") -> Seen:
    """What an engine says of itself."""
    state = EngineClient(live.engine).replica_state()
    told = (state.under_way, state.limit, state.resident, state.room, state.pinned)
    return Seen(id, live.url, state.base, model, SECRET, beat, *told)


def dead(like: Seen, id: str, url: str = "http://127.0.0.1:9") -> Seen:
    """A replica as `like`, where nobody answers, and to which everything goes first."""
    return replace(like, id=id, url=url, room=1 << 60)


@contextmanager
def ingress(
    replicas: list[Seen],
    *,
    access: Callable[[str], Access] = lambda base: Access(),
    shelf: Callable[[], object] = lambda: None,
    local: dict[str, Path] | None = None,
    usage: Path | None = None,
    declared: Declared | None = None,
    cors_origins: tuple[str, ...] = (),
) -> Iterator[InProcess]:
    fleet = Fleet(declared)
    fleet.see(replicas)
    opening = Opening(access, shelf, local or {}, usage)
    started: Future[tuple[int, Front, Callable[[], object]]] = Future()
    thread = threading.Thread(target=lambda: asyncio.run(_serve(fleet, opening, cors_origins, started)), daemon=True)
    thread.start()
    port, front, end = started.result(20)
    try:
        yield InProcess(f"http://127.0.0.1:{port}", port, None, {}, fleet, front)
    finally:
        end()
        thread.join(20)


async def _serve(fleet: Fleet, opening: Opening, cors_origins: tuple[str, ...], started: Future) -> None:
    async def pick(asked: Asked) -> Engine:
        while not (order := fleet.choose(asked)):
            await asyncio.sleep(0.01)
        return next(Engine(one.id, one.url, one.secret) for one in fleet.replicas() if one.id == order[0])

    over, loop = asyncio.Event(), asyncio.get_running_loop()
    (sock,) = bind("127.0.0.1", 0)
    port = port_of([sock])
    url, visits = f"http://127.0.0.1:{port}", make_visits(opening.usage)
    front = Front(fleet, Exchange(fleet, pick), visits, opening, url, cors_origins=cors_origins)
    runner = web.AppRunner(front.application(), handler_cancellation=True)
    sock.close()
    listening = await listen(runner, "127.0.0.1", port)
    started.set_result((port, front, lambda: loop.call_soon_threadsafe(over.set)))
    await over.wait()
    listening.close()
    await runner.cleanup()
