"""What a streamed token costs in HTTP, JSON and text alone: a real engine whose runner draws tokens for nothing.

    python -m benchmarks.own.streams --base DIR --processes 1 --way pump

A server in a process of its own (and its front ends in theirs) sends 256 streams to a client in this one, a token an event. CPU
seconds are the processes' own, by the kernel's count, over a stretch in which all streams run; then the same without a pause
between steps, where what comes together is sent together. Prints one line of JSON.
"""

import argparse
import json
import os
import select
import socket
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.lib.common import Load, emit, percentiles, process_tree

STREAMS = 256
STEP_S = 0.125  # between two steps: no token waits for the one before it
SECONDS = 12.0
MOST_TOKENS = 16_000  # of a stream, which none reaches: an engine may run far ahead of who writes
_TICK = os.sysconf("SC_CLK_TCK")
_TEXT = b'"text":"'  # in every event
TEXT = Path(__file__).parents[2] / "docs" / "serving.md"  # whose tokens are drawn, in order


def main() -> None:
    options = arguments()
    if options.serve:
        serve(options)
        return
    if options.encodings:
        emit({"encodings": encodings(), "other_cores": 0.0})
        return
    paced = measure(options, STEP_S)
    fast = measure(options, 0.0)
    emit({"paced": paced, "fast": fast, "other_cores": max(paced["other_cores"], fast["other_cores"])})


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", required=True, help="whose tokenizer it is")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--way", choices=("pump", "threads", "gevent", "asyncio"), default="pump")
    parser.add_argument("--seconds", type=float, default=SECONDS)
    parser.add_argument(
        "--encodings", action="store_true", help="what a step's events cost to write and read, by encoding"
    )
    parser.add_argument("--serve", action="store_true", help="(the server's process)")
    parser.add_argument("--step-s", type=float, default=STEP_S)
    return parser.parse_args()


# The server


