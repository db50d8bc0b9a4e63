"""What benchmarks/tables/proof.py does within graft, one process a call; the last line of stdout is the finding as JSON.

python -m benchmarks.own.proof check|mutate|times '{"base": DIR, "adapters": {NAME: DIR}, ...}'
"""

import json
import os
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import torch

from benchmarks.lib.common import emit, percentiles
from benchmarks.own.mutations import ADAPTER_MUTATIONS, BASE_MUTATIONS, Forms
from graft.hub.adapters.artifact import load_artifact
from graft.hub.adapters.probe import ProofOutcome, Verdict
from graft.hub.adapters.probe_replay import replay_of
from graft.hub.adapters.validation import PROVENANCE
from graft.hub.base.model import Base, load_base
from graft.hub.base.stored_weights import stored_weights
from graft.hub.errors import ArtifactError, GraftError
from graft.hub.machine.interpreter import hand_on_soon
from graft.server.adapters.prover import Prover
from graft.server.engine.client import EngineClient
from graft.server.engine.engine import Engine
from graft.server.engine.options import Options
from graft.server.engine.request import Finished, Request, Stream
from graft.server.sampling.params import Sampling, Token

LEAST_GAPS = 100  # of which a percentile says something
STREAMED, QUIET_S = 60, 60.0  # tokens of a stream; seconds that streams without company are watched
STREAMS: list[Stream] = []  # kept, since they are told apart by their ids
GREEDY = Sampling(temperature=0)


