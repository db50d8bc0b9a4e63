"""The front ends of a server: processes that speak HTTP, started, watched and started again by the engine's process.

Each is a Python of its own that never imports torch. It inherits the listening sockets, and one end of a socket pair by which it
reaches the engine: where that breaks, either side knows that the other has gone, however it went.
"""

import logging
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack

from graft.hub.errors import GraftError
from graft.server.engine.client import EngineClient
from graft.server.front_ends.frames import Start
from graft.server.front_ends.session import Session
from graft.server.http.clients import Places
from graft.server.operations.children import sheltered

log = logging.getLogger(__name__)
MODULE = "graft.server.commands.front_end"
END_S = 6.0  # for last words; then it is killed
LATE_S = 2.0  # for one that drains to say that its time is over
SOON_S = 10.0  # one that lives shorter is started again after a while
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.1, 5.0


class FrontEnds:
    """Entered when all answer, left when all have ended. `processes`: those that run now."""

    def __init__(
        self, number: int, listening: Sequence[socket.socket], engine: EngineClient, places: Places, start: Start
    ):
        self._listening = listening
        self._engine = engine
        self._places = places
        self._start = start
        self._ending = threading.Event()  # no more are started
        self._failed = threading.Event()  # one was not to be had, or ended before it was ready, at the first try
        self._ready = [threading.Event() for _ in range(number)]
        self._sessions: dict[int, Session] = {}
        self.processes: dict[int, subprocess.Popen[bytes]] = {}
        self._lock = threading.Lock()  # of starting one, and of closing
        self._keepers = [
            threading.Thread(target=self._keep, args=(place,), name=f"graft-front-end-{place}", daemon=True)
            for place in range(number)
        ]

    def __enter__(self) -> "FrontEnds":
        """Raises GraftError where one does not come up."""
        for keeper in self._keepers:
            keeper.start()
        for ready in self._ready:
            while not ready.wait(0.05):
                if self._failed.is_set():
                    self.close()
                    raise GraftError(
                        "A process for HTTP did not become ready. What it said, or why there is none, is above."
                    )
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def drain(self, seconds: float, done: Callable[[], None]) -> None:
        """Have each drain; `done` is called on a thread when all have, or after little more than so many seconds."""
        threading.Thread(target=self._drain, args=(seconds, done), name="graft-drain", daemon=True).start()

    def _drain(self, seconds: float, done: Callable[[], None]) -> None:
        until = time.monotonic() + seconds + LATE_S
        with self._lock:
            self._ending.set()
            sessions = list(self._sessions.values())
            for one in self._listening:  # of which each process has its own, and closes it when it has drained
                one.close()
        for session in sessions:
            session.drain(seconds)
        for session in sessions:
            session.drained.wait(max(0.0, until - time.monotonic()))
        done()

    def close(self) -> None:
        """End them all, when they have said their last words. Idempotent."""
        with self._lock:
            self._ending.set()
            for session in self._sessions.values():
                session.close()
        until = time.monotonic() + END_S
        for process in list(self.processes.values()):
            try:
                process.wait(max(0.0, until - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
        for keeper in self._keepers:
            if keeper.ident is not None:
                keeper.join(END_S)

    def _keep(self, place: int) -> None:
        """Have one front end run, until the server ends."""
        pause_s = FIRST_PAUSE_S
        while not self._ending.is_set():
            began = time.monotonic()
            session = self._begin(place)
            code = self._attend(place, session) if session is not None else None
            if self._ending.is_set():
                if code:
                    log.error("a process for HTTP has ended (%s) before its requests had", code)
                return
            if not self._ready[place].is_set():
                self._failed.set()
                return
            if time.monotonic() - began > SOON_S:
                pause_s = FIRST_PAUSE_S
            if session is not None:
                log.error("a process for HTTP has ended (%s); its requests are cancelled, another is started", code)
            self._ending.wait(pause_s)
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)

    def _begin(self, place: int) -> Session | None:
        """Start a process; None where the server ends, or where the system has no process, file or thread for it."""
        try:
            return self._try_to_begin(place)
        except (OSError, RuntimeError) as error:  # the latter: of a thread that can't be started
            log.error("a process for HTTP can't be started (%s)", error)
            return None

    def _try_to_begin(self, place: int) -> Session | None:
        ours, theirs = socket.socketpair()
        with self._lock, theirs, sheltered(), ExitStack() as unless_begun:
            unless_begun.enter_context(ours)
            if self._ending.is_set():
                return None
            passed = [one.fileno() for one in (theirs, *self._listening)]
            self.processes[place] = subprocess.Popen(
                [sys.executable, "-m", MODULE, *map(str, passed)],
                stdin=subprocess.DEVNULL,
                pass_fds=passed,
                start_new_session=True,  # it outlives a terminal that is closed by as long as its last words take
            )
            session = self._sessions[place] = Session(ours, self._engine, self._places, self._start, self._ready[place])
            unless_begun.pop_all()
        return session

    def _attend(self, place: int, session: Session) -> int:
        """Serve a front end until it has gone; its exit code."""
        try:
            session.run()
        except Exception:
            log.exception("serving a process for HTTP failed")
        process = self.processes[place]
        try:
            return process.wait(END_S)  # it has hung up, and may be saying its last words
        except subprocess.TimeoutExpired:
            process.kill()
            return process.wait()
