"""Users, their tokens and sign-ins, and how much they may have."""

import base64
import json
import sqlite3
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from huggingface_hub import HfApi
from huggingface_hub.errors import DisabledRepoError
from werkzeug.test import Client

from graft.hub.cli.main import main
from graft.hub.errors import ConflictError, ForbiddenError, GraftError, TooLargeError, UnauthorizedError
from graft.hub.registry import audit, withdrawal
from graft.hub.registry.access.callers import Quota
from graft.hub.registry.access.permissions import Action, may, require
from graft.hub.registry.access.quotas import InFlight, measure_usage, read_quota, set_quota
from graft.hub.registry.access.sessions import caller_of_session, end_session, start_session
from graft.hub.registry.access.tokens import caller_of, create_token, list_tokens, revoke_tokens, token_hash
from graft.hub.registry.commits.changes import Delete, Put
from graft.hub.registry.leaderboard import Evaluation
from graft.hub.registry.maintenance.check import check
from graft.hub.registry.maintenance.garbage import collect
from graft.hub.registry.registry import Registry
from graft.hub.registry.search import Query
from graft.hub.web.app import create_app
from tests.golden.made import BLOBS, DUMP

Graft = Callable[..., Result]


@pytest.fixture
def graft(registry: Registry) -> Graft:
    def run(*words: str) -> Result:
        return CliRunner().invoke(main, [*words, "--registry", str(registry.path)])

    return run


