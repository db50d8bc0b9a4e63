"""A live server on loopback with a tiny base, for the tests of the HTTP interface: the real WSGI server and its settings."""

import json
import math
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from waitress.wasyncore import close_all

from graft.hub.base.model import Base
from graft.server.commands.http_server import bind, http_server, port_of
from graft.server.engine.client import EngineClient
from graft.server.engine.engine import Engine
from graft.server.engine.messages import Ask
from graft.server.engine.options import Options
from graft.server.http.app import create_app
from graft.server.keys.access import Access
from graft.server.keys.usage import UsageFile
from graft.server.operations.drain import Drain
from tests.server.described import require_described

CHAT_TEMPLATE = (
    "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}{% if add_generation_prompt %}[a]{% endif %}"
)
OPTIONS = Options(cache_bytes=1 << 21, max_running=16, step_rows=64, runner="eager")


@dataclass(frozen=True, eq=False)
class Look(Ask[Any]):
    """Anything, looked at on the engine's thread."""

    question: Callable[[], Any]

    def find(self, engine: Engine) -> Any:
        return self.question()


def ask(engine: Engine, question: Callable[[], Any]) -> Any:
    return engine.ask(Look(question))


@dataclass(frozen=True)
class Live:
    """A running server and what it runs on. `described`: whether every answer is one that /openapi.json describes."""

    described: ClassVar[bool] = True
    url: str
    port: int
    engine: Engine
    sockets: dict[int, object]

    def get(self, path: str) -> "Reply":
        return self.send(urllib.request.Request(self.url + path))

    def post(self, path: str, body: Any, headers: Mapping[str, str] = {}) -> "Reply":
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        headers = {"Content-Type": "application/json", **headers}
        return self.send(urllib.request.Request(self.url + path, data, headers))

    def send(self, request: urllib.request.Request) -> "Reply":
        try:
            with urllib.request.urlopen(request, timeout=60) as response:
                reply = Reply(response.status, dict(response.headers), response.read())
        except urllib.error.HTTPError as error:
            reply = Reply(error.code, dict(error.headers), error.read())
        if self.described:
            require_described(request.get_method(), request.selector, reply.status, reply.headers, reply.data)
        return reply

    def idle(self) -> bool:
        """Whether nothing is under way and no cache block is in use but those of soft prompts in memory."""
        engine = self.engine
        return ask(
            engine,
            lambda: (
                not engine.scheduler.running
                and not engine.scheduler.waiting
                and engine.blocks.used == sum(len(one.virtual.blocks) for one in engine.residency.snapshot())
                and not any(one.users for one in engine.loader.snapshot())
            ),
        )


@dataclass(frozen=True)
class Reply:
    status: int
    headers: dict[str, str]
    data: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.data)

    @property
    def error(self) -> dict[str, Any]:
        assert self.json.keys() == {"error"}
        assert self.json["error"].keys() == {"message", "type", "code", "param"}
        assert self.headers["X-Request-Id"]
        return self.json["error"]

    @property
    def events(self) -> list[Any]:
        """The events of a stream; the last one as it stands if it is no JSON."""
        blocks = self.data.decode().split("\n\n")
        assert blocks.pop() == ""
        texts = [block.removeprefix("data: ") for block in blocks]
        return [text if text == "[DONE]" else json.loads(text) for text in texts]


@contextmanager
def serving(
    base: Base,
    adapters: Mapping[str, Path],
    *,
    shelf=None,
    options: Options = OPTIONS,
    max_requests: int = 32,
    trusted_proxies=(),
    adapter_root: Path | None = None,
    access: Access | None = None,
    usage: UsageFile | None = None,
    drain: Drain | None = None,
    request_timeout: float = math.inf,
    cors_origins: Sequence[str] = (),
) -> Iterator[Live]:
    with Engine(base, adapters, shelf, options) as engine:
        drain, sockets = drain or Drain(), {}
        app = create_app(
            EngineClient(engine, usage),
            drain=drain,
            max_at_once=max_requests,
            trusted_proxies=trusted_proxies,
            adapter_root=adapter_root,
            open_access=lambda: access or Access(),
            request_timeout=request_timeout,
            cors_origins=cors_origins,
        )
        listening = bind("127.0.0.1", 0)
        server = http_server(app, listening, max_requests, sockets, lambda: drain.begun)
        thread = threading.Thread(target=server.run, daemon=True)
        thread.start()
        try:
            port = port_of(listening)
            yield Live(f"http://127.0.0.1:{port}", port, engine, sockets)
        finally:
            server.close()
            close_all(sockets, ignore_all=True)  # kept-alive connections, which would hold the loop
            thread.join(10)
