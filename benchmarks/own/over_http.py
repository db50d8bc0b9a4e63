"""`graft serve` under load, one kind a process: the server is a process of this one, which is the client.

    python -m benchmarks.own.over_http --what crowd --base DIR --adapters DIR ... --seconds 600

streams: so many requests at once, and their tokens a second.
crowd: many streams at any time on all adapters: errors, and the resident memory of each process.
overload: four times as many requests as are answered at most: what is refused, and how long the others take.
"""

import argparse
import itertools
import random
import re
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.lib.common import Load, Workload, emit, measure
from benchmarks.lib.http_load import Ask, Client
from benchmarks.lib.recorded_trace import Draw, Lengths, ids_of
from benchmarks.lib.server_process import ServerProcess
from benchmarks.own.served import LENGTHS, parser_of, server_of

SAMPLED = ({"temperature": 0.0}, {"temperature": 1.0, "top_p": 0.95})  # half of the requests each
WARM_S = 60.0  # of a crowd, after the cache is written: allocators settle
FILLED = 1.3  # times the cache's tokens, so that each of its blocks has been written
FILLING = Lengths((960, 960), (2, 2))
PLACES = 2  # a stream: its place is given back a moment after its client has read the end
OVERLOAD = 4.0


def streams(options: argparse.Namespace) -> dict[str, Any]:
    """As `graft bench` measures an engine: tokens a second from the first request to the last token, prompts included."""
    work = Workload.from_json(options.workload)
    fields = {"temperature": work.temperature, "top_p": work.top_p}
    rounds = itertools.count(work.seed)
    with server(options, work.requests, work.requests) as process:
        model = process.base_model

        def run() -> None:
            prompts = replace(work, seed=next(rounds)).prompts(*ids_of(Path(options.base)))
            seeds = [{"seed": number} if work.seeded else {} for number in range(work.requests)]
            asks = [
                Ask(model, prompt, work.new_tokens, fields=fields | seed)
                for prompt, seed in zip(prompts, seeds, strict=True)
            ]
            clients.append(Client(process.address).at_their_times(asks))
            if clients[-1].broken:
                raise RuntimeError(clients[-1].broken[0])

        clients: list[Client] = []
        figures = measure(run, work.output_tokens, options.repeats)
    cpu, wall = (sum(getattr(client, name) for client in clients) for name in ("cpu_s", "wall_s"))
    return figures | {"client_cores": round(cpu / wall, 3), "setting": f"client: {cpu / wall:.2f} cores"}


def crowd(options: argparse.Namespace) -> dict[str, Any]:
    with server(options, options.streams, PLACES * options.streams) as process:
        draw = draw_of(options, process)
        fill(process, draw, options.streams)
        asks = draw.endless(7)
        under_load(process, asks, options.streams, min(WARM_S, options.seconds))
        load = Load()
        resident = Resident(process)
        client = under_load(process, asks, options.streams, options.seconds)
        grown = resident.growth()
    most = max((one["growth"] for one in grown["processes"]), default=1.0)
    return client.figures() | grown | {"growth": most} | load.cores()


def overload(options: argparse.Namespace) -> dict[str, Any]:
    """Beside the latency of requests one after another that of those which are answered while four times too many come."""
    places = options.max_requests
    with server(options, places, places) as process:
        draw = draw_of(options, process)
        asks = draw.endless(7)
        each = (replace(ask, model=model) for model, ask in zip(draw.models, asks, strict=False))
        require_whole(Client(process.address).so_many_at_once(each, 1))
        load = Load()
        alone = require_whole(under_load(process, asks, 1, options.seconds / 4)).figures()
        full = under_load(process, asks, places, options.seconds / 8).figures()
        rate = OVERLOAD * full["requests_per_s"]
        client = Client(process.address).at_their_times(list(at_random_times(asks, rate, options.seconds)))
        figures = client.figures()
    ratio = figures["latency_ms"]["p95"] / alone["latency_ms"]["p95"]
    rates = {"rate": round(rate, 3), "capacity": full["requests_per_s"], "max_requests": places}
    return figures | {"alone": alone, "full": full, "ratio": round(ratio, 3)} | rates | load.cores()


