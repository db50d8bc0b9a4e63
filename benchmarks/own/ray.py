"""What graft's part of Ray Serve costs: one row of benchmarks/tables/ray_overhead.py; prints a JSON object.

python -m benchmarks.own.ray overhead     one replica: milliseconds a request, microseconds a token
python -m benchmarks.own.ray loads [--router random] [--zipf S]     adapters loaded, of 200 where 3 replicas have room for 32 each
python -m benchmarks.own.ray kills --base BASE     seconds after each kill
"""

import argparse
import asyncio
import json
import os
import random
import re
import signal
import statistics
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import psutil
from aiohttp import ClientSession, TCPConnector

from benchmarks.lib.harness import ROOT
from benchmarks.lib.ray_stage import RANDOM, stage
from graft.server.scale.application import ROUTER

ADAPTERS, ROOM, REPLICAS = 200, 32, 3
GAP_S, STREAMS = 0.05, 32


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["overhead", "loads", "kills"])
    parser.add_argument("--router", choices=["ours", "random"], default="ours")
    parser.add_argument("--zipf", type=float, default=1.0, help="how unevenly adapters are asked for")
    parser.add_argument("--base", default="")
    parser.add_argument("--short", action="store_true", help="a tenth of all")
    options = parser.parse_args()
    parts = {"overhead": overhead, "loads": loads, "kills": kills}
    print(json.dumps(parts[options.what](options)))


# A request, a token


