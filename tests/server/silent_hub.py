"""A hub that is there and never answers: a listening socket on loopback, and what is sent to it."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager


class SilentHub:
    """`asked`: connections that have been made to it. All stay open until it is closed."""

    def __init__(self) -> None:
        self.asked: list[socket.socket] = []
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listening.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                self.asked.append(self._listening.accept()[0])
            except OSError:  # it has been closed
                return

    def close(self) -> None:
        """Who waits for an answer learns that there is none. Idempotent."""
        if self._listening.fileno() < 0:
            return
        self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        for connection in self.asked:
            connection.close()


@contextmanager
def silent_hub() -> Iterator[SilentHub]:
    hub = SilentHub()
    try:
        yield hub
    finally:
        hub.close()
