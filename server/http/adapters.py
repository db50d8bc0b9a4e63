"""Adapters as the API shows them."""

from graft.server.engine.inventory import AdapterEntry, Placed


def describe(entry: AdapterEntry, placed: Placed) -> dict[str, object]:
    """An adapter for /v1/adapters: what it is and where it is."""
    return {
        "id": entry.name,
        "digest": entry.digest,
        "revision": entry.revision,
        "kind": entry.method,
        "variant": entry.variant,
        "task": entry.task,
        "bytes": entry.bytes,
        "state": placed.state,
        "bytes_by_tier": {"host": placed.host_bytes, "device": placed.device_bytes},
        "pinned": placed.pinned,
        "virtual_tokens": placed.virtual_tokens,
        "proof": {"outcome": proof.outcome.value, "why": proof.why} if (proof := placed.proof) else None,
        "error": entry.error,
    }
