"""What a name stands for, for a server whose adapters lie in a hub: how soon it follows, and what it does without one."""

import time
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest

from graft.hub.errors import GraftError, NotFoundError, UnauthorizedError, UnreachableError
from graft.hub.registry.access.tokens import create_token, first_admin, revoke_tokens
from graft.hub.registry.registry import Registry
from graft.hub.registry.remote.client import RemoteRegistry
from graft.server.adapters import names as library
from graft.server.adapters.names import AdapterNames

ALIAS = "ann/news@eu/production"


@pytest.fixture
def second(registry: Registry, adapter: Path, tmp_path: Path, lora_folder) -> str:
    """Two versions, the first promoted; the second's id."""
    registry.publish(adapter, "ann/news")
    registry.promote("ann/news", "eu/production")
    return registry.publish(lora_folder(tmp_path / "b", seed=1), "ann/news").id


def away(environ: dict, start: Callable) -> list[bytes]:
    start("503 Service Unavailable", [("Content-Type", "text/html"), ("Content-Length", "4")])
    return [b"down"]


@pytest.mark.parametrize("name", [ALIAS, "task:news-topic"])
def test_an_alias_is_followed_within_a_second(hub: str, registry: Registry, second: str, name: str) -> None:
    registry.promote("ann/news@eu/production", "production")
    names, remote = AdapterNames("f" * 64, shelf=RemoteRegistry(hub)), RemoteRegistry(hub)
    assert names.locate(name).revision != second and names.locate_at_once(name)
    for alias in ("eu/production", "production"):
        remote.promote(f"ann/news@{second}", alias)
    promoted = time.monotonic()
    while names.locate(name).revision != second:
        assert time.monotonic() < promoted + 5
        time.sleep(0.01)
    assert time.monotonic() - promoted < 1.0


def test_a_busy_name_is_not_asked_for_each_time(hub: str, second: str, monkeypatch) -> None:
    shelf, asked = RemoteRegistry(hub), []
    resolve = shelf.resolve
    monkeypatch.setattr(shelf, "resolve", lambda name, **more: asked.append(name) or resolve(name, **more))
    names = AdapterNames("f" * 64, shelf=shelf)
    for _ in range(200):
        names.locate(ALIAS)
    assert len(asked) == 1
    pinned = f"ann/news@{second}"
    names.locate(pinned)
    now = time.monotonic()
    monkeypatch.setattr(library.time, "monotonic", lambda: now + 2)
    assert names.locate_at_once(pinned) and not names.locate_at_once(ALIAS)


def test_names_stand_for_what_they_did_while_the_hub_is_away(
    hub: str, running: dict, registry: Registry, second: str, monkeypatch
) -> None:
    monkeypatch.setattr("graft.hub.registry.remote.client.TRUSTED_S", 0.0)
    names, answering = AdapterNames("f" * 64, shelf=RemoteRegistry(hub)), running["app"]
    first = names.locate(ALIAS)
    running["app"] = away
    assert names.locate(ALIAS) == first == names.locate_at_once(ALIAS)  # and is not asked for again at once
    with pytest.raises(UnreachableError) as refused:
        names.locate("ann/news")  # of which nothing is known
    assert refused.value.status == 502
    running["app"] = answering
    registry.promote(f"ann/news@{second}", "eu/production")
    monkeypatch.setattr(library, "ASK_AGAIN_S", 0.0)
    names._answers.clear()
    assert names.locate(ALIAS).revision == second


def test_a_refusal_is_no_outage(hub: str, registry: Registry, second: str, monkeypatch) -> None:
    """A token that was revoked, an adapter that was taken away: then a name stands for nothing."""
    monkeypatch.setattr("graft.hub.registry.remote.client.TRUSTED_S", 0.0)
    first_admin(registry.db, "root")
    names = AdapterNames("f" * 64, shelf=RemoteRegistry(hub, token=create_token(registry.db, "bob", "read")))
    names.locate(ALIAS)
    registry.set_private("ann/news", True)
    with pytest.raises(NotFoundError):
        names.locate(ALIAS)
    registry.set_private("ann/news", False)
    names.locate(ALIAS)
    revoke_tokens(registry.db, "bob")
    with pytest.raises(UnauthorizedError):
        names.locate(ALIAS)