def overhead(options: argparse.Namespace) -> dict[str, Any]:
    count = 50 if options.short else 500
    with stage(1, room=ROOM) as url:
        ways = {"direct": _engines(url)[0], "ingress": url}
        ingress = _process_of(int(url.rpartition(":")[2]))
        took: dict[str, list[float]] = {"direct": [], "ingress": []}
        for _ in range(5):  # in turns
            for way, at in ways.items():
                took[way] += asyncio.run(_requests(at, count // 5))
        streams = {way: asyncio.run(_streams(at, ingress, 2 if options.short else 20)) for way, at in ways.items()}
    added = {key: streams["ingress"][key] - streams["direct"][key] for key in ("cpu_us", "delay_us")}
    median = {way: statistics.median(times) * 1e3 for way, times in took.items()}
    return {
        "request_ms": median | {"added": median["ingress"] - median["direct"]},
        "token": streams | {"added": added},
    }


async def _requests(url: str, count: int) -> list[float]:
    """Seconds of each, one after another on one connection."""
    times = []
    async with ClientSession() as session:
        for _ in range(count):
            began = time.perf_counter()
            async with session.post(url + "/v1/completions", json={"model": "ann/a1", "prompt": "a"}) as answer:
                await answer.read()
                assert answer.status == 200
            times.append(time.perf_counter() - began)
    return times


async def _streams(url: str, ingress: psutil.Process, seconds: float) -> dict[str, float]:
    """Many streams at once, a token of each every GAP_S: the ingress's CPU a token, and how late each token comes. Asked of the
    engine itself it is what the ingress's process takes beside requests."""
    delays: list[float] = []

    async def one(session: ClientSession, number: int) -> None:
        await asyncio.sleep(number * GAP_S / STREAMS)
        body = {"model": "ann/a1", "prompt": "a", "stream": True, "max_tokens": int(seconds / GAP_S), "gap_s": GAP_S}
        async with session.post(url + "/v1/completions", json=body) as answer:
            async for line in answer.content:
                if line.startswith(b"data: "):
                    delays.append(time.perf_counter() - json.loads(line[6:])["at"])

    before = ingress.cpu_times()
    async with ClientSession(connector=TCPConnector(limit=0)) as session:
        await asyncio.gather(*(one(session, number) for number in range(STREAMS)))
    after = ingress.cpu_times()
    cpu = after.user + after.system - before.user - before.system
    return {"tokens": len(delays), "cpu_us": 1e6 * cpu / len(delays), "delay_us": 1e6 * statistics.median(delays)}


# Loads


def loads(options: argparse.Namespace) -> dict[str, Any]:
    """Every replica's loads after the first tenth of the requests."""
    count = 300 if options.short else 6000
    with stage(REPLICAS, room=ROOM, router=RANDOM if options.router == "random" else ROUTER) as url:
        engines = _engines(url)
        draw = random.Random(7)
        names = draw.choices(range(ADAPTERS), [1 / (rank + 1) ** options.zipf for rank in range(ADAPTERS)], k=count)
        asyncio.run(_ask_for(url, names[: count // 10]))
        before = sum(ask(engine, "/loads") for engine in engines)
        asyncio.run(_ask_for(url, names[count // 10 :]))
        loaded = sum(ask(engine, "/loads") for engine in engines) - before
    return {"requests": count - count // 10, "loads": loaded, "loads_per_request": loaded / (count - count // 10)}


async def _ask_for(url: str, names: list[int]) -> None:
    """Each adapter in turn, 16 at once."""
    places = asyncio.Semaphore(16)

    async def one(session: ClientSession, name: int) -> None:
        async with places:
            body = {"model": f"ann/a{name}", "prompt": "a", "stream": True, "max_tokens": 4, "gap_s": 0.005}
            async with session.post(url + "/v1/completions", json=body) as answer:
                await answer.read()

    async with ClientSession(connector=TCPConnector(limit=0)) as session:
        await asyncio.gather(*(one(session, name) for name in names))


# Kills


def kills(options: argparse.Namespace) -> dict[str, Any]:
    """Seconds from each kill until requests are answered, and until all is as before."""
    found: dict[str, Any] = {}
    with _serving(options.base) as (command, url):
        for victim in ("engine", "actor"):
            _wait(lambda: len(_serve(url)) == 2)
            before = _serve(url)
            found[victim] = _kill(command, victim, url, lambda before=before: len(_serve(url) - before) == 1)
        found["ingress"] = _kill(command, "ingress", url, lambda: len(_serve(url)) == 2)
        found["controller"] = _kill(command, "controller", url, lambda: bool(_victims(command, "controller")))
        _victims(command, "head")[0].kill()
        began = time.monotonic()
        found["head"] = {"answered_s": _wait(lambda: _answers(url), began)}
        command.wait(120)
        found["head"]["command_ended_s"] = time.monotonic() - began
    return found


def _kill(command: subprocess.Popen[str], victim: str, url: str, is_back: Callable[[], bool]) -> dict[str, float]:
    (killed, *_), began = _victims(command, victim), time.monotonic()
    killed.kill()
    killed.wait(10)
    return {"answered_s": _wait(lambda: _answers(url), began), "whole_s": _wait(is_back, began)}


_WORDS = {
    "engine": "graft.hub.cli.main serve --base",
    "actor": "ServeReplica:graft:engine",
    "ingress": "ServeReplica:graft:ingress",
    "controller": "ServeController",
    "head": "gcs_server",
}


def _victims(command: subprocess.Popen[str], victim: str) -> list[psutil.Process]:
    """The processes below the command that are such."""
    below = psutil.Process(command.pid).children(recursive=True)
    return [one for one in below if one.is_running() and _WORDS[victim] in _line(one)]


def _line(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:  # it has ended
        return ""


@contextmanager
def _serving(base: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    words = [
        sys.executable,
        "-m",
        "graft.hub.cli.main",
        "serve",
        "--base",
        base,
        "--ray",
        "--replicas",
        "2",
        "--port",
        "0",
    ]
    command = subprocess.Popen(words, stderr=subprocess.PIPE, text=True, cwd=ROOT, env=os.environ)
    assert command.stderr is not None
    url = next(
        found[1] for line in command.stderr if (found := re.search(r"^graft serve: ready at (http://\S+)/v1", line))
    )
    drain = subprocess.Popen(["cat"], stdin=command.stderr, stdout=subprocess.DEVNULL)
    try:
        yield command, url
    finally:
        command.send_signal(signal.SIGINT)
        command.wait(120)
        drain.wait()


def _wait(what: Callable[[], bool], since: float = 0.0) -> float:
    until = time.monotonic() + 300
    while not what():
        assert time.monotonic() < until
        time.sleep(0.02)
    return time.monotonic() - since


def _serve(url: str) -> set[str]:
    try:
        return {id for id, one in ask(url, "/ready")["replicas"].items() if one["serves"]}
    except OSError:
        return set()


def _answers(url: str) -> bool:
    body = json.dumps({"model": next(iter(_names(url)), ""), "prompt": "a", "max_tokens": 1}).encode()
    request = urllib.request.Request(url + "/v1/completions", body, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status == 200
    except OSError:
        return False


def _names(url: str) -> list[str]:
    try:
        return [one["id"] for one in ask(url, "/v1/models")["data"]]
    except OSError:
        return []


def ask(url: str, path: str) -> Any:
    with urllib.request.urlopen(url + path, timeout=30) as answer:
        return json.load(answer)


def _engines(url: str) -> list[str]:
    """Their addresses, as the ingress's numbers tell."""
    with urllib.request.urlopen(url + "/metrics", timeout=30) as answer:
        return re.findall(r'graft_replica_info{.*url="([^"]+)"', answer.read().decode())


def _process_of(port: int) -> psutil.Process:
    """Whoever listens there."""
    return next(
        psutil.Process(one.pid)
        for one in psutil.net_connections("tcp")
        if one.laddr.port == port and one.status == "LISTEN"
    )


if __name__ == "__main__":
    main()