def server(options: argparse.Namespace, running: int, places: int) -> ServerProcess:
    return ServerProcess(server_of(options, running, places))


def draw_of(options: argparse.Namespace, process: ServerProcess) -> Draw:
    models = [folder.name for folder in options.adapters] or [process.base_model]
    return Draw(LENGTHS, models, ids_of(Path(options.base)), SAMPLED)


def fill(process: ServerProcess, draw: Draw, streams: int) -> None:
    """Write every block of the cache, on every adapter in turn: the system hands out pages as they are first written, which is
    no growth."""
    room = re.search(r"room for ([\d,]+) tokens", process.said())
    assert room is not None, process.said()
    count = max(len(draw.models), round(FILLED * int(room[1].replace(",", "")) / FILLING.longest))
    asks = replace(draw, lengths=FILLING).endless(3)
    turns = (replace(ask, model=model) for ask, model in zip(asks, itertools.cycle(draw.models), strict=False))
    require_whole(Client(process.address).so_many_at_once(itertools.islice(turns, count), min(streams, 8)))


def under_load(process: ServerProcess, asks: Iterator[Ask], streams: int, seconds: float) -> Client:
    """So many at any time, until so long has passed; those under way then are answered."""
    end = time.monotonic() + seconds
    lasting = itertools.takewhile(lambda _: time.monotonic() < end, asks)
    return Client(process.address).so_many_at_once(lasting, streams)


def at_random_times(asks: Iterator[Ask], rate: float, seconds: float) -> Iterator[Ask]:
    """Poisson arrivals."""
    draw, at = random.Random(11), 0.0
    while (at := at + draw.expovariate(rate)) < seconds:
        yield replace(next(asks), at=at)


def require_whole(client: Client) -> Client:
    """Raises RuntimeError where something was not answered whole: what is to be measured has not begun yet."""
    if len(client.whole) < len(client.asked):
        raise RuntimeError(f"not answered: {[*client.broken, 'refused'][0]}")
    return client


class Resident:
    """Resident bytes of each of a server's processes, looked at every second from now on."""

    EVERY_S = 1.0

    def __init__(self, process: ServerProcess):
        self._process, self._taken, self._stop = process, [process.resident()], threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()

    def growth(self) -> dict[str, Any]:
        """Ends it. Of each process the medians of the first and the last tenth; `lost`: of those there at first, and not at last."""
        self._stop.set()
        self._thread.join()
        first, last = self._taken[0], self._taken[-1]
        return {
            "processes": [self._of(pid) for pid in first if pid in last],
            "lost_processes": len(set(first) - set(last)),
        }

    def _look(self) -> None:
        while not self._stop.wait(self.EVERY_S):
            self._taken.append(self._process.resident())

    def _of(self, pid: int) -> dict[str, Any]:
        sizes = [taken[pid] for taken in self._taken if pid in taken]
        tenth = max(1, len(sizes) // 10)
        first, last = (statistics.median(part) for part in (sizes[:tenth], sizes[-tenth:]))
        name = "the engine's process" if pid == self._process.process.pid else "a front end"
        return {"name": name, "first": int(first), "last": int(last), "growth": round(last / first - 1, 4)}


WHAT: dict[str, Callable[[argparse.Namespace], dict[str, Any]]] = {
    "streams": streams,
    "crowd": crowd,
    "overload": overload,
}


def arguments() -> argparse.Namespace:
    parser = parser_of(__doc__, seconds=600.0, streams=256, kv_bytes="")
    parser.add_argument("--what", choices=WHAT, required=True)
    parser.add_argument("--workload", default="{}", help="streams: JSON of common.Workload")
    parser.add_argument("--repeats", type=int, default=5, help="streams: measured runs after the first")
    parser.add_argument("--max-requests", type=int, default=4, help="overload: answered at once")
    return parser.parse_args()


if __name__ == "__main__":
    given = arguments()
    emit(WHAT[given.what](given))
