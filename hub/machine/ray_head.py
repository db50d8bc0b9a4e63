"""Whether there is the head of a Ray cluster at an address: Ray itself waits for minutes where nobody is, and for ever where it is
somebody else.
"""

import os
import socket

from graft.hub.errors import GraftError

_ANSWER_S = 10.0  # how long a cluster's head may take to answer
_HELLO = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes((0, 0, 0, 4, 0, 0, 0, 0, 0))  # gRPC: HTTP/2's preface, no settings
_SETTINGS = b"\4"  # what kind of frame answers it


def require_head(address: str | None) -> None:
    """Raises GraftError for what is no address, and where nobody speaks gRPC."""
    if address in (None, "auto", "local"):
        return
    host, colon, port = address.rpartition(":")
    if not (host and colon and port.isdecimal()) or "/" in host:
        raise GraftError(no_cluster(address, "it is not of the form HOST:PORT, nor auto or local."))
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=_ANSWER_S) as head:
            if os.environ.get("RAY_USE_TLS", "0").lower() in ("1", "true"):
                return
            head.sendall(_HELLO)
            answer = head.makefile("rb").read(4)  # a frame's length and kind
    except (OSError, OverflowError) as error:
        raise GraftError(no_cluster(address, f"nobody answers there ({error}).")) from None
    if not answer.endswith(_SETTINGS):
        raise GraftError(no_cluster(address, "what answers there is no head of one."))


def no_cluster(address: str | None, why: str) -> str:
    """What to say where none could be joined, or none started."""
    where = f" at {address}" if address else ""
    return (
        f"No Ray cluster could be joined{where}: {why} Start one with `ray start --head` and give its --ray-address, or leave "
        "that out to start one on this machine."
    )
