"""What schemas cost: one figure a process, the engine alone, without HTTP.

    python -m benchmarks.own.structured --base DIR --what schemas

in turns: tokens a second of 32 requests, without constraints and with 32 different schemas, and what part of the first the second is.
beside free, beside schemas: gaps between tokens of 16 free requests beside 16 others.
masks: milliseconds for the masks of 32 rows, along the texts that a base has made of 32 schemas; compiling them.
"""

import argparse
import itertools
import json
import random
import statistics
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future
from functools import partial
from typing import Any

import graft.hub  # noqa: F401  before torch, so that its threads wait as a server's do
from benchmarks.lib import harness
from benchmarks.lib.common import Load, Workload, emit, percentiles, seconds_of
from graft.hub.base.model import Base, load_base
from graft.hub.machine.interpreter import hand_on_soon
from graft.server.engine.engine import Engine
from graft.server.engine.request import Request, Stream
from graft.server.sampling.params import Sampling, Token
from graft.server.structured.compiler import Compiler
from graft.server.structured.constraint import Schema
from graft.server.structured.mask_thread import MaskThread

SOON_S = 10.0
TURNS = 7
_LEAVES: list[dict[str, Any]] = [
    {"type": "string"},
    {"type": "string", "maxLength": 40},
    {"type": "integer", "minimum": 0, "maximum": 5000},
    {"type": "number"},
    {"type": "boolean"},
    {"enum": ["small", "medium", "large", "none at all"]},
    {"type": "string", "format": "date"},
    {"type": "string", "format": "email"},
    {"type": "string", "pattern": "^[A-Z]{2,4}-[0-9]{3,8}$"},
]
_NAMES = ("name", "id", "total", "when", "who", "tags", "kind", "address", "notes")


def schema(number: int) -> Schema:
    """The `number`-th: a list of records, too long to come to its end."""
    draw = random.Random(number)

    def node(depth: int) -> dict[str, Any]:
        kind = draw.random()
        if depth == 0 or kind < 0.5:
            return draw.choice(_LEAVES)
        if kind < 0.65:
            return {"type": "array", "items": node(depth - 1), "minItems": 1, "maxItems": 5}
        if kind < 0.75:
            return {"anyOf": [node(depth - 1), {"type": "null"}]}
        return record(depth - 1, draw.sample(_NAMES, draw.randint(2, 5)))

    def record(depth: int, names: Sequence[str]) -> dict[str, Any]:
        properties = {name: node(depth) for name in names}
        required = list(names[: draw.randint(1, len(names))])
        return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}

    items = record(2, [f"field_{number}", *draw.sample(_NAMES, 4)])
    return Schema(json.dumps({"type": "array", "items": items, "minItems": 100}))


def requests(work: Workload, schemas: Sequence[bool]) -> list[Request]:
    """One for each of `schemas`, at temperature 1: whether it has a schema, which no other has."""
    return [
        Request(
            tuple(prompt),
            max_tokens=work.new_tokens,
            ignore_eos=True,
            sampling=Sampling(seed=number),
            constraint=schema(number) if constrained else None,
        )
        for number, (prompt, constrained) in enumerate(zip(work.prompts(), schemas, strict=True))
    ]


def in_turns(base: Base, work: Workload) -> dict[str, Any]:
    """Of one engine: from process to process, let alone from minute to minute, speeds differ by more than schemas cost."""
    asked = {"free": requests(work, [False] * work.requests), "schemas": requests(work, [True] * work.requests)}
    seconds: dict[str, list[float]] = {what: [] for what in asked}
    with Engine(base) as engine:
        for one in asked.values():
            engine.generate(one)
        load = Load()
        for _ in range(TURNS):
            for what, one in asked.items():
                seconds[what].append(seconds_of(partial(engine.generate, one)))
    speeds = {what: round(work.output_tokens / statistics.median(times), 2) for what, times in seconds.items()}
    shares = [free / schemas for free, schemas in zip(*seconds.values(), strict=True)]
    return {"tokens_per_s": speeds, "share": round(statistics.median(shares), 4), "seconds": seconds, **load.cores()}


def beside(base: Base, work: Workload, constrained: bool) -> dict[str, Any]:
    half = work.requests // 2
    asked = requests(work, [False] * half + [constrained] * half)
    times: list[list[float]] = [[] for _ in range(half)]
    with Engine(base) as engine:
        engine.generate(asked)
        load = Load()
        streams = [engine.submit(request) for request in asked]
        readers = [
            threading.Thread(target=_read, args=pair) for pair in zip(streams[:half], times, strict=True)
        ]  # the others' events wait in their queues
        for reader in readers:
            reader.start()
        for reader in readers:
            reader.join()
        for stream in streams[half:]:
            stream.result()
    gaps = [b - a for stream in times for a, b in itertools.pairwise(stream)]
    return {"itl_ms": percentiles(gaps), **load.cores()}


def _read(stream: Stream, times: list[float]) -> None:
    for event in stream:
        if isinstance(event, Token):
            times.append(time.perf_counter())


def masks(base: Base, work: Workload) -> dict[str, Any]:
    asked = requests(work, [True] * work.requests)
    with Engine(base) as engine:
        texts = [result.ids for result in engine.generate(asked)]
        ends = engine.ends
    compiler, thread, load = Compiler(base.tokenizer, base.spec.vocab_size, ends), MaskThread(), Load()
    compiling, matchers = [], []
    for number, request in enumerate([asked[0], *asked]):  # the first reads the vocabulary
        assert request.constraint is not None
        answer: Future[Any] = Future()
        began = time.perf_counter()
        compiler.request(request.constraint, ends, "", answer.set_result)
        matchers.append(answer.result())
        compiling += [time.perf_counter() - began] if number > 1 else []
    taken = []
    for place in range(work.new_tokens - 1):
        for matcher, text in zip(matchers[1:], texts, strict=True):
            matcher.take(text[place], holds_end=True)
        began = time.perf_counter()
        thread.begin(matchers[1:])
        thread.wait(matchers[1:], SOON_S)
        taken.append(time.perf_counter() - began)
    thread.close()
    compiler.close()
    return {"masks_ms": percentiles(taken), "compile_ms": percentiles(compiling), **load.cores()}


WHAT = {
    "in turns": in_turns,
    "beside free": lambda base, work: beside(base, work, False),
    "beside schemas": lambda base, work: beside(base, work, True),
    "masks": masks,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", required=True)
    parser.add_argument("--what", choices=WHAT, required=True)
    parser.add_argument("--workload", type=Workload.from_json, default=Workload(dtype=harness.DTYPES[0]))
    options = parser.parse_args()
    hand_on_soon()
    base = load_base(options.base, dtype=options.workload.dtype, device="cpu")
    emit(WHAT[options.what](base, options.workload))


if __name__ == "__main__":
    main()
