"""kill -9 under load, of a front end, of the engine's process, of both: every client is told or hung up on within seconds, nobody
reads other words than it would have, nothing stays held, and what is started next serves what the one before did."""

import http.client
import json
import os
import random
import re
import signal
import socket
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from itertools import cycle, islice
from pathlib import Path

import pytest

from graft.hub.registry.registry import Registry
from tests.conftest import tiny_base
from tests.server.commands.test_serve import children, process, url_of, wait_for_end
from tests.server.conftest import write_folder

KILLS = int(os.environ.get("GRAFT_KILLS", "200"))  # of the long one
COUNTED = os.environ.get("GRAFT_KILLS_FILE")  # where to write what was counted (benchmarks/tables/kills.py)
ROUND = ("front end", "front end", "front end", "front end", "engine", "front end", "front end", "both")
CLIENTS = 12
SPARE_PLACES = (
    4  # for who asks again before its last answer has been put away: fewer than a dead front end would leave held
)
HUNG_S = 20.0  # without a byte
OUTCOMES = {TimeoutError: "hung", ConnectionRefusedError: "refused"}  # of what is not answered
TOLD_S = 5.0  # after a kill, for all whom it concerns to know
SETTLED_S = 2.0  # after a kill, for what the dead had taken to be given back
LOCAL = {"lora": "lora", "prefix": "prefix", "ia3": "ia3"}
PUBLISHED = {"ann/dora": "dora", "ann/prompt": "prompt", "ann/series": "houlsby"}
MODELS = ("base", *LOCAL, *PUBLISHED)
SETTINGS = ({"temperature": 0}, {"temperature": 1, "seed": 7})
ASKED = [{"model": model, "prompt": "abc", "max_tokens": 50, "ignore_eos": True, **how} for model in MODELS for how in SETTINGS]  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a base, adapters beside it, and a registry with others."""
    top, base = tmp_path_factory.mktemp("kills"), tiny_base("llama")
    base.model.save_pretrained(top / "base")
    base.tokenizer.save_pretrained(top / "base")
    for name, kind in LOCAL.items():
        write_folder(top / name, kind, base)
    registry = Registry(top / "registry.db")
    registry.add_base(base.spec)
    for number, (name, kind) in enumerate(PUBLISHED.items()):
        registry.publish(write_folder(top / f"published-{number}", kind, base, number), name)
    return top


class Client(threading.Thread):
    """Asks one thing after another, while the load goes on."""

    def __init__(self, load: "Load", number: int):
        super().__init__(daemon=True)
        self.began: float | None = None  # the request that is under way
        self._load = load
        self._turn = number

    def run(self) -> None:
        outcome = ""
        while not self._load.stop.is_set():
            self.began = time.monotonic()
            if self._load.going.is_set():
                self._turn += 1
                outcome = self._load.ask(self._turn % len(ASKED), stream=self._turn % 3 > 0)
            self.began = None
            time.sleep(0.02 if outcome == "whole" else 0.2)


class Load:
    """`CLIENTS` at once, while entered. `outcomes`: how requests ended. `told_s`: after which its engine was killed, what
    was under way then had ended."""

    def __init__(self, url: str):
        self.url = url
        self.stop, self.going = threading.Event(), threading.Event()
        self.killed_at = 0.0
        self.outcomes: list[str] = []  # which many threads add to
        self.told_s: list[float] = []
        self.expected: list[str] = []
        self.idle: tuple[object, object] | None = None
        self.checks = 0  # that passed
        self.whole: list[str] = []  # ids of what was received whole
        self.clients = [Client(self, number) for number in range(CLIENTS)]

    def __enter__(self) -> "Load":
        for client in self.clients:
            client.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop.set()
        for client in self.clients:
            client.join(2 * HUNG_S)

    def ask(self, number: int, *, stream: bool) -> str:
        """How it ended."""
        outcome = self._outcome(number, stream=stream)
        self.outcomes.append(outcome)
        return outcome

    def _outcome(self, number: int, *, stream: bool) -> str:
        try:
            ended, text = self._answer(number, stream=stream)
        except TimeoutError:
            return "hung"
        except (OSError, http.client.HTTPException) as error:  # URLError among them
            return OUTCOMES.get(type(getattr(error, "reason", None)), "closed")
        expected = self.expected[number]
        right = text == expected if ended == "whole" else expected.startswith(text)
        return ended if right else f"wrong: {ASKED[number]['model']}, {ended}: {text!r}, not {expected!r}"

    def _answer(self, number: int, *, stream: bool) -> tuple[str, str]:
        """As `_read`, refusals among them."""
        began = time.monotonic()
        try:
            return self._read(number, stream=stream)
        except urllib.error.HTTPError as error:
            code = json.loads(error.read())["error"]["code"]
            if error.code == 429 and began - self.killed_at < SETTLED_S:
                return "busy", ""
            return ("told" if code in ("engine_ended", "closed") else f"wrong: {error.code} {code}"), ""

    def _read(self, number: int, *, stream: bool) -> tuple[str, str]:
        """How an answer ended, and its text. Raises what urllib does before it has begun."""
        body = json.dumps(ASKED[number] | {"stream": stream}).encode()
        asked = urllib.request.Request(f"{self.url}/v1/completions", body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(asked, timeout=HUNG_S) as answer:
            id = answer.headers["X-Request-Id"]
            if not stream:
                text = json.load(answer)["choices"][0]["text"]
                self.whole.append(id)
                return "whole", text
            text = ""
            try:
                while (line := answer.readline()).endswith(b"\n"):
                    data = line.strip().removeprefix(b"data: ")
                    if data == b"[DONE]":
                        self.whole.append(id)
                        return "whole", text
                    event = json.loads(data or b'{"choices": []}')
                    if "error" in event:
                        return "told", text
                    text += "".join(choice["text"] for choice in event["choices"])
            except TimeoutError:
                return "hung", text
            except (OSError, http.client.HTTPException):
                pass
            return "closed", text

    def _get(self, path: str) -> bytes:
        with urllib.request.urlopen(f"{self.url}{path}", timeout=HUNG_S) as answer:
            return answer.read()

    def _look(self) -> tuple[object, object]:
        """What requests hold, as the server counts it; and the models, with their versions."""
        names = ("vllm:num_requests_running", "vllm:num_requests_waiting", "vllm:kv_cache_usage_perc")
        numbers = self._get("/metrics").decode()
        held = {name: re.search(rf"^{name}(?:{{.*}})? (\S+)$", numbers, re.M)[1] for name in names}
        models = json.loads(self._get("/v1/models"))["data"]
        return held, [(one["id"], one.get("digest"), one.get("revision")) for one in models]

    def check(self) -> None:
        """With nothing else under way: everything is answered as it was at first, all at once, and nothing is held any more."""
        self.going.clear()
        wait_until(lambda: all(one.began is None for one in self.clients), HUNG_S)
        time.sleep(max(0.0, self.killed_at + SETTLED_S - time.monotonic()))
        if self.idle is None:
            self.expected = [self._read(number, stream=False)[1] for number in range(len(ASKED))]
            self.idle = self._look()
        with ThreadPoolExecutor(len(ASKED)) as pool:
            outcomes = list(pool.map(lambda number: self.ask(number, stream=number % 2 > 0), range(len(ASKED))))
        assert outcomes == ["whole"] * len(ASKED)
        wait_until(lambda: self._look() == self.idle, 5)
        self.checks += 1

    def go_on(self) -> None:
        """Until every client has been answered, more or less."""
        self.going.set()
        wanted = self.outcomes.count("whole") + CLIENTS
        wait_until(lambda: self.outcomes.count("whole") >= wanted, 60)

    def await_told(self) -> None:
        """Until nothing is under way that was when something was killed."""
        wait_until(lambda: all((began := one.began) is None or began > self.killed_at for one in self.clients), TOLD_S)
        self.told_s.append(time.monotonic() - self.killed_at)


def wait_until(condition, seconds):
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.02)


def kill(started, what: str, load: Load) -> None:
    """A front end: another comes in its place. The engine's process: all others end."""
    fronts = children(started.pid)
    killed = {
        "front end": [random.choice(fronts)],
        "engine": [started.pid],
        "both": [random.choice(fronts), started.pid],
    }[what]
    load.killed_at = time.monotonic()
    for pid in killed:
        os.kill(pid, signal.SIGKILL)
    if started.pid in killed:
        load.await_told()
        wait_for_end(fronts, TOLD_S)
    else:
        wait_until(lambda: len(set(children(started.pid)) - set(killed)) == len(fronts), 20)


