"""What requests wait for that need nothing of what is under way beside them: one kind of wait a process.

    python -m benchmarks.own.waiting --base DIR --what loads

loads: gaps between tokens of eight streams while adapters load, beside the same streams without loads.
room: a first token of the base while an adapter finds no room on the device.
hub: a first token of a cold local adapter while a hub's downloads hang.
decisions: what residency and admission cost the engine's thread.
"""

import argparse
import itertools
import os
import tempfile
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from waitress.server import BaseWSGIServer

import graft.hub  # noqa: F401  before torch, so that its threads wait as a server's do
from benchmarks.lib import adapters, harness
from benchmarks.lib.common import Load, emit, percentiles
from benchmarks.lib.pretended_engine import crowded, crowded_host
from graft.hub.base.model import load_base
from graft.hub.cli.hub_server import http_server
from graft.hub.machine.interpreter import hand_on_soon, keep_what_is_there
from graft.hub.registry.registry import Registry
from graft.hub.registry.remote.client import RemoteRegistry
from graft.hub.web.app import create_app
from graft.server.engine.engine import Engine
from graft.server.engine.options import Options
from graft.server.engine.request import Request, Stream
from graft.server.engine.sequence import StepPlan
from graft.server.sampling.params import Sampling, Token

STREAMS, TOKENS, REPEATS, HANGING = 8, 400, 12, 6
PROMPT_TOKENS = 512  # of a request whose whole admission is timed; half of them are found
LOADED = ("lora-r16", "series", "parallel", "dora-r16")
GREEDY = Sampling(temperature=0)


def request(name: str | None, tokens: int, number: int = 0, prompt_tokens: int = 32) -> Request:
    prompt = tuple(1000 + 7 * number + i for i in range(prompt_tokens))
    return Request(prompt, name, max_tokens=tokens, ignore_eos=True, sampling=GREEDY)


def token_times(stream: Stream, times: list[float]) -> None:
    for event in stream:
        if isinstance(event, Token):
            times.append(time.perf_counter())


def first_token(engine: Engine, name: str | None, number: int) -> float:
    """Seconds to the first token of a request."""
    began = time.perf_counter()
    engine.submit(request(name, 1, number)).result()
    return time.perf_counter() - began


def loads(options: argparse.Namespace) -> dict[str, Any]:
    base = load_base(options.base, dtype=options.dtype, device="cpu")
    folders = adapters.make(["lora-r16"], STREAMS, Path(options.base), harness.CACHE)
    cold = adapters.make(LOADED, STREAMS + options.loads, Path(options.base), harness.CACHE)[STREAMS:]
    names = {folder.name: folder for folder in (*folders, *cold)}
    with Engine(base, names, options=Options(max_running=64)) as engine:
        engine.generate([request(folder.name, 2) for folder in folders])
        threads, times = [], [[] for _ in folders]
        for number, folder in enumerate(folders):
            stream = engine.submit(request(folder.name, TOKENS, number))
            threads.append(threading.Thread(target=token_times, args=(stream, times[number])))
            threads[-1].start()
        while min(map(len, times)) < TOKENS // 4:
            time.sleep(0.01)
        load, began = Load(), time.perf_counter()
        loading = [
            engine.submit(request(folder.name, 1, prompt_tokens=1)) for folder in cold
        ]  # it is not prompts we look at
        for stream in loading:
            stream.result()
        ended = time.perf_counter()
        for thread in threads:
            thread.join()
    gaps = [(a, b) for stream in times for a, b in itertools.pairwise(stream)]
    quiet = [b - a for a, b in gaps if b < began or a > ended + 0.5]
    beside = [b - a for a, b in gaps if b >= began and a <= ended]
    figures = {"quiet_ms": percentiles(quiet), "loading_ms": percentiles(beside), "loading_s": round(ended - began, 2)}
    return figures | {"ratio": round(figures["loading_ms"]["p99"] / figures["quiet_ms"]["p99"], 2)} | load.cores()


def compared(before: list[float], beside: list[float], load: Load) -> dict[str, Any]:
    figures = {"quiet_ms": percentiles(before), "beside_ms": percentiles(beside)}
    return figures | {"ratio": round(figures["beside_ms"]["p99"] / figures["quiet_ms"]["p99"], 2)} | load.cores()


