"""An adapter's probe replayed: how far what it says here lies from what it said when it was trained."""

import torch
from torch import Tensor

from graft.hub.probe import Probe, ProbeSequence


def tolerance(probe: Probe, served: torch.dtype) -> float:
    """How far log-probabilities of the same adapter may lie apart, by the dtypes of training and serving."""
    return 0.02 if probe.dtype == "float32" and served == torch.float32 else 0.75


def difference(sequence: ProbeSequence, logits: Tensor) -> float:
    """The largest difference of a recorded log-probability from what `logits` [V] say now; NaN stays NaN."""
    logprobs = logits.float().log_softmax(-1)[list(sequence.top)].cpu()
    return (logprobs - torch.tensor(sequence.logprobs)).abs().max().item()
