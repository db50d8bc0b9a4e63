"""What the hub and the inference server have in common as HTTP services. Knows neither of their frameworks."""

import uuid
from ipaddress import ip_address

LOOPBACK = ("127.0.0.1", "localhost", "::1")
MAX_ID_CHARS = 100


def is_loopback(host: str) -> bool:
    """Whether who listens there is reached from this machine alone."""
    try:
        return host in LOOPBACK or ip_address(host).is_loopback
    except ValueError:  # a name of another machine's, or of all addresses
        return False


def request_id(given: str) -> str:
    """The client's own X-Request-Id, where it can stand in a log line and a header; else a new one."""
    return given if given.isascii() and given.isprintable() and 0 < len(given) <= MAX_ID_CHARS else uuid.uuid4().hex
