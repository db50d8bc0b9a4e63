"""What serving costs on one machine: the figures that a deployment is sized and simulated by. Torch-free.

They are measured (replica_costs.py), kept as JSON, and say where they come from.
"""

import bisect
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, Field, TypeAdapter, ValidationError

from graft.hub.errors import GraftError

MOST = 1 << 50  # of seconds, bytes or rows: beyond it something else was meant
Seconds = Annotated[float, Field(ge=0, le=MOST)]
Bytes = Annotated[int, Field(gt=0, le=MOST)]


def _rising(steps: Mapping[int, float]) -> Mapping[int, float]:
    if list(steps) != sorted(steps):
        raise ValueError("their rows do not rise")
    return steps


Steps = Annotated[
    Mapping[Annotated[int, Field(gt=0)], Annotated[float, Field(gt=0, le=MOST)]],
    Field(min_length=2),
    AfterValidator(_rising),
]  # rows -> seconds


@dataclass(frozen=True)
class Costs:
    """One base with adapters of one kind, on one machine. Seconds and bytes."""

    base: str
    adapter: str  # the method and its options
    machine: str
    runner: str
    measured: str  # when
    steps: Steps  # rows -> a step in which each makes one token, for an adapter of its own; ascending
    prompt_token: Seconds  # what each token of a prompt adds to a step
    load: Seconds  # from a file of this machine until a first step may have the adapter, beside nothing else
    load_work: Seconds  # what a load takes from steps that go on beside it
    file_bytes: Bytes  # an adapter's weights on disk
    adapter_bytes: Bytes  # what it takes in memory, in host memory and in the runner together
    base_bytes: Bytes  # the process with its base, packed weights and no cache
    token_bytes: Bytes  # keys and values of one token

    def step(self, rows: int) -> float:
        """Seconds of a step that makes a token for each of `rows` requests."""
        return step_seconds(self.steps, rows)

    def request(self, rows: int, prompt: int, new: int) -> float:
        """Seconds of a replica's time that a request of so many tokens takes where `rows` are computed together."""
        return prompt * self.prompt_token + new * self.step(rows) / rows

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=1) + "\n"


def step_seconds(steps: Mapping[int, float], rows: int) -> float:
    """Between the two measured numbers of rows around it, in line with the last two beyond, and never less than all measured."""
    known = list(steps)
    at = min(max(bisect.bisect_left(known, rows), 1), len(known) - 1)
    low, high = known[at - 1], known[at]
    return max(steps[low] + (steps[high] - steps[low]) * (rows - low) / (high - low), min(steps.values()))


def read_costs(path: Path) -> Costs:
    """Costs as `to_json` wrote them. Raises GraftError for what is none."""
    try:
        return TypeAdapter(Costs).validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the whole"
        raise GraftError(
            f"{path} holds no costs as `graft plan --save-costs` writes them: {where}: {first['msg']}."
        ) from None
