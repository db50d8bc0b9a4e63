"""How a server's process ends when its work is done and a thread is not."""

import subprocess
import sys

import pytest

LEFT = """
import sys, threading
from graft.server.commands.ending import leave
from graft.server.errors import EndedError
from graft.server.work_pool import WorkPool
import torch
begun = threading.Event()
def endless():
    begun.set()
    a = torch.randn(256, 256)
    while True:
        a = torch.tanh(a @ a)
pool = WorkPool("test", 1)
pool.submit("a client", endless, print)
begun.wait()
pool.close(0.1)
print("ended")
leave(*map(EndedError, sys.argv[1:]))
"""


@pytest.mark.parametrize(("failure", "status", "said"), [([], 0, ""), (["No step ends."], 1, "error: No step ends.\n")])
def test_a_thread_that_is_left_in_a_librarys_code_does_not_abort_the_process(failure, status, said):
    done = subprocess.run([sys.executable, "-c", LEFT, *failure], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (status, "ended\n", said)
