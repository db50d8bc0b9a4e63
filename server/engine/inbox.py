"""Messages to the engine's thread, which sleeps while there are none."""

import threading
from collections.abc import Iterator
from contextlib import suppress
from queue import SimpleQueue

from graft.hub.errors import GraftError
from graft.server.engine.messages import Message
from graft.server.errors import ClosedError, EndedError


class Inbox:
    """`put` on any thread; the rest on the engine's."""

    def __init__(self) -> None:
        self._messages: SimpleQueue[Message] = SimpleQueue()
        self._filled = threading.Event()
        self._lock = threading.Lock()
        self._closed: GraftError | None = None

    def put(self, message: Message) -> None:
        """Raises what `close` was given where nobody will read the message."""
        with self._lock:
            if self._closed is not None:
                raise type(self._closed)(str(self._closed))
            self._messages.put(message)
        self._filled.set()

    def post(self, message: Message) -> None:
        """Put a message that nobody needs once the engine has ended: whom it is about has been told."""
        with suppress(ClosedError, EndedError):
            self.put(message)

    def close(self, reason: GraftError) -> None:
        """Nothing can be put from now on; the last messages can still be taken."""
        with self._lock:
            self._closed = self._closed or reason

    def take(self, *, wait: bool, timeout: float | None = None) -> Iterator[Message]:
        """All messages so far, one by one; waits for the first if asked to. What is not taken stays."""
        if wait:
            self._filled.wait(timeout)
        self._filled.clear()
        for _ in range(self._messages.qsize()):
            yield self._messages.get()
