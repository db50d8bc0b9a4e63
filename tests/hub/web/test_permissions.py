"""Every route, asked by everybody, about their own, a foreign and a foreign private repo: what the table says, happens."""

import hashlib
import io
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from werkzeug.test import Client, TestResponse

from graft.hub.registry import audit
from graft.hub.registry.access.callers import STRANGER, Caller
from graft.hub.registry.access.permissions import RULES, SCOPES, Action, may
from graft.hub.registry.access.tokens import caller_of, create_token, list_tokens
from graft.hub.registry.commits.changes import Put
from graft.hub.registry.leaderboard import Evaluation
from graft.hub.registry.registry import Registry
from graft.hub.registry.search import Query
from graft.hub.web.app import create_app
from graft.hub.web.route_actions import ROUTE_ACTIONS
from tests.hub.conftest import base_spec, lora_folder

ROLES = {"anonymous": None, "reader": "read", "writer": "write", "evaluator": "evaluator", "admin": "admin"}
TARGETS = ("own", "foreign", "private")
REPOS = {"foreign": "zoe/news", "private": "zoe/secret"}
EVAL_SET = b'{"prompt": "a", "completion": "b"}\n'
SCORE = {"task": "topics", "data_hash": hashlib.sha256(EVAL_SET).hexdigest(), "metric": "accuracy", "value": 1, "n": 1}
OID = hashlib.sha256(b"never uploaded").hexdigest()
LINKS = "signed links, which are permissions of their own: test_git_lfs"


@dataclass(frozen=True)
class Ask:
    """A request about "ns/name" (`{repo}`, `{ns}`, `{name}`). `repo` false: about no repo at all.

    `works`: what it is answered by when it may, were it not "2xx or a redirect".
    """

    method: str
    path: str
    json: Any = None
    form: Callable[[str], dict[str, Any]] | None = None
    repo: bool = True
    works: tuple[int, ...] = (200, 302)


def get(path: str, **more: Any) -> Ask:
    return Ask("GET", path, **more)


def plain(path: str, **more: Any) -> Ask:
    return Ask("GET", path, repo=False, **more)


def upload(repo: str) -> dict[str, Any]:
    return {"name": f"{repo}-new", "files": [(io.BytesIO(data), f"up/{name}") for name, data in UPLOAD.items()]}


UPLOAD: dict[str, bytes] = {}  # an adapter's files, filled by the fixture

