"""Front ends around one engine: the same answers as in one process, one message a step, and nothing left of one that dies."""

import json
import os
import signal
import threading
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from ipaddress import ip_network

import pytest

from graft.hub.errors import GraftError
from graft.hub.registry.remote.client import RemoteRegistry
from graft.server.commands.http_server import bind, port_of
from graft.server.engine.client import EngineClient
from graft.server.engine.engine import Engine
from graft.server.engine.inventory import Inventory
from graft.server.front_ends import session
from graft.server.front_ends.frames import Start
from graft.server.front_ends.supervisor import FrontEnds
from graft.server.http.app import create_app
from graft.server.http.clients import GUESTS, AnswerPlaces
from graft.server.keys.accounts import Accounts
from tests.conftest import tiny_base
from tests.server.conftest import write_folder
from tests.server.front_ends.looking import make_looking
from tests.server.http.test_hanging_hub import HELD_UP, asked
from tests.server.http.test_wire import NO_REQUESTS, ORIGIN, PAGE, sent_raw
from tests.server.live import CHAT_TEMPLATE, OPTIONS, Live
from tests.server.scarce import files_left
from tests.server.silent_hub import silent_hub

AT_ONCE = 32


@dataclass(frozen=True)
class Several(Live):
    """A running server of several processes."""

    fronts: FrontEnds
    places: AnswerPlaces


@contextmanager
def several(base, adapters, number=2, at_once=AT_ONCE, shelf=None, **options):
    sockets = bind("127.0.0.1", 0)
    with Engine(base, adapters, shelf, OPTIONS) as engine:
        client, places = EngineClient(engine), AnswerPlaces(at_once)
        start = Start(client.base, partial(make_looking, **options), at_once)
        with FrontEnds(number, sockets, client, places, start) as fronts:
            yield Several(f"http://127.0.0.1:{port_of(sockets)}", port_of(sockets), engine, {}, fronts, places)
    for each in sockets:
        each.close()


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    top, base = tmp_path_factory.mktemp("front"), tiny_base("llama")
    own = write_folder(top / "own", "lora", base, 3)
    (own / "chat_template.jinja").write_text("{% for m in messages %}<{{ m.content }}>{% endfor %}")
    return {
        "mine": write_folder(top / "mine", "lora", base, 1),
        "soft": write_folder(top / "soft", "prompt", base),
        "own": own,
    }


@pytest.fixture(scope="module")
def live(folders):
    base = tiny_base("llama")
    base.tokenizer.chat_template = CHAT_TEMPLATE
    with several(base, folders, adapter_root=folders["own"].parent, cors_origins=[PAGE]) as running:
        yield running


def test_a_priority_goes_along_to_the_engine(live, monkeypatch):
    seen, submit = [], live.engine.submit

    def look(request, *rest):
        seen.append(request.priority)
        return submit(request, *rest)

    monkeypatch.setattr(live.engine, "submit", look)
    asked = {"model": "mine", "prompt": "a", "max_tokens": 1, "priority": -7}
    assert live.post("/v1/completions", asked).status == 200 and seen == [-7]


@pytest.mark.parametrize(("sent", "status"), NO_REQUESTS)
def test_what_is_no_request_is_refused_as_all_is(live, sent, status):
    for _ in range(3):  # by each of them, soon
        reply = sent_raw(live, sent.replace(b"Host: x", b"Host: x\r\n" + ORIGIN))
        assert reply.status == status and reply.error["code"]
        assert reply.headers["Access-Control-Allow-Origin"] == PAGE


