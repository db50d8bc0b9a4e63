"""Peak memory of a stretch of work: the device's on CUDA, the process's resident memory elsewhere."""

import resource
import sys
from contextlib import suppress
from pathlib import Path

import torch

from graft.trainer.process.allocator import hand_back_freed_memory

_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def restart_peak(device: torch.device) -> None:
    """Begin a new stretch. Where the system can't reset its mark (not Linux), the peak is the process's."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif _RESET.exists():
        hand_back_freed_memory()  # what is left of earlier stretches is not this one's
        with suppress(OSError):  # a container may forbid it
            _RESET.write_text("5")


def peak_bytes(device: torch.device) -> int:
    """The peak since `restart_peak`, in bytes."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if _STATUS.exists():
        line = next(line for line in _STATUS.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
    kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return kilobytes if sys.platform == "darwin" else kilobytes * 1024
