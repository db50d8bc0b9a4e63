"""Whether somebody still waits for what was asked for, and what is to be done once nobody does. Knows nothing of what it is."""

import threading
from collections.abc import Callable


def _nothing() -> None:
    pass


class Interest:
    """Somebody's, in one thing that takes its time. Safe for many threads."""

    def __init__(self) -> None:
        self.over = False
        self._withdraw: Callable[[], None] = _nothing
        self._lock = threading.Lock()

    def end(self) -> None:
        """Nobody waits any more, be it there by now or not."""
        with self._lock:
            self.over = True
            withdraw, self._withdraw = self._withdraw, _nothing
        withdraw()

    def then(self, withdraw: Callable[[], None]) -> None:
        """What to do when it ends, in place of what was said before; done at once where it has ended. Hold no lock that
        `withdraw` takes."""
        with self._lock:
            if not self.over:
                self._withdraw = withdraw
                return
        withdraw()
