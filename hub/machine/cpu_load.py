"""CPU time of this process and of everything else over a stretch of work: whether a measurement was disturbed, and whether
there is a core for every thread."""

import os
import sys
import time
from dataclasses import asdict, dataclass

import psutil

QUIET_CORES = 0.25  # of others: what is always there, and less than the half core that a busy process has at least


@dataclass(frozen=True)
class Cores:
    """In use on average: by this process, by other ones, and by other machines on the same hardware."""

    own: float
    other: float
    stolen: float

    def to_dict(self) -> dict[str, float]:
        return {f"{whose}_cores": round(cores, 2) for whose, cores in asdict(self).items()}

    @property
    def quiet(self) -> bool:
        """Whether hardly anything else ran."""
        return self.other + self.stolen <= QUIET_CORES


class Load:
    """CPU time since it was made, on the cores that this process may use."""

    def __init__(self) -> None:
        self._process = psutil.Process()
        self._start = self._now()

    def cores(self) -> Cores:
        wall, busy, stolen, own = (now - then for now, then in zip(self._now(), self._start, strict=True))
        return Cores(own / wall, max(0.0, busy - own) / wall, stolen / wall)

    def _now(self) -> tuple[float, float, float, float]:
        times = psutil.cpu_times(percpu=True)
        mine = [times[core] for core in usable_cores() if core < len(times)]
        stolen = sum(getattr(core, "steal", 0.0) for core in mine)  # Linux has them
        waiting = sum(core.idle + getattr(core, "iowait", 0.0) for core in mine)
        spent, own = sum(sum(core[:8]) for core in mine), self._process.cpu_times()
        return time.perf_counter(), spent - waiting - stolen, stolen, own.user + own.system


def usable_cores() -> list[int]:
    """The cores that this process may run on."""
    return sorted(os.sched_getaffinity(0)) if sys.platform == "linux" else list(range(os.cpu_count() or 1))
