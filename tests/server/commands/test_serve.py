"""`graft serve` as a process: it says when it is ready, serves, and ends on a signal."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar

import pytest

from tests.conftest import tiny_base
from tests.server.conftest import write_folder
from tests.server.http.test_hanging_hub import WAITING

GRAFT = [sys.executable, "-m", "graft.hub.cli.main", "serve"]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a base and an adapter, and no registry.db."""
    top = tmp_path_factory.mktemp("serve")
    base = tiny_base("llama")
    base.model.save_pretrained(top / "base")
    base.tokenizer.save_pretrained(top / "base")
    shutil.copytree(top / "base", top / "cut-base")
    cut_short(top / "cut-base" / "model.safetensors")
    write_folder(top / "lora", "lora", base)
    write_folder(top / "other-base", "lora", tiny_base("llama", seed=3))
    cut_short(write_folder(top / "cut", "lora", base) / "adapter_model.safetensors")
    return top


def cut_short(weights):
    weights.write_bytes(weights.read_bytes()[:-9])


@contextmanager
def process(place, *options, command=GRAFT):
    words = [*command, "--base", "base", "--device", "cpu", "--dtype", "float32", "--runner", "eager", *options]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    started = subprocess.Popen(words, cwd=place, env=env, stderr=subprocess.PIPE, text=True)
    try:
        yield started
    finally:
        started.kill()
        started.wait()


def url_of(started) -> str:
    for line in started.stderr:
        if found := re.search(r"ready at (http://\S+)/v1", line):
            return found[1]
    raise AssertionError("it ended without being ready")


def children(pid: int) -> list[int]:
    with open(f"/proc/{pid}/task/{pid}/children") as file:
        mine = [int(word) for word in file.read().split()]
    threads = [name for name in os.listdir(f"/proc/{pid}/task") if name != str(pid)]
    for thread in threads:
        with suppress(FileNotFoundError), open(f"/proc/{pid}/task/{thread}/children") as file:
            mine += [int(word) for word in file.read().split()]
    return mine