def bearing(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


# Tokens


def test_a_token_ends_at_its_time(registry: Registry) -> None:
    token = create_token(registry.db, "ann", "write", life=timedelta(days=30))
    assert caller_of(registry.db, token).name == "ann"
    session = start_session(registry.db, token)
    registry.db.execute("UPDATE tokens SET expires_at = '2020-01-01T00:00:00.000000Z'")
    with pytest.raises(UnauthorizedError, match="expired"):
        caller_of(registry.db, token)
    with pytest.raises(UnauthorizedError):
        caller_of_session(registry.db, session)
    with pytest.raises(UnauthorizedError):
        start_session(registry.db, token)


def test_a_token_may_be_limited_to_names(registry: Registry) -> None:
    create_token(registry.db, "ann", "write", namespaces=("team",))
    token = create_token(registry.db, "ann", "write", limits=("Team/News", "ann"))
    caller = caller_of(registry.db, token)
    for name, expected in {
        "team/news": True,
        "team/other": False,
        "ann/x": True,
        "ANN/x": True,
        "bob/x": False,
    }.items():
        assert may(caller, Action.REPO_WRITE, name) is expected, name
    with pytest.raises(ForbiddenError, match="publish under ann, team/news"):
        require(caller, Action.REPO_WRITE, "team/other")
    narrow = caller_of(registry.db, create_token(registry.db, "ann", "write", limits=("team/news",)))
    assert not may(narrow, Action.REPO_WRITE, "ann/x") and not may(narrow, Action.REPO_WRITE, "team")


def test_a_limited_token_sees_no_other_private_repo(registry: Registry, adapter: Path) -> None:
    for name in ("ann/a", "ann/b", "bob/c"):
        registry.publish(adapter, name, private=True)
    whole = caller_of(registry.db, create_token(registry.db, "ann", "read"))
    narrow = caller_of(registry.db, create_token(registry.db, "ann", "read", limits=("ann/b",)))
    assert {hit.name for hit in registry.search(Query(), whole).entries} == {"ann/a", "ann/b"}
    assert [hit.name for hit in registry.search(Query(), narrow).entries] == ["ann/b"]
    assert registry.repo("ann/b", narrow).private
    with pytest.raises(GraftError, match="no adapter"):
        registry.repo("ann/a", narrow)


@pytest.mark.parametrize(
    ("scope", "limits", "said"),
    [
        ("admin", ("ann",), "can't be limited"),
        ("evaluator", ("ann",), "can't be limited"),
        ("write", ("bob",), "doesn't own 'bob'"),
        ("write", ("a/b/c",), "no adapter name"),
        ("write", ("..",), "can't be a user's"),
        ("god", (), "scope is one of"),
    ],
)
def test_what_no_token_can_be(registry: Registry, scope: str, limits: tuple[str, ...], said: str) -> None:
    with pytest.raises(GraftError, match=said):
        create_token(registry.db, "ann", scope, limits=limits)
    assert list_tokens(registry.db) == []


def test_tokens_are_listed_and_revoked_by_name(graft: Graft, registry: Registry) -> None:
    words = ("hub", "token", "--user", "ann", "--scope", "write", "--json")
    first = json.loads(graft(*words, "--name", "laptop").output)["token"]
    second = json.loads(graft(*words, "--name", "ci", "--limit", "ann/news", "--expires", "12h").output)["token"]
    again = graft(*words, "--name", "ci")
    assert again.exit_code == 1 and "has a token 'ci' already" in again.output
    caller_of(registry.db, second)
    laptop, ci = json.loads(graft("hub", "tokens", "--json").output)
    assert (laptop["name"], laptop["last_used_at"], laptop["expires_at"], laptop["limits"]) == (
        "laptop",
        None,
        None,
        None,
    )
    assert ci["last_used_at"] and ci["expires_at"] > ci["created_at"] and ci["limits"] == ["ann/news"]
    shown = graft("hub", "tokens").output
    assert "laptop" in shown and first not in shown and first not in json.dumps(laptop)
    assert graft("hub", "revoke", "--user", "ann", "--name", "ci").exit_code == 0
    with pytest.raises(UnauthorizedError):
        caller_of(registry.db, second)
    assert caller_of(registry.db, first).name == "ann"
    assert "no token 'ci' here" in graft("hub", "revoke", "--user", "ann", "--name", "ci").output
    assert graft(*words, "--name", "ci").exit_code == 0  # the name is free again
    for span in ("0d", "12", "1y", "-3d", "d"):
        assert graft(*words, "--expires", span).exit_code == 2, span


def test_a_token_is_good_also_while_the_registry_is_being_written(registry: Registry) -> None:
    token = create_token(registry.db, "ann", "read")
    other = sqlite3.connect(registry.path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    assert caller_of(registry.db, token).name == "ann"  # at once, and its use is not noted
    other.execute("ROLLBACK")
    other.close()
    assert list_tokens(registry.db)[0].last_used_at is None
    assert caller_of(registry.db, token) and list_tokens(registry.db)[0].last_used_at is not None
    assert registry.db.execute("PRAGMA busy_timeout").fetchone()[0] == 30_000


def test_a_registry_of_before_keeps_its_tokens(tmp_path: Path) -> None:
    """They all had the name 'token', by which nobody could have revoked one of them."""
    old = sqlite3.connect(tmp_path / "registry.db", isolation_level=None)
    old.executescript(DUMP.read_text())
    old.execute("DELETE FROM tokens")
    old.execute("INSERT INTO users (id, name, created_at) VALUES (90, 'zoe', '2026')")
    old.execute("INSERT INTO members VALUES ('zoe', 90)")
    given = {"one": "token", "two": "token", "three": "first admin"}
    for token, name in given.items():
        row = [name, token_hash(token), "admin" if name == "first admin" else "write"]
        old.execute("INSERT INTO tokens (user_id, name, hash, scope, created_at) VALUES (90, ?, ?, ?, '2026')", row)
    old.close()
    for name, text in json.loads(BLOBS.read_text()).items():
        path = tmp_path / "registry.blobs" / name[:2] / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(base64.b64decode(text))
    db = Registry(tmp_path / "registry.db").db
    assert [caller_of(db, token).scope for token in given] == ["write", "write", "admin"]
    names = [token.name for token in list_tokens(db, "zoe")]
    assert len(set(names)) == 3 and names[2] == "first admin" and names[0].startswith("token-")
    assert revoke_tokens(db, "zoe", name=names[0]) == 1
    assert caller_of(db, "two").name == "zoe"
    assert list(audit.verify(db)) == [] and len(audit.entries(db)) > 10


def test_tokens_without_a_name_are_numbered(registry: Registry) -> None:
    for _ in range(3):
        create_token(registry.db, "ann", "write")
    revoke_tokens(registry.db, "ann", name="token-2")
    create_token(registry.db, "ann", "write")
    assert [token.name for token in list_tokens(registry.db)] == ["token-1", "token-3", "token-2"]


# Names


def test_a_new_user_does_not_own_what_others_share(registry: Registry) -> None:
    """B13: whoever was called like a shared namespace later got it."""
    create_token(registry.db, "ann", "write", namespaces=("team",))
    with pytest.raises(ConflictError, match="others share"):
        create_token(registry.db, "Team", "write")
    assert not registry.db.execute("SELECT 1 FROM users WHERE name = 'team'").fetchone()
    with pytest.raises(ConflictError, match="in every history"):
        create_token(registry.db, "Owner", "write")
    team = create_token(registry.db, "team", "write", namespaces=("team",))  # on purpose
    assert may(caller_of(registry.db, team), Action.REPO_WRITE, "team/x")


def test_the_first_users_own_what_bears_their_name(registry: Registry, adapter: Path) -> None:
    registry.publish(adapter, "ann/news")  # before there were users
    assert may(caller_of(registry.db, create_token(registry.db, "ann", "write")), Action.REPO_WRITE, "ann/news")


# Sign-ins


@pytest.fixture
def browser(registry: Registry, adapter: Path) -> Client:
    registry.publish(adapter, "ann/secret", private=True)
    return create_app(registry).test_client()


def test_a_sign_in_ends_with_its_token_and_at_its_time(browser: Client, registry: Registry) -> None:
    token = create_token(registry.db, "ann", "read", name="laptop")
    for ended in (
        lambda: revoke_tokens(registry.db, "ann", name="laptop"),
        lambda: registry.db.execute("UPDATE sessions SET expires_at = '2020-01-01T00:00:00.000000Z'"),
    ):
        browser.post("/signin", data={"token": token})
        assert browser.get("/ann/secret").status_code == 200
        ended()
        assert browser.get("/ann/secret").status_code == 404
        token = create_token(registry.db, "ann", "read")


def test_a_cookie_is_good_for_one_sign_in(browser: Client, registry: Registry) -> None:
    """Rotated at sign-in, ended at sign-out: a copy of the cookie opens nothing afterwards."""
    token = create_token(registry.db, "ann", "read")
    copies = []
    for _ in range(2):
        browser.post("/signin", data={"token": token})
        copies.append(browser.get_cookie("session").value)
    assert copies[0] != copies[1] and token not in copies[1]
    thief = create_app(registry).test_client()
    thief.set_cookie("session", copies[0])
    assert thief.get("/ann/secret").status_code == 404  # the second sign-in ended the first
    thief.set_cookie("session", copies[1])
    assert thief.get("/ann/secret").status_code == 200
    browser.post("/signout")
    thief.set_cookie("session", copies[1])
    assert thief.get("/ann/secret").status_code == 404
    assert registry.db.execute("SELECT count(*) FROM sessions").fetchone()[0] == 0


@pytest.mark.parametrize(
    ("behind_proxy", "url", "secure"), [(False, "http", False), (True, "http", True), (False, "https", True)]
)
def test_the_cookie_travels_as_safely_as_it_can(registry: Registry, behind_proxy: bool, url: str, secure: bool) -> None:
    token = create_token(registry.db, "ann", "read")
    client = create_app(registry, behind_proxy=behind_proxy).test_client()
    reply = client.post("/signin", data={"token": token}, base_url=f"{url}://localhost")
    cookie = reply.headers["Set-Cookie"]
    assert ("Secure" in cookie) is secure
    assert "HttpOnly" in cookie and "SameSite=Lax" in cookie and "Expires=" in cookie and token not in cookie
    assert "Set-Cookie" not in client.get("/", base_url=f"{url}://localhost").headers


def test_the_file_holds_no_session(registry: Registry) -> None:
    session = start_session(registry.db, create_token(registry.db, "ann", "read"))
    assert caller_of_session(registry.db, session).name == "ann"
    assert session.encode() not in registry.path.read_bytes()
    end_session(registry.db, session)
    with pytest.raises(UnauthorizedError):
        caller_of_session(registry.db, session)


# Quotas


def test_bytes_count_once_and_for_who_brought_them(registry: Registry, adapter: Path) -> None:
    for user in ("ann", "bob"):
        create_token(registry.db, user, "write")
    registry.publish(adapter, "ann/news", user="ann")
    size = sum(path.stat().st_size for path in adapter.iterdir())
    assert (
        size < measure_usage(registry.db, "ann").bytes < size + 20_000 and measure_usage(registry.db, "ann").repos == 1
    )
    registry.publish(adapter, "bob/copy", user="bob")
    assert measure_usage(registry.db, "bob").bytes < 20_000  # the rows, not the files
    registry.delete_repo("ann/news")
    registry.delete_repo("bob/copy")
    collect(registry, grace_s=0)
    assert measure_usage(registry.db, "ann").bytes < 20_000 and measure_usage(registry.db, "ann").repos == 0


def test_a_write_token_can_not_fill_the_disk(graft: Graft, registry: Registry, hub: str, tmp_path: Path) -> None:
    token = create_token(registry.db, "ann", "write")
    assert graft("hub", "quota", "ann", "--bytes", "100KB", "--repos", "2").exit_code == 0
    api = HfApi(endpoint=hub, token=token)
    api.create_repo("ann/a")
    api.upload_file(path_or_fileobj=b"x" * 50_000, path_in_repo="a.txt", repo_id="ann/a")
    with pytest.raises(Exception, match="more don't fit"):
        api.upload_file(path_or_fileobj=b"y" * 50_000, path_in_repo="b.txt", repo_id="ann/a")
    api.create_repo("ann/b")
    with pytest.raises(Exception, match="may have 2"):
        api.create_repo("ann/c")
    quota = json.loads(graft("hub", "quota", "ann", "--json").output)
    assert quota["quota"] == {"bytes": 102_400, "repos": 2, "requests": None} and quota["used"]["repos"] == 2
    assert "102,400" in graft("hub", "quota", "ann").output
    assert "no user 'zoe'" in graft("hub", "quota", "zoe").output
    assert graft("hub", "quota", "ann", "--bytes", "1M").exit_code == 0
    api.upload_file(path_or_fileobj=b"y" * 50_000, path_in_repo="b.txt", repo_id="ann/a")


def test_bytes_that_no_commit_names_count_too(registry: Registry) -> None:
    """Failed commits, uploads by LFS and their parts: until gc, their bytes lie in the store."""
    token = create_token(registry.db, "ann", "write")
    set_quota(registry.db, "ann", Quota(bytes=12_000))
    client = create_app(registry).test_client()
    client.post("/api/repos/create", json={"name": "ann/a"}, headers=bearing(token))
    spoilt = (
        json.dumps({"key": "file", "value": {"path": "a.txt", "content": "x" * 4000}})
        + "\n"
        + '{"key": "nonsense", "value": {}}'
    )
    for expected in (400, 400, 413):
        reply = client.post("/api/models/ann/a/commit/main", data=spoilt, headers=bearing(token))
        assert reply.status_code == expected, reply.text
    assert "graft registry gc" in reply.json["error"]
    offer = {"operation": "upload", "transfers": ["basic"], "objects": [{"oid": "0" * 64, "size": 9_000}]}
    [item] = client.post("/ann/a.git/info/lfs/objects/batch", json=offer, headers=bearing(token)).json["objects"]
    assert item["error"]["code"] == 413
    collect(registry, grace_s=0)
    [item] = client.post("/ann/a.git/info/lfs/objects/batch", json=offer, headers=bearing(token)).json["objects"]
    link = item["actions"]["upload"]["href"]
    set_quota(registry.db, "ann", Quota(bytes=10_000))
    assert client.put(link, data=b"x" * 9_000).status_code == 413  # a link from before is no way around it
    assert list(registry.blobs.names()) == []


def test_small_writes_fill_no_disk_either(registry: Registry, adapter: Path) -> None:
    """Every deed counts, so does what a commit stores without being new, and texts have an end."""
    token = create_token(registry.db, "ann", "write")
    registry.publish(adapter, "ann/a", user="ann")
    set_quota(registry.db, "ann", Quota(bytes=measure_usage(registry.db, "ann").bytes + 20_000))
    client = create_app(registry).test_client()
    for number in range(20):
        reply = client.post("/api/models/ann/a/tag/main", json={"tag": f"v{number}"}, headers=bearing(token))
        if reply.status_code != 200:
            break
    assert reply.status_code == 413 and number > 5
    assert (
        client.post("/api/models/ann/a/paths-info/main", json={"paths": []}, headers=bearing(token)).status_code == 200
    )
    assert client.delete("/api/repos/delete", json={"name": "ann/a"}, headers=bearing(token)).status_code == 200
    create_token(registry.db, "bob", "write")
    same = registry.publish(adapter, "bob/b", user="bob")
    before = measure_usage(registry.db, "bob").bytes
    big = registry.blobs.put_bytes(b"x" * 100_000)
    note = [Put("a.txt", big), Delete("a.txt")]
    assert registry.commit("bob/b", note, title="nothing", user="bob").id == same.id
    assert measure_usage(registry.db, "bob").bytes >= before + 100_000
    for title, message in (("x" * 1001, ""), ("x", "x" * 20_001)):
        with pytest.raises(TooLargeError, match="model card"):
            registry.commit("bob/b", note, title=title, message=message, user="bob")
    score = {"task": "t", "data_hash": "0", "metric": "f1", "value": 1, "n": 1, "repo": "bob/b"}
    for more in ({"engine": "x" * 301}, {"extra": {"x": "y" * 3000}}):
        reply = client.post(
            "/api/evaluations", json=score | more, headers=bearing(create_token(registry.db, "bob", "write"))
        )
        assert reply.status_code == 400 and "characters" in reply.json["error"]


def test_sign_ins_do_not_pile_up(registry: Registry) -> None:
    token = create_token(registry.db, "ann", "read")
    names = [start_session(registry.db, token) for _ in range(25)]
    assert registry.db.execute("SELECT count(*) FROM sessions").fetchone()[0] == 20
    assert caller_of_session(registry.db, names[-1]).name == "ann"
    with pytest.raises(UnauthorizedError):
        caller_of_session(registry.db, names[0])


def test_uploads_at_once_know_of_each_other(registry: Registry) -> None:
    create_token(registry.db, "ann", "write")
    set_quota(registry.db, "ann", Quota(bytes=1000))
    on_the_way = InFlight()
    with (
        on_the_way.room_for(registry.db, "ann", 600),
        pytest.raises(TooLargeError, match="600 of 1,000"),
        on_the_way.room_for(registry.db, "ann", 600),
    ):
        pass
    with on_the_way.room_for(registry.db, "ann", 600), on_the_way.room_for(registry.db, "bob", 6000):
        pass
    on_the_way.reserve(registry.db, "ann", 700, "parts of one")
    on_the_way.reserve(registry.db, "ann", 700, "parts of one")
    with pytest.raises(TooLargeError):
        on_the_way.reserve(registry.db, "ann", 700, "another")
    with on_the_way.room_for(registry.db, "ann", 200), pytest.raises(TooLargeError):
        on_the_way.reserve(registry.db, "ann", 200, "parts beside another upload")


def test_a_users_own_number_of_requests(registry: Registry) -> None:
    tokens = {user: create_token(registry.db, user, "read") for user in ("ann", "bob")}
    set_quota(registry.db, "ann", Quota(requests=2))
    client = create_app(registry).test_client()
    replies = {user: [client.get("/api/tasks", headers=bearing(tokens[user])) for _ in range(3)] for user in tokens}
    assert [reply.status_code for reply in replies["ann"]] == [200, 200, 429]
    assert "wait" in replies["ann"][2].json["error"] and int(replies["ann"][2].headers["Retry-After"]) > 0
    assert {reply.status_code for reply in replies["bob"]} == {200}


def test_a_quota_changes_in_what_is_given_only(registry: Registry) -> None:
    create_token(registry.db, "ann", "read")
    set_quota(registry.db, "ann", Quota(repos=3))
    set_quota(registry.db, "ann", Quota(requests=4))
    assert read_quota(registry.db, "ann") == Quota(500 << 30, 3, 4)


def test_a_rename_needs_no_room(registry: Registry) -> None:
    create_token(registry.db, "ann", "write")
    set_quota(registry.db, "ann", Quota(repos=1))
    registry.create_repo("ann/a", user="ann")
    assert registry.move_repo("ann/a", "ann/b", user="ann").name == "ann/b"


# Withdrawal


def test_a_withdrawn_adapter_is_nowhere_and_says_why(graft: Graft, registry: Registry, adapter: Path, hub: str) -> None:
    task = registry.add_task("news-topic", "accuracy", b'{"prompt": "a", "completion": "b"}\n', "")
    revision = registry.publish(adapter, "ann/news")
    registry.promote("ann/news", "production")
    score = {"task": task.slug, "data_hash": task.data_hash, "metric": "accuracy", "value": 1, "n": 1}
    registry.record_evaluation(Evaluation(**score, repo="ann/news"))
    before = registry.search(Query(text="headlines")).entries
    done = graft("hub", "disable", "ann/news", "--why", "stolen data", "--json")
    assert json.loads(done.output) == {"name": "ann/news", "disabled": "stolen data"}
    assert registry.search(Query()).total == 0 and registry.leaderboard("news-topic") == []
    with pytest.raises(DisabledRepoError, match="stolen data"):
        HfApi(endpoint=hub).model_info("ann/news")
    client = create_app(registry).test_client()
    for path in ("/ann/news", "/ann/news/resolve/main/README.md", f"/ann/news/resolve/{revision.id}/README.md"):
        reply = client.get(path)
        assert reply.status_code == 403 and "stolen data" in reply.text, path
        assert reply.headers["X-Error-Message"] == "Access to this resource is disabled."
    assert client.get("/api/resolve?name=task:news-topic").status_code == 404
    assert "stolen data" in graft("pull", "ann/news").output
    note = [Put("a.txt", registry.blobs.put_bytes(b"a"))]
    with pytest.raises(ForbiddenError, match="stolen data"):
        registry.commit("ann/news", note, title="x")
    assert check(registry).problems == ()
    assert json.loads(graft("hub", "enable", "ann/news", "--json").output) == {"name": "ann/news", "disabled": None}
    assert registry.search(Query(text="headlines")).entries == before
    assert registry.resolve("task:news-topic").id == revision.id and len(registry.leaderboard("news-topic")) == 1
    assert "is not withdrawn" in graft("hub", "enable", "ann/news").output
    assert "no adapter" in graft("hub", "disable", "ann/nothing", "--why", "x").output
    with pytest.raises(GraftError, match="Say why"):
        withdrawal.disable(registry.db, "ann/news", " ", "root")
