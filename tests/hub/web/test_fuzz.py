"""Strangers' input at every door of the hub ends in an answer below 500, and never leaves a page that can't be shown.

Each case is a sound request with one or two of its values changed to something that was hostile somewhere. The cases are the
same each time; `make soak` takes more of them.
"""

import copy
import json
import os
import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote, urlencode

import pytest
from flask import Flask
from werkzeug.test import Client, TestResponse

from graft.hub.registry.maintenance.check import check
from graft.hub.registry.registry import Registry
from graft.hub.web.app import create_app
from tests.hub.conftest import base_spec, lora_folder

CASES = int(os.environ.get("GRAFT_FUZZ_CASES", "5000"))
PROCESSES = 5  # parts, so that a failure names its own
LOOK_EVERY = 200  # cases between looks at the pages
TASK = "news-topic"
EVAL_SET = b'{"prompt": "Stocks fell", "completion": " money"}\n'

DEEP_LIST, DEEP_OBJECT = "[" * 3000 + "]" * 3000, '{"a":' * 3000 + "1" + "}" * 3000
RAW = ("NaN", "-Infinity", "1e999", "1" + "0" * 400, "-1e-400", DEEP_LIST, DEEP_OBJECT, '"\\ud800"', '"\\udfff\\ud800"', '"\\u0000"', "")  # fmt: skip
WORDS = (
    "", " ", "\0", "\x1b[31m", "a" * 5000, "ä" * 300, "\u202e\u2066", "\U0001f984", "../..", "..", ".", "/", "//", "\\", "%", "%2f", "%00",
    "%ff", "a%2Fb", "'; DROP TABLE repos; --", "\"", "{{7*7}}", "<script>alert(1)</script>", "javascript:alert(1)", "task:", "task:x",
    "ann/news", "ann/news@main", "main", "HEAD", "production", "refs/pr/1", "f" * 40, "f" * 64, "F" * 64, "null", "true", "no", "2024-01-01",
    "12:30", "1_000", "0x1F", "٣", "-1", "0", "1.5", "99999999999999999999", "1e999", "nan", "inf", "NEAR(a b)", "a*", "\"a", "a OR", "^a", "col:x",
    "accuracy", "=", "~", "&x", "*x", "!!python/object:os.system x", "\r\nX-Evil: 1", "\ufeff", "\ufffe", "e\u0301", "con", ".git", "x.lock", "a..b", "@{",
)  # fmt: skip
VALUES = (None, True, False, -1, 0, 1, 2**31, 2**63, 2**64, -(2**63) - 1, 1e308, -0.0, 0.1, [], {}, [None], [[]], {"": ""}, {"a": {"b": []}}, [1, "a", None], ["x"] * 3000, {str(i): i for i in range(3000)})  # fmt: skip