def has_ended(pid: int) -> bool:
    """A zombie has: nobody here waits for it."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rsplit(")", 1)[1].split()[0] == "Z"
    except FileNotFoundError:
        return True


def wait_for_end(pids, seconds):
    until = time.monotonic() + seconds
    while not all(map(has_ended, pids)):
        assert time.monotonic() < until, "a process has been left"
        time.sleep(0.05)


@pytest.mark.parametrize(
    ("number", "processes"),
    [
        (signal.SIGTERM, "0"),
        (signal.SIGINT, "0"),
        (signal.SIGTERM, "2"),
        pytest.param(signal.SIGINT, "1", marks=pytest.mark.slow),
    ],
)
def test_it_serves_and_ends_on_a_signal_with_a_stream_under_way(place, number, processes):
    options = ["--port", "0", "--adapter", "mine=lora", "--kv-bytes", "2M", "--http-processes", processes]
    with process(place, *options) as started:
        url = url_of(started)
        listed = json.load(urllib.request.urlopen(f"{url}/v1/models", timeout=30))
        assert [model["id"] for model in listed["data"]] == ["base", "mine"]
        body = {"model": "mine", "prompt": "a", "max_tokens": 250, "ignore_eos": True, "stream": True, "n": 8}
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(f"{url}/v1/completions", json.dumps(body).encode(), headers)
        with urllib.request.urlopen(request, timeout=30) as stream:
            stream.readline()
            others = children(started.pid)
            assert len(others) == int(processes)
            started.send_signal(number)
            rest = stream.read()
        assert b'"code":"closed"' in rest or rest.endswith(b"data: [DONE]\n\n")
        assert started.wait(20) == 0
        left = started.stderr.read()
        assert "ended" in left and "Traceback" not in left
        assert "POST /v1/completions 200" in left and " model=mine adapter=mine " in left
        wait_for_end(others, 2)


def test_with_the_engines_process_its_front_ends_end_and_every_client_is_told(place):
    """kill -9: nothing in that process can tell anybody."""
    with process(place, "--port", "0", "--http-processes", "2") as started:
        url = url_of(started)
        body = {"model": "base", "prompt": "a", "max_tokens": 250, "ignore_eos": True, "stream": True, "n": 8}
        asked = urllib.request.Request(
            f"{url}/v1/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        others = children(started.pid)
        with urllib.request.urlopen(asked, timeout=30) as stream:
            stream.readline()
            started.kill()
            began = time.monotonic()
            rest = stream.read()
        assert b'"code":"engine_ended"' in rest and time.monotonic() - began < 1
        assert len(others) == 2
        wait_for_end(others, 5)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "code", "says"),
    [
        (["--adapter", "mine"], 2, "NAME=DIR"),
        (["--adapter", "mine=nowhere"], 2, "no folder"),
        (["--adapter", "mine=cut"], 1, "error: --adapter mine: "),
        (["--adapter", "mine=other-base"], 1, "error: --adapter mine: "),
        (["--kv-bytes", "much"], 2, "no size"),
        (
            ["--kv-bytes", "900000G", "--base", "cut-base"],
            1,
            "error: --kv-bytes 900000.0 GiB don't fit into",
        ),  # not read
        (["--request-timeout", "nan"], 2, "no finite number"),
        (["--registry", "a.db", "--hub", "http://x"], 2, "not both"),
        (["--registry", "absent.db"], 1, "no registry at absent.db"),
        (["--base", "nowhere/at/all"], 1, "nowhere/at/all"),
        (["--max-model-len", "9999"], 1, "256 positions"),
    ],
)
def test_a_mistake_ends_with_one_line(place, options, code, says):
    with process(place, *options) as started:
        assert started.wait(90) == code
        text = started.stderr.read()
        assert says in text and "Traceback" not in text


HANGING_STEP = """
import sys, time
from graft.server.engine import client
client.STUCK_S = 0.5
from graft.server.runners.eager.runner import EagerRunner
EagerRunner.step = lambda *given: time.sleep(1000)
from graft.hub.cli.main import main
main(sys.argv[1:])
"""


def test_a_step_that_never_ends_is_told_and_ends_the_server(place):
    """It had no owner: /health said ok, streams were silent, and a supervisor saw nothing."""
    with process(
        place, "--port", "0", "--step-timeout", "4", command=[sys.executable, "-c", HANGING_STEP, "serve"]
    ) as started:
        url = url_of(started)
        body = json.dumps({"model": "base", "prompt": "a", "max_tokens": 2}).encode()
        asked = urllib.request.Request(f"{url}/v1/completions", body, {"Content-Type": "application/json"})

        def answer(request):
            try:
                with urllib.request.urlopen(request, timeout=30) as reply:
                    return reply.status, json.load(reply)
            except urllib.error.HTTPError as error:
                return error.code, json.load(error)

        assert answer(f"{url}/health")[0] == 200
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(answer, asked)
            time.sleep(1.5)
            status, said = answer(f"{url}/health")
            assert (
                status == 503
                and said["error"]["code"] == "engine_stuck"
                and "at one step for" in said["error"]["message"]
            )
            status, said = waiting.result()
            assert status == 503 and said["error"]["code"] == "engine_ended"
        assert started.wait(20) == 1
        left = started.stderr.read()
        assert "the engine has been at one step for" in left
        assert left.strip().splitlines()[-1].startswith("error: The engine has not come back from a step in")


@pytest.mark.parametrize(
    ("number", "processes"),
    [(signal.SIGTERM, "0"), (signal.SIGINT, "0"), pytest.param(signal.SIGTERM, "1", marks=pytest.mark.slow)],
)
def test_a_step_that_never_ends_does_not_hold_up_the_end(place, number, processes):
    """It was waited for until --step-timeout, a second signal was ignored, and clients were told nothing."""
    options = ("--port", "0", "--drain-seconds", "1", "--step-timeout", "0", "--http-processes", processes)
    with process(place, *options, command=[sys.executable, "-c", HANGING_STEP, "serve"]) as started:
        url = url_of(started)
        body = json.dumps({"model": "base", "prompt": "a", "max_tokens": 2}).encode()
        asked = urllib.request.Request(f"{url}/v1/completions", body, {"Content-Type": "application/json"})

        def answer(request):
            try:
                return urllib.request.urlopen(request, timeout=60).status, None
            except urllib.error.HTTPError as error:
                return error.code, json.load(error)["error"]["code"]

        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(answer, asked)
            until = time.monotonic() + 20
            while answer(f"{url}/health") != (503, "engine_stuck"):
                assert time.monotonic() < until
                time.sleep(0.05)
            began = time.monotonic()
            started.send_signal(number)
            assert started.wait(20) == 0 and time.monotonic() - began < 15  # five are waited, and one is drained
            assert waiting.result(timeout=5) == (503, "closed")
        left = started.stderr.read()
        assert "the engine does not come back from its step" in left and "Traceback" not in left
        assert left.strip().endswith("ended")


class HangingHub(BaseHTTPRequestHandler):
    """Greets, says that it is none of graft's own, and then never answers."""

    asked: list[str]
    greetings: ClassVar = {"/api/models?limit=1": b"[]", "/openapi.json": b"{}"}

    def do_GET(self):
        if (said := self.greetings.get(self.path)) is not None:
            self.send_response(200)
            self.send_header("Content-Length", "2")
            self.end_headers()
            self.wfile.write(said)
        else:
            self.asked.append(self.path)
            time.sleep(20)

    def log_message(self, *args):
        pass


