"""A step that finds no memory fails alone: its requests get an error, the process and everything else goes on.

In processes of their own, whose address space is limited while the step is asked for.
"""

import subprocess
import sys

import pytest

from graft.server.runners.cpu.build import load

LIMITED = """
import resource, sys
from contextlib import contextmanager
import psutil, torch
from tests.conftest import FAMILIES, tiny_base
from graft.server.cache.step import Run, make_batch
from graft.server.cache.tensors import KVCache

torch.set_num_threads(int(sys.argv[1]))

@contextmanager
def room(megabytes):
    was = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (psutil.Process().memory_info().vms + (megabytes << 20), was[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, was)

FAMILIES["llama"]["intermediate_size"] = 1024  # 15 KB of a step's buffers a row: more than malloc has left over
base = tiny_base("llama")
"""

STEP = """
from graft.server.runners.cpu.runner import fast_runner

def batch(runs):
    return make_batch([(None, Run(0, [5] * 240, 0, 0, list(range(1 + 15 * i, 16 + 15 * i)), 1)) for i in range(runs)])[0]

runner = fast_runner(base, KVCache(base.spec, 1000, base.dtype, base.device))
before = runner.run(batch(2))
for _ in range(3):
    with room(60):
        try:
            runner.run(batch(60))
        except MemoryError:
            print("MemoryError")
    assert torch.equal(runner.run(batch(2)), before)
assert runner.run(batch(60)).isfinite().all()
"""

SERVE = """
from graft.server.engine.engine import Engine
from graft.server.engine.options import Options
from graft.server.engine.request import Request
from graft.server.errors import BrokenError
from graft.server.sampling.params import Sampling

def ask(i, length):
    return Request(tuple(2 + (i + j) % 290 for j in range(length)), max_tokens=3, ignore_eos=True, sampling=Sampling(0.0))

with Engine(base, options=Options(runner="fast", step_rows=16000, max_running=64, cache_bytes=1 << 25)) as engine:
    before = engine.generate([ask(1, 7)])[0].ids
    with room(60):
        streams = [engine.submit(ask(i, 240)) for i in range(60)]
        failed = 0
        for stream in streams:
            try:
                stream.result()
            except BrokenError as error:
                assert "step failed" in str(error), error
                failed += 1
    print("failed", failed)
    assert failed > 0
    assert engine.generate([ask(1, 7)])[0].ids == before
    assert len(engine.generate([ask(i, 240) for i in range(60)])) == 60
"""


def run(script, threads):
    if load() is None:
        pytest.skip("there are no CPU kernels on this machine")
    if sys.platform != "linux":
        pytest.skip("sys.platform is not linux: no limit of the address space")
    command = [sys.executable, "-c", LIMITED + script, str(threads)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("threads", [1, 3])
def test_a_step_without_memory_raises_in_python_and_the_next_one_runs(threads):
    assert run(STEP, threads).split() == ["MemoryError"] * 3


@pytest.mark.parametrize("threads", [1, 3])
def test_its_requests_get_an_error_and_the_engine_goes_on(threads):
    assert int(run(SERVE, threads).split()[-1]) > 0
