"""Adapters as the API shows them."""

from hashlib import sha256

from graft.hub.chat.words import AdapterWords
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
        "words": _words(entry.words) if entry.words else None,
        "error": entry.error,
    }


def _words(words: AdapterWords) -> dict[str, object]:
    """What an adapter brings for text: used unless a request says otherwise."""
    template = words.template
    return {
        "chat_template": {"sha256": sha256(template.encode()).hexdigest(), "characters": len(template)}
        if template
        else None,
        "stop_token_ids": list(words.stop_ids),
        "stop_tokens": list(words.stop_tokens),
        "stop": list(words.stop_strings),
        "generation": words.defaults.given(),
        "left_aside": list(words.left_aside),
    }
