"""The places for answers of all front ends, counted in one: in the engine's process."""

import threading
from collections import Counter

from graft.server.http.clients import Places


class PlacesTaken:
    """Those that one front end has taken, to be given back when it is gone. Safe for many threads."""

    def __init__(self, places: Places):
        self._places = places
        self._taken: Counter[str] = Counter()
        self._lock = threading.Lock()
        self._closed = False

    def enter(self, client: str) -> bool:
        with self._lock:
            entered = not self._closed and self._places.enter(client)
            self._taken[client] += entered
        return entered

    def leave(self, client: str) -> None:
        with self._lock:
            if not self._taken[client]:
                return  # they have been given back
            self._taken[client] -= 1
            self._places.leave(client)

    def leave_all(self) -> None:
        """No more can be taken."""
        with self._lock:
            self._closed = True
            for client in self._taken.elements():
                self._places.leave(client)
            self._taken.clear()
