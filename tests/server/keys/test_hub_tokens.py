"""A hub's tokens as keys: whose they are and what they may read is the hub's own word, asked for by that token."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.request import Request

import pytest

from graft.hub.errors import GraftError, NotFoundError, UnauthorizedError, UnavailableError, UnreachableError
from graft.hub.registry.access.callers import Caller
from graft.hub.registry.access.tokens import create_token, revoke_tokens
from graft.hub.registry.interface import AnyRegistry
from graft.hub.registry.registry import Registry
from graft.hub.registry.remote.answers import read_caller
from graft.hub.registry.remote.client import RemoteRegistry
from graft.hub.web.app import create_app as create_hub
from graft.server.errors import InvalidKeyError
from graft.server.keys import hub_tokens
from graft.server.keys.access import Access
from graft.server.keys.holders import Profile
from graft.server.keys.hub_tokens import HubTokens, Remembered
from graft.server.keys.keyring import Keyring
from tests.conftest import tiny_base
from tests.hub.registry.test_contract import without_grafts_own
from tests.server.conftest import write_folder
from tests.server.keys.made import bearing
from tests.server.live import serving
from tests.server.silent_hub import silent_hub

BASE = "test/llama"


@pytest.fixture
def kept(registry: Registry) -> Registry:
    """A public adapter and a private one of ann's."""
    base = tiny_base("llama")
    registry.add_base(base.spec)
    for seed, (name, private) in enumerate({"ann/open": False, "ann/secret": True, "bob/own": True}.items()):
        folder = write_folder(registry.path.parent / name.replace("/", "-"), "lora", base, seed)
        registry.publish(folder, name, private=private)
    return registry


@pytest.fixture
def tokens(kept: Registry) -> dict[str, str]:
    given = {"ann": "read", "bob": "write", "root": "admin", "judge": "evaluator"}
    return {user: create_token(kept.db, user, scope) for user, scope in given.items()}


@pytest.fixture(params=["file", "graft", "plain"])
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def shelf(kind: str, kept: Registry, running: dict, monkeypatch: pytest.MonkeyPatch) -> AnyRegistry:
    """The registry as the server sees it: with a token that reads everything."""
    if kind == "file":
        return kept
    running["app"] = create_hub(kept) if kind == "graft" else without_grafts_own(create_hub(kept))
    return RemoteRegistry(running["url"], create_token(kept.db, "ann", "read", name="the server's"))


def test_holders_are_who_the_hub_says(shelf: AnyRegistry, tokens: dict[str, str]) -> None:
    held = HubTokens(shelf, tiny_base("llama").spec.fingerprint)
    profile = Profile(weight=2.0)
    holders = {user: held.holder(token, profile) for user, token in tokens.items()}
    assert {user: one.name for user, one in holders.items()} == {user: f"hub:{user}" for user in tokens}
    assert all(one.profile is profile for one in holders.values())
    assert [user for user, one in holders.items() if one.admin] == ["root"]
    assert not any(token in repr(holder) for token in tokens.values() for holder in holders.values())
    for wrong in ("", "hf_graft_wrong", "x", "é", "a b", "a\nb", "x" * 501, "\x00"):
        with pytest.raises(InvalidKeyError):
            held.holder(wrong, profile)


def test_private_adapters_take_their_readers_right(shelf: AnyRegistry, tokens: dict[str, str]) -> None:
    held = HubTokens(shelf, tiny_base("llama").spec.fingerprint)
    reads = {user: held.holder(token, Profile()).reader for user, token in tokens.items()}
    names = [
        "ann/open",
        "ann/secret",
        "bob/own",
        "ann/open@main",
        "Ann/Secret@v1",
        "ann/none",
        "none",
        "a/b/c",
        "../api",
    ]
    names += ["ann/../bob/own", "", "/", "ann/", "task:none", "ann/secret?x=1", "ann/open#", "é/ü"]
    may = {user: [name for name in names if reader.may_read(name)] for user, reader in reads.items()}
    assert may == {
        "ann": ["ann/open", "ann/secret", "ann/open@main", "Ann/Secret@v1"],
        "bob": ["ann/open", "bob/own", "ann/open@main"],
        "root": ["ann/open", "ann/open@main"],  # an admin has no way into other people's names
        "judge": ["ann/open", "ann/open@main"],
    }
    assert reads["bob"].readable(names[:3]) == {"ann/open", "bob/own"}