ASKS: dict[str, Ask] = {
    "static": plain("/static/style.css"),
    "api.openapi": plain("/openapi.json"),
    "api.health": plain("/health"),
    "api.search": plain("/api/adapters"),
    "api.adapter": get("/api/adapters/{repo}"),
    "api.resolve": get("/api/resolve?name={repo}"),
    "api.history": get("/api/adapters/{repo}/history"),
    "api.promote": Ask("PUT", "/api/adapters/{repo}/aliases/staging", {}),
    "api.rollback": Ask("POST", "/api/adapters/{repo}/aliases/moved/rollback", {}),
    "api.tasks": plain("/api/tasks"),
    "api.task": plain("/api/tasks/topics"),
    "api.add_task": Ask("PUT", "/api/tasks/topics", {"metric": "f1", "data": EVAL_SET.decode()}, repo=False),
    "api.set_task_owners": Ask("PUT", "/api/tasks/topics/owners", {"owners": ["ann"]}, repo=False),
    "api.task_data": plain("/api/tasks/topics/data"),
    "api.leaderboard": plain("/api/tasks/topics/leaderboard"),
    "api.evaluations": get("/api/adapters/{repo}/evaluations"),
    "api.evaluation": get("/api/evaluations/{evaluation}"),
    "api.add_evaluation": Ask("POST", "/api/evaluations", SCORE | {"repo": "{repo}"}),
    "api.list_bases": plain("/api/bases"),
    "api.add_base": Ask("POST", "/api/bases", "{base}", repo=False),
    "protocol.auth_check": get("/api/models/{repo}/auth-check"),
    "protocol.auth_check_write": Ask("GET", "/api/models/{repo}/auth-check/write"),
    "protocol.create_repo": Ask("POST", "/api/repos/create", {"name": "{repo}-new"}),
    "protocol.delete_repo": Ask("DELETE", "/api/repos/delete", {"name": "{repo}"}),
    "protocol.move_repo": Ask("POST", "/api/repos/move", {"fromRepo": "{repo}", "toRepo": "{repo}-moved"}),
    "protocol.settings": Ask("PUT", "/api/models/{repo}/settings", {"private": True}),
    "protocol.list_models": plain("/api/models"),
    "protocol.model_info": get("/api/models/{repo}"),
    "protocol.tree": get("/api/models/{repo}/tree/main"),
    "protocol.paths_info": Ask("POST", "/api/models/{repo}/paths-info/main", {"paths": []}),
    "protocol.commits": get("/api/models/{repo}/commits/main"),
    "protocol.list_refs": get("/api/models/{repo}/refs"),
    "protocol.create_tag": Ask("POST", "/api/models/{repo}/tag/main", {"tag": "v2"}),
    "protocol.create_branch": Ask("POST", "/api/models/{repo}/branch/try", {}),
    "protocol.delete_ref": Ask("DELETE", "/api/models/{repo}/tag/v1"),
    "protocol.resolve": get("/{repo}/resolve/main/README.md"),
    "people.whoami": plain("/api/whoami-v2"),
    "people.user_overview": plain("/api/users/zoe/overview"),
    "people.organization_overview": plain("/api/organizations/zoe/overview"),
    "people.my_repositories": plain("/api/settings/repositories"),
    # somebody's own storage: foreign namespaces have none to show
    "people.repositories_of": plain("/api/organizations/zoe/settings/repositories", works=(404,)),
    "not_offered.list_nothing": plain("/api/datasets"),
    "not_offered.feature_of_a_repo": get("/api/models/{repo}/like", works=(501,)),
    "not_offered.repo_without_a_namespace": plain("/api/models/news", works=(404,)),
    "not_offered.repo_of_another_kind": plain("/api/datasets/zoe/news", works=(404,)),
    "not_offered.anything_else": plain("/api/jobs/x", works=(501,)),
    "not_offered.git": plain("/zoe/news/info/refs", works=(501,)),
    "uploads.validate_yaml": Ask("POST", "/api/validate-yaml", {"content": "x"}, repo=False),
    "uploads.preupload": Ask("POST", "/api/models/{repo}/preupload/main", {"files": []}),
    "uploads.commit": Ask("POST", "/api/models/{repo}/commit/main", {"key": "header", "value": {"summary": "x"}}),
    "lfs.batch": Ask("POST", "/{repo}.git/info/lfs/objects/batch", {"operation": "upload", "objects": []}),
    "lfs.upload": Ask("PUT", "/lfs/upload?oid=" + OID, repo=False, works=(403,)),
    "lfs.part": Ask("PUT", "/lfs/part?oid=" + OID, repo=False, works=(403,)),
    "lfs.complete": Ask("POST", "/lfs/complete?oid=" + OID, repo=False, works=(403,)),
    "lfs.verify": Ask("POST", "/{repo}.git/info/lfs/verify", {"oid": OID, "size": 1}, works=(422,)),
    "pages.browse": plain("/"),
    "pages.browse_json": plain("/index.json"),
    "pages.person": plain("/zoe"),
    "pages.adapter": get("/{repo}"),
    "pages.tasks": plain("/tasks"),
    "pages.task": plain("/tasks/topics"),
    "pages.task_json": plain("/tasks/topics.json"),
    "pages.compare": get("/compare?a={repo}"),
    "pages.signin_page": plain("/signin"),
    "pages.sign_in": Ask("POST", "/signin", form=lambda repo: {"token": TOKENS["reader"]}, repo=False),
    "pages.signout": Ask("POST", "/signout", repo=False),
    "pages.publish": plain("/publish"),
    "pages.publish_upload": Ask("POST", "/publish", form=upload),
    "pages.check_publish": Ask("POST", "/publish/check", form=upload, repo=False),
    "pages.promote": Ask("POST", "/{repo}/promote", form=lambda repo: {"alias": "staging"}),
    "playground.page": plain("/playground"),
    # 400: there is no prompt, which is looked at once the caller may ask
    "playground.answer_all": Ask("POST", "/playground", form=lambda repo: {}, repo=False),
    "playground.stream": Ask("POST", "/playground/stream", {"model": "x"}, repo=False, works=(400,)),
}
TOKENS: dict[str, str] = {}


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A registry with a repo of everybody's, a task, and zoe's two."""
    folder = tmp_path_factory.mktemp("matrix")
    adapter = lora_folder(folder / "adapter", task="topics")
    UPLOAD.update({path.name: path.read_bytes() for path in adapter.iterdir()})
    registry = Registry(folder / "registry.db")
    registry.add_base(base_spec())
    registry.add_task("topics", "accuracy", EVAL_SET, "")
    for role, scope in ROLES.items():
        if scope:
            TOKENS[role] = create_token(registry.db, role, scope)
    first = "zoe/news"
    for repo in (first, *(f"{role}/own" for role, scope in ROLES.items() if scope), "zoe/secret"):
        registry.publish(adapter, repo, tags=["v1"], private=repo == "zoe/secret")
        card = registry.blobs.put_bytes(b"---\ntags: [task:topics]\n---\n")
        registry.promote(repo, "moved")
        registry.commit(repo, [Put("README.md", card)], title="second")
        registry.promote(repo, "moved")
        registry.record_evaluation(Evaluation(**SCORE, repo=repo))
    registry.db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    registry.close()
    return folder


@pytest.fixture
def registry(template: Path, tmp_path: Path) -> Registry:
    shutil.copy(template / "registry.db", tmp_path / "registry.db")
    shutil.copytree(template / "registry.blobs", tmp_path / "registry.blobs", copy_function=shutil.copy)
    return Registry(tmp_path / "registry.db")


def test_no_route_is_without_an_action_and_a_question(registry: Registry) -> None:
    routes = {rule.endpoint for rule in create_app(registry).url_map.iter_rules()}
    assert routes == ROUTE_ACTIONS.keys() == ASKS.keys()


def test_a_hub_with_a_route_that_is_in_no_table_does_not_start(registry: Registry, monkeypatch) -> None:
    few = {name: actions for name, actions in ROUTE_ACTIONS.items() if name != "api.add_base"}
    monkeypatch.setattr("graft.hub.web.security.ROUTE_ACTIONS", few)
    with pytest.raises(LookupError, match=r"api\.add_base"):
        create_app(registry)


@pytest.mark.parametrize("endpoint", ASKS)
def test_every_route_does_what_the_table_says(registry: Registry, endpoint: str) -> None:
    client, wrong = create_app(registry).test_client(), []
    for role in ROLES:
        for target in TARGETS if ASKS[endpoint].repo else ("foreign",):
            repo = f"{role}/own" if target == "own" else REPOS[target]
            if (role, target) == ("anonymous", "own"):
                continue
            reply = ask(client, ASKS[endpoint], role, repo, registry)
            expected = answers_due(endpoint, caller(registry, role), repo)
            if reply.status_code not in expected:
                wrong.append((role, target, reply.status_code, expected, reply.text[:200]))
    assert wrong == []


def caller(registry: Registry, role: str) -> Caller:
    return caller_of(registry.db, TOKENS[role]) if role in TOKENS else STRANGER


def answers_due(endpoint: str, caller: Caller, repo: str) -> tuple[int, ...]:
    """The statuses that the permission table asks for."""
    actions, wanted = ROUTE_ACTIONS[endpoint], ASKS[endpoint]
    rights = [RULES[action].right for action in actions]
    if None not in rights and caller.scope is None:
        return (401,)
    if None not in rights and not any(right in SCOPES[caller.scope or ""] for right in rights):
        return (403,)
    there = Action.REPO_CREATE not in actions
    if wanted.repo and there and repo == "zoe/secret":
        return (404,) if endpoint != "protocol.auth_check_write" else (403,)
    return wanted.works if any(may(caller, action, repo) for action in actions) else (403,)


def ask(client: Client, wanted: Ask, role: str, repo: str, registry: Registry) -> TestResponse:
    row = registry.db.execute(
        "SELECT max(evaluations.id) FROM evaluations JOIN repos ON repos.id = repo_id WHERE namespace || '/' || name = ?",
        [repo],
    ).fetchone()
    fill = {"repo": repo, "evaluation": str(row[0])}
    headers = {"Authorization": f"Bearer {TOKENS[role]}"} if role in TOKENS else {}
    client.delete_cookie("session")
    if wanted.form is not None:
        return client.open(wanted.path.format(**fill), method=wanted.method, data=wanted.form(repo), headers=headers)
    if wanted.json == "{base}":
        sent: Any = base_spec("acme/other", "a" * 64).to_json()
        return client.open(wanted.path, method=wanted.method, data=sent, headers=headers)
    sent = wanted.json
    if isinstance(sent, dict):
        sent = {
            key: value.format(**fill) if isinstance(value, str) and "{repo" in value else value
            for key, value in sent.items()
        }
    return client.open(wanted.path.format(**fill), method=wanted.method, json=sent, headers=headers)


def world(registry: Registry) -> dict[str, Any]:
    """What the registry says of what is not the writer's: to strangers, to servers, to zoe."""
    zoes, ranked = ["zoe/news", "zoe/secret"], [row.evaluation for row in registry.leaderboard("topics")]
    return {
        "bases": registry.bases(),
        "tasks": registry.tasks(),
        "served": registry.resolve("task:topics"),
        "ranked": [score for score in ranked if not (score.repo or "").startswith("writer/")],
        "repos": [registry.repo(name) for name in zoes],
        "revisions": [registry.revisions(name) for name in zoes],
        "refs": [registry.all_refs(name) for name in zoes],
        "moves": [registry.history(name) for name in zoes],
        "scores": [registry.evaluations(name) for name in zoes],
        "listed": [hit for hit in registry.search(Query()).entries if hit.name in zoes],
        "tokens": [token for token in list_tokens(registry.db) if token.user != "writer"],
    }