SCHEMA = {"type": "json_schema", "json_schema": {"name": "s", "schema": {"enum": ["yes", "no"]}}}
CHAT = {"messages": [{"role": "user", "content": "hallo"}], "temperature": 0, "max_tokens": 8}
ASKED = [
    ("/v1/completions", {"model": "mine", "prompt": "abc", "temperature": 0, "n": 2, "logprobs": 3, "echo": True}),
    ("/v1/completions", {"model": "soft", "prompt": ["abc", [5, 6, 7]], "seed": 3, "max_tokens": 9}),
    ("/v1/completions", {"model": "test/llama", "prompt": "ü", "temperature": 0, "prompt_logprobs": 1}),
    ("/v1/completions", {"model": "mine", "prompt": "abc", "response_format": SCHEMA, "seed": 1, "max_tokens": 20}),
    ("/v1/chat/completions", {"model": "test/llama", **CHAT}),
    ("/v1/chat/completions", {"model": "own", **CHAT}),  # a stranger's template, in a process of its own
    ("/v1/messages", {"model": "mine", **CHAT}),
    ("/v1/responses", {"model": "mine", "input": "hallo", "temperature": 0, "max_output_tokens": 8}),
    ("/v1/embeddings", {"model": "mine", "input": ["a", "bcd"]}),
    ("/tokenize", {"model": "mine", "prompt": "abc"}),
    ("/v1/completions", {"model": "nobody", "prompt": "abc"}),
    ("/v1/completions", {"model": "mine", "prompt": "abc", "max_tokens": 0.5}),
    ("/v1/completions", {"model": "mine", "prompt": [2] * 300}),
    ("/v1/completions", {"model": "test/llama", "prompt": "a", "bad_words": ["b"], "allowed_token_ids": [68], "seed": 1}),
    ("/v1/chat/completions", {"model": "mine", **CHAT, "chat_template": "{{ raise_exception('no') }}"}),
]  # fmt: skip
VARYING = {"id", "created", "created_at", "cached_tokens", "request_id", "started", "usage"}


def bare(value):
    """Without what differs from answer to answer."""
    if isinstance(value, dict):
        return {key: bare(each) for key, each in value.items() if key not in VARYING}
    if isinstance(value, float):
        return round(value, 3)  # by what is computed together, the last digits differ
    return [bare(each) for each in value] if isinstance(value, list) else value


@pytest.mark.parametrize(("path", "body"), ASKED)
def test_answers_are_those_of_one_process(live, path, body):
    alone = create_app(EngineClient(live.engine)).test_client().post(path, json=body)
    for answer in [live.post(path, body) for _ in range(3)]:
        assert answer.status == alone.status_code
        assert bare(answer.json) == bare(alone.json)
    if alone.status_code == 200 and path.endswith("completions") and "prompt_logprobs" not in body:
        events = live.post(path, {**body, "stream": True}).events
        assert events.pop() == "[DONE]"
        for choice in alone.json["choices"]:
            parts = [one for event in events for one in event["choices"] if one["index"] == choice["index"]]
            if "message" in choice:
                said = "".join(one["delta"].get("content") or "" for one in parts)
                assert said == choice["message"]["content"]
            else:
                assert "".join(one["text"] for one in parts) == choice["text"]
    wait_for(live.idle)


def test_adapters_are_moved_as_in_one_process(live, folders):
    def move(what, **body):
        answer = live.post(f"/v1/adapters/{what}", {"model": "mine", **body})
        return answer.status, answer.json.get("state") or answer.json["error"]["code"]

    assert move("load") == (200, "device") and move("pin", pinned=True) == (200, "device")
    assert [one["id"] for one in live.get("/v1/adapters").json["data"] if one["pinned"]] == ["mine"]
    assert move("unload") == (200, "disk") and move("unload") == (404, "not_loaded")
    assert move("pin", pinned=False) == (404, "not_loaded")
    given = {"lora_name": "again", "lora_path": str(folders["own"])}
    assert live.post("/v1/load_lora_adapter", given).status == 200
    assert live.post("/v1/load_lora_adapter", given).status == 400  # it stands for something
    assert live.post("/v1/unload_lora_adapter", given).status == 200


@pytest.mark.parametrize(
    "path", ["/v1/models", "/v1/adapters", "/v1/models/mine", "/health", "/ready", "/openapi.json"]
)
def test_what_is_read_is_that_of_one_process(live, path):
    alone = create_app(EngineClient(live.engine)).test_client().get(path)
    assert bare(live.get(path).json) == bare(alone.json) and alone.status_code == 200


def test_numbers_are_those_of_the_engine(live):
    assert live.post("/v1/completions", {"model": "mine", "prompt": "a", "max_tokens": 2}).status == 200
    lines = live.get("/metrics").data.decode()
    assert 'graft_generated_tokens_total{adapter="mine"}' in lines
    assert 'graft_http_answers_total{route="/v1/completions",status="200"}' in lines


def test_no_front_end_has_torch_and_none_tells_of_its_own_requests(live):
    """After all kinds of requests, which the tests above have sent to both."""
    seen = {}
    until = time.monotonic() + 30
    while len(seen) < 2 and time.monotonic() < until:
        looked = live.get("/look").json
        seen[looked["pid"]] = looked["modules"]
        assert looked["told"] == ["graft.server"]
        assert looked["frozen"] > 0.8  # of what the garbage collector would have to look through
    assert len(seen) == 2 and set(seen) == {process.pid for process in live.fronts.processes.values()}
    for pid, modules in seen.items():
        assert "torch" not in modules and "transformers" in modules and "flask" in modules
        with open(f"/proc/{pid}/maps") as file:
            assert "libtorch" not in file.read()