def test_names_that_nobody_has_cost_a_hub_and_memory_little(hub: str, second: str, monkeypatch) -> None:
    shelf, asked = RemoteRegistry(hub), []
    resolve = shelf.resolve
    monkeypatch.setattr(shelf, "resolve", lambda name, **more: asked.append(name) or resolve(name, **more))
    monkeypatch.setattr(library, "MOST_KEPT", 5)
    names = AdapterNames("f" * 64, shelf=shelf)
    for wrong in ("news", "/" * 1_000_000, "ann/" + "n" * library.MAX_NAME_CHARS, "task:" + "t" * 1_000_000):
        with pytest.raises(NotFoundError, match="no model") as refused:
            names.locate_at_once(wrong)
        assert len(str(refused.value)) < 500
    assert not asked and not names._answers
    names.locate(ALIAS)
    for number in range(20):
        for _ in range(3):  # what is trusted is not asked for again, and keeps no more of who asked
            with pytest.raises(NotFoundError) as refused:
                names.locate(f"ann/none{number}")
        assert len(traceback.extract_tb(refused.tb)) < 5 and refused.value.__context__ is None
        names.locate(ALIAS)
    assert len(names._answers) == 5 and ALIAS in names._answers  # which was used all the time


def test_who_may_not_wait_is_told_by_one_look(hub: str, second: str, monkeypatch) -> None:
    """An answer that ends a moment after it was seen to stand: nobody asks the hub on a thread that is not for that."""
    names = AdapterNames("f" * 64, shelf=RemoteRegistry(hub))
    located, standing = names.locate(ALIAS), names._standing

    def for_a_last_time(name: str):
        answer = standing(name)
        names._answers.clear()
        return answer

    monkeypatch.setattr(names, "_standing", for_a_last_time)
    monkeypatch.setattr(names, "_ask", None)
    assert names.last_known(ALIAS) == located and names.last_known(ALIAS) is None
    assert names.locate_at_once(ALIAS) is None


def test_what_was_known_last_may_be_that_there_is_nothing(
    hub: str, registry: Registry, second: str, monkeypatch
) -> None:
    monkeypatch.setattr("graft.hub.registry.remote.client.TRUSTED_S", 0.0)
    names = AdapterNames("f" * 64, shelf=RemoteRegistry(hub))
    assert names.last_known("ann/nothing") is None
    with pytest.raises(NotFoundError):
        names.locate("ann/nothing")
    assert names.locate_at_once("ann/nothing") is None
    with pytest.raises(NotFoundError):
        names.last_known("ann/nothing")


def test_a_registry_on_this_machine_is_asked_every_time(registry: Registry, second: str) -> None:
    names = AdapterNames("f" * 64, shelf=registry)
    assert names.locate_at_once(ALIAS).revision != second
    registry.promote(f"ann/news@{second}", "eu/production")
    assert names.locate(ALIAS).revision == second
    with pytest.raises(GraftError):
        names.locate_at_once("ann/nothing")


def test_a_folder_that_goes_while_it_is_looked_at_is_gone(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(Path, "is_dir", lambda self: True)  # a moment ago
    (tmp_path / "file").touch()
    names = AdapterNames("f" * 64, {"a": tmp_path / "none", "b": tmp_path / "file"})
    for name in ("a", "b"):
        with pytest.raises(NotFoundError, match="is gone"):
            names.locate(name)


def test_names_that_are_given_at_the_same_moment_are_all_kept(adapter: Path) -> None:
    names, locked = AdapterNames("f" * 64), []

    class Looked(dict):
        """Says whether anybody else could change it while it is copied."""

        def __iter__(self):
            locked.append(names._lock.locked())
            return super().__iter__()

        def keys(self):
            return [*self]

    names._attached = Looked(a=adapter)
    with names.attaching("b", adapter, lambda: False):
        assert names.names == ["a"]
        locked.clear()
    assert locked and all(locked) and names.names == ["a", "b"]


def test_a_folder_that_is_a_link_in_a_circle_stands_for_nothing(tmp_path):
    circle = tmp_path / "circle"
    circle.symlink_to(circle)
    with pytest.raises(NotFoundError, match="can't be looked at"):
        AdapterNames("fingerprint", {"mine": circle}, None).locate("mine")