@contextmanager
def hanging_hub():
    handler = type("Handler", (HangingHub,), {"asked": []})
    hub = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    hub.daemon_threads = True
    threading.Thread(target=hub.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{hub.server_port}", handler.asked
    hub.shutdown()
    hub.server_close()


@pytest.mark.parametrize(
    ("processes", "waiting"), [("0", WAITING[:2]), ("0", WAITING[2:]), ("1", WAITING[:2]), ("1", WAITING[2:])]
)
def test_a_hub_that_hangs_does_not_hold_up_the_end(place, processes, waiting):
    def ask(path, body):
        asked = urllib.request.Request(f"{url}{path}", json.dumps(body).encode(), {"Content-Type": "application/json"})
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(asked, timeout=30)
        return refused.value.code, json.load(refused.value)["error"]["code"], refused.value.headers["Retry-After"]

    with (
        hanging_hub() as (hub, looked_up),
        process(place, "--port", "0", "--hub", hub, "--http-processes", processes) as started,
        ThreadPoolExecutor(len(waiting)) as pool,
    ):
        url = url_of(started)
        answers = [pool.submit(ask, *each) for each in waiting]
        until = time.monotonic() + 20
        while len(looked_up) < len(waiting):
            assert time.monotonic() < until
            time.sleep(0.05)
        began = time.monotonic()
        started.send_signal(signal.SIGTERM)
        assert [answer.result(timeout=10) for answer in answers] == [(503, "draining", "1")] * len(waiting)
        assert started.wait(15) == 0 and time.monotonic() - began < 15  # twenty seconds may be taken otherwise


BREAKING = """
import sys
from graft.hub.cli.main import main
from graft.server.engine.scheduler import Scheduler
fill, calls = Scheduler._fill, []
def broken(self, plan):
    calls.append(1)
    if self.running and len(calls) > 30:
        raise MemoryError("as if there were none")
    fill(self, plan)
Scheduler._fill = broken
sys.argv[0] = "graft"
main()
"""


@pytest.mark.parametrize("processes", ["0", "2"])
def test_an_engine_that_ends_by_a_failure_ends_the_server_after_its_streams_have_been_told(place, processes):
    words = ["serve", "--base", "base", "--device", "cpu", "--dtype", "float32", "--runner", "eager", "--port", "0"]
    words += ["--http-processes", processes]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        [sys.executable, "-c", BREAKING, *words], cwd=place, env=env, stderr=subprocess.PIPE, text=True
    ) as started:
        try:
            url = url_of(started)
            body = {"model": "base", "prompt": "a", "max_tokens": 250, "ignore_eos": True, "stream": True}
            asked = urllib.request.Request(
                f"{url}/v1/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
            )
            with urllib.request.urlopen(asked, timeout=30) as answer:
                last = answer.read().decode().strip().split("\n\n")[-1]
            assert json.loads(last.removeprefix("data: "))["error"]["code"] == "engine_ended"
            with pytest.raises(urllib.error.HTTPError) as refused:
                urllib.request.urlopen(f"{url}/health", timeout=30)
            assert refused.value.code == 503
            assert "ended by a failure (MemoryError)" in json.load(refused.value)["error"]["message"]
            assert started.wait(30) == 1
            assert started.stderr.read().strip().split("\n")[-1].startswith("error: The engine has ended by a failure")
        finally:
            started.kill()


