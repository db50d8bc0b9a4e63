"""What serving costs on one machine: the figures that a deployment is sized and simulated by. Torch-free.

They are measured (replica_costs.py), kept as JSON, and say where they come from.
"""

import bisect
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from graft.hub.errors import GraftError


@dataclass(frozen=True)
class Costs:
    """One base with adapters of one kind, on one machine. Seconds and bytes."""

    base: str
    adapter: str  # the method and its options
    machine: str
    runner: str
    measured: str  # when
    steps: Mapping[int, float]  # rows -> a step in which each makes one token, for an adapter of its own; ascending
    prompt_token: float  # what each token of a prompt adds to a step
    load: float  # from a file of this machine until a first step may have the adapter, beside nothing else
    load_work: float  # what a load takes from steps that go on beside it
    file_bytes: int  # an adapter's weights on disk
    adapter_bytes: int  # what it takes in memory, in host memory and in the runner together
    base_bytes: int  # the process with its base, packed weights and no cache
    token_bytes: int  # keys and values of one token

    def step(self, rows: int) -> float:
        """Seconds of a step that makes a token for each of `rows` requests."""
        return step_seconds(self.steps, rows)

    def request(self, rows: int, prompt: int, new: int) -> float:
        """Seconds of a replica's time that a request of so many tokens takes where `rows` are computed together."""
        return prompt * self.prompt_token + new * self.step(rows) / rows

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=1) + "\n"


def step_seconds(steps: Mapping[int, float], rows: int) -> float:
    """Between the two measured numbers of rows around it, and in line with the last two beyond."""
    known = list(steps)
    at = min(max(bisect.bisect_left(known, rows), 1), len(known) - 1)
    low, high = known[at - 1], known[at]
    return steps[low] + (steps[high] - steps[low]) * (rows - low) / (high - low)


def read_costs(path: Path) -> Costs:
    """Costs as `to_json` wrote them. Raises GraftError for what is none."""
    try:
        found = json.loads(path.read_text("utf-8"))
        costs = Costs(**{**found, "steps": {int(rows): float(step) for rows, step in found["steps"].items()}})
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise GraftError(f"{path} holds no costs as `graft plan --save-costs` writes them: {error}.") from None
    figures = [*costs.steps.values(), *(getattr(costs, one.name) for one in fields(costs) if one.type in (int, float))]
    if len(costs.steps) < 2 or sorted(costs.steps) != list(costs.steps) or not all(value >= 0 for value in figures):
        raise GraftError(f"{path}: costs are not negative, and of steps there are two or more, by rising rows.")
    return costs