MODEL, ADAPTER = "/api/models/<namespace>/<name>", "/api/adapters/<namespace>/<name>"
PARTS = {
    "namespace": "ann", "name": "news", "revision": "main", "path": "README.md", "slug": TASK, "alias": "production",
    "kind": "tag", "ref": "v1", "branch": "try", "rest": "ann/news/discussions", "user": "ann", "status": "pending", "id": "1", "feature": "discussions", "filename": "style.css",
}  # fmt: skip
PART, ANY = re.compile(r"<(?:([^<>]*):)?(\w+)>"), re.compile(r"(?:any\(|, )(\w+)")
# Every route that takes a body: what it takes.
JSON_BODIES: dict[str, object] = {
    "PUT " + ADAPTER + "/aliases/<alias>": {"revision": "main", "why": "best"},
    "POST " + ADAPTER + "/aliases/<alias>/rollback": {"why": "worse"},
    "POST /api/bases": json.loads(base_spec("acme/other", "e" * 64).to_json()),
    "POST /api/evaluations": {
        "task": TASK, "data_hash": "d" * 64, "metric": "accuracy", "value": 0.5, "n": 1, "low": 0.1, "high": 0.9, "seconds": 1.5,
        "engine": "x", "repo": "ann/news", "revision": "main", "source": "self-reported", "extra": {"seed": 1},
    },
    "PUT /api/tasks/<slug>": {"metric": "accuracy", "description": "Which?", "data": EVAL_SET.decode()},
    "PUT /api/tasks/<slug>/owners": {"owners": ["ann"]},
    "POST " + MODEL + "/branch/<branch>": {"startingPoint": "main", "overwrite": False},
    "POST " + MODEL + "/tag/<revision>": {"tag": "v1", "message": "first"},
    "DELETE " + MODEL + "/<any(tag, branch):kind>/<ref>": {},
    "POST " + MODEL + "/paths-info/<revision>": {"paths": ["README.md"], "expand": True},
    "POST " + MODEL + "/preupload/<revision>": {"files": [{"path": "a.json", "size": 2, "sample": "e30="}]},
    "PUT " + MODEL + "/settings": {"private": False},
    "POST /api/repos/create": {"name": "draft", "organization": "ann", "type": "model", "private": True},
    "DELETE /api/repos/delete": {"name": "draft", "organization": "ann", "type": "model"},
    "POST /api/repos/move": {"fromRepo": "ann/draft", "toRepo": "ann/draft-2", "type": "model"},
    "POST /api/validate-yaml": {"content": "---\ntags: [a]\n---\n", "repoType": "model"},
    "POST /<namespace>/<name>.git/info/lfs/objects/batch": {
        "operation": "upload", "transfers": ["basic", "multipart"], "objects": [{"oid": "a" * 64, "size": 5}], "hash_algo": "sha256",
    },
    "POST /<namespace>/<name>.git/info/lfs/verify": {"oid": "a" * 64, "size": 5},
    "POST /lfs/complete": {"oid": "a" * 64, "parts": [{"partNumber": 1, "etag": "x"}]},
    "PUT /lfs/part": {}, "PUT /lfs/upload": {},
}  # fmt: skip
FORMS: dict[str, dict[str, str]] = {
    "POST /<namespace>/<name>/promote": {"revision": "main", "alias": "production", "why": "best"},
    "POST /playground": {"prompt": "a", "adapter": "ann/news", "max_tokens": "5"},
    "POST /playground/stream": {"prompt": "a", "adapter": "ann/news", "max_tokens": "5"},
    "POST /publish": {"name": "ann/x", "message": "m", "tags": "v1"},
    "POST /publish/check": {"name": "ann/x"},
    "POST /signin": {"token": "hf_graft_x", "next": "/"},
    "POST /signout": {},
}
COMMIT = "POST " + MODEL + "/commit/<revision>"
QUERIES = {
    "q": "news", "search": "news", "filter": "lora", "task": TASK, "base": "acme/tiny-llama", "method": "lora", "license": "mit", "author": "ann",
    "label": "lora", "sort": "updated", "direction": "-1", "limit": "5", "offset": "1", "full": "true", "expand": "true", "recursive": "true",
    "cursor": "x", "repo": "ann/news", "a": "ann/news", "b": "ann/news", "name": "ann/news", "create_pr": "0", "p": "1", "sig": "x",
}  # fmt: skip
CONFIG = {
    "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": "acme/tiny-llama", "r": 4, "lora_alpha": 8,
    "target_modules": ["q_proj", "v_proj"], "bias": "none", "rank_pattern": {}, "alpha_pattern": {}, "layers_to_transform": None,
}  # fmt: skip
PROVENANCE = {
    "base": {"id": "acme/tiny-llama", "fingerprint": "f" * 64}, "config": {"seed": 0, "method": "lora"}, "graft": "0.1.0",
    "history": [{"step": 1, "loss": 2.5}, {"step": 2, "loss": 2.25}], "data": {"train": {"rows": 5, "hash": "d" * 64}}, "seconds": 2.5,
}  # fmt: skip
CARD = {
    "license": "mit", "base_model": "acme/tiny-llama", "tags": ["lora", f"task:{TASK}"], "language": ["en"], "datasets": ["a/b"],
    "library_name": "peft", "pipeline_tag": "text-generation",
    "model-index": [{"name": "x", "results": [{"task": {"type": "t", "name": TASK}, "dataset": {"name": "d", "type": "d"}, "metrics": [{"type": "accuracy", "value": 0.5}]}]}],
}  # fmt: skip


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    registry = Registry(tmp_path / "registry.db")
    registry.add_base(base_spec())
    registry.add_task(TASK, "accuracy", EVAL_SET, "Which topic?")
    registry.publish(lora_folder(tmp_path / "news"), "ann/news", tags=["v1"])
    registry.create_repo("ann/draft")
    return registry


