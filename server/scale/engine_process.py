"""An engine in a process of its own: an ordinary `graft serve`, started, watched and ended by whoever is responsible for it.

Ray-free. It has an interpreter of its own, so an environment of its own; what is asked of it goes over HTTP.
"""

import os
import re
import secrets
import signal
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass

from graft.hub.errors import GraftError
from graft.server.http.access.introduction import Introduction

SECRET_VARIABLE = "GRAFT_INGRESS_SECRET"  # what `graft serve` finds there makes it an engine behind an ingress
PARENT_VARIABLE = "GRAFT_INGRESS_PARENT"
ASK_S = 30.0
_LAST_LINES = 20
_READY = re.compile(r"ready at (http://\S+)/v1")
THREADS_VARIABLE = "OMP_NUM_THREADS"


@dataclass(frozen=True)
class EngineCommand:
    """How every engine of a deployment is started. `python`: its interpreter; `arguments`: of the `program`, but where it
    listens; `folder`: where relative names are looked up; `threads`: OMP_NUM_THREADS as it was set where the deployment was
    made, for Ray sets it for its workers."""

    python: str
    arguments: tuple[str, ...]
    folder: str
    threads: str | None = None
    program: tuple[str, ...] = ("-m", "graft.hub.cli.main", "serve")

    def words(self, host: str) -> list[str]:
        return [self.python, *self.program, *self.arguments, "--host", host, "--port", "0"]

    def environment(self, environment: Mapping[str, str], secret: str) -> dict[str, str]:
        own = {name: value for name, value in environment.items() if name != THREADS_VARIABLE}
        set_by_hand = {} if self.threads is None else {THREADS_VARIABLE: self.threads}
        return own | set_by_hand | {SECRET_VARIABLE: secret, PARENT_VARIABLE: str(os.getpid())}


class EngineFailure(GraftError):
    """An engine that did not start, or ended by itself; the message has its own last words."""

    code = "engine_ended"


class EngineProcess:
    """Started by the constructor, on a thread that must outlive it: the kernel ends it with that thread. `secret`: whoever shows
    it is answered, and nobody else."""

    def __init__(self, command: EngineCommand, host: str):
        """Raises EngineFailure where there is no such interpreter or folder."""
        self.url = ""
        self.secret = secrets.token_urlsafe(32)
        self._lines: deque[str] = deque(maxlen=_LAST_LINES)
        self._ready = threading.Event()  # or ended
        try:
            self._process = subprocess.Popen(
                command.words(host),
                cwd=command.folder,
                env=command.environment(os.environ, self.secret),
                stdin=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
                errors="replace",
                start_new_session=True,  # a terminal's Ctrl-C is not for it
            )
        except OSError as error:
            raise EngineFailure(
                f"An engine can't be started with {command.python} in {command.folder}: {error}."
            ) from None
        self._reader = threading.Thread(target=self._read, name="graft-engine-log", daemon=True)
        self._reader.start()

    def await_ready(self) -> str:
        """Its address. Raises EngineFailure, with its last words, where it ends instead."""
        self._ready.wait()
        if not self.url:
            raise EngineFailure(self.last_words())
        return self.url

    def wait(self) -> int:
        """Until it has ended; the exit status."""
        return self._process.wait()

    def end(self, seconds: float) -> None:
        """As SIGTERM does: it drains. What still runs after so many seconds is killed."""
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def ask(self, path: str, timeout: float | None = ASK_S) -> bytes:
        """What it answers to a GET. Raises EngineFailure where it does not, or with an error."""
        headers = Introduction("ray", admin=True).headers(self.secret)
        try:
            with urllib.request.urlopen(
                urllib.request.Request(self.url + path, headers=headers), timeout=timeout
            ) as answer:
                said: bytes = answer.read()
                return said
        except urllib.error.HTTPError as error:
            raise EngineFailure(
                f"The engine answers {error.code}: {error.read(1000).decode(errors='replace')}"
            ) from None
        except OSError as error:
            raise EngineFailure(f"The engine does not answer: {error}.") from None

    def last_words(self) -> str:
        """What it said of its end."""
        self._process.wait()
        self._reader.join(1.0)
        errors = [line for line in self._lines if line.lower().startswith(("error", "usage"))]
        said = " ".join(errors) or " ".join(list(self._lines)[-3:]) or "it said nothing"
        return f"The engine has ended (status {self._process.returncode}): {said}"

    def _read(self) -> None:
        """Passes on what it logs."""
        assert self._process.stderr is not None
        for line in self._process.stderr:
            print(line, end="", file=sys.stderr, flush=True)
            self._lines.append(line.strip())
            if not self.url and (found := _READY.search(line)):
                self.url = found[1]
                self._ready.set()
        self._ready.set()
