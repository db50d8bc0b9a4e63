"""The key that a request shows."""

from typing import Protocol

from graft.server.errors import InvalidKeyError


class Headers(Protocol):
    """Of a request, by name, however that is written."""

    def get(self, name: str, default: str, /) -> str: ...


def shown_key(headers: Headers) -> str:
    """As OpenAI's clients send it (`Authorization: Bearer KEY`), or Anthropic's (`x-api-key: KEY`). Raises InvalidKeyError where
    there is none."""
    scheme, _, bearer = headers.get("Authorization", "").strip().partition(" ")
    key = bearer.strip() if scheme.lower() == "bearer" else ""
    key = key or headers.get("x-api-key", "").strip()
    if not key:
        raise InvalidKeyError(
            "This server takes keys: send one as `Authorization: Bearer KEY`, or as `x-api-key: KEY`."
        )
    return key
