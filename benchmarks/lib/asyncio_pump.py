"""Streams' bodies written by an event loop, a task a stream: the way that was measured beside graft's one thread (own/streams.py)."""

import asyncio
import threading
from collections.abc import Callable
from typing import Any

from graft.server.engine.client import EngineClient
from graft.server.http.service import EXTENSION
from graft.server.http.streaming.pump import Pump, PumpedStream


class AsyncioPump(Pump):
    """The same streams. Each has a task, which waits for its events and then for its socket."""

    def __init__(self, engine: EngineClient):
        super().__init__(engine)
        self._loop = asyncio.new_event_loop()
        self._come: dict[PumpedStream, asyncio.Event] = {}
        threading.Thread(target=self._loop.run_forever, name="asyncio-pump", daemon=True).start()
        engine.after_steps(self.wake)

    def add(self, stream: PumpedStream) -> None:
        self._come[stream] = asyncio.Event()
        asyncio.run_coroutine_threadsafe(self._write(stream), self._loop)

    def remove(self, stream: PumpedStream) -> None:
        self._come.pop(stream).set()

    def wake(self) -> None:
        if self._marked:
            self._loop.call_soon_threadsafe(self._tell)

    def _tell(self) -> None:
        while self._marked:
            if (come := self._come.get(self._marked.popleft())) is not None:
                come.set()

    async def _write(self, stream: PumpedStream) -> None:
        come, headed = self._come[stream], False
        channel = stream._body._task.channel  # type: ignore[attr-defined]  # http_server._TaskBody
        while not stream._over.is_set():
            await come.wait()
            come.clear()
            stream.make()
            data, stream._made = stream._made, b""
            if not data:
                continue
            if headed:
                await self._loop.sock_sendall(channel.socket, b"%X\r\n%b\r\n" % (len(data), data))
            else:  # with the answer's head
                stream._body.write(data)
                headed = True


def asyncio_app(make_app: Callable[..., Any], engine: EngineClient, *given: Any) -> Any:
    """The application with its streams written so."""
    app = make_app(engine, *given)
    app.extensions[EXTENSION].pump = AsyncioPump(engine)
    return app
