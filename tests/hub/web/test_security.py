"""What stands before every view: who calls, how often, how much, from where."""

import base64
import json

import numpy as np
import pytest
from click.testing import CliRunner
from werkzeug.test import Client

from graft.hub.cli.main import main
from graft.hub.registry.access.tokens import create_token, first_admin
from graft.hub.registry.commits.changes import Put
from graft.hub.registry.registry import Registry
from graft.hub.web import security
from graft.hub.web.app import create_app


def bearing(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


@pytest.fixture
def client(registry: Registry) -> Client:
    """A hub with the user ann."""
    first_admin(registry.db, "ann")
    return create_app(registry).test_client()


@pytest.mark.parametrize("path", ["/health", "/openapi.json", "/api/tasks", "/", "/tasks", "/api/models"])
def test_a_stale_token_is_refused_everywhere(client: Client, path: str) -> None:
    reply = client.get(path, headers=bearing("hf_stale"))
    assert reply.status_code == 401 and "revoked" in reply.json["error"] and reply.headers["X-Request-Id"]
    assert client.get(path, headers=bearing("hf_stale") | {"Accept": "text/html"}).status_code == 401


def test_nobody_owns_a_hub_behind_a_proxy(registry: Registry) -> None:
    """Its proxy is on loopback too, so everyone would."""
    behind = create_app(registry, behind_proxy=True).test_client()
    forwarded = {"X-Forwarded-For": "203.0.113.9"}
    assert behind.post("/api/repos/create", json={"name": "ann/x"}, headers=forwarded).status_code == 401
    assert create_app(registry).test_client().post("/api/repos/create", json={"name": "ann/x"}).status_code == 200
    refused = CliRunner().invoke(main, ["hub", "serve", "--registry", str(registry.path), "--behind-proxy"])
    assert refused.exit_code == 1 and "behind a proxy could only be read" in refused.output


def test_rates_count_people_and_not_what_they_say_of_themselves(client: Client, registry: Registry) -> None:
    client.application.extensions["graft-rates"].limit = 3
    tokens = [create_token(registry.db, "ann", "read") for _ in range(4)]
    assert [client.get("/api/tasks", headers=bearing(token)).status_code for token in tokens] == [200, 200, 200, 429]
    made_up = [client.get("/api/tasks", headers={"Authorization": f"Basic {number}"}) for number in range(4)]
    assert [reply.status_code for reply in made_up] == [200, 200, 200, 429]


def test_a_hub_with_users_counts_on_loopback_too(registry: Registry) -> None:
    alone = create_app(registry).test_client()
    alone.application.extensions["graft-rates"].limit = 2
    assert {alone.get("/api/tasks").status_code for _ in range(4)} == {200}
    first_admin(registry.db, "ann")
    assert [alone.get("/api/tasks").status_code for _ in range(3)] == [200, 200, 429]


def test_many_strangers_do_not_clear_the_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(security, "MAX_TRACKED", 3)
    monkeypatch.setattr(security.time, "time", lambda: 1000.0)
    rates = security.Rates(10)
    assert rates.count("ann")[0] == 9
    assert [rates.count(f"stranger {number}")[0] for number in range(5)] == [9, 9, 9, 8, 7]
    assert rates.count("ann")[0] == 8


def test_only_uploads_may_be_large(client: Client, registry: Registry) -> None:
    large = b'{"name": "' + b"x" * (5 << 20) + b'"}'
    token = bearing(create_token(registry.db, "ann", "admin"))
    for method, path in (("POST", "/api/repos/create"), ("POST", "/api/evaluations"), ("POST", "/api/validate-yaml")):
        assert client.open(path, method=method, data=large, headers=token).status_code == 413, path
    client.post("/api/repos/create", json={"name": "ann/x"}, headers=token).get_data()
    note = (
        b'{"key": "file", "value": {"content": "' + b"eHh4" * (2 << 20) + b'", "path": "a.txt", "encoding": "base64"}}'
    )
    assert client.post("/api/models/ann/x/commit/main", data=note, headers=token).status_code == 200
    task = {"metric": "accuracy", "data": '{"prompt": "a", "completion": "b"}\n' * 150_000}
    assert client.put("/api/tasks/big", json=task, headers=token).status_code == 200
    assert client.put("/api/tasks/big", json=task).status_code == 401


@pytest.mark.parametrize(
    ("path", "sent"),
    [
        ("/api/models/ann/x/paths-info/main", ["a"]),
        ("/api/models/ann/x/branch/b", ["a"]),
        ("/api/evaluations", {"task": "t", "data_hash": "0", "metric": "accuracy", "value": 10**30, "n": 1}),
        ("/api/evaluations", {"task": "t", "data_hash": "0", "metric": "accuracy", "value": 1, "n": 2**63}),
        ("/ann/x.git/info/lfs/objects/batch", {"operation": "upload", "objects": [{"oid": "0" * 64, "size": -1}]}),
        ("/ann/x.git/info/lfs/objects/batch", {"operation": "upload", "objects": [{"oid": "0" * 64, "size": True}]}),
        ("/api/models/ann/x/preupload/main", {"files": [{"path": "a.txt", "size": -1}]}),
    ],
)
def test_bodies_of_the_wrong_kind_are_the_callers_mistake(registry: Registry, path: str, sent: object) -> None:
    client = create_app(registry).test_client()
    note = Put("a.txt", registry.blobs.put_bytes(b"a"))
    registry.commit("ann/x", [note], title="x", create=True)
    reply = client.post(path, json=sent)
    assert reply.status_code == 400 and reply.json["error"], reply.text


def commit_of(content: bytes, **more: str) -> bytes:
    value = {"content": base64.b64encode(content).decode(), "path": "a.txt", "encoding": "base64"} | more
    return json.dumps({"key": "file", "value": value}).encode() + b"\n"


@pytest.mark.parametrize("size", [0, 1, 2, 3, 786_431, 786_432, 786_433, 3_000_001])
def test_contents_of_every_length_arrive_whole(registry: Registry, size: int) -> None:
    """Around the length from which they go through a temporary file, and with lines after them."""
    client = create_app(registry).test_client()
    client.post("/api/repos/create", json={"name": "ann/x"})
    content = np.random.default_rng(size).bytes(size)
    body = commit_of(content) + commit_of(b"last", path="b.txt")
    assert client.post("/api/models/ann/x/commit/main", data=body).status_code == 200
    assert client.get("/ann/x/resolve/main/a.txt").data == content
    assert client.get("/ann/x/resolve/main/b.txt").data == b"last"
    assert not list(registry.blobs.incoming.iterdir())


@pytest.mark.parametrize(
    ("spoil", "status"),
    [
        (lambda body: body.replace(b'"encoding": "base64"', b'"encoding": "utf-8"'), 400),
        (lambda body: body[:-40], 400),
        (lambda body: body[:2_000_000], 400),
        (lambda body: body[:1_500_000] + b"!" + body[1_500_001:], 422),
        (lambda body: body[:1_500_000] + b"\n" + body[1_500_000:], 422),
        (lambda body: body.replace(b'"content"', b'"stuff"'), 413),
        (lambda body: body.replace(b'"path": "a.txt"', b'"path": "a.bin"'), 422),
        (lambda body: commit_of(b"x" * (101 << 20)), 413),
    ],
)
def test_large_lines_that_are_spoilt_are_refused(registry: Registry, spoil, status: int) -> None:
    client = create_app(registry).test_client()
    client.post("/api/repos/create", json={"name": "ann/x"})
    body = spoil(commit_of(np.random.default_rng(0).bytes(3_000_000)))
    reply = client.post("/api/models/ann/x/commit/main", data=body)
    assert reply.status_code == status and reply.json["error"], reply.text
    assert not list(registry.blobs.incoming.iterdir())