class Door(NamedTuple):
    """One method of one route."""

    method: str
    rule: str
    takes_body: bool


def doors(app: Flask) -> list[Door]:
    """All there are. What is not offered is refused, whatever comes with it."""
    return [
        Door(method, rule.rule, method != "GET" and not rule.endpoint.startswith("not_offered."))
        for rule in app.url_map.iter_rules()
        for method in sorted((rule.methods or set()) - {"HEAD", "OPTIONS"})
    ]


def test_every_route_that_takes_a_body_is_tried(registry: Registry) -> None:
    every = doors(create_app(registry))
    tried = JSON_BODIES.keys() | FORMS.keys() | {COMMIT}
    assert {f"{door.method} {door.rule}" for door in every if door.takes_body} == tried
    assert {part for door in every for _, part in PART.findall(door.rule)} <= PARTS.keys()


class Fuzz:
    """Draws requests, all from one seed."""

    def __init__(self, seed: int):
        self.draw = random.Random(seed)

    def mutate(self, value: object) -> str:
        """JSON of a value with one or two places changed."""
        changed, holes = copy.deepcopy(value), []
        for _ in range(self.draw.choice((1, 1, 2))):
            changed = self._change(changed, holes)
        text = json.dumps(changed)
        for hole, raw in holes:
            text = text.replace(json.dumps(hole), raw)
        return text[: self.draw.randrange(len(text) + 1)] if self.draw.random() < 0.02 else text

    def _change(self, value: object, holes: list[tuple[str, str]]) -> object:
        inside = isinstance(value, (dict, list)) and value and self.draw.random() < 0.85
        if not inside:
            return self._hostile(holes)
        if isinstance(value, dict):
            key = self.draw.choice(list(value))
            match self.draw.randrange(8):
                case 0:
                    del value[key]
                case 1:
                    value[self.draw.choice(WORDS)] = self._hostile(holes)
                case _:
                    value[key] = self._change(value[key], holes)
        elif isinstance(value, list):
            at = self.draw.randrange(len(value))
            value[at] = self._change(value[at], holes)
        return value

    def _hostile(self, holes: list[tuple[str, str]]) -> object:
        match self.draw.randrange(3):
            case 0:
                holes.append((f"hole {len(holes)}", self.draw.choice(RAW)))
                return holes[-1][0]
            case 1:
                return self.draw.choice(WORDS)
        return copy.deepcopy(self.draw.choice(VALUES))

    def url(self, rule: str) -> str:
        def part(match: re.Match[str]) -> str:
            converter, name = match[1] or "", match[2]
            sound = self.draw.choice(ANY.findall(converter)) if converter.startswith("any(") else PARTS[name]
            text = self.draw.choice(WORDS) if self.draw.random() < 0.15 else sound
            return quote(text, safe="/%" if self.draw.random() < 0.3 else "")

        path = PART.sub(part, rule)
        count = self.draw.choice((0, 0, 1, 2, 5))
        args = [(key, self._argument(QUERIES[key])) for key in self.draw.choices(list(QUERIES), k=count)]
        if self.draw.random() < 0.01:
            args = [(self.draw.choice(("label", "filter", "repo", "expand")), f"x{i}") for i in range(3000)]
        return f"{path}?{urlencode(args)}" if args else path

    def _argument(self, sound: str) -> str:
        return self.draw.choice(WORDS) if self.draw.random() < 0.5 else sound

    def commit(self) -> bytes:
        """Lines of a commit: a card, config or provenance with something odd in it, or an odd line."""
        files = {
            "adapter_config.json": lambda: self.mutate(CONFIG),
            "graft.json": lambda: self.mutate(PROVENANCE),
            "README.md": lambda: (
                f"---\n{self.mutate(CARD)}\n---\n# {self.draw.choice(WORDS)}\n\n{self.draw.choice(WORDS)}\n"
            ),
        }
        path = self.draw.choice(list(files))
        encoded = {"path": path, "content": files[path](), "encoding": "utf-8"}
        header = {"summary": "s", "description": "d"}
        parts: list[dict[str, object]] = [{"key": "header", "value": header}, {"key": "file", "value": encoded}]
        lines = [json.dumps(part) for part in parts]
        if self.draw.random() < 0.3:
            at = self.draw.randrange(2)
            lines[at] = self.mutate(parts[at])
        return "\n".join(lines).encode("utf-8", "surrogatepass")

    def send(self, client: Client, door: Door) -> tuple[str, TestResponse]:
        """(what was sent, the answer)."""
        method, name, url = door.method, f"{door.method} {door.rule}", self.url(door.rule)
        accept = {"Accept": self.draw.choice(("text/html", "application/json", "*/*"))}
        if name in FORMS:
            form = {key: self._argument(value) for key, value in FORMS[name].items()}
            return f"{method} {url} {form!r}", client.open(url, method=method, data=form, headers=accept)
        if name == COMMIT:
            data, kind = self.commit(), "application/x-ndjson"
        else:
            data, kind = self.mutate(JSON_BODIES.get(name, {})).encode("utf-8", "surrogatepass"), "application/json"
        data = data if door.takes_body else b""
        return f"{method} {url} {data[:2000]!r}", client.open(
            url, method=method, data=data, content_type=kind, headers=accept
        )


