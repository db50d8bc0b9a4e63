"""What was used, by key and adapter: a line of JSON each, in a file that may be rotated while written to. Torch-free."""

import errno
import json
import logging
import os
import threading
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from graft.hub.errors import GraftError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Usage:
    """One request's. `key`: the holder's name, "" where nobody is asked for one. `adapter`: None for the bare base, by the name
    that it is known by. `cut_off`: it did not come to its end: the client went, or it failed."""

    request_id: str
    key: str
    route: str
    model: str
    adapter: str | None = None
    digest: str | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cut_off: bool = False

    @property
    def tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens


class UsageFile:
    """Safe for many threads and processes: each line is one write at the end of the file, which is opened again where it was
    moved away. Raises GraftError where it can't be written; what fails later is logged."""

    def __init__(self, path: Path):
        self._path = path
        self._lock = threading.Lock()
        self._torn = False  # the disk was full in the middle of the last line
        try:
            self._file = _open(path)
        except OSError as error:
            raise GraftError(f"Usage can't be written to {path}: {error.strerror}.") from None

    def write(self, usage: Usage) -> None:
        at = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        line = json.dumps({"time": at, **asdict(usage)}).encode() + b"\n"
        with self._lock:
            try:
                self._follow()
                self._append(line)
            except OSError as error:
                log.error("usage can't be written to %s (%s): %s", self._path, error.strerror, line.decode().strip())

    def close(self) -> None:
        with self._lock:
            os.close(self._file)

    def _append(self, line: bytes) -> None:
        """Raises OSError for a line that is not there whole."""
        data = b"\n" + line if self._torn else line
        written = os.write(self._file, data)
        self._torn = written < len(data)
        if self._torn:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def _follow(self) -> None:
        """The path may lead to another file by now, or to none."""
        mine = os.fstat(self._file)
        try:
            there = os.stat(self._path)
        except FileNotFoundError:
            there = None
        if there is None or (there.st_dev, there.st_ino) != (mine.st_dev, mine.st_ino):
            other = _open(self._path)
            os.close(self._file)
            self._file = other
            self._torn = False


def _open(path: Path) -> int:
    return os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o640)
