"""Ctrl-C while training: what it ends, what is said of it at once, and what it may never break.

Knows when to save; what a save is, and who reads what is said, it is told.
"""

import signal
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from types import FrameType

from graft.hub.evaluation.metrics import Score
from graft.trainer.learners.learner import Learner


class Keeper:
    """A watcher that saves all states every so many rounds, and when Ctrl-C asks the run to end.

    Within its context the first Ctrl-C waits for the end of the round, the only moment from which a training
    continues bit for bit, and `say` tells so and what a second one costs: that ends at once, without saving, unless
    the saving is under way.
    """

    def __init__(
        self,
        save: Callable[[], None],
        every: int | None,
        learners: Sequence[Learner],
        say: Callable[[str], None],
    ):
        self._save, self._every, self._say = save, every, say
        self._began = self._kept = max((learner.progress.step for learner in learners), default=0)
        self._rounds, self._asked = 0, False

    def __enter__(self) -> "Keeper":
        self._handlers = ExitStack()
        if _in_main_thread():
            self._handlers.enter_context(_set_handler(self._ask))
            self._handlers.enter_context(_hear_at_once(self._tell))
        return self

    def __exit__(self, *_: object) -> None:
        self._handlers.close()

    def _ask(self, *_: object) -> None:
        if self._asked:
            raise KeyboardInterrupt
        self._asked = True

    def _tell(self) -> None:
        step = self._began + self._rounds + 1
        lost = step - self._kept
        since = f"since the checkpoint of step {self._kept}" if self._kept else "so far: there is no checkpoint yet"
        steps = f"{lost} steps" if lost > 1 else "the step"
        self._say(
            f"Interrupted: finishing step {step} and saving. Ctrl-C again ends at once and loses {steps} made {since}."
        )

    def stepped(self, learner: Learner, seconds: float) -> None:
        pass

    def evaluated(self, learner: Learner, score: Score) -> None:
        pass

    def round_ended(self, learners: list[Learner]) -> None:
        self._rounds += 1
        if self._asked or (self._every and self._rounds % self._every == 0):
            with ignore_interrupts():
                self._save()
            self._kept = self._began + self._rounds
        if self._asked:
            raise KeyboardInterrupt


@contextmanager
def ignore_interrupts() -> Iterator[None]:
    """Ctrl-C is not heard within: half a save is none."""
    if not _in_main_thread():
        yield
        return
    with _set_handler(signal.SIG_IGN):
        yield


@contextmanager
def _set_handler(handler: Callable[[int, FrameType | None], None] | signal.Handlers) -> Iterator[None]:
    before = signal.signal(signal.SIGINT, handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def _hear_at_once(tell: Callable[[], None]) -> Iterator[None]:
    """Call `tell` at the first Ctrl-C, from a thread of its own.

    Python runs a signal's handler when the main thread comes back to it, and a backward pass is seconds long.
    """
    ear, mouth = socket.socketpair()
    mouth.setblocking(False)
    before = signal.set_wakeup_fd(mouth.fileno(), warn_on_full_buffer=False)

    def listen() -> None:
        while heard := ear.recv(1):
            if heard[0] == signal.SIGINT:
                return tell()

    listener = threading.Thread(target=listen, daemon=True)
    listener.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        mouth.close()  # which ends the listening
        listener.join()
        ear.close()


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()
