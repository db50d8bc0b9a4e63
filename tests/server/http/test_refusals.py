"""In which order a request is refused, and that pages of other origins may read every header that they are told something by."""

from pathlib import Path

import pytest
from flask.testing import FlaskClient

from graft.server.engine.client import EngineClient
from graft.server.engine.engine import Engine
from graft.server.http.access import header_names
from graft.server.http.access.limit_headers import NAMES
from graft.server.http.access.routes import NEEDS, Need
from graft.server.http.app import create_app
from graft.server.keys.access import Access
from graft.server.keys.key_file import KeyFile
from graft.server.keys.keyring import Keyring
from graft.server.operations.drain import Drain, Draining
from tests.conftest import tiny_base
from tests.server.conftest import write_folder
from tests.server.keys.made import bearing, write_keys
from tests.server.live import CHAT_TEMPLATE, OPTIONS

BASE = "test/llama"
TEXT = {"model": "mine", "prompt": "ab", "max_tokens": 2}
CHAT = {"model": "mine", "messages": [{"role": "user", "content": "a"}], "max_tokens": 2}
PAGE = {"Origin": "http://localhost:3000"}
KEYS = {"admin": {"admin": True}, "page": {"requests_per_minute": 5, "tokens_per_minute": 10_000}}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """An engine with an adapter, and the file of keys."""
    top = tmp_path_factory.mktemp("refusals")
    base = tiny_base("llama")
    base.tokenizer.chat_template = CHAT_TEMPLATE
    with Engine(base, {"mine": write_folder(top / "mine", "lora", base)}, None, OPTIONS) as engine:
        yield EngineClient(engine), top / "keys.toml", write_keys(top / "keys.toml", KEYS)


def client_of(engine: EngineClient, keys: Path, drain: Drain | None = None) -> FlaskClient:
    access = Access(Keyring(KeyFile(keys, has_hub=False), None))
    app = create_app(engine, open_access=lambda: access, drain=drain, cors_origins=(PAGE["Origin"],))
    return app.test_client()


def routes(client: FlaskClient) -> list[tuple[str, str, Need]]:
    """Method, path and need of each."""
    found = []
    for rule in client.application.url_map.iter_rules():
        method = "POST" if "POST" in rule.methods else "GET"
        found.append((method, rule.rule.replace("<path:name>", "mine"), NEEDS[rule.endpoint]))
    return found


def test_who_shows_no_key_is_told_that_first(place) -> None:
    """Whatever else is wrong: a deadline that is none, a server that is about to end."""
    engine, file, keys = place
    admin, wrong = bearing(keys["admin"]), bearing("sk-graft-wrong")
    never = {"X-Request-Timeout": "never"}
    client = client_of(engine, file)
    for method, path, need in routes(client):
        for shown in ({}, wrong):
            status = client.open(path, method=method, headers=shown | never).status_code
            assert status == (400 if need is Need.NOTHING else 401), path
        refused = client.open(path, method=method, headers=admin | never)
        assert refused.status_code == 400 and "X-Request-Timeout" in refused.text
    assert (
        client.post("/v1/completions", json=TEXT, headers=admin | never).json["error"]["param"] == "X-Request-Timeout"
    )

    drain = Drain()
    ending = client_of(engine, file, drain)
    assert ending.post("/v1/completions", json=TEXT, headers=admin).status_code == 200
    drain.begin(0, Draining(lambda: 0, lambda: None), lambda: None)
    for method, path, need in routes(ending):
        own = path in ("/health", "/metrics", "/openapi.json", "/replica")
        for shown in ({}, wrong, wrong | never) if need is not Need.NOTHING else ():
            assert ending.open(path, method=method, headers=shown).status_code == 401, path
        refused = ending.open(path, method=method, headers=admin)
        assert (refused.status_code, "Retry-After" in refused.headers) == ((200, False) if own else (503, True)), path
    preflight = PAGE | {"Access-Control-Request-Method": "POST"}
    assert ending.options("/v1/completions", headers=preflight).status_code == 204
    assert ending.post("/v1/completions", json=TEXT, headers=admin | PAGE).headers["Access-Control-Allow-Origin"]


# What every page may read of an answer anyway, or is the browser's business alone.
READ_ANYWAY = {"content-type", "content-length", "cache-control"}
BROWSERS = {"vary", "access-control-allow-origin", "access-control-expose-headers", "x-accel-buffering"}


def test_pages_may_read_each_header_that_an_answer_has(place) -> None:
    engine, file, keys = place
    drain = Drain()
    client = client_of(engine, file, drain)
    headers = bearing(keys["page"]) | PAGE
    answers = [
        (200, client.post("/v1/completions", json=TEXT | {"user": "u", "mine": 1}, headers=headers)),
        (200, client.post("/v1/completions", json=TEXT | {"stream": True}, headers=headers)),
        (200, client.post("/v1/messages", json=CHAT, headers=headers)),
        (408, client.post("/v1/completions", json=TEXT | {"timeout": 1e-9}, headers=headers)),
        (404, client.post("/v1/completions", json=TEXT | {"model": "absent"}, headers=headers)),
        (401, client.post("/v1/completions", json=TEXT, headers=PAGE)),
        (405, client.get("/v1/completions", headers=headers)),
        (404, client.get("/nowhere", headers=headers)),
    ]
    over = [client.post("/v1/completions", json=TEXT, headers=headers) for _ in range(5)][-1]
    drain.begin(0, Draining(lambda: 0, lambda: None), lambda: None)
    answers += [(429, over), (503, client.post("/v1/completions", json=TEXT, headers=headers))]
    assert [reply.status_code for _, reply in answers] == [status for status, _ in answers]
    told = set()
    for _, reply in answers:
        exposed = {name.strip().lower() for name in reply.headers["Access-Control-Expose-Headers"].split(",")}
        own = {name.lower() for name, _ in reply.headers} - READ_ANYWAY - BROWSERS
        assert own <= exposed, own - exposed
        told |= own
    listed = {name.lower() for name in (*header_names.OWN, *NAMES)}
    assert told == listed - {header_names.ADAPTER_REVISION.lower()} == exposed - {"x-adapter-revision"}
    constants = {value for name, value in vars(header_names).items() if name.isupper() and isinstance(value, str)}
    assert constants == set(header_names.OWN)
