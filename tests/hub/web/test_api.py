"""graft's own API: what its bodies refuse, that each mistake is named, and that answers are what /openapi.json says."""

import json
import re
from pathlib import Path

import jsonschema_rs
import pytest
from werkzeug.test import Client

from graft.hub.registry.commits.changes import Put
from graft.hub.registry.leaderboard import Evaluation
from graft.hub.registry.registry import Registry
from graft.hub.web.app import create_app

EVAL_SET = b'{"prompt": "a", "completion": "b"}\n'
ADAPTER = "/api/adapters/ann/news"
SCORE = {"task": "news-topic", "data_hash": "0", "metric": "accuracy", "value": 0.5, "n": 1, "repo": "ann/news"}


@pytest.fixture
def client(registry: Registry, adapter: Path) -> Client:
    """A hub with an adapter, promoted and scored."""
    made = registry.publish(adapter, "ann/news", tags=["v1"])
    task = registry.add_task("news-topic", "accuracy", EVAL_SET, "Which topic?")
    score = Evaluation(task.slug, task.data_hash, "accuracy", 0.5, 1, repo="ann/news", revision=made.id)
    registry.record_evaluation(score)
    registry.promote("ann/news", "production")
    return create_app(registry).test_client()


@pytest.mark.parametrize(
    ("method", "path", "sent", "said"),
    [
        ("PUT", f"{ADAPTER}/aliases/a", {"revision": 1}, "revision: Input should be a valid string"),
        ("PUT", f"{ADAPTER}/aliases/a", {"why": "x" * 1001}, "why: String should have at most 1000 characters"),
        ("PUT", f"{ADAPTER}/aliases/a", {"reason": "x"}, "Unknown field 'reason'"),
        ("PUT", f"{ADAPTER}/aliases/a", ["main"], "must be a JSON object"),
        ("POST", f"{ADAPTER}/aliases/a/rollback", {"why": []}, "why: Input should be a valid string"),
        ("PUT", "/api/tasks/t", {"metric": "accuracy"}, "The field 'data' is required"),
        ("PUT", "/api/tasks/t", {"metric": "rouge", "data": EVAL_SET.decode()}, "Unknown metric"),
        ("PUT", "/api/tasks/t", {"metric": "accuracy", "data": {}}, "data: Input should be a valid string"),
        ("POST", "/api/evaluations", SCORE | {"value": "0.5"}, "value: Input should be a valid number"),
        ("POST", "/api/evaluations", SCORE | {"value": True}, "value: Input should be a valid number"),
        ("POST", "/api/evaluations", SCORE | {"value": 10**400}, "value: Input should be"),
        ("POST", "/api/evaluations", SCORE | {"n": 1.5}, "n: Input should be a valid integer"),
        ("POST", "/api/evaluations", SCORE | {"n": -1}, "n: Input should be greater than or equal to 0"),
        ("POST", "/api/evaluations", SCORE | {"n": True}, "n: Input should be a valid integer"),
        ("POST", "/api/evaluations", SCORE | {"extra": []}, "extra: Input should be a valid dictionary"),
        ("POST", "/api/evaluations", SCORE | {"cheat": 1}, "Unknown field 'cheat'"),
        ("POST", "/api/evaluations", {"task": "news-topic"}, "The field 'data_hash' is required"),
        ("POST", "/api/models/ann/news/preupload/main", {"files": [{"path": "a", "size": "1"}]}, "files[0].size: "),
        ("POST", "/api/models/ann/news/preupload/main", {"files": [{"path": "a.md", "size": 1}] * 1001}, "1000 items"),
        ("POST", "/api/models/ann/news/tag/main", {}, "The field 'tag' is required"),
        ("POST", "/api/repos/create", {"name": ["x"]}, "name: Input should be a valid string"),
        ("POST", "/api/repos/create", {"name": "ann/x", "private": "yes"}, "private: Input should be a valid boolean"),
        ("POST", "/playground/stream", {"model": "ann/news", "prompt": 1}, "prompt: Input should be a valid string"),
        ("GET", "/api/adapters?limit=-1", None, "limit: Input should be greater than or equal to 0"),
        ("GET", "/api/adapters?limit=9999999999", None, "limit: Input should be less than or equal to"),
        ("GET", "/api/adapters?offset=x", None, "offset: Input should be a valid integer"),
        ("GET", "/api/adapters?facets=maybe", None, "facets: Input should be 'yes' or 'no'"),
        ("GET", f"{ADAPTER}/history?limit=1e3", None, "limit: Input should be a valid integer"),
    ],
)
def test_a_mistake_is_named(client: Client, method: str, path: str, sent: object, said: str) -> None:
    reply = client.open(path, method=method, json=sent) if sent is not None else client.get(path)
    assert reply.status_code == 400 and said in reply.json["error"], reply.text
    assert reply.json["code"] == "bad_request"