def serve(options: argparse.Namespace) -> None:
    """Say the port and the front ends' processes, then for each line of stdin how many tokens have been made; serve until killed."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    import graft.hub.machine.openmp_wait  # before torch  # noqa: F401
    from benchmarks.own.streams import asyncio_streams, threads_app
    from graft.hub.base.model import Base
    from graft.hub.machine.interpreter import hand_on_soon, keep_what_is_there
    from graft.server.commands.http_server import bind, http_server, port_of
    from graft.server.engine.client import EngineClient
    from graft.server.engine.engine import Engine
    from graft.server.engine.options import Options
    from graft.server.front_ends import supervisor
    from graft.server.front_ends.frames import Start
    from graft.server.front_ends.supervisor import FrontEnds
    from graft.server.http.app import create_app
    from graft.server.http.clients import AnswerPlaces
    from graft.server.operations.drain import Drain
    from graft.server.sampling.params import StepResult, Token

    hand_on_soon()
    tokenizer = AutoTokenizer.from_pretrained(options.base)
    ids = tokenizer.encode(TEXT.read_text(), add_special_tokens=False)
    config = AutoConfig.for_model(
        "llama", vocab_size=len(tokenizer), hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1,
        num_key_value_heads=1, max_position_embeddings=MOST_TOKENS + 64,
    )  # fmt: skip
    base = Base(AutoModelForCausalLM.from_config(config), tokenizer, "test/free")
    budgets = Options(max_running=STREAMS, step_rows=2 * STREAMS, cache_bytes=1 << 28, runner="eager")
    with Engine(base, options=budgets) as engine:
        made = 0

        def begin(batch: Any, draws: Any, scores: Any, ready: Any) -> Any:
            nonlocal made
            time.sleep(options.step_s)
            tokens = [Token(ids[(draw.seed + draw.position) % len(ids)]) for _, draw in draws]
            made += len(tokens)
            return lambda: StepResult(tokens, [])

        def tell() -> None:
            for _ in sys.stdin:
                print(made, flush=True)

        threading.Thread(target=tell, daemon=True).start()

        engine.runner.begin = begin
        client, places = EngineClient(engine), AnswerPlaces(STREAMS)
        sockets = bind("127.0.0.1", 0)
        make_app = {"pump": create_app, "asyncio": asyncio_streams}.get(options.way, threads_app)
        told = {"port": port_of(sockets), "engine": os.getpid()}
        if options.way == "gevent":
            supervisor.MODULE = "benchmarks.lib.gevent_front_end"
            sockets[0].listen(1024)
        keep_what_is_there()
        if not options.processes:
            server = http_server(make_app(client, places, Drain()), sockets, STREAMS)
            print(json.dumps(told | {"fronts": []}), flush=True)
            server.run()
        with FrontEnds(options.processes, sockets, client, places, Start(client.base, make_app, STREAMS)) as fronts:
            print(json.dumps(told | {"fronts": [one.pid for one in fronts.processes.values()]}), flush=True)
            time.sleep(10_000)


def threads_app(engine: Any, places: Any, drain: Any) -> Any:
    """The application on a server that offers no body to write to: each stream is written by a thread of its own."""
    from graft.server.http.app import create_app
    from graft.server.http.streaming.response import BODY

    app = create_app(engine, places, drain)

    def without_body(environ: Any, start_response: Any) -> Any:
        return app({key: value for key, value in environ.items() if key != BODY}, start_response)

    return without_body


def asyncio_streams(engine: Any, places: Any, drain: Any) -> Any:
    """The application with streams that an event loop writes."""
    from benchmarks.lib.asyncio_pump import asyncio_app
    from graft.server.http.app import create_app

    return asyncio_app(create_app, engine, places, drain)


# The client


@dataclass
class Reading:
    """Of one stream. `events`: with text; `left`: what may be the beginning of one."""

    left: bytes = b""
    last: float | None = None
    gaps: list[float] = field(default_factory=list)


class Client:
    """Reads all streams in one thread, and looks at their bytes as little as it can."""

    def __init__(self, port: int, streams: int):
        self._poll = select.epoll()
        self._streams: dict[int, tuple[socket.socket, Reading]] = {}
        self.events = 0
        body = {"model": "test/free", "prompt": "a", "max_tokens": MOST_TOKENS, "ignore_eos": True, "stream": True}
        for number in range(streams):
            data = json.dumps(body | {"seed": 997 * number}).encode()
            head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
            one = socket.create_connection(("127.0.0.1", port))
            one.sendall(head.encode() + data)
            one.setblocking(False)
            self._streams[one.fileno()] = one, Reading()
            self._poll.register(one.fileno(), select.EPOLLIN)

    def read(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while (now := time.monotonic()) < until:
            for fd, _ in self._poll.poll(until - now):
                one, reading = self._streams[fd]
                data = one.recv(1 << 16)
                if not data:
                    raise RuntimeError("a stream has ended")
                found = (reading.left + data).count(_TEXT) - reading.left.count(_TEXT)
                reading.left = data[-16:]
                if found:
                    self.events += found
                    now = time.monotonic()
                    if reading.last is not None:
                        reading.gaps.append(now - reading.last)
                    reading.last = now

    def all_begun(self) -> bool:
        return all(reading.last is not None for _, reading in self._streams.values())

    def forget_gaps(self) -> None:
        for _, reading in self._streams.values():
            reading.gaps.clear()

    @property
    def gaps(self) -> list[float]:
        return [gap for _, reading in self._streams.values() for gap in reading.gaps]


def measure(options: argparse.Namespace, step_s: float) -> dict[str, Any]:
    """Microseconds of CPU a token, of each process, and how often events came."""
    command = [sys.executable, "-m", "benchmarks.own.streams", "--serve", "--base", options.base, "--way", options.way]
    command += ["--processes", str(options.processes), "--step-s", str(step_s)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1) as server:
        try:
            assert server.stdout is not None
            told = json.loads(server.stdout.readline())
            client = Client(told["port"], STREAMS)
            while not client.all_begun():
                client.read(0.2)
            client.read(2.0)
            return stretch(client, server, told, options.seconds)
        finally:
            for pid in (*told["fronts"], server.pid):
                os.kill(pid, 9)


def stretch(client: Client, server: "subprocess.Popen[str]", told: dict[str, Any], seconds: float) -> dict[str, Any]:
    client.forget_gaps()
    load = Load()
    fronts = [one for front in told["fronts"] for one in process_tree(front)]
    pids = {"engine": [told["engine"]], "front": fronts, "client": [os.getpid()]}
    before, events, made = {name: cpu_s(of) for name, of in pids.items()}, client.events, tokens_made(server)
    began = time.monotonic()
    client.read(seconds)
    wall = time.monotonic() - began
    spent = {name: cpu_s(of) - before[name] for name, of in pids.items()}
    tokens = tokens_made(server) - made
    return {
        "tokens_per_s": round(tokens / wall, 1),
        "events_per_token": round((client.events - events) / tokens, 3),
        "cpu_us": {name: round(1e6 * s / tokens, 1) for name, s in spent.items()},
        "gap_ms": percentiles(client.gaps),
        "other_cores": load.cores()["other_cores"],
    }


def encodings() -> dict[str, dict[str, float]]:
    """Nanoseconds a token to write and to read a step's 256 tokens, and bytes: flat lists as they are sent, and events pickled."""
    import marshal
    import pickle
    import timeit

    from graft.server.sampling.params import Token

    flat = [value for number in range(STREAMS) for value in (100_000 + number, 1000 + 97 * number)]
    events = [(100_000 + number, Token(1000 + 97 * number)) for number in range(STREAMS)]
    ways = {
        "marshal": (flat, marshal.dumps, marshal.loads),
        "pickle": (flat, lambda value: pickle.dumps(value, 5), pickle.loads),
        "JSON": (flat, json.dumps, json.loads),
        "pickle of events": (events, lambda value: pickle.dumps(value, 5), pickle.loads),
    }
    found = {}
    for name, (value, write, read) in ways.items():
        data = write(value)
        found[name] = {
            "write_ns": round(
                1e9 * min(timeit.repeat(lambda w=write, v=value: w(v), number=200, repeat=5)) / 200 / STREAMS
            ),
            "read_ns": round(
                1e9 * min(timeit.repeat(lambda r=read, d=data: r(d), number=200, repeat=5)) / 200 / STREAMS
            ),
            "bytes": round(len(data) / STREAMS, 1),
        }
    return found


def cpu_s(pids: list[int]) -> float:
    """User and system time, of all threads."""
    fields = [Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split() for pid in pids]
    return sum(int(each[11]) + int(each[12]) for each in fields) / _TICK


def tokens_made(server: "subprocess.Popen[str]") -> int:
    """Asked of the engine's process beside HTTP: where threads write the streams, /metrics may take longer than anybody waits."""
    assert server.stdin is not None and server.stdout is not None
    server.stdin.write("\n")
    return int(server.stdout.readline())


if __name__ == "__main__":
    main()
