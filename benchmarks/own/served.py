"""What measurements of `graft serve` have in common: the arguments, and the server that they ask for."""

import argparse
from pathlib import Path

from benchmarks.lib.recorded_trace import Lengths
from benchmarks.lib.server_process import Server
from benchmarks.peers import servers

LENGTHS = Lengths((16, 128), (16, 128))


def parser_of(doc: str | None, *, seconds: float, streams: int, kv_bytes: str) -> argparse.ArgumentParser:
    """A command line with the server's arguments, and how long it is under how much load."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", required=True)
    parser.add_argument("--adapters", nargs="*", type=Path, default=[], help="folders")
    parser.add_argument("--seconds", type=float, default=seconds)
    parser.add_argument("--streams", type=int, default=streams, help="at any time")
    parser.add_argument("--http-processes", type=int, default=0)
    parser.add_argument("--kv-bytes", default=kv_bytes, help="of a server's cache; as `graft serve` takes it")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--threads", type=int, default=2)
    return parser


def server_of(options: argparse.Namespace, running: int, places: int, *more: str) -> Server:
    """With room for `running` requests, that answers `places` at once. `more`: of its own command line."""
    told = servers.Serving(options.base, options.dtype, options.threads, running, LENGTHS.longest)
    given = ["--max-requests", str(places), "--http-processes", str(options.http_processes), *more]
    given += ["--kv-bytes", options.kv_bytes] if options.kv_bytes else []
    return servers.graft(told, {folder.name: folder for folder in options.adapters}, *given)