def test_events_go_in_one_message_a_step_and_front_end(live, monkeypatch):
    counts, made = [], session.events_frame

    def counted(coding):
        counts.append(len(coding) // 2)
        return made(coding)

    monkeypatch.setattr(session, "events_frame", counted)
    body = {"model": "test/llama", "prompt": "a", "max_tokens": 60, "n": 12, "ignore_eos": True, "stream": True}
    before = live.engine.steps
    with ThreadPoolExecutor(1) as pool:
        events = pool.submit(live.post, "/v1/completions", body).result().events
    assert sum(len(choice["text"]) for event in events[:-1] for choice in event["choices"]) >= 60
    steps = live.engine.steps - before
    assert (
        sum(counts) >= 12 * 61 and len(counts) <= steps + 14
    )  # a few go before their step: refusals, and cancellations


def test_places_are_counted_for_all_front_ends_together(live):
    wait_for(lambda: not live.places._taken)  # the front ends tell of those before
    held = [live.places.enter("127.0.0.1") for _ in range(AT_ONCE)]
    assert all(held)
    try:
        answers = [live.post("/v1/completions", {"model": "mine", "prompt": "a"}) for _ in range(4)]
    finally:
        for _ in held:
            live.places.leave("127.0.0.1")
    assert {answer.status for answer in answers} == {429}
    assert live.post("/v1/completions", {"model": "mine", "prompt": "a"}).status == 200


def test_what_hangs_holds_up_nobody_else_however_few_are_answered_at_once(folders, monkeypatch):
    inside, go = threading.Semaphore(0), threading.Event()
    unload = Inventory.unload

    def slowly(self, name):
        inside.release()
        assert go.wait(60)
        return unload(self, name)

    monkeypatch.setattr(Inventory, "unload", slowly)
    base, trusted = tiny_base("llama"), [ip_network("127.0.0.0/8")]
    with several(base, folders, 1, at_once=1, trusted_proxies=trusted) as live, ThreadPoolExecutor(1 + GUESTS) as pool:
        try:
            asked = [
                pool.submit(
                    live.post, "/v1/adapters/unload", {"model": "mine"}, {"X-Forwarded-For": f"10.0.0.{number}"}
                )
                for number in range(1 + GUESTS)
            ]
            assert all(inside.acquire(timeout=20) for _ in asked)  # as many as have a place
            refused = live.post("/v1/adapters/unload", {"model": "mine"}, {"X-Forwarded-For": "10.0.1.1"})
            assert (refused.status, live.get("/health").status) == (429, 200)
        finally:
            go.set()
        assert {each.result().status for each in asked} == {404}  # it is in no memory


def test_a_client_that_hangs_up_is_noticed(live):
    body = {"model": "mine", "prompt": "a", "max_tokens": 250, "ignore_eos": True, "stream": True, "n": 4}
    with opened(live, body) as stream:
        stream.readline()
    until = time.monotonic() + 10
    while not live.idle() and time.monotonic() < until:
        time.sleep(0.05)
    assert live.idle()


def test_who_waits_for_a_hub_that_hangs_is_given_up_in_the_engines_process_too(folders):
    with silent_hub() as hub, several(tiny_base("llama"), folders, 1, shelf=RemoteRegistry(hub.url)) as live:
        (session,) = live.fronts._sessions.values()
        for path, body in HELD_UP * 2:  # more than may be looked up at once
            reply = asked(live, path, body, "0.2")
            assert reply.status == 408 and reply.error["code"] == "deadline_exceeded"
        wait_for(lambda: not session._interests)
        wait_for(lambda: not len(live.engine.loader._loading._look_ups._waiting))
        wait_for(lambda: not live.places._taken)
        wait_for(lambda: not live.engine.ledger._open)  # who carried the call out knows
        assert live.post("/v1/completions", {"model": "mine", "prompt": "a"}).status == 200


def test_the_last_bytes_wait_until_what_was_used_is_written_down(live, monkeypatch):
    written, leave = threading.Event(), Accounts.leave

    def late(*given):
        written.wait(30)
        return leave(*given)

    monkeypatch.setattr(Accounts, "leave", late)
    slow_down(live, monkeypatch)  # the first bytes go out before the last token is there
    body = {"model": "mine", "prompt": "a", "max_tokens": 50, "ignore_eos": True, "stream": True}
    with opened(live, body) as stream, ThreadPoolExecutor(1) as pool:
        assert stream.readline()
        rest = pool.submit(stream.read)
        wait_for(live.idle)
        with pytest.raises(TimeoutError):
            rest.result(0.5)
        written.set()
        assert rest.result(30).endswith(b"data: [DONE]\n\n")


def opened(live, body):
    headers = {"Content-Type": "application/json"}
    asked = urllib.request.Request(f"{live.url}/v1/completions", json.dumps(body).encode(), headers)
    return urllib.request.urlopen(asked, timeout=30)


def test_of_a_front_end_that_is_killed_nothing_is_left_and_another_is_started(live, monkeypatch):
    slow_down(live, monkeypatch)
    pids = {process.pid for process in live.fronts.processes.values()}
    body = {"model": "soft", "prompt": "a", "max_tokens": 200, "ignore_eos": True, "stream": True}
    ended = []

    def read():
        try:
            with opened(live, body) as stream:
                ended.append(b"[DONE]" in stream.read())
        except (OSError, urllib.error.URLError):
            ended.append(False)

    readers = [threading.Thread(target=read) for _ in range(12)]
    for reader in readers:
        reader.start()
    wait_for(lambda: live.engine.scheduler.running == 12)
    killed = max(pids)
    os.kill(killed, signal.SIGKILL)
    wait_for(lambda: len([one for one in ended if not one]) > 0 or live.engine.scheduler.running < 12)
    for reader in readers:
        reader.join(30)
    assert len(ended) == 12
    wait_for(live.idle)
    wait_for(lambda: not live.places._taken)
    wait_for(lambda: live.fronts.processes and killed not in {one.pid for one in live.fronts.processes.values()})
    found = set()

    def look():
        found.add(live.get("/look").json["pid"])
        return len(found) == 2

    wait_for(look)
    assert killed not in found


def test_one_that_cant_be_had_is_tried_again_until_it_can(folders, caplog):
    with several(tiny_base("llama"), folders, number=1) as live:
        [first] = live.fronts.processes.values()
        with files_left(0):
            first.kill()
            wait_for(lambda: "can't be started" in caplog.text)
        wait_for(lambda: live.fronts.processes[0] is not first)
        assert live.get("/health").status == 200


@pytest.mark.parametrize("files", [0, 2])  # none for the pair of sockets; none beyond
def test_one_that_cant_be_had_at_the_start_ends_it_and_leaves_nothing_open(live, files):
    sockets = bind("127.0.0.1", 0)
    client = EngineClient(live.engine)
    fronts = FrontEnds(1, sockets, client, live.places, Start(client.base, make_looking, AT_ONCE))
    told = []

    def start():
        try:
            fronts.__enter__()
        except GraftError as error:
            told.append(str(error))

    starting = threading.Thread(target=start, daemon=True)  # which would wait for ever
    before = len(os.listdir("/proc/self/fd"))
    with files_left(files):
        starting.start()
        starting.join(20)
    assert told and "did not become ready" in told[0] and not fronts.processes
    assert len(os.listdir("/proc/self/fd")) == before
    for each in sockets:
        each.close()


def test_who_dies_while_all_drain_is_not_waited_for_and_not_started_again(folders, monkeypatch):
    done = threading.Event()
    with several(tiny_base("llama"), folders) as live:
        slow_down(live, monkeypatch)
        body = {"model": "mine", "prompt": "a", "max_tokens": 250, "ignore_eos": True, "stream": True}
        with opened(live, body) as stream:
            stream.readline()
            live.fronts.drain(60, done.set)
            assert not done.wait(1)
            killed = list(live.fronts.processes.values())
            for process in killed:
                process.kill()
            assert done.wait(2)
        wait_for(live.idle)
        for process in killed:  # whose channels may be closed while they listen still
            process.wait(10)
        with pytest.raises(urllib.error.URLError) as refused:
            live.get("/health")
        assert isinstance(refused.value.reason, ConnectionRefusedError)


def slow_down(live, monkeypatch):
    step = live.engine.runner.step

    def slow(*given):
        time.sleep(0.02)
        return step(*given)

    monkeypatch.setattr(live.engine.runner, "step", slow)


def wait_for(condition, seconds=20):
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.02)
