"""The description of graft's own API, from which clients and the fuzz tests are made."""

from typing import Any


def document() -> dict[str, Any]:
    return {"openapi": "3.1.0", "info": {"title": "graft hub", "version": "1"}, "paths": {}}
