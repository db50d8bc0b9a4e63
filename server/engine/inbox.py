"""Messages to the engine's thread."""

import threading
from collections.abc import Callable
from queue import SimpleQueue

from graft.server.errors import ClosedError


class Inbox:
    """Messages to the engine's thread, which sleeps while there are none."""

    def __init__(self) -> None:
        self._messages: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self._filled = threading.Event()
        self._lock = threading.Lock()
        self._closed = False

    def put(self, message: Callable[[], None]) -> None:
        """Raises ClosedError where nobody will read the message."""
        with self._lock:
            if self._closed:
                raise ClosedError("The server is shutting down.")
            self._messages.put(message)
        self._filled.set()

    def close(self) -> list[Callable[[], None]]:
        """The last messages; nothing can be put from now on."""
        with self._lock:
            self._closed = True
        return self.take(wait=False)

    def take(self, *, wait: bool, timeout: float | None = None) -> list[Callable[[], None]]:
        """All messages so far; waits for one if asked to."""
        if wait:
            self._filled.wait(timeout)
        self._filled.clear()
        taken = []
        while not self._messages.empty():
            taken.append(self._messages.get())
        return taken