def pages(registry: Registry) -> Iterator[str]:
    """What has to be shown whatever came in."""
    yield from (
        "/",
        "/tasks",
        "/publish",
        "/playground",
        "/api/models?full=true&limit=1000",
        "/api/adapters",
        "/api/tasks",
    )
    for repo in registry.db.execute(
        "SELECT namespace || '/' || name AS name FROM repos WHERE deleted_at IS NULL LIMIT 20"
    ):
        name = quote(repo["name"])
        yield from (f"/{name}", f"/compare?repo={name}", f"/api/models/{name}", f"/api/adapters/{name}/history")
    for task in registry.db.execute("SELECT slug FROM tasks LIMIT 20"):
        yield from (f"/tasks/{quote(task['slug'])}", f"/api/tasks/{quote(task['slug'])}/leaderboard")


def require_shown(client: Client, registry: Registry, last: list[str]) -> None:
    for path in pages(registry):
        reply = client.get(path, headers={"Accept": "text/html"})
        assert reply.status_code == 200, (path, reply.status_code, reply.text[:500], last[-LOOK_EVERY:])
        if reply.mimetype == "application/json":
            json.loads(reply.text, parse_constant=lambda name, path=path: pytest.fail(f"{path} answers {name}"))


@pytest.mark.parametrize("part", range(PROCESSES))
def test_whatever_comes_in_is_answered_and_breaks_no_page(registry: Registry, part: int) -> None:
    app = create_app(registry)
    client, fuzz, sent = app.test_client(), Fuzz(part), []
    every = doors(app)
    commits = [door for door in every if f"{door.method} {door.rule}" == COMMIT]
    tried = every + [door for door in every if door.takes_body] * 3 + commits * 20  # bodies hold more that can be odd
    for case in range(CASES // PROCESSES):
        said, reply = fuzz.send(client, fuzz.draw.choice(tried))
        sent.append(said)
        assert reply.status_code < 500 or reply.status_code in (501, 503), (said, reply.status_code, reply.text[:2000])
        if reply.status_code >= 400 and reply.mimetype == "application/json":
            assert json.loads(reply.text).keys() & {"error", "errors"}, said  # the second is validate-yaml's own shape
        reply.close()
        if case % LOOK_EVERY == LOOK_EVERY - 1:
            require_shown(client, registry, sent)
    require_shown(client, registry, sent)
    assert check(registry).problems == ()