def test_a_revoked_token_is_none_once_the_answer_is_old(
    shelf: AnyRegistry, kept: Registry, tokens: dict[str, str], kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub_tokens, "TRUSTED_S", 0.5)
    held = HubTokens(shelf, "f" * 64)
    reader = held.holder(tokens["ann"], Profile()).reader
    assert reader is not None and reader.may_read("ann/secret")
    revoke_tokens(kept.db, "ann", token=tokens["ann"])
    if kind != "file":
        assert held.holder(tokens["ann"], Profile()).name == "hub:ann"  # for as long as is stated
        time.sleep(0.6)
    with pytest.raises(InvalidKeyError):
        held.holder(tokens["ann"], Profile())
    with pytest.raises(InvalidKeyError):
        reader.may_read("ann/secret")


def test_without_users_tokens_tell_nobody_apart(registry: Registry, running: dict) -> None:
    with pytest.raises(GraftError, match="no users yet"):
        registry.require_users()
    running["app"] = create_hub(registry)
    far = RemoteRegistry(running["url"])
    with pytest.raises(GraftError, match="takes any token"):
        far.require_users()
    with pytest.raises(InvalidKeyError, match="no users"):
        HubTokens(far, "f" * 64).holder("hf_any", Profile())
    create_token(registry.db, "ann", "read")
    registry.require_users()
    far.require_users()


def test_a_hub_that_is_away_lets_nobody_in(tmp_path: Path) -> None:
    held = HubTokens(RemoteRegistry("http://127.0.0.1:9"), "f" * 64)
    began = time.monotonic()
    for _ in range(50):
        with pytest.raises(UnreachableError):
            held.holder("hf_any", Profile())
    assert time.monotonic() - began < 5  # asked once


def test_a_hub_that_hangs_takes_a_few_threads_and_is_found_away_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("graft.hub.registry.remote.client.GREETING_S", 4.0)
    monkeypatch.setattr(hub_tokens, "WAIT_S", 0.3)
    monkeypatch.setattr(hub_tokens, "AWAY_S", 60.0)

    def refusal(token: str) -> tuple[type[GraftError], float]:
        began = time.monotonic()
        with pytest.raises(GraftError) as refused:
            held.holder(token, Profile())
        return refused.type, time.monotonic() - began

    with silent_hub() as hub, ThreadPoolExecutor(60) as pool:
        held = HubTokens(RemoteRegistry(hub.url), "f" * 64)
        told = list(pool.map(refusal, [f"hf_{number}" for number in range(50)] + ["hf_0"] * 10))
        assert len(hub.asked) == hub_tokens.MOST_AT_ONCE
        assert {kind for kind, _ in told} == {UnreachableError, UnavailableError}
        assert all(waited < 4 for kind, waited in told if kind is UnavailableError)  # a hub's time
        assert [kind for kind, _ in pool.map(refusal, [f"hf_new{number}" for number in range(50)])] == [
            UnreachableError
        ] * 50
        assert len(hub.asked) == hub_tokens.MOST_AT_ONCE


def test_a_server_whose_hub_hangs_still_says_how_it_is() -> None:
    """Many with tokens that nobody has asked about: more than there are threads."""
    with silent_hub() as hub:
        access = Access(Keyring(None, HubTokens(RemoteRegistry(hub.url), "f" * 64)))
        with serving(tiny_base("llama"), {}, access=access, max_requests=1) as live, ThreadPoolExecutor(40) as pool:

            def ask(number: int) -> int:
                return live.post("/v1/completions", {"model": BASE, "prompt": "a"}, bearing(f"hf_{number}")).status

            asked = [pool.submit(ask, number) for number in range(40)]
            until = time.monotonic() + 20
            while len(hub.asked) < hub_tokens.MOST_AT_ONCE and time.monotonic() < until:
                time.sleep(0.02)
            began = time.monotonic()
            assert live.get("/health").status == 200
            assert time.monotonic() - began < 6  # a hub has ten seconds to answer
            hub.close()
            assert {one.result() for one in asked} <= {502, 503}


