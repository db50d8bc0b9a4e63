"""An artifact's probe: a few token sequences and the log-probabilities that the adapter gave in training after them.

Read from a stranger's JSON with limits, compared with what the adapter gives here.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from graft.hub.errors import ArtifactError

_MOST_SEQUENCES, _MOST_TOKENS = 8, 64


@dataclass(frozen=True)
class ProbeSequence:
    """After `tokens`, the tokens `top` had the log-probabilities `logprobs`."""

    tokens: tuple[int, ...]
    top: tuple[int, ...]
    logprobs: tuple[float, ...]


@dataclass(frozen=True)
class Probe:
    dtype: str  # of the base at training
    sequences: tuple[ProbeSequence, ...]

    def tolerance(self, served: torch.dtype) -> float:
        """How far log-probabilities of the same adapter may lie apart, by the dtypes of training and serving."""
        return 0.02 if self.dtype == "float32" and served == torch.float32 else 0.75


def read_probe(raw: Any, vocabulary: int) -> Probe | None:
    """The probe of a graft.json, None where there is none. Raises ArtifactError for a malformed one."""
    if raw is None:
        return None
    try:
        found = Probe(str(raw["dtype"]), tuple(_sequence(one, vocabulary) for one in raw["sequences"]))
    except (KeyError, TypeError, ValueError) as error:
        raise ArtifactError(f"The probe in graft.json is malformed ({error!r}): train the adapter again.") from None
    if not 0 < len(found.sequences) <= _MOST_SEQUENCES:
        raise ArtifactError(f"The probe in graft.json must hold 1 to {_MOST_SEQUENCES} sequences.")
    return found


def _sequence(raw: Mapping[str, Any], vocabulary: int) -> ProbeSequence:
    found = ProbeSequence(tuple(raw["tokens"]), tuple(raw["top_tokens"]), tuple(map(float, raw["top_logprobs"])))
    ids = (*found.tokens, *found.top)
    if not all(type(id) is int and 0 <= id < vocabulary for id in ids):
        raise ValueError("an id is outside the vocabulary")
    if not 0 < len(found.tokens) <= _MOST_TOKENS or not 0 < len(found.top) == len(found.logprobs) <= _MOST_TOKENS:
        raise ValueError("a sequence has the wrong length")
    return found


def difference(sequence: ProbeSequence, logits: Tensor) -> float:
    """The largest difference of a recorded log-probability from what `logits` [V] say now; NaN stays NaN."""
    logprobs = logits.float().log_softmax(-1)[list(sequence.top)].cpu()
    return (logprobs - torch.tensor(sequence.logprobs)).abs().max().item()
