"""How many replicas there should be. Serve carries this out in its controller, where nothing else of graft's is known."""

from collections.abc import Mapping
from typing import Protocol

REQUESTS = "requests"  # what each replica tells the controller: how many it has under way


class Target(Protocol):
    target_ongoing_requests: float


class Context(Protocol):
    """As much as is needed of what Serve tells a policy (ray.serve.config.AutoscalingContext)."""

    aggregated_metrics: Mapping[str, Mapping[object, float]] | None
    target_num_replicas: int
    config: Target


def replicas_wanted(context: Context) -> tuple[float, dict[str, object]]:
    """So many that each has its target of requests (Serve holds this between the bounds, and waits before it follows).

    Serve's own policy counts calls of Ray's, and requests are none here."""
    told = (context.aggregated_metrics or {}).get(REQUESTS)
    if not told:
        return context.target_num_replicas, {}
    return sum(told.values()) / context.config.target_ongoing_requests, {}
