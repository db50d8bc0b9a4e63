"""An artifact's probe: a few token sequences, and the log-probabilities that the adapter gave after each in training.

It stands in graft.json, whoever wrote that, so it is read with limits. Torch-free: the trainer makes one, the server
compares it with what the adapter gives there.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from graft.hub.errors import ArtifactError

_MOST_SEQUENCES, _MOST_TOKENS = 8, 64


@dataclass(frozen=True)
class ProbeSequence:
    """After the last of `tokens`, the tokens `top` had the log-probabilities `logprobs`."""

    tokens: tuple[int, ...]
    top: tuple[int, ...]
    logprobs: tuple[float, ...]


@dataclass(frozen=True)
class Probe:
    """What an adapter said when it was trained."""

    dtype: str  # of the base at training
    sequences: tuple[ProbeSequence, ...]

    def to_json(self) -> dict[str, Any]:
        """As it stands in graft.json."""
        rows = [
            {"tokens": list(one.tokens), "top_tokens": list(one.top), "top_logprobs": list(one.logprobs)}
            for one in self.sequences
        ]
        return {"dtype": self.dtype, "sequences": rows}

    @staticmethod
    def from_json(raw: Any, vocabulary: int) -> "Probe":
        """The probe in a graft.json, for a base with this many tokens. Raises ArtifactError for a malformed one."""
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
