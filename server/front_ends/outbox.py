"""Sends frames on a socket without being held up by who reads them: the engine's thread does."""

import select
import socket
import threading
import time

LAG_BYTES = 64 << 10  # waiting to be taken, from which on a front end lags behind the engine
WAIT_S = 0.02  # that a step waits for one that lags
HUNG_S = 10.0  # without taking anything: it is taken for dead
_LOOK_S = 0.5


class Outbox:
    """Safe for many threads. What the socket does not take at once waits in memory, and a thread sends it on."""

    def __init__(self, sock: socket.socket):
        self._socket = sock
        self._changed = threading.Condition()
        self._waiting = bytearray()
        self._taken_at = time.monotonic()  # when the other end last took something
        self._closed = False
        threading.Thread(target=self._drain, name="graft-outbox", daemon=True).start()

    def send(self, frame: bytes) -> None:
        """What can't be sent any more is dropped: the other end has gone."""
        with self._changed:
            if self._closed:
                return
            sent = 0 if self._waiting else self._try(frame)
            if sent == len(frame):
                return
            if not self._waiting:
                self._taken_at = time.monotonic()
            self._waiting += memoryview(frame)[sent:]
            self._changed.notify_all()

    def let_catch_up(self) -> None:
        """Wait a moment where the other end lags: who makes more than is taken only makes it wait. One that takes nothing is not
        waited for."""
        if len(self._waiting) < LAG_BYTES:
            return
        with self._changed:
            if time.monotonic() - self._taken_at < WAIT_S * 10:
                self._changed.wait_for(lambda: len(self._waiting) < LAG_BYTES or self._closed, WAIT_S)

    def close(self) -> None:
        """The other end is told so, and whoever reads here. Idempotent."""
        with self._changed:
            self._close()

    def _close(self) -> None:
        self._closed = True
        self._waiting.clear()
        self._changed.notify_all()
        try:
            self._socket.shutdown(socket.SHUT_RDWR)
        except OSError:  # it has gone before
            return

    def _try(self, data: bytes | bytearray) -> int:
        try:
            return self._socket.send(data, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return 0
        except OSError:
            self._close()
            return len(data)

    def _drain(self) -> None:
        poll = select.poll()  # select() ends at 1024 files
        poll.register(self._socket.fileno(), select.POLLOUT)
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._closed)
                if self._closed:
                    return
            poll.poll(1000 * _LOOK_S)
            with self._changed:
                if taken := self._try(self._waiting):
                    self._taken_at = time.monotonic()
                    del self._waiting[:taken]
                    self._changed.notify_all()
                elif time.monotonic() - self._taken_at > HUNG_S:
                    self._close()
