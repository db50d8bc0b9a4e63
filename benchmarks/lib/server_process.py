"""A server that is measured, as a process (and those that it starts) on a port of its own: started, looked at, ended.

Standard library only. What it writes goes to a file, so that it never waits for room in a pipe. Knows no system.
"""

import json
import os
import signal
import socket
import subprocess
import tempfile
import time
import urllib.request
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

from benchmarks.lib.common import process_tree, tree_cpu_seconds

HOST = "127.0.0.1"
START_S, END_S = 600.0, 60.0
_PAGE = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True)
class Server:
    """How one is started. `command` lacks its port. `ready`: the path that answers 200 once requests are taken."""

    name: str
    command: tuple[str, ...]
    ready: str = "/health"
    environment: dict[str, str] = field(default_factory=dict)


class ServerProcess:
    """One that runs, ready to be asked. To be used with `with`."""

    def __init__(self, server: Server, port: int | None = None):
        """`port`: any free one where there is none. Raises RuntimeError where it ends before it is ready, or never is."""
        self.server = server
        self.address = (HOST, port or free_port())
        self._log = tempfile.NamedTemporaryFile("w+", prefix=f"{server.name}-", suffix=".log")  # noqa: SIM115  closed in close
        self.process = subprocess.Popen(
            (*server.command, "--port", str(self.address[1])),
            env=os.environ | server.environment,
            stdout=self._log,
            stderr=subprocess.STDOUT,
        )
        try:
            self._wait_until_ready()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> "ServerProcess":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Ends it and what it has started: by SIGINT, since SIGTERM may drain; by force where that takes too long."""
        started = process_tree(self.process.pid)
        self.process.send_signal(signal.SIGINT)
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(END_S)
        for pid in started if self.process.poll() is None else started[1:]:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()
        self._log.close()

    def get(self, path: str) -> bytes:
        """Raises OSError."""
        with urllib.request.urlopen(f"http://{self.address[0]}:{self.address[1]}{path}", timeout=30) as answer:
            body: bytes = answer.read()
        return body

    @property
    def base_model(self) -> str:
        """What its requests call the base."""
        listed = json.loads(self.get("/v1/models"))["data"]
        name: str = next(model["id"] for model in listed if not model.get("parent"))
        return name

    def cpu_s(self) -> float:
        return tree_cpu_seconds(self.process.pid)

    def resident(self) -> dict[int, int]:
        """Resident bytes of each of its processes, the first one's first."""
        return {pid: size for pid in process_tree(self.process.pid) if (size := _resident_bytes(pid))}

    def said(self) -> str:
        """What it wrote."""
        return Path(self._log.name).read_text(errors="replace")

    def drain(self) -> tuple[float, int]:
        """Ends it by SIGTERM: the seconds that it took, and its exit status. Raises TimeoutExpired where it does not end."""
        began = time.monotonic()
        self.process.send_signal(signal.SIGTERM)
        code = self.process.wait(END_S)
        return time.monotonic() - began, code

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + START_S
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                raise RuntimeError(f"{self.server.name} ended with {self.process.returncode}: {self.said()[-3000:]}")
            with suppress(OSError):  # nobody listens yet, or 503
                self.get(self.server.ready)
                return
            time.sleep(0.1)
        raise RuntimeError(f"{self.server.name} is not ready after {START_S:.0f} s: {self.said()[-3000:]}")


def free_port() -> int:
    with socket.create_server((HOST, 0)) as one:
        port: int = one.getsockname()[1]
        return port


def _resident_bytes(pid: int) -> int:
    """0 for a process that is gone."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * _PAGE
    except OSError:
        return 0
