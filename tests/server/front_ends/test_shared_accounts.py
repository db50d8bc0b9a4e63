"""Keys with several front ends: limits are one for all of them, and nothing is held for one that has died."""

import json
import os
import signal
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest

from graft.server.commands.admission import Admission
from graft.server.commands.http_server import bind, port_of
from graft.server.engine.client import EngineClient
from graft.server.engine.engine import Engine
from graft.server.front_ends.frames import Start
from graft.server.front_ends.supervisor import FrontEnds
from graft.server.http.app import create_app
from graft.server.http.clients import AnswerPlaces
from graft.server.keys.accounts import Accounts
from graft.server.keys.held_accounts import AccountsHeld
from graft.server.keys.holders import UNLIMITED, Limits
from graft.server.keys.standing import RateLimitError
from graft.server.keys.usage import Usage, UsageFile
from tests.conftest import tiny_base
from tests.server.conftest import write_folder
from tests.server.keys.made import bearing, write_keys
from tests.server.live import OPTIONS, Live

USED = Usage("id", "a", "/v1/completions", "mine", None, None, 10, 20)


def test_what_a_front_end_holds_is_given_back_when_it_is_gone() -> None:
    counted: list[Usage] = []
    accounts = Accounts(counted.append)
    mine, other = AccountsHeld(accounts), AccountsHeld(accounts)
    limits = Limits(tokens=100, concurrency=3)
    for held in (mine, mine, other):
        held.enter("a", limits)
        held.reserve("a", limits, 30)
    with pytest.raises(RateLimitError):
        other.enter("a", limits)
    mine.leave("a", limits, 30, USED)
    mine.leave("none", UNLIMITED, 0, USED)
    mine.leave_all()
    mine.leave("a", limits, 30, USED)  # too late: it was given back
    other.enter("a", limits)
    assert other.reserve("a", limits, 40).tokens.left == 0 and counted == [USED, USED]
    other.leave("a", limits, 40, None)
    other.leave("a", limits, 30, None)
    other.enter("a", limits)


def test_limits_and_usage_are_one_for_all_front_ends(tmp_path) -> None:
    base = tiny_base("llama")
    folders = {"mine": write_folder(tmp_path / "mine", "lora", base, 1)}
    keys = write_keys(
        tmp_path / "keys.toml",
        {"few": {"requests_per_minute": 9}, "single": {"concurrency": 1}, "plain": {}, "other": {"adapters": ["x"]}},
    )
    admission = Admission(str(tmp_path / "keys.toml"), None, None, open_metrics=True)
    sockets = bind("127.0.0.1", 0)
    with Engine(base, folders, None, OPTIONS) as engine:
        client = EngineClient(engine, UsageFile(tmp_path / "usage.jsonl"))
        make_app = partial(create_app, open_access=partial(admission.access, base.spec.fingerprint))
        start = Start(client.base, make_app, 32)
        with FrontEnds(2, sockets, client, AnswerPlaces(32), start):
            live = Live(f"http://127.0.0.1:{port_of(sockets)}", port_of(sockets), engine, {})

            def ask(key: str, **more: object) -> int:
                body = {"model": "mine", "prompt": "ab", "max_tokens": 2, "ignore_eos": True, **more}
                return live.post("/v1/completions", body, bearing(keys[key])).status

            assert live.get("/v1/models").status == 401 and ask("other") == 403
            with ThreadPoolExecutor(16) as pool:
                told = list(pool.map(lambda _: ask("few"), range(40)))
            assert told.count(200) == 9 and told.count(429) == 31
            body = {"model": "mine", "prompt": "ab", "max_tokens": 240, "ignore_eos": True, "stream": True, "n": 8}
            headers = {"Content-Type": "application/json", **bearing(keys["single"])}
            asked = urllib.request.Request(f"{live.url}/v1/completions", json.dumps(body).encode(), headers)
            step = engine.runner.step
            engine.runner.step = lambda *given: time.sleep(0.02) or step(*given)
            with urllib.request.urlopen(asked, timeout=60) as stream:
                stream.readline()
                assert ask("single") == 429
                for child in _children():
                    os.kill(child, signal.SIGKILL)
            engine.runner.step = step
            until = time.monotonic() + 60
            while time.monotonic() < until:
                try:
                    if ask("single") == 200:
                        break
                except OSError:  # they are being started again
                    time.sleep(0.1)
            assert ask("single") == 200 and ask("few") == 429 and ask("plain") == 200
        text = engine.metrics.text().decode()
    for each in sockets:
        each.close()
    assert 'graft_key_requests_total{adapter="mine",end="whole",key="few"} 9.0' in text
    lines = [json.loads(line) for line in (tmp_path / "usage.jsonl").read_text().splitlines()]
    assert [line["key"] for line in lines].count("few") == 9 and {line["completion_tokens"] for line in lines} == {2}


def _children() -> list[int]:
    """Of this process, those that answer."""
    found = []
    for name in os.listdir("/proc"):
        try:
            with open(f"/proc/{name}/stat") as file:
                fields = file.read().rpartition(")")[2].split()
            with open(f"/proc/{name}/cmdline") as file:
                if int(fields[1]) == os.getpid() and "front_end" in file.read():
                    found.append(int(name))
        except (OSError, ValueError, IndexError):
            continue
    return found
