"""A Ray cluster of two nodes on this machine, and faults for it."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import psutil
import pytest


@contextmanager
def two_nodes() -> Iterator[str]:
    """The address of a cluster with a CPU on each of two nodes; skips the test where there is no Ray."""
    pytest.importorskip("ray", reason="Ray is not installed: pip install grafthub[ray]")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        cluster.add_node(num_cpus=1)
        yield cluster.address
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
