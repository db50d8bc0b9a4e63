"""Peak memory: what a stretch used, not what an earlier one left behind."""

import platform
import subprocess
import sys

import pytest

STRETCHES = """
import torch
from graft.trainer.process.allocator import keep_freed_memory
from graft.trainer.process.memory import peak_bytes, restart_peak

keep_freed_memory()
cpu = torch.device("cpu")
restart_peak(cpu)
before = peak_bytes(cpu)
blocks = [torch.ones(1 << 18) for _ in range(512)]  # 512 MiB in blocks of one
during = peak_bytes(cpu)
del blocks
after = peak_bytes(cpu)
restart_peak(cpu)
print(before, during, after, peak_bytes(cpu))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only Linux tells and resets a peak, only glibc is tuned")
def test_a_new_stretch_does_not_count_what_an_earlier_one_freed():
    done = subprocess.run([sys.executable, "-c", STRETCHES], capture_output=True, text=True, check=True)
    before, during, after, renewed = map(int, done.stdout.split())
    assert during - before > 500 << 20 and 0 <= after - during < 1 << 20
    assert abs(renewed - before) < 32 << 20