def check(asked: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Serve each adapter in each setting: what became of its proof, made anew each time."""
    found = []
    bases: dict[str, Base] = {}
    for dtype, runner, threads in asked["settings"]:
        torch.set_num_threads(threads)
        if dtype not in bases:
            bases = {dtype: load_base(asked["base"], dtype=dtype, device="cpu")}
        with fresh_cache(), Engine(bases[dtype], asked["adapters"], options=Options(runner=runner)) as engine:
            streams = {name: engine.submit(Request((5, 6, 7, 8), name, max_tokens=2)) for name in asked["adapters"]}
            for name, stream in streams.items():
                setting = {"adapter": name, "dtype": dtype, "runner": runner, "threads": threads}
                try:
                    digest = stream.result().served.digest
                    found.append(setting | told(EngineClient(engine).adapters()[digest].proof))
                except GraftError as error:
                    found.append(setting | {"outcome": "refused", "why": str(error)})
    return found


def mutate(asked: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Change base or adapters so that only the numbers can tell, and see what their proofs say."""
    work = Path(asked["work"])
    base = load_base(asked["base"], dtype="bfloat16", device="cpu")
    found = [{"mutation": "none", **row} for row in proofs(base, asked["adapters"])]
    others = {name: load_artifact(folder, base.spec).fold(base) for name, folder in asked["others"].items()}
    for name, change in ADAPTER_MUTATIONS.items():
        rows = proofs(base, asked["adapters"], lambda kind, forms, change=change: change(forms, others[kind]))
        found += [{"mutation": name, **row} for row in rows]
    del base
    for name, change in BASE_MUTATIONS.items():
        folder = work / "mutated"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(asked["base"], folder)
        change(folder)
        mutated = load_base(folder, dtype="bfloat16", device="cpu")
        adapters = {kind: matching(Path(own), work / kind, mutated) for kind, own in asked["adapters"].items()}
        found += [{"mutation": name, **row} for row in proofs(mutated, adapters)]
    shutil.rmtree(work, ignore_errors=True)
    return found


def times(asked: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What proofs cost: seconds of the first one alone, and of streams beside them the time between tokens.

    `running`: adapters of the streams; `cold`: those that come in beside them, with their probes and without.
    """
    hand_on_soon()  # as in a server
    torch.set_num_threads(asked["threads"])
    base = load_base(asked["base"], dtype=asked["dtype"], device="cpu")
    work = Path(asked["work"])
    bare = {name: without_probe(Path(folder), work / name) for name, folder in asked["cold"].items()}
    arrivals = {"none": {}, "without probes": bare, "with probes": asked["cold"]}
    found = [{"row": "alone", **alone(base, asked["cold"])} for _ in range(asked["rounds"])]
    for _ in range(asked["rounds"]):
        for row, cold in arrivals.items():
            found += streamed(base, asked["running"], cold, row)
    shutil.rmtree(work, ignore_errors=True)
    return found


def alone(base: Base, adapters: Mapping[str, str]) -> dict[str, Any]:
    """One LoRA, nothing else to do: the base's half computed too; the next one, which finds it there; and a DoRA."""
    with fresh_cache(), Engine(base, adapters) as engine:
        engine.generate([Request((5, 6, 7), max_tokens=1)])
        stored_weights(base).content  # noqa: B018 (once per state of the files)
        seconds = []
        for name in ("lora-0", "lora-1", "dora-0"):
            began = time.perf_counter()
            engine.generate([Request((5, 6, 7), name, max_tokens=1)])
            seconds.append(round(time.perf_counter() - began, 3))
    return dict(zip(("first_s", "second_s", "dora_s"), seconds, strict=True))


def streamed(base: Base, running: Mapping[str, str], cold: Mapping[str, str | Path], row: str) -> list[dict[str, Any]]:
    """Time between tokens of requests that follow one another, one an adapter at any time, while the cold ones come in:
    until the last is in host memory, and from then on (where there are none: for a while)."""
    with fresh_cache(), Engine(base, {**running, **cold}) as engine:
        engine.generate([Request((5, 6, 7), name, max_tokens=1) for name in running])
        sink: SimpleQueue = SimpleQueue()
        arrived = threading.Event()
        began = time.perf_counter()
        latest: dict[int, float] = {}  # arrival of a stream's latest token
        for number, name in enumerate(running, start=1):  # so that they end, and others begin, at different times
            _stream(engine, name, sink, STREAMED * number // len(running))
        if cold:
            threading.Thread(target=lambda: (_ask(engine, cold), arrived.set())).start()
        loading: list[float] = []
        later: list[float] = []
        loaded_at = None if cold else began
        while not (arrived.is_set() if cold else time.perf_counter() - began > QUIET_S):
            stream, event = sink.get()
            now = time.perf_counter()
            if loaded_at is None and len(engine.loader.snapshot()) == len(running) + len(cold):
                loaded_at = now
            if isinstance(event, Token):
                gaps = loading if loaded_at is None else later
                gaps += [now - latest[id(stream)]] if id(stream) in latest else []
                latest[id(stream)] = now
            elif isinstance(event, Finished):
                _stream(engine, stream.request.model, sink)
        ended = time.perf_counter()
    loaded_at = ended if loaded_at is None else loaded_at
    parts = {f"{row}: loading": (loading, loaded_at - began), f"{row}: after": (later, ended - loaded_at)}
    return [
        {"row": name, "itl_ms": percentiles(gaps), "gaps": len(gaps), "seconds": round(seconds, 3)}
        for name, (gaps, seconds) in parts.items()
        if len(gaps) >= LEAST_GAPS
    ]


def _stream(engine: Engine, name: str, sink: SimpleQueue, tokens: int = STREAMED) -> None:
    STREAMS.append(engine.submit(Request((5, 6, 7, 8), name, tokens, ignore_eos=True, sampling=GREEDY), sink))


def _ask(engine: Engine, names: Mapping[str, Any]) -> None:
    engine.generate([Request((5, 6, 7), name, max_tokens=1) for name in names])


def without_probe(folder: Path, copy: Path) -> Path:
    shutil.copytree(folder, copy, dirs_exist_ok=True)
    provenance = json.loads((copy / PROVENANCE).read_text("utf-8"))
    del provenance["probe"]
    (copy / PROVENANCE).write_text(json.dumps(provenance))
    return copy


def proofs(
    base: Base, adapters: Mapping[str, str | Path], change: Callable[[str, Forms], Forms | None] | None = None
) -> Iterator[dict[str, Any]]:
    """The verdict of every adapter with its forms changed; none of one to which the change means nothing."""
    with fresh_cache():
        prover, verdicts = Prover(base), {}
        for kind, folder in adapters.items():
            artifact = load_artifact(folder, base.spec)
            try:
                case = prover.case(artifact)
            except ArtifactError as error:
                verdicts[kind] = Verdict(ProofOutcome.REFUSED, str(error))
                continue
            forms = artifact.fold(base)
            forms = change(kind, forms) if change else forms
            if forms is not None:
                prover.prove(
                    replace(case, adapter=replay_of(forms)), lambda verdict, kind=kind: verdicts.update({kind: verdict})
                )
        while prover.busy:
            prover.turn(1.0)
        prover.close()
    for kind, verdict in verdicts.items():
        yield {"adapter": kind, **told(verdict)}


def told(verdict: Verdict) -> dict[str, Any]:
    return {"outcome": verdict.outcome.value, "why": verdict.why, "gap": verdict.gap, "noises": verdict.noises}


class fresh_cache:
    """Nothing that was proven before is known within."""

    def __enter__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="graft-proof-")
        os.environ["GRAFT_CACHE"] = self._folder.name

    def __exit__(self, *_: object) -> None:
        self._folder.cleanup()


def matching(folder: Path, copy: Path, base: Base) -> Path:
    """A copy of an adapter that names the mutated base's fingerprint and content as those of its training."""
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(folder, copy)
    provenance = json.loads((copy / PROVENANCE).read_text("utf-8"))
    provenance["base"]["fingerprint"] = base.spec.fingerprint
    provenance["probe"]["content"] = stored_weights(base).content
    (copy / PROVENANCE).write_text(json.dumps(provenance))
    return copy


if __name__ == "__main__":
    emit({"found": {"check": check, "mutate": mutate, "times": times}[sys.argv[1]](json.loads(sys.argv[2]))})
