"""What the hub and the inference server have in common as HTTP services. Knows neither of their frameworks."""

import uuid

LOOPBACK = ("127.0.0.1", "localhost", "::1")
MAX_ID_CHARS = 100


def request_id(given: str) -> str:
    """The client's own X-Request-Id, where it can stand in a log line and a header; else a new one."""
    return given if given.isascii() and given.isprintable() and 0 < len(given) <= MAX_ID_CHARS else uuid.uuid4().hex
