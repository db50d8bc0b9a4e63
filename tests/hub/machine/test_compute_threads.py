"""As many threads compute as other processes leave cores for."""

import subprocess
import sys
import threading
import time

import pytest
import torch

from graft.hub.machine import compute_threads
from graft.hub.machine.compute_threads import ComputeThreads
from graft.hub.machine.cpu_load import Cores, usable_cores


class Machine:
    """A clock and the cores that others keep busy, both set by hand."""

    def __init__(self, monkeypatch, cores):
        self.now, self.others = 0.0, 0.0
        monkeypatch.setattr(compute_threads, "usable_cores", lambda: list(range(cores)))

    def threads(self):
        return ComputeThreads(lambda: self.now, lambda: self)

    def cores(self):
        return Cores(own=1.0, other=self.others, stolen=3.0)


@pytest.fixture
def on_a_thread():
    """Run something on a thread of its own, for torch's number is a thread's."""

    def run(work):
        seen = []
        thread = threading.Thread(target=lambda: seen.append(work()))
        thread.start()
        thread.join()
        return seen[0]

    yield run
    torch.set_num_threads(1)


@pytest.mark.parametrize(
    ("cores", "most", "others", "left"),
    [
        (2, 2, 0.0, 2), (2, 2, 0.2, 2), (2, 2, 0.5, 1), (2, 2, 1.0, 1), (2, 2, 2.0, 1),
        (16, 16, 0.9, 15), (16, 16, 3.2, 13), (16, 16, 16.0, 1), (16, 4, 10.0, 4), (16, 4, 13.0, 3), (1, 1, 1.0, 1),
    ],
)  # fmt: skip
def test_a_core_is_left_to_every_busy_process(cores, most, others, left, monkeypatch, on_a_thread):
    machine = Machine(monkeypatch, cores)

    def work():
        torch.set_num_threads(most)
        with machine.threads() as threads:
            machine.now, machine.others = 1.0, others
            threads.fit()
            beside = torch.get_num_threads()
            machine.now, machine.others = 2.0, 0.0
            threads.fit()
            return beside, torch.get_num_threads()

    assert on_a_thread(work) == (left, most)


def test_a_look_is_taken_now_and_then_and_the_number_comes_back(monkeypatch, on_a_thread):
    machine = Machine(monkeypatch, 2)

    def work():
        torch.set_num_threads(2)
        seen = []
        with machine.threads() as threads:
            machine.others = 1.0
            for machine.now in (0.1, 0.2, 0.3):
                threads.fit()
                seen.append(torch.get_num_threads())
        return [*seen, torch.get_num_threads()]

    assert on_a_thread(work) == [2, 2, 1, 2]


def test_who_wants_a_fixed_number_keeps_it(monkeypatch, on_a_thread):
    machine = Machine(monkeypatch, 2)
    monkeypatch.setenv("OMP_DYNAMIC", "FALSE")

    def work():
        torch.set_num_threads(2)
        with machine.threads() as threads:
            machine.now, machine.others = 1.0, 2.0
            threads.fit()
            return torch.get_num_threads()

    assert on_a_thread(work) == 2


@pytest.mark.skipif(len(usable_cores()) < 2, reason="needs two cores")
def test_beside_real_processes(on_a_thread):
    def work():
        torch.set_num_threads(2)
        neighbours = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in usable_cores()]
        try:
            with ComputeThreads() as threads:
                until = time.monotonic() + 20
                while torch.get_num_threads() > 1 and time.monotonic() < until:
                    sum(range(100_000))
                    threads.fit()
                return torch.get_num_threads()
        finally:
            for neighbour in neighbours:
                neighbour.kill()
                neighbour.wait()

    assert on_a_thread(work) == 1
