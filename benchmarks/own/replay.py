"""One server over HTTP: its throughput, or a recorded trace at given rates, with the times of every event.

    python -m benchmarks.own.replay --system graft --base DIR --trace 1
    python -m benchmarks.own.replay --system vllm --base DIR --trace 1 --rate slower=1.5 --rate graft=2.0

The server is a process of this one, which is the client. Prints one line of JSON.
"""

import argparse
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.lib.common import Load, emit
from benchmarks.lib.http_load import Client
from benchmarks.lib.recorded_trace import TRACE, Draw, ids_of
from benchmarks.lib.server_process import Server, ServerProcess
from benchmarks.peers import servers

MARGIN = 64  # tokens of a sequence beyond the trace's longest
MOST_AT_ONCE = 1024  # of graft: nothing of a trace is refused


def main() -> None:
    options = arguments()
    told = servers.Serving(options.base, options.dtype, options.threads, options.running, TRACE.longest + MARGIN)
    folders = {folder.name: folder for folder in options.adapters}
    with ServerProcess(server_of(options.system, told, folders)) as process:
        draw = Draw(TRACE, list(folders) or [process.base_model], ids_of(Path(options.base)))
        warm_up(process, draw, options.running)
        if not options.rate:
            emit(throughput(process, draw, options))
            return
        parts = {name: replayed(process, draw, options, name, rate) for name, rate in options.rate}
    emit(parts | {"other_cores": max(part["other_cores"] for part in parts.values())})


def server_of(system: str, told: servers.Serving, folders: dict[str, Path]) -> Server:
    if system == "graft":
        return servers.graft(told, folders, "--max-requests", str(MOST_AT_ONCE))
    if folders:
        raise SystemExit("error: peers are measured without adapters.")
    return {"vllm": servers.vllm, "llama": servers.llama}[system](told)


def warm_up(process: ServerProcess, draw: Draw, running: int) -> None:
    """Every model is asked for, and a full step has been computed. Raises RuntimeError where that fails."""
    calls = draw.trace(0, max(running, len(draw.models)), "warm-up")
    models = draw.models * (len(calls) // len(draw.models))
    asks = [replace(call, model=model, tokens=16) for call, model in zip(calls, models, strict=False)]
    client = Client(process.address).so_many_at_once(iter(asks), running)
    if client.broken:
        raise RuntimeError(f"{process.server.name}, warm-up: {client.broken[0]}\n{process.said()[-3000:]}")


def throughput(process: ServerProcess, draw: Draw, options: argparse.Namespace) -> dict[str, Any]:
    """With as many under way as it computes in a step, until `--throughput-requests` of the trace are answered."""
    asks = draw.trace(options.trace, options.throughput_requests, "throughput")
    return measured(process, lambda client: client.so_many_at_once(iter(asks), options.running))


def replayed(process: ServerProcess, draw: Draw, options: argparse.Namespace, name: str, rate: float) -> dict[str, Any]:
    """The trace at so many requests a second."""
    asks = [replace(ask, at=ask.at / rate) for ask in draw.trace(options.trace, options.requests, name)]
    return measured(process, lambda client: client.at_their_times(asks)) | {"rate": round(rate, 4)}


def measured(process: ServerProcess, run: Callable[[Client], Client]) -> dict[str, Any]:
    load, client, spent = Load(), Client(process.address), process.cpu_s()
    run(client)
    cores = {"server_cores": round((process.cpu_s() - spent) / client.wall_s, 3), **load.cores()}
    return client.figures() | cores


def named_rate(text: str) -> tuple[str, float]:
    name, _, rate = text.partition("=")
    return name, float(rate)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--system", choices=("graft", "vllm", "llama"), required=True)
    parser.add_argument("--base", required=True)
    parser.add_argument("--adapters", nargs="*", type=Path, default=[], help="folders; by their names")
    parser.add_argument("--trace", type=int, required=True, help="its seed")
    parser.add_argument("--requests", type=int, default=500)
    parser.add_argument("--throughput-requests", type=int, default=256)
    parser.add_argument("--rate", action="append", type=named_rate, default=[], metavar="NAME=REQUESTS_A_SECOND")
    parser.add_argument("--running", type=int, default=64, help="sequences in a step")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--threads", type=int, default=2)
    return parser.parse_args()


if __name__ == "__main__":
    main()