def room(options: argparse.Namespace) -> dict[str, Any]:
    """Room for two adapters, which run; the base is asked without and with a third one that waits."""
    base = load_base(options.base, dtype=options.dtype, device="cpu")
    folders = adapters.make(["lora-r16"], 3, Path(options.base), harness.CACHE)
    names = {folder.name: folder for folder in folders}
    size = adapters.largest_bytes(folders)  # in bfloat16, as a server of either dtype holds them
    with Engine(base, names, options=Options(max_running=8, device_bytes=int(2.5 * size))) as engine:
        for folder in folders[:2]:
            engine.generate([request(folder.name, 2)])
        running = [engine.submit(request(folder.name, 1500)) for folder in folders[:2]]
        load = Load()
        before = [first_token(engine, None, number) for number in range(REPEATS)]
        third = engine.submit(request(folders[2].name, 1))
        while not engine.scheduler.waiting:
            time.sleep(0.001)
        beside = [first_token(engine, None, number) for number in range(REPEATS, 2 * REPEATS)]
        assert engine.scheduler.waiting
        for stream in (*running, third):
            stream.cancel()
        return compared(before, beside, load)


def hub(options: argparse.Namespace) -> dict[str, Any]:
    """Cold local adapters are asked for one after another, before and while downloads of a real hub hang."""
    base = load_base(options.base, dtype=options.dtype, device="cpu")
    folders = adapters.make(["lora-r4"], 2 * REPEATS + HANGING, Path(options.base), harness.CACHE)
    local = {folder.name: folder for folder in folders[HANGING:]}
    with tempfile.TemporaryDirectory() as top:
        os.environ["HF_HUB_CACHE"] = str(Path(top) / "cache")
        registry = Registry(Path(top) / "registry.db")
        registry.add_base(base.spec)
        for number, folder in enumerate(folders[:HANGING]):
            registry.publish(folder, f"ann/a{number}")
        go = threading.Event()
        server = hanging_hub(registry, go)
        with Engine(base, local, RemoteRegistry(f"http://127.0.0.1:{server.effective_port}")) as engine:
            load, names = Load(), list(local)
            before = [first_token(engine, name, 0) for name in names[:REPEATS]]
            waiting = [engine.submit(request(f"ann/a{number}", 1)) for number in range(HANGING)]
            time.sleep(1.0)
            beside = [first_token(engine, name, 0) for name in names[REPEATS:]]
            assert not any(stream.sink.qsize() for stream in waiting)
            figures = compared(before, beside, load)
            go.set()
        server.close()
        return figures


def hanging_hub(registry: Registry, go: threading.Event) -> BaseWSGIServer:
    app = create_app(registry)

    def answer(environ: dict[str, Any], start: Callable[..., Any]) -> Any:
        if "/resolve/" in environ["PATH_INFO"]:
            go.wait()
        return app(environ, start)

    server = http_server(answer, "127.0.0.1", 0, threads=16)
    threading.Thread(target=server.run, daemon=True).start()
    return server


def decisions(options: argparse.Namespace) -> dict[str, Any]:
    """Milliseconds of what the engine's thread decides at 1,000 residents and 256 running requests, batches apart."""
    world, load = crowded(residents=1000, running=256), Load()
    system = range(PROMPT_TOKENS // 2)  # that all prompts begin with
    host, kept = crowded_host(adapters=1000, used=256)
    keep_what_is_there()  # as a server that is ready
    seconds: dict[str, list[float]] = {what: [] for what in ("arrive", "attend", "admit", "start", "keep")}

    def timed(what: str, act: Callable[[], object]) -> None:
        began = time.perf_counter()
        act()
        seconds[what].append(time.perf_counter() - began)

    for number in range(200):
        digest = f"{'small' if number % 2 else 'large'} {number}"
        world.adapter(digest, size=1 if number % 2 else 1000)  # there is room for one, and never for the other
        timed("arrive", lambda digest=digest: world.ask(digest, new=50, client=str(number % 5)))  # noqa: B023
        world.now += 0.05
        timed("attend", world.tier.attend)
        timed("admit", world.scheduler._next)
        own = range(1000 * (number + 1), 1000 * (number + 1) + PROMPT_TOKENS // 2)
        started = world.ask(client=str(number % 5), prompt=(*system, *own))
        timed("start", lambda: world.scheduler._admit(StepPlan(), 0, 0))
        assert started.computed == PROMPT_TOKENS  # it came past all that have no room
        world.scheduler.remove(started)
        timed("keep", partial(host.release, kept[number]))
    return {f"{what}_ms": _fine_percentiles(values) for what, values in seconds.items()} | load.cores()


def _fine_percentiles(seconds: list[float]) -> dict[str, float]:
    """Milliseconds to a thousandth."""
    ordered = sorted(seconds)
    return {name: round(1e3 * ordered[int(len(ordered) * q)], 4) for name, q in (("p50", 0.5), ("p99", 0.99))}


WHAT = {"loads": loads, "room": room, "hub": hub, "decisions": decisions}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", required=True)
    parser.add_argument("--what", choices=WHAT, required=True)
    parser.add_argument("--dtype", choices=harness.DTYPES, default=harness.DTYPES[0])
    parser.add_argument("--loads", type=int, default=16, help="adapters that load beside the streams")
    options = parser.parse_args()
    hand_on_soon()
    emit(WHAT[options.what](options))


if __name__ == "__main__":
    main()
