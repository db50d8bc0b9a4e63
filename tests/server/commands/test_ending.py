"""How a server's process ends when its work is done and a thread is not."""

import subprocess
import sys

LEFT = """
import threading
from graft.server.commands.ending import leave
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
leave()
"""


def test_a_thread_that_is_left_in_a_librarys_code_does_not_abort_the_process():
    done = subprocess.run([sys.executable, "-c", LEFT], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "ended\n", "")
