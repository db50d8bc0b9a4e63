"""Many streams on many adapters of every kind, for minutes: errors, memory, and the time between tokens.

    python -m benchmarks.own.crowd --base DIR --seconds 600

Requests follow one another, so many at any time, with prompts and answers of many lengths, half of them sampled.
"""

import argparse
import random
import statistics
import time
from dataclasses import dataclass, field
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import graft.hub  # noqa: F401  before torch, so that its threads wait as a server's do
from benchmarks.lib import adapters, harness
from benchmarks.lib.common import Load, emit, percentiles
from graft.hub.base.model import load_base
from graft.hub.errors import GraftError
from graft.hub.machine.interpreter import hand_on_soon, keep_what_is_there
from graft.server.engine.client import EngineClient
from graft.server.engine.engine import Engine
from graft.server.engine.options import Options
from graft.server.engine.request import Finished, Request, Sink, Stream
from graft.server.sampling.params import GREEDY, Sampling, Token

STREAMS, ADAPTERS, WARM_S = 256, 64, 60.0  # the first minute fills caches
PROMPTS, ANSWERS = (16, 128), (16, 128)  # tokens, at least and at most
SAMPLED = Sampling(temperature=1.0, top_p=0.95)


@dataclass
class Crowd:
    """What is under way, and what has been seen of it."""

    client: EngineClient
    models: list[str]
    vocabulary: int
    sink: Sink = field(default_factory=SimpleQueue)
    latest: dict[Stream, float] = field(default_factory=dict)  # arrival of its latest token
    gaps: list[float] = field(default_factory=list)  # seconds
    finished: int = 0
    tokens: int = 0
    errors: list[str] = field(default_factory=list)
    draw: random.Random = field(default_factory=lambda: random.Random(7))

    def start_one(self) -> None:
        prompt = tuple(self.draw.randrange(1000, self.vocabulary) for _ in range(self.draw.randint(*PROMPTS)))
        sampling = self.draw.choice((GREEDY, SAMPLED))
        model, tokens = self.draw.choice(self.models), self.draw.randint(*ANSWERS)
        self.client.submit(Request(prompt, model, max_tokens=tokens, ignore_eos=True, sampling=sampling), self.sink)

    def take_one(self, seen: bool) -> None:
        """One event; `seen`: it counts."""
        stream, event = self.sink.get()
        now = time.perf_counter()
        if isinstance(event, Token):
            if seen and stream in self.latest:
                self.gaps.append(now - self.latest[stream])
            self.latest[stream] = now
            self.tokens += seen
        elif isinstance(event, Finished | GraftError):
            self.latest.pop(stream, None)
            self.finished += 1
            self.errors += [str(event)] if isinstance(event, GraftError) else []
            self.start_one()


def main() -> None:
    options = arguments()
    hand_on_soon()
    base = load_base(options.base, dtype=options.dtype, device="cpu")
    folders = adapters.make(list(adapters.RECIPES), ADAPTERS, Path(options.base), harness.CACHE)
    names = {folder.name: folder for folder in folders}
    with Engine(base, names, options=Options(max_running=STREAMS)) as engine:
        for rows in (engine.runner.cache.keys, engine.runner.cache.values):
            rows.zero_()  # the system hands out pages as they are first written, which is no growth
        keep_what_is_there()
        crowd = Crowd(EngineClient(engine), list(names), base.spec.vocab_size)
        for _ in range(STREAMS):
            crowd.start_one()
        _go_on(crowd, WARM_S, seen=False)
        load = Load()
        resident = _go_on(crowd, options.seconds, seen=True)
        cores = load.cores()
    emit(figures(crowd, resident, options.seconds) | cores)


def figures(crowd: Crowd, resident: list[int], seconds: float) -> dict[str, Any]:
    gaps, tenth = percentiles(crowd.gaps), max(1, len(resident) // 10)
    first, last = (statistics.median(part) for part in (resident[:tenth], resident[-tenth:]))
    return {
        "requests": crowd.finished,
        "errors": len(crowd.errors),
        "first_error": crowd.errors[0] if crowd.errors else "",
        "tokens_per_s": round(crowd.tokens / seconds, 1),
        "itl_ms": gaps,
        "spread": round(gaps["p99"] / gaps["p50"], 2),
        "resident_bytes": [int(first), int(last)],
        "growth": round(last / first - 1, 4),
    }


def _go_on(crowd: Crowd, seconds: float, seen: bool) -> list[int]:
    """Serve for so long; resident bytes, looked at every second."""
    began, resident = time.perf_counter(), []
    while (passed := time.perf_counter() - began) < seconds:
        if passed > len(resident):
            resident.append(_resident_bytes())
        crowd.take_one(seen)
    return resident


def _resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", required=True)
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--dtype", choices=harness.DTYPES, default=harness.DTYPES[0])
    return parser.parse_args()


if __name__ == "__main__":
    main()
