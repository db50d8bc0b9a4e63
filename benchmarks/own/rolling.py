"""Two `graft serve` behind each other, restarted in turn by SIGTERM while both are asked: what becomes of the requests.

    python -m benchmarks.own.rolling --base DIR --adapters DIR ... --seconds 120

The client does what a proxy does: it asks both in turn, and where one says 503 with Retry-After, or nobody listens, the other.
Prints one line of JSON.
"""

import asyncio
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.lib.common import Load, emit, percentiles
from benchmarks.lib.http_load import Answer, Ask, answered
from benchmarks.lib.recorded_trace import Draw, ids_of
from benchmarks.lib.server_process import Server, ServerProcess
from benchmarks.own.served import LENGTHS, parser_of, server_of

PATIENCE_S = 60.0  # of a client that both refuse
AGAIN_S = 0.05
LAST_WORDS = 600  # characters
BETWEEN_S = 2.0  # two restarts, so that both serve
RANKS = {"p50": 0.50, "p99": 0.99, "max": 1.0}


@dataclass
class Balanced:
    """Requests to several servers, and what became of them."""

    addresses: list[tuple[str, int]]
    latencies: list[float] = field(default_factory=list)  # from the first try to the last token
    lost: list[str] = field(default_factory=list)
    moved: int = 0  # tries that another server was asked after

    async def under_load(self, asks: Iterator[Ask], streams: int, over: threading.Event) -> None:
        async def one_after_another(number: int) -> None:
            turn = number
            while not over.is_set():
                await self._ask(next(asks), turn)
                turn += 1

        await asyncio.gather(*(one_after_another(number) for number in range(streams)))

    async def _ask(self, ask: Ask, turn: int) -> None:
        began = time.perf_counter()
        while True:
            answer = await answered(ask, self.addresses[turn % len(self.addresses)])
            if not elsewhere(answer):
                break
            if time.perf_counter() - began > PATIENCE_S:
                self.lost.append("refused by both")
                return
            self.moved += 1
            turn += 1
            await asyncio.sleep(AGAIN_S)
        if answer.whole(ask.tokens):
            self.latencies.append(answer.ended - began)
        else:
            self.lost.append(answer.error or f"status {answer.status}, {answer.tokens} of {ask.tokens} tokens")


def elsewhere(answer: Answer) -> bool:
    """Whether nothing has been done with it, so that another server may be asked."""
    return answer.nobody or (answer.status == 503 and answer.says_when)


class Restarts(threading.Thread):
    """Restarts servers one after another until the time is over. `exits`: seconds and status of each, and its last words where that is
    not 0."""

    def __init__(self, server: Server, running: list[ServerProcess], seconds: float):
        super().__init__()
        self._server, self._running, self._end = server, running, time.monotonic() + seconds
        self.exits: list[tuple[float, int, str]] = []
        self.over = threading.Event()
        self.failure: Exception | None = None

    def run(self) -> None:
        try:
            number = 0
            while time.monotonic() < self._end:
                time.sleep(BETWEEN_S)
                old = self._running[number % len(self._running)]
                seconds, code = old.drain()
                self.exits.append((seconds, code, old.said()[-LAST_WORDS:] if code else ""))
                old.close()
                self._running[number % len(self._running)] = ServerProcess(self._server, old.address[1])
                number += 1
        except Exception as error:
            self.failure = error
        finally:
            self.over.set()


def main() -> None:
    options = parser_of(__doc__, seconds=120.0, streams=8, kv_bytes="512M").parse_args()
    server = server_of(options, options.streams, 2 * options.streams, "--drain-seconds", "60")
    names = [folder.name for folder in options.adapters]
    running: list[ServerProcess] = []
    try:
        running += [ServerProcess(server) for _ in range(2)]
        draw = Draw(LENGTHS, names or [running[0].base_model], ids_of(Path(options.base)))
        balanced = Balanced([one.address for one in running])
        load, restarts = Load(), Restarts(server, running, options.seconds)
        restarts.start()
        asyncio.run(balanced.under_load(draw.endless(5), options.streams, restarts.over))
        cores = load.cores()
    finally:
        for one in running:
            one.close()
    if restarts.failure is not None:
        raise restarts.failure
    emit(figures(balanced, restarts) | cores)


def figures(balanced: Balanced, restarts: Restarts) -> dict[str, Any]:
    return {
        "requests": len(balanced.latencies) + len(balanced.lost),
        "lost": len(balanced.lost),
        "first_lost": next(iter(balanced.lost), "")[:300],
        "moved": balanced.moved,
        "restarts": len(restarts.exits),
        "drain_s": round(max(seconds for seconds, _, _ in restarts.exits), 2),
        "bad_exits": sum(code != 0 for _, code, _ in restarts.exits),
        "first_bad_exit": next((f"status {code}: {words}" for _, code, words in restarts.exits if code), ""),
        "latency_ms": percentiles(balanced.latencies, RANKS),
    }


if __name__ == "__main__":
    main()
