"""`graft serve` ends without losing a request: SIGTERM refuses new ones, and lets those under way end."""

import json
import os
import re
import signal
import socket
import sys
import threading
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.server.commands.test_serve import children, place, process, url_of  # noqa: F401

STREAM = {"model": "base", "prompt": "a", "max_tokens": 250, "ignore_eos": True, "stream": True, "n": 8}
LONG = STREAM | {"n": 128}  # more than a kernel keeps for a reader who does not read


def asking(url: str, body: dict) -> urllib.request.Request:
    return urllib.request.Request(
        f"{url}/v1/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )


def refusal(url: str) -> tuple[int, str, bool]:
    try:
        with urllib.request.urlopen(url, timeout=10) as answer:
            return answer.status, "", False
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)["error"]["code"], "Retry-After" in error.headers


def end(started, number: int = signal.SIGTERM) -> None:
    """As systemd does by default: each process gets the signal."""
    for pid in (*children(started.pid), started.pid):
        os.kill(pid, number)


processes = pytest.mark.parametrize("processes", ["0", "2"])


@processes
def test_streams_end_while_new_requests_are_refused(place, processes):  # noqa: F811
    options = ("--kv-bytes", "4M", "--adapter", "mine=lora", "--log-format", "json", "--http-processes", processes)
    options += ("--drain-seconds", "300")  # as long as a busy machine takes
    with process(place, "--port", "0", *options) as started:
        said = []
        for line in started.stderr:
            said.append(line)
            if found := re.search(r"ready at (http://\S+)/v1", line):
                url = found[1]
                break
        with urllib.request.urlopen(asking(url, LONG), timeout=300) as stream:
            stream.readline()
            end(started)
            time.sleep(0.2)
            assert refusal(f"{url}/health") == (200, "", False)
            assert refusal(f"{url}/ready") == refusal(f"{url}/v1/models") == (503, "draining", True)
            assert stream.read().endswith(b"data: [DONE]\n\n")
        assert started.wait(10) == 0
        lines = [json.loads(line) for line in (*said, *started.stderr) if line.startswith("{")]
        text = " ".join(line.get("message", "") for line in lines)
        for part in (
            "parameters, float32 on cpu, EagerRunner",
            "room for ",
            "1 by name (mine)",
            "ended",
        ):
            assert part in text
        assert re.search("draining: [1-9] requests", text)
        asked = {line["route"]: line for line in lines if "route" in line}
        assert asked["/v1/completions"]["completion_tokens"] == 128 * 250 and asked["/ready"]["error"] == "draining"


@processes
def test_what_is_not_done_in_time_is_cut_off(place, processes):  # noqa: F811
    options = ("--kv-bytes", "4M", "--drain-seconds", "1", "--http-processes", processes)
    with process(place, "--port", "0", *options) as started:
        url = url_of(started)
        with urllib.request.urlopen(asking(url, LONG), timeout=60) as stream:
            stream.readline()
            began = time.monotonic()
            started.send_signal(signal.SIGTERM)
            assert b'"code":"closed"' in stream.read()
        assert started.wait(20) == 0 and 1 < time.monotonic() - began < 15


# The door is being closed when the signal comes: waitress calls that, and swallows what it raises.
SLOW_DOOR = """
import time
from graft.hub import connections
from graft.hub.cli.main import main
close_door, stop_listening = connections.close_door, connections._stop_listening
connections.close_door = lambda sockets: (close_door(sockets), time.sleep(0.5))
connections._stop_listening = lambda *each: (time.sleep(1.5), stop_listening(*each))
main()
"""


def test_a_signal_is_not_lost_where_its_exception_is(place):  # noqa: F811
    options = ("--port", "0", "--kv-bytes", "4M", "--drain-seconds", "1", "--http-processes", "0")
    with process(place, *options, command=[sys.executable, "-c", SLOW_DOOR, "serve"]) as started:
        with urllib.request.urlopen(asking(url_of(started), LONG), timeout=60) as stream:
            stream.readline()
            started.send_signal(signal.SIGTERM)
            assert b'"code":"closed"' in stream.read()
        assert started.wait(20) == 0


def read_on(started) -> str:
    """Its address; what it writes after that is read, or it would wait for room in the pipe."""
    url = url_of(started)
    threading.Thread(target=started.stderr.read, daemon=True).start()
    return url


@pytest.mark.slow
@processes
def test_a_rolling_restart_under_load_loses_nothing(place, processes):  # noqa: F811
    """Two servers, restarted one after the other; a client that is refused, or finds nobody, asks the other one."""
    with socket.create_server(("127.0.0.1", 0)) as one, socket.create_server(("127.0.0.1", 0)) as other:
        ports = [one.getsockname()[1], other.getsockname()[1]]
    urls, stop, lost, answered = [f"http://127.0.0.1:{port}" for port in ports], threading.Event(), [], []
    options = ("--kv-bytes", "8M", "--adapter", "mine=lora", "--http-processes", processes)

    def ask(number: int) -> None:
        turn = number
        while not stop.is_set():
            body = STREAM | {"model": ("base", "mine")[turn % 2], "n": 1, "max_tokens": 40, "stream": turn % 3 > 0}
            try:
                with urllib.request.urlopen(asking(urls[turn % 2], body), timeout=60) as answer:
                    text = answer.read()
                whole = text.endswith(b"data: [DONE]\n\n") if body["stream"] else "choices" in json.loads(text)
                (answered if whole else lost).append(text[-200:])
            except urllib.error.HTTPError as error:
                if error.code != 503 or error.headers["Retry-After"] is None:
                    lost.append(error.read())
                time.sleep(0.02)
            except urllib.error.URLError as error:
                if not isinstance(error.reason, ConnectionRefusedError):
                    lost.append(repr(error))
                time.sleep(0.02)
            except Exception as error:
                lost.append(repr(error))
            turn += 1

    with (
        process(place, "--port", str(ports[0]), *options) as first,
        process(place, "--port", str(ports[1]), *options) as second,
    ):
        assert read_on(first) and read_on(second)
        with ThreadPoolExecutor(12) as pool:
            asked = [pool.submit(ask, number) for number in range(12)]
            time.sleep(2)
            end(first)
            assert first.wait(30) == 0
            with process(place, "--port", str(ports[0]), *options) as again:
                assert read_on(again)
                end(second)
                assert second.wait(30) == 0
                time.sleep(1)
                stop.set()
                for one in asked:
                    one.result()
    assert lost == [] and len(answered) > 50
