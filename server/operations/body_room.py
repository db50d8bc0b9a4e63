"""Room for bodies that are read at once: the places for answers bound their number, this what they weigh."""

import threading

MOST_BODIES_BYTES = 256 << 20  # what is made of JSON may weigh many times as much
SMALL_BYTES = 1 << 20  # those take none: one for each thread, they weigh about as much


class BodyRoom:
    """So many bytes at `most` of bodies that are not small. Safe for many threads."""

    def __init__(self, most: int):
        self._most = most
        self._taken = 0
        self._lock = threading.Lock()

    def enter(self, size: int) -> bool:
        """Take room for a body, to be left with `leave`; False where there is none."""
        if size <= SMALL_BYTES:
            return True
        with self._lock:
            if self._taken + size > self._most:
                return False
            self._taken += size
            return True

    def leave(self, size: int) -> None:
        if size > SMALL_BYTES:
            with self._lock:
                self._taken -= size