def test_a_writer_changes_nothing_that_is_not_theirs(registry: Registry) -> None:
    """Every request there is, by a write token, about every target; and what a take-over would be tried with."""
    client = create_app(registry).test_client()
    registry.promote("zoe/news", "production")
    for token in ROLES:  # the first use of a token is noted, which is no change that anybody made
        if token in TOKENS:
            caller(registry, token)
    before = world(registry)
    mine = {"Authorization": f"Bearer {TOKENS['writer']}"}
    for body in ({}, {"revision": "v1"}):
        client.put("/api/adapters/writer/own/aliases/production", json=body, headers=mine)
    client.post("/api/adapters/writer/own/aliases/production/rollback", json={}, headers=mine)
    client.post("/api/evaluations", json=SCORE | {"repo": "writer/own", "source": "graft"}, headers=mine)
    client.post("/api/evaluations", json=SCORE | {"repo": "writer/own"}, headers=mine)
    client.post("/api/bases", data=base_spec("acme/mine", "f" * 64).to_json(), headers=mine)
    for endpoint, wanted in ASKS.items():
        for repo in (*REPOS.values(), "writer/own") if wanted.repo else ("zoe/news",):
            reply = ask(client, wanted, "writer", repo, registry)
            assert reply.status_code < 500 or reply.status_code == 501, (endpoint, repo, reply.text)
    assert world(registry) == before
    assert list(audit.verify(registry.db)) == []
