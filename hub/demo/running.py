"""Running `graft` commands as the user would: where a terminal watches, their bars are seen; elsewhere all goes to a log."""

import json
import shlex
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import IO, Any

from rich.console import Console

from graft.hub.errors import GraftError

Hears = Callable[[str], None]
_LISTEN_EVERY_S = 0.2


def _nobody(line: str) -> None:
    pass


class Terminated(KeyboardInterrupt):
    """SIGTERM came: unlike Ctrl-C in a terminal, the commands that run have not heard of it."""


def hear_termination() -> None:
    """From now on SIGTERM ends this process as Ctrl-C does, in order."""
    signal.signal(signal.SIGTERM, _raise)


def _raise(number: int, frame: FrameType | None) -> None:
    raise Terminated


@dataclass(frozen=True)
class Done:
    """A command that has ended."""

    words: tuple[str, ...]
    code: int
    stdout: str
    stderr: str  # "" where it went to the terminal

    @property
    def reason(self) -> str:
        """Why it failed, in its own words."""
        lines = self.stderr.strip().splitlines()
        starts = [at for at, line in enumerate(lines) if line.startswith("error: ")]
        if starts:
            return " ".join(lines[starts[-1] :]).removeprefix("error: ")
        return lines[-1] if lines else "its message is above"

    @property
    def answer(self) -> Any:
        """The JSON document it printed, None where there is none."""
        try:
            return json.loads(self.stdout)
        except ValueError:
            return None


class CommandRunner:
    """Runs `graft` commands one after another; what they say besides is kept in `log`."""

    def __init__(self, console: Console, log: Path, lock: int | None = None):
        """`lock`: a file that the commands keep open, so that it stays locked as long as any of them lives."""
        self._console = console
        self._log = log
        self._handed_on = () if lock is None else (lock,)

    def start(self, words: tuple[str, ...], out: IO[str] | None, err: IO[str] | None) -> subprocess.Popen:
        """A command in the background."""
        return subprocess.Popen(command(*words), stdout=out, stderr=err, pass_fds=self._handed_on)

    def try_(self, *words: str, watched: bool = False, hears: Hears = _nobody) -> Done:
        """Run a command to its end, whatever that is. `watched`: it takes long, so a terminal shows its bars.

        `hears` gets every line that no terminal shows, as it comes.
        """
        self.show(words)
        shown = watched and self._console.is_terminal
        with tempfile.TemporaryFile("w+") as out, tempfile.NamedTemporaryFile("w+") as err, open(err.name) as reader:
            process = self.start(words, out, None if shown else err)
            code = _wait(process, lambda: _hand_on(reader, hears))
            out.seek(0)
            err.seek(0)
            done = Done(words, code, out.read(), err.read())
        with self._log.open("a") as log:
            log.write(f"$ graft {shlex.join(words)}\n{done.stderr}")
        return done

    def run(self, *words: str, watched: bool = False) -> Done:
        """Run a command that has to work. Raises GraftError with its reason when it does not."""
        done = self.try_(*words, watched=watched)
        if done.code:
            raise GraftError(f"`graft {words[0]}` failed: {done.reason} What was finished before it is kept.")
        return done

    def show(self, words: tuple[str, ...], ending: str = "") -> None:
        """The command line, for people who want to type it themselves."""
        if self._console.is_terminal:
            self._console.print(f"[dim]$ graft {shlex.join(words)}{ending}", highlight=False, soft_wrap=True)


def command(*words: str) -> list[str]:
    """A `graft` command line run by this very Python."""
    return [sys.executable, "-m", "graft.hub.cli.main", *words]


def _hand_on(lines: Iterable[str], hears: Hears) -> None:
    for line in lines:
        hears(line)


def _wait(process: subprocess.Popen, meanwhile: Callable[[], None]) -> int:
    """Until it has ended. When interrupted, it may end in its own time: it has work to save. A second time, it may not."""
    try:
        while process.poll() is None:
            with suppress(subprocess.TimeoutExpired):
                process.wait(_LISTEN_EVERY_S)
            meanwhile()
        return process.returncode
    except KeyboardInterrupt as interrupt:
        if isinstance(interrupt, Terminated):
            process.send_signal(signal.SIGINT)
        try:
            process.wait()
        finally:
            process.kill()
        raise