def kill_all(place, usage: Path, kills: list[str]) -> Load:
    """Servers one after another, each until its engine is killed; at last one that nothing happens to."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    options = ["--port", str(port), "--kv-bytes", "4M", "--http-processes", "2", "--usage", str(usage)]
    options += ["--registry", "registry.db", "--max-requests", str(CLIENTS + SPARE_PLACES)]
    options += [word for name in LOCAL for word in ("--adapter", f"{name}={name}")]
    left = list(kills)
    with Load(f"http://127.0.0.1:{port}") as load:
        while True:
            with process(place, *options) as started:
                assert url_of(started) == load.url
                threading.Thread(target=started.stderr.read, daemon=True).start()
                load.check()
                if not left:
                    return load
                while left and started.poll() is None:
                    what = left.pop(0)
                    if what != "front end":
                        load.check()
                    load.go_on()
                    kill(started, what, load)


@pytest.mark.parametrize(
    "kills",
    [
        ["front end", "front end", "both"],
        pytest.param([*islice(cycle(ROUND), KILLS)], marks=[pytest.mark.slow, pytest.mark.timeout(60 + 30 * KILLS)]),
    ],
    ids=["few", "many"],
)
def test_a_kill_hangs_nobody_falsifies_nothing_and_leaves_nothing(place, tmp_path, kills):
    began, usage = time.monotonic(), tmp_path / "usage.jsonl"
    load = kill_all(place, usage, kills)
    outcomes = Counter(outcome.partition(":")[0] for outcome in load.outcomes)
    lines = [json.loads(line) for line in usage.read_text().splitlines()]
    used = {line["request_id"] for line in lines if not line["cut_off"]}
    counted = {
        "kills": len(kills),
        "seconds": time.monotonic() - began,
        "outcomes": outcomes,
        "hung": outcomes["hung"],
        "wrong": outcomes["wrong"],
        "checks": load.checks,
        "unused": len(set(load.whole) - used),
        "told_s": max(load.told_s),
    }
    if COUNTED:
        Path(COUNTED).write_text(json.dumps(counted))
    assert set(outcomes) <= {"whole", "told", "closed", "refused", "busy"}, set(load.outcomes)
    assert outcomes["closed"] and outcomes["told"]
    assert not counted["unused"], "who has an answer whole has it in the usage file"
