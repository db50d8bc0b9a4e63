"""How many replicas there should be. Serve carries this out in its controller, where nothing else of graft's is known."""

from typing import Any

REQUESTS = "requests"  # what each replica tells the controller: how many it has under way


def replicas_wanted(context: Any) -> tuple[float, dict[str, Any]]:
    """So many that each has its target of requests (Serve holds this between the bounds, and waits before it follows).

    Serve's own policy counts calls of Ray's, and requests are none here."""
    told = (context.aggregated_metrics or {}).get(REQUESTS)
    if not told:
        return context.target_num_replicas, {}
    return sum(told.values()) / context.config.target_ongoing_requests, {}
