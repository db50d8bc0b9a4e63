"""Measures what a replica's work costs, on an engine of this process: steps, prompts, loads, bytes."""

import itertools
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from graft.hub.adapters.artifact import save_artifact
from graft.hub.adapters.methods import get_method
from graft.hub.base.manifest import BaseSpec
from graft.hub.machine.cpu_load import usable_cores
from graft.server.benchmark.targets import EngineTarget
from graft.server.benchmark.workload import BenchRequest, RequestDraw, Timing, Workload
from graft.server.engine.client import EngineClient

ROWS = (1, 4, 16, 32)  # of the steps that are timed
_SHORT, _LONG = 32, 160  # tokens of the prompts whose difference is timed
_STEPS = 24
_LOADS = 8
_STREAMS, _STREAMED = 4, 128


class ReplicaCosts:
    """One measurement after another; the adapters are warm after `warm`. Each raises the first GraftError of a request."""

    def __init__(self, engine: EngineClient, adapters: Sequence[str], ids: Sequence[int]):
        """`adapters`: names of as many as the most rows, all of one kind; `ids`: tokens to draw prompts from."""
        self._engine, self._adapters, self._ids = engine, adapters, ids
        self._target = EngineTarget(engine)

    def warm(self) -> None:
        """Load all, and compile and record whatever is made when it is first used."""
        for rows in (1, len(self._adapters)):
            self._run(rows, _SHORT, 4)

    def steps(self) -> dict[int, float]:
        """Rows -> median seconds of a step."""
        return {rows: self._step(rows) for rows in ROWS if rows <= len(self._adapters)}

    def prompt_token(self) -> float:
        """Seconds that each token of a prompt takes."""
        short, long = (
            statistics.median(self._first_token(self._adapters[0], tokens) for _ in range(5))
            for tokens in (_SHORT, _LONG)
        )
        return max(0.0, long - short) / (_LONG - _SHORT)

    def load(self) -> float:
        """Seconds from a cold adapter to its first step, beside nothing else."""
        warm = statistics.median(self._first_token(name, _SHORT) for name in self._adapters[:_LOADS])
        return max(0.0, statistics.median(self._cold_first_tokens(_LOADS)) - warm)

    def load_work(self) -> float:
        """Seconds that a load takes from steps beside it."""
        alone = self._streamed(0)
        return max(0.0, self._streamed(_LOADS) - alone) / _LOADS

    def adapter_bytes(self, *, on_gpu: bool) -> int:
        """Of one adapter: on a GPU, else in memory, where the runner has a form of its own beside what was read."""
        placed = self._engine.adapters().values()
        return round(statistics.median(one.device_bytes + (0 if on_gpu else one.host_bytes) for one in placed))

    def _step(self, rows: int) -> float:
        served = self._run(rows, _SHORT, _STEPS)
        all_run = max(timing.tokens[0] for timing in served)  # before that, some steps have prompts in them
        gaps = [gap for timing in served for gap in _gaps(timing, all_run)]
        return statistics.median(gaps)

    def _first_token(self, name: str, prompt: int) -> float:
        (served,) = self._target.run(self._jobs([name], prompt, 1), 1)
        return served.tokens[0] - served.sent

    def _cold_first_tokens(self, count: int) -> Iterator[float]:
        for name in self._adapters[-count:]:
            self._engine.unload(name)
            yield self._first_token(name, _SHORT)

    def _streamed(self, loads: int) -> float:
        """Seconds of some streams, beside so many adapters that come in one after another."""
        beside = self._adapters[-loads:] if loads else ()
        jobs = self._jobs(self._adapters[:_STREAMS], _SHORT, _STREAMED)
        with ThreadPoolExecutor(1) as pool:
            other = pool.submit(self._reload, beside)
            began = time.perf_counter()
            self._target.run(jobs, len(jobs))
            seconds = time.perf_counter() - began
            other.result()
        return seconds

    def _reload(self, names: Sequence[str]) -> None:
        for name in names:
            self._engine.unload(name)
            self._engine.load(name)

    def _run(self, rows: int, prompt: int, new: int) -> list[Timing]:
        jobs = self._jobs(self._adapters[:rows], prompt, new)
        return self._target.run(jobs, rows)

    def _jobs(self, names: Sequence[str], prompt: int, new: int) -> list[BenchRequest]:
        draw = RequestDraw(Workload(len(names), prompt, new, seed=time.perf_counter_ns()), self._ids, names)
        return draw.round()


def random_adapters(method: str, options: Mapping[str, str], spec: BaseSpec, parent: Path) -> dict[str, Path]:
    """Name -> folder of as many distinct adapters as the most rows, with small random weights: they cost what trained ones do.

    Raises GraftError for an unknown method, and for options that it has not.
    """
    chosen = get_method(method)
    config = chosen.from_options(dict(options), spec)
    chosen.require_sensible(config, spec)
    made = {f"measured-{number}": parent / f"adapter-{number}" for number in range(ROWS[-1])}
    for number, folder in enumerate(made.values()):
        draw = torch.Generator().manual_seed(number)
        shapes = chosen.shapes(config, spec).items()
        tensors = {name: 0.02 * torch.randn(shape, generator=draw) for name, shape in shapes}
        save_artifact(folder, chosen, config, {name: one.to(torch.bfloat16) for name, one in tensors.items()}, spec)
    return made


def weights_bytes(folder: Path) -> int:
    """Of an adapter on disk."""
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


def machine_name() -> str:
    """This machine as people call it."""
    try:
        info = Path("/proc/cpuinfo").read_text()
        name = next(line.partition(":")[2].strip() for line in info.splitlines() if line.startswith("model name"))
    except (OSError, StopIteration):
        name = "unknown CPU"
    return f"{len(usable_cores())} cores of {name}"


def _gaps(timing: Timing, since: float) -> Iterator[float]:
    return (later - earlier for earlier, later in itertools.pairwise(timing.tokens) if earlier >= since)