LOOKING = """
import gc
import sys
from graft.hub.cli.main import main
from graft.server.commands import serve
answer = serve.answer
def looking(*given):
    print(f"frozen {gc.get_freeze_count()} of {gc.get_freeze_count() + len(gc.get_objects())}", file=sys.stderr, flush=True)
    answer(*given)
serve.answer = looking
sys.argv[0] = "graft"
main()
"""


def test_a_server_that_is_ready_has_what_it_loaded_out_of_the_collectors_sight(place):
    with process(place, "--port", "0", "--kv-bytes", "2M", command=[sys.executable, "-c", LOOKING, "serve"]) as started:
        url_of(started)
        frozen, there = map(int, re.findall(r"\d+", started.stderr.readline()))
        assert frozen > 0.9 * there, (frozen, there)


@pytest.mark.slow
def test_a_port_in_use_is_said(place):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with process(place, "--port", str(port)) as started:
            assert started.wait(90) == 1
            assert f"Can't listen on 127.0.0.1:{port}" in started.stderr.read()


def with_files(number: int) -> list[str]:
    return ["sh", "-c", f'ulimit -n {number}; exec "$@"', "sh", *GRAFT]


@pytest.mark.parametrize("processes", ["0", "1"])
def test_with_few_open_files_silent_connections_keep_nobody_out(place, processes):
    options = ["--port", "0", "--max-requests", "16", "--kv-bytes", "2M", "--http-processes", processes]
    with process(place, *options, command=with_files(96)) as started:
        url = url_of(started)
        port = int(url.rsplit(":", 1)[1])
        silent = [socket.create_connection(("127.0.0.1", port)) for _ in range(120)]
        body = json.dumps({"model": "base", "prompt": "a", "max_tokens": 2}).encode()
        asked = urllib.request.Request(f"{url}/v1/completions", body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(asked, timeout=30) as answer:
            assert answer.status == 200
        for each in silent:
            each.close()


def test_too_few_open_files_are_said_before_the_base_is_loaded(place):
    with process(place, "--port", "0", command=with_files(96)) as started:
        said = started.communicate(timeout=60)[1]
    assert started.returncode == 1 and "--max-requests 256 takes 308 open files" in said and "ulimit -n" in said
    assert "loading" not in said and "Traceback" not in said


def test_whoever_reads_what_it_says_may_go(place):
    """A closed pipe, as a full disk under the log: it serves on, and ends well."""
    with process(place, "--port", "0") as started:
        url = url_of(started)
        started.stderr.close()
        assert urllib.request.urlopen(f"{url}/health", timeout=30).status == 200
        started.send_signal(signal.SIGTERM)
        assert started.wait(20) == 0
