"""What each route takes of who calls it, where there are keys at all. A route without a line here is refused at start."""

from collections.abc import Mapping
from enum import Enum
from types import MappingProxyType

from flask import Flask


class Need(Enum):
    """What a caller needs."""

    NOTHING = "nothing"
    KEY = "a key"
    ADMIN = "an admin's key"
    METRICS = "an admin's key, unless the numbers are open"


# Endpoint -> what it takes.
NEEDS: Mapping[str, Need] = MappingProxyType(
    {
        "v1.completions": Need.KEY,
        "v1.chat_completions": Need.KEY,
        "responses.create_response": Need.KEY,
        "messages.create_message": Need.KEY,
        "messages.count_tokens": Need.KEY,
        "embeddings.embeddings": Need.KEY,
        "v1.models": Need.KEY,
        "v1.model": Need.KEY,
        "v1.adapters": Need.KEY,
        "vllm.tokenize": Need.KEY,
        "vllm.detokenize": Need.KEY,
        "vllm.tokenizer_info": Need.KEY,
        "vllm.server_version": Need.KEY,
        "v1.load": Need.ADMIN,
        "v1.unload": Need.ADMIN,
        "v1.pin": Need.ADMIN,
        "vllm.load_lora_adapter": Need.ADMIN,
        "vllm.unload_lora_adapter": Need.ADMIN,
        "status.metrics": Need.METRICS,
        "status.replica": Need.ADMIN,
        "status.health": Need.NOTHING,
        "status.ready": Need.NOTHING,
        "status.document": Need.NOTHING,
    }
)


def require_known_routes(app: Flask) -> None:
    """Raises LookupError for a route of which nobody has said what it takes."""
    if unknown := {rule.endpoint for rule in app.url_map.iter_rules()} - NEEDS.keys():
        raise LookupError(f"routes.py has no line for {', '.join(sorted(unknown))}: say what they take.")