def test_answers_are_asked_for_once_kept_for_a_time_and_bounded() -> None:
    now, asked = [0.0], []
    kept: Remembered[str, str] = Remembered(10.0, most=3, clock=lambda: now[0])
    gate = threading.Event()

    def slow() -> str:
        asked.append("a")
        gate.wait(5)
        return "said"

    with ThreadPoolExecutor(16) as pool:
        waiting = [pool.submit(kept.get, "a", slow) for _ in range(16)]
        time.sleep(0.1)
        gate.set()
        assert {one.result() for one in waiting} == {"said"} and asked == ["a"]
    now[0] = 9.9
    assert kept.get("a", slow) == "said" and kept.holds("a") and len(asked) == 1
    now[0] = 10.1
    assert not kept.holds("a") and kept.get("a", slow) == "said" and len(asked) == 2

    def refuse(error: Exception):
        def ask() -> str:
            asked.append("x")
            raise error

        return ask

    for error, kept_s in (
        (UnauthorizedError("no"), 10.0),
        (UnreachableError("away"), 0.0),
        (ValueError(), 0.0),
    ):
        key, before = type(error).__name__, len(asked)
        for _ in range(3):
            with pytest.raises(type(error)):
                kept.get(key, refuse(error))
        assert len(asked) == before + (1 if kept_s else 3)
        now[0] += kept_s
        with pytest.raises(type(error)):
            kept.get(key, refuse(error))
        assert len(asked) == before + (2 if kept_s else 4)
    for number in range(100):
        kept.get(str(number), lambda: "x")
    assert len(kept._answers) == 3


def test_a_server_serves_each_caller_what_they_may_read(kept: Registry, tokens: dict[str, str], tmp_path: Path) -> None:
    base = tiny_base("llama")
    local = {"mine": write_folder(tmp_path / "mine", "lora", base, 7)}
    access = Access(Keyring(None, HubTokens(kept, base.spec.fingerprint)))

    def ask(user: str, model: str) -> int:
        body = {"model": model, "prompt": "a", "max_tokens": 1}
        return live.post("/v1/completions", body, bearing(tokens[user])).status

    def listed(user: str) -> set[str]:
        reply = live.send(Request(f"{live.url}/v1/models", headers=bearing(tokens[user])))
        return {entry["id"] for entry in reply.json["data"]} - {BASE}

    def manage(user: str, path: str, **body: object) -> int:
        return live.post(path, body, bearing(tokens[user])).status

    with serving(base, local, shelf=kept, access=access) as live:
        assert {user: ask(user, "ann/secret") for user in tokens} == {"ann": 200, "bob": 404, "root": 404, "judge": 404}
        # It is in memory by now, and no more anybody's than before.
        assert ask("bob", "ann/secret@main") == 404 and ask("bob", "bob/own") == 200 and ask("judge", "ann/open") == 200
        assert all(ask(user, "mine") == ask(user, BASE) == 200 for user in tokens)
        assert listed("ann") == {"mine", "ann/open", "ann/secret"} and listed("bob") == {"mine", "ann/open", "bob/own"}
        load = "/v1/load_lora_adapter"
        assert manage("ann", load, lora_name="x", lora_path="ann/secret") == 403  # no admin
        assert manage("root", load, lora_name="x", lora_path="ann/secret") == 404  # no reader
        assert manage("root", load, lora_name="x", lora_path="ann/open") == 200
        assert ask("bob", "x") == 200 and "x" in listed("bob")
        assert manage("root", "/v1/adapters/load", model="ann/secret") == 404
        assert manage("root", "/v1/adapters/unload", model="ann/open") == 200
        # A name that an admin gave is no way round: it became private since.
        kept.set_private("ann/open", True)
        assert ask("bob", "x") == 404 and ask("ann", "x") == 200 and "x" not in listed("bob")


def test_absent_and_hidden_are_told_alike(kept: Registry, tokens: dict[str, str]) -> None:
    base = tiny_base("llama")
    with serving(base, {}, shelf=kept, access=Access(Keyring(None, HubTokens(kept, base.spec.fingerprint)))) as live:

        def told(name: str) -> object:
            body = {"model": name, "prompt": "a", "max_tokens": 1}
            error = live.post("/v1/completions", body, bearing(tokens["bob"])).error
            return error["code"], error["message"].replace(name, "NAME")

        assert told("ann/secret") == told("ann/absent") == told("ann/secret@none")


def test_a_caller_is_no_caller_without_a_name() -> None:
    assert read_caller({"name": "Ann", "graft": {"scope": "admin"}}) == Caller("Ann", "admin", frozenset({"ann"}))
    assert read_caller({"name": "ann", "graft": {"scope": "emperor"}}).scope == "read"
    assert read_caller({"name": "ann", "auth": {"accessToken": {"role": "write"}}}).scope == "read"
    for wrong in ({}, {"name": ""}, {"name": 7}, [], {"name": "a", "graft": 3}):
        with pytest.raises((ValueError, NotFoundError)):
            read_caller(wrong)