def test_a_null_is_as_if_it_were_not_given(client: Client, registry: Registry) -> None:
    assert client.put(f"{ADAPTER}/aliases/a", json={"revision": None, "why": None}).status_code == 200
    score = SCORE | {"data_hash": registry.task("news-topic").data_hash, "low": None, "extra": None, "source": None}
    assert client.post("/api/evaluations", json=score).status_code == 200


@pytest.mark.parametrize(
    ("method", "path", "sent"),
    [
        ("get", "/health", None),
        ("get", "/api/adapters?q=news&facets=yes", None),
        ("get", "/api/adapters?facets=no&limit=0", None),
        ("get", ADAPTER, None),
        ("get", f"{ADAPTER}/revision/v1", None),
        ("get", f"{ADAPTER}/history?limit=2", None),
        ("get", f"{ADAPTER}/evaluations", None),
        ("put", f"{ADAPTER}/aliases/eu%2Fproduction", {"why": "best"}),
        ("get", "/api/resolve?name=task:news-topic", None),
        ("get", "/api/tasks", None),
        ("get", "/api/tasks/news-topic", None),
        ("put", "/api/tasks/news-topic", {"metric": "f1", "data": EVAL_SET.decode()}),
        ("get", "/api/tasks/news-topic/leaderboard", None),
        ("get", "/api/evaluations/1", None),
        ("put", "/api/tasks/news-topic/owners", {"owners": ["ann"]}),
        ("get", "/api/bases", None),
        ("get", "/api/tasks/nothing", None),
        ("put", f"{ADAPTER}/aliases/a%20b", {}),
    ],
)
def test_an_answer_is_as_it_is_described(client: Client, method: str, path: str, sent: object) -> None:
    document = client.get("/openapi.json").json
    reply = client.open(path, method=method.upper(), json=sent)
    names = path.partition("?")[0].strip("/").split("/")
    [described] = [
        operations[method]
        for template, operations in document["paths"].items()
        if method in operations and _fits(template.strip("/").split("/"), names)
    ]
    content = described["responses"][str(reply.status_code)]["content"]["application/json"]
    schema = {"components": document["components"], **content["schema"]}
    jsonschema_rs.validator_for(schema).validate(reply.json)
    assert reply.mimetype == "application/json"


def _fits(template: list[str], names: list[str]) -> bool:
    return len(template) == len(names) and all(
        part == name or part.startswith("{") for part, name in zip(template, names, strict=True)
    )


def test_an_answer_is_the_registrys_record(client: Client, registry: Registry) -> None:
    shown = client.get(ADAPTER).json
    head = registry.resolve("ann/news")
    assert {key: shown[key] for key in ("id", "digest", "task", "max_rank")} == {
        key: getattr(head, key) for key in ("id", "digest", "task", "max_rank")
    }
    found = registry.found(head.id)
    assert shown["artifact"]["tensors"] == found.tensors and shown["artifact"]["card"] == found.card
    assert [file["path"] for file in shown["files"]] == sorted(registry.tree(head.id))
    note = registry.blobs.put_bytes(b"a")
    registry.commit("ann/notes", [Put("a.txt", note)], title="x", create=True)
    assert client.get("/api/adapters/ann/notes").json["artifact"] is None


def test_every_documented_path_is_there(client: Client) -> None:
    rules = {
        (method.lower(), re.sub(r"<(?:\w+:)?(\w+)>", r"{\1}", str(rule)))
        for rule in client.application.url_map.iter_rules()
        for method in rule.methods or ()
    }
    document = json.loads(client.get("/openapi.json").data)
    documented = {(method, path) for path, operations in document["paths"].items() for method in operations}
    own = {
        rule for rule in rules if rule[1].startswith(("/api/adapters", "/api/tasks", "/api/evaluations", "/api/bases"))
    }
    assert documented <= rules
    assert {rule for rule in own if rule[0] not in ("head", "options")} <= documented
