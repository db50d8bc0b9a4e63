"""Ray clusters of several nodes on this machine, and faults for them."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import psutil
import pytest


@contextmanager
def nodes(*cpus: int) -> Iterator[Any]:
    """A cluster (ray.cluster_utils) of nodes with so many CPUs each; skips the test where there is no Ray."""
    pytest.importorskip("ray", reason="Ray is not installed: pip install grafthub[ray]")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    from ray.cluster_utils import Cluster

    head, *others = cpus
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": head, "include_dashboard": False})
    try:
        for count in others:
            cluster.add_node(num_cpus=count)
        yield cluster
    finally:
        cluster.shutdown()


def wait_for(condition: Callable[[], object], seconds: float = 120.0) -> None:
    """Raises AssertionError where it never holds."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it never came to that"
        time.sleep(0.02)


def busy_workers() -> list[psutil.Process]:
    """Ray's processes on this machine that do a piece now: Ray names them after it."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        if (process.info["cmdline"] or [""])[0].startswith("ray::_do"):
            found.append(process)
    return found


def kill(process: psutil.Process) -> None:
    os.kill(process.pid, signal.SIGKILL)
