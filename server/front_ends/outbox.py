"""Sends frames on a socket without ever waiting for who reads them: the engine's thread does."""

import select
import socket
import threading

MAX_UNREAD_BYTES = 256 << 20  # a front end that leaves more unread is taken for dead


class Outbox:
    """Safe for many threads. What the socket does not take at once waits in memory, and a thread sends it on."""

    def __init__(self, sock: socket.socket):
        self._socket = sock
        self._lock = threading.Lock()
        self._waiting = bytearray()
        self._filled = threading.Event()
        self._closed = False
        threading.Thread(target=self._drain, name="graft-outbox", daemon=True).start()

    def send(self, frame: bytes) -> None:
        """What can't be sent any more is dropped: the other end has gone."""
        with self._lock:
            if self._closed:
                return
            sent = 0 if self._waiting else self._try(frame)
            if sent == len(frame):
                return
            self._waiting += frame[sent:]
            if len(self._waiting) > MAX_UNREAD_BYTES:
                self._close()
        self._filled.set()

    def close(self) -> None:
        """The other end is told so, and whoever reads here. Idempotent."""
        with self._lock:
            self._close()
        self._filled.set()

    def _close(self) -> None:
        self._closed = True
        self._waiting.clear()
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
        while self._filled.wait() and not self._closed:
            poll.poll()
            with self._lock:
                del self._waiting[: self._try(self._waiting)]
                if not self._waiting:
                    self._filled.clear()
