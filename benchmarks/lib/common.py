"""What every measured system shares: the workload, the stopwatch, and the load of everything else.

Standard library only, so that a peer in a virtual environment of its own can import it. Knows no system.
"""

import itertools
import json
import math
import os
import random
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

CACHE = Path(os.environ.get("GRAFT_BENCH_CACHE", "~/.cache/graft-bench")).expanduser()

_TICK = os.sysconf("SC_CLK_TCK")
RANKS = {"p50": 0.50, "p90": 0.90, "p99": 0.99, "max": 1.0}


@dataclass(frozen=True)
class Workload:
    """Requests that all arrive at once; each has random prompt ids and takes `new_tokens` tokens."""

    requests: int = 32
    prompt_tokens: int = 64
    new_tokens: int = 64
    seed: int = 1234
    dtype: str = "bfloat16"  # of the base and the adapters
    temperature: float = 0.0  # greedy
    top_p: float = 1.0
    seeded: bool = False  # request i's seed is i
    logprobs: int | None = None  # of so many alternatives

    @property
    def output_tokens(self) -> int:
        return self.requests * self.new_tokens

    def prompts(self, low: int = 1000, high: int = 40_000) -> list[list[int]]:
        """Token ids [requests][prompt_tokens] from [low, high), clear of special tokens."""
        draw = random.Random(self.seed)
        return [[draw.randrange(low, high) for _ in range(self.prompt_tokens)] for _ in range(self.requests)]

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @staticmethod
    def from_json(text: str) -> "Workload":
        return Workload(**json.loads(text))


class Load:
    """CPU time of this process tree and of everything else since it was made, in cores."""

    def __init__(self) -> None:
        self._start = (time.perf_counter(), _busy_seconds(), tree_cpu_seconds(os.getpid()))

    def cores(self) -> dict[str, float]:
        """{"own_cores", "other_cores"}: mean number of cores in use since the start."""
        start, busy, own = self._start
        wall = time.perf_counter() - start
        own_spent = tree_cpu_seconds(os.getpid()) - own
        other = max(0.0, _busy_seconds() - busy - own_spent)
        return {"own_cores": round(own_spent / wall, 2), "other_cores": round(other / wall, 2)}


def measure(run: Callable[[], Any], tokens: int, repeats: int) -> dict[str, Any]:
    """Time `run`, which makes `tokens` tokens: one warm-up, then the median of `repeats` runs.

    Returns tokens_per_s, seconds (each run), warm_up_s, own_cores, other_cores, peak_bytes (whole tree).
    """
    warm_up = seconds_of(run)
    load = Load()
    seconds = [seconds_of(run) for _ in range(repeats)]
    return {
        "tokens_per_s": round(tokens / statistics.median(seconds), 2),
        "seconds": [round(value, 4) for value in seconds],
        "warm_up_s": round(warm_up, 3),
        **load.cores(),
        "peak_bytes": peak_tree_bytes(),
    }


def training_figures(seconds: Sequence[float], tokens: int, steps: int) -> dict[str, Any]:
    """Figures of training runs of `steps` steps one after another, `tokens` a step; each run's first step is warm-up.

    Returns tokens_per_s (by the median step) and seconds (every step).
    """
    warm = [value for number, value in enumerate(seconds) if number % steps]
    return {"tokens_per_s": round(tokens / statistics.median(warm), 2), "seconds": [round(s, 4) for s in seconds]}


def seconds_of(run: Callable[[], Any]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def percentiles(seconds: Sequence[float], ranks: Mapping[str, float] = RANKS) -> dict[str, float]:
    """Latencies in seconds -> those at `ranks` in milliseconds (nearest rank)."""
    ordered = sorted(seconds)
    return {name: round(1e3 * ordered[math.ceil(len(ordered) * q) - 1], 2) for name, q in ranks.items()}


def latencies(times: Sequence[Sequence[float]], start: float) -> dict[str, dict[str, float]]:
    """Arrival times of every request's tokens -> {"ttft_ms", "itl_ms"} percentiles."""
    first = [request[0] - start for request in times]
    gaps = [b - a for request in times for a, b in itertools.pairwise(request)]
    return {"ttft_ms": percentiles(first), **({"itl_ms": percentiles(gaps)} if gaps else {})}


def emit(result: dict[str, Any]) -> None:
    """Hand a result to the driver: the last line of stdout."""
    sys.stdout.flush()
    print(json.dumps(result), flush=True)


def process_tree(pid: int) -> list[int]:
    """`pid` and all its living descendants."""
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        fields = _stat_fields(stat)
        if fields is not None:
            children.setdefault(int(fields[1]), []).append(int(stat.parent.name))
    tree, pending = [], [pid]
    while pending:
        tree.append(pending.pop())
        pending += children.get(tree[-1], [])
    return tree


def tree_cpu_seconds(pid: int) -> float:
    """User and system time of a process and its descendants, those already waited for included."""
    every = (_stat_fields(Path(f"/proc/{one}/stat")) for one in process_tree(pid))
    return sum(sum(int(value) for value in fields[11:15]) for fields in every if fields) / _TICK


def peak_tree_bytes(pid: int | None = None) -> int:
    """Peak resident bytes of a process and its living descendants; pages they share count in each."""
    return sum(_peak_bytes(one) for one in process_tree(pid or os.getpid()))


def _peak_bytes(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return sum(1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))


def _stat_fields(path: Path) -> list[str] | None:
    """Fields of /proc/PID/stat after the command's name: [0] state, [1] parent, [11:15] CPU ticks."""
    try:
        return path.read_text().rpartition(")")[2].split()
    except OSError:
        return None


def _busy_seconds() -> float:
    """CPU time in use on the whole machine since boot, time stolen by the host included."""
    user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, _cpu_line()[1:9])
    return (user + nice + system + irq + softirq + steal) / _TICK


def _cpu_line() -> list[str]:
    return Path("/proc/stat").read_text().splitlines()[0].split()
