"""How `graft serve` ends: by a signal, by an engine that ended by itself, or by one that never comes back from a step."""

import faulthandler
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from types import FrameType
from typing import TYPE_CHECKING

import click

from graft.hub.errors import GraftError
from graft.hub.terminal.strangers_words import visible_text
from graft.server.engine.client import STUCK_S
from graft.server.errors import EndedError
from graft.server.leaving import threads_left

if TYPE_CHECKING:
    from graft.server.engine.engine import Engine

log = logging.getLogger(__name__)
LAST_WORDS_S = 1.0  # after an engine's failure: streams get their error, and /health can be asked
LOOK_S = 1.0  # how often it is looked whether a step hangs


class Ending:
    """What SIGINT or SIGTERM ends: the start, or the engine, by which every stream ends with an error. The first SIGTERM lets
    requests under way end before.

    An engine that ends by itself ends the server in the same way. One whose thread hangs can't be waited for: the process exits.
    """

    SIGNALS = (signal.SIGINT, signal.SIGTERM)

    def __init__(self, step_timeout: float) -> None:
        """`step_timeout`: seconds of one step after which the server ends; 0: it goes on waiting."""
        self.engine: Engine | None = None
        self.ended = False  # by a signal: KeyboardInterrupt has been raised, or is about to be
        self._step_timeout = step_timeout
        self._drain: Callable[[Callable[[], None]], None] | None = None
        for number in self.SIGNALS:
            signal.signal(number, self._end)

    def watch(self, engine: "Engine") -> None:
        self.engine = engine
        threading.Thread(target=self._watch, args=(engine,), name="graft-watchdog", daemon=True).start()

    def drain_first(self, begin: Callable[[Callable[[], None]], None]) -> None:
        """From now on the first SIGTERM begins a drain. `begin`: called with what is to be called when it is done."""
        self._drain = begin

    def _watch(self, engine: "Engine") -> None:
        said_s = 0.0
        while not engine.ended.wait(LOOK_S):
            age = engine.turn_s
            said_s = _say_if_stuck(age, said_s)
            if self._step_timeout and age > self._step_timeout:
                stuck = EndedError(f"The engine has not come back from a step in {age:.0f} s: restart the server.")
                engine.end_all(stuck)
                time.sleep(LAST_WORDS_S)
                _say_failure(stuck)
                os._exit(1)
        if engine.failure is not None:
            time.sleep(LAST_WORDS_S)
            _end_myself()

    def _end(self, number: int, frame: FrameType | None) -> None:
        drain, self._drain = self._drain, None
        if number == signal.SIGTERM and drain is not None and self.engine is not None and self.engine.alive:
            drain(_end_myself)
            return
        for each in self.SIGNALS:
            signal.signal(each, signal.SIG_IGN)
        if self.engine is not None:
            self.engine.close()
        self.ended = True
        raise KeyboardInterrupt


def leave(failure: GraftError | None = None) -> None:
    """End the process, status 0, or 1 and what the failure says, where threads are left that nobody waits for any more: one that
    is in a library's C++ can't be ended, and where Python unwinds it as it finalizes, the process aborts. Where none is left:
    returns, or raises the failure."""
    if not threads_left():
        if failure is not None:
            raise failure
        return
    if failure is not None:
        _say_failure(failure)
    logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    os._exit(0 if failure is None else 1)


def _say_failure(failure: GraftError) -> None:
    click.echo(f"error: {visible_text(str(failure))}", err=True)


def _end_myself() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def _say_if_stuck(age: float, said_s: float) -> float:
    """For the log, once and then at each doubling: a step of `age` seconds. `said_s`: of which age it was said last, 0 for none."""
    if age < STUCK_S:
        return 0.0
    if age < 2 * said_s:
        return said_s
    log.error("the engine has been at one step for %.0f s", age)
    if not said_s:
        faulthandler.dump_traceback()
    return age
