"""An engine that costs nothing, as an ingress sees one: events come when they are due, adapters are names in a list.

    python -m benchmarks.lib.free_engine --host H --port 0 [--room N]

Started in place of `graft serve` (scale/engine_process.py). Each event tells when it was written (`perf_counter`, one clock for all
processes of a machine). An adapter takes one of `--room` places; the least recently used one makes room. GET /loads: how many
were loaded.
"""

import argparse
import asyncio
import json
import sys
import time
from collections import OrderedDict

BASE = {"fingerprint": "f" * 64, "dtype": "bfloat16", "content": "c" * 64}
ADAPTER_BYTES = 1 << 20


class Engine:
    """Which adapters it has, how many it loaded."""

    def __init__(self, room: int):
        self.room = room
        self.loads = 0
        self.under_way = 0
        self.resident: OrderedDict[str, int] = OrderedDict()

    def use(self, digest: str) -> None:
        if digest not in self.resident:
            self.loads += 1
            self.resident[digest] = ADAPTER_BYTES
            while len(self.resident) > self.room:
                self.resident.popitem(last=False)
        self.resident.move_to_end(digest)

    def state(self) -> dict[str, object]:
        room, resident = self.room * ADAPTER_BYTES, dict(self.resident)
        return {
            "base": BASE,
            "under_way": self.under_way,
            "limit": 64,
            "resident": resident,
            "room": room,
            "pinned": [],
        }


async def answer(engine: Engine, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """One connection's requests, one after another."""
    try:
        while True:
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            length = next(
                (int(line[15:]) for line in head.splitlines() if line.lower().startswith("content-length:")), 0
            )
            body = await reader.readexactly(length)
            if head.startswith("POST"):
                await _complete(engine, json.loads(body), writer)
            else:
                writer.write(_whole(_shown(engine, head.split(" ", 2)[1])))
            await writer.drain()
    except (asyncio.IncompleteReadError, ConnectionError):
        writer.close()


def _shown(engine: Engine, path: str) -> object:
    shown = {"/replica": engine.state(), "/ready": {"status": "ready", "model": "base"}, "/loads": engine.loads}
    return shown.get(path)


async def _complete(engine: Engine, body: dict, writer: asyncio.StreamWriter) -> None:
    """`body`: `max_tokens` events, `gap_s` apart, where it asks for a stream."""
    engine.under_way += 1
    try:
        if "@" in body["model"]:
            engine.use(body["model"].partition("@")[2])
        if not body.get("stream"):
            writer.write(_whole({"choices": [{"text": "a"}]}))
            return
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
        due = time.perf_counter()
        for _ in range(body["max_tokens"]):
            event = b'data: {"choices": [{"text": "a"}], "at": %.6f}\n\n' % time.perf_counter()
            writer.write(b"%x\r\n%s\r\n" % (len(event), event))
            due += body["gap_s"]
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
        writer.write(b"0\r\n\r\n")
    finally:
        engine.under_way -= 1


def _whole(shown: object) -> bytes:
    text = json.dumps(shown).encode()
    return b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s" % (len(text), text)


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--host", required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--room", type=int, default=32)
    options = parser.parse_args()
    engine = Engine(options.room)
    server = await asyncio.start_server(lambda *ends: answer(engine, *ends), options.host, options.port, backlog=1024)
    host, port = server.sockets[0].getsockname()[:2]
    print(f"ready at http://{host}:{port}/v1", file=sys.stderr, flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main())
