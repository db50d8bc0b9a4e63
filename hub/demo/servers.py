"""The demo's servers: ports that are free, a `graft` server in the background, and what it is asked."""

import json
import shlex
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from graft.hub.demo.data import DemoTask
from graft.hub.demo.running import CommandRunner
from graft.hub.demo.story import ANSWER_TOKENS, QUESTIONS
from graft.hub.errors import GraftError

FIRST_PORT, LAST_PORT = 8000, 8090
_UP_S = 300  # a base loads within it, wherever training it was bearable


@dataclass(frozen=True)
class ModelAnswer:
    """What a model said to its task's question, or why it was refused."""

    task: str
    model: str
    text: str = ""
    digest: str = ""
    refused: str = ""


def ports(wanted: int | None) -> tuple[int, int]:
    """A port for the inference server and the next one for the hub. Raises GraftError where they are taken."""
    if wanted is None:
        for port in range(FIRST_PORT, LAST_PORT, 10):
            if _is_free(port) and _is_free(port + 1):
                return port, port + 1
        raise GraftError("No port from 8000 to 8090 is free; choose another with --port.")
    for port in (wanted, wanted + 1):
        if not _is_free(port):
            raise GraftError(f"Port {port} is taken; choose another with --port (the hub takes the next one).")
    return wanted, wanted + 1


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the server will
        try:
            probe.bind(("127.0.0.1", port))
        except (OSError, OverflowError):
            return False
    return True


@contextmanager
def run_server(runner: CommandRunner, words: tuple[str, ...], url: str, log: Path) -> Iterator[subprocess.Popen]:
    """A `graft` server in the background until the block ends. Raises GraftError if it doesn't come up."""
    runner.show(words, " &")
    with log.open("w") as out:
        process = runner.start(words, out, out)
    try:
        _wait_until_up(process, url, shlex.join(words), log)
        yield process
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()


def _wait_until_up(process: subprocess.Popen, url: str, words: str, log: Path) -> None:
    deadline = time.monotonic() + _UP_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            lines = log.read_text().strip().splitlines() or ["it said nothing"]
            raise GraftError(f"`graft {words}` stopped: {lines[-1].removeprefix('error: ')} (all it said: {log})")
        try:
            with urllib.request.urlopen(url, timeout=5) as response:
                response.read()  # a server complains of who hangs up before
            return
        except OSError:
            time.sleep(0.3)
    raise GraftError(f"`graft {words}` did not answer at {url} within {_UP_S} s; what it said: {log}.")


def ask(port: int, task: DemoTask, model: str) -> ModelAnswer:
    """The task's question to one model. A refusal is an answer; only a server that fails raises GraftError."""
    body = {"model": model, "prompt": QUESTIONS[task], "max_tokens": ANSWER_TOKENS[task], "temperature": 0}
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/v1/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request, timeout=300) as response:
            text = json.load(response)["choices"][0]["text"].strip()
            return ModelAnswer(task.slug, model, text.partition("\n")[0], response.headers.get("X-Adapter-Digest", ""))
    except urllib.error.HTTPError as error:
        said = error.read().decode(errors="replace")
        if error.code >= 500:
            raise GraftError(f"The server failed on {model}: {said}") from None
        return ModelAnswer(task.slug, model, refused=json.loads(said)["error"]["message"])
    except OSError as error:
        raise GraftError(f"The server did not answer for {model}: {error}.") from None
