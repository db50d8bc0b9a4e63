"""What tests have done on workers."""

import os
import signal
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from graft.hub.errors import NotFoundError


@dataclass(frozen=True)
class Doing:
    """A folder that all see, for what has been done."""

    folder: Path


def do(shared: Doing, what: str) -> object:
    """By its name: answers, fails, or dies, some time or always."""
    import ray  # not everywhere that tests run

    number = sum(1 for _ in shared.folder.glob(f"{what}.*"))
    (shared.folder / f"{what}.{number}").write_text(ray.get_runtime_context().get_node_id())
    match what.partition("-")[0]:
        case "mistake":
            raise NotFoundError("There is no such thing.")
        case "bug":
            raise ZeroDivisionError("division by none")
        case "dies" if what.endswith("always") or number == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        case "waits":
            return _wait()
        case "lingers" if number == 0:
            threading.Event().wait()
    return what, torch.get_num_threads()


def _wait() -> str:
    """Until it is interrupted, as a training is: the handler says so, and what is done comes back."""
    asked: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, frame: asked.append(number))
    try:
        while not asked:
            time.sleep(0.01)
    finally:
        signal.signal(signal.SIGINT, before)
    return "interrupted, and saved"
