"""CPU time of this process and of everything else over a stretch of work: whether a measurement was disturbed."""

import time

import psutil


class Load:
    """CPU time of this process and of everything else since it was made, in cores."""

    def __init__(self) -> None:
        self._process = psutil.Process()
        self._start = self._now()

    def cores(self) -> dict[str, float]:
        wall, busy, own = (now - then for now, then in zip(self._now(), self._start, strict=True))
        return {"own_cores": round(own / wall, 2), "other_cores": round(max(0.0, busy - own) / wall, 2)}

    def _now(self) -> tuple[float, float, float]:
        spent, own = psutil.cpu_times(), self._process.cpu_times()
        idle = spent.idle + getattr(spent, "iowait", 0.0)
        return time.perf_counter(), sum(spent[:8]) - idle, own.user + own.system
