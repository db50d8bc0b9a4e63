"""What a server takes in before it knows from whom: a body of gigabytes went to disk, and then came the 401."""

import hashlib
import socket
import sqlite3
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from datetime import timedelta

import httpx
import pytest

from graft.hub.cli import hub_server
from graft.hub.cli.hub_server import SMALL_BODY_BYTES
from graft.hub.registry.access.quotas import BLOCK_BYTES, Quota, measure_usage, set_quota
from graft.hub.registry.access.tokens import create_token, first_admin, revoke_tokens
from graft.hub.registry.commits.changes import Put
from graft.hub.registry.registry import Registry
from graft.hub.web import large_bodies
from graft.hub.web.huggingface import git_lfs


def answer_to_head(hub: str, head: str) -> str:
    """The status line that comes before any of the body has been sent."""
    with socket.create_connection(("127.0.0.1", int(hub.rpartition(":")[2])), timeout=10) as client:
        client.sendall(head.replace("\n", "\r\n").encode() + b"\r\n\r\n")
        return client.recv(4096).decode().partition("\r\n")[0]


@pytest.fixture
def tokens(registry: Registry) -> dict[str, str]:
    first_admin(registry.db, "root")
    return {scope: create_token(registry.db, f"of-{scope}", scope) for scope in ("read", "write")}


@pytest.mark.parametrize("length", [f"Content-Length: {1 << 33}", "Transfer-Encoding: chunked"])
def test_who_may_not_write_is_told_so_before_the_body(hub: str, tokens: dict[str, str], length: str) -> None:
    head = f"POST /api/models/a/b/commit/main HTTP/1.1\nHost: 127.0.0.1\n{length}"
    for wrong in ("", "\nAuthorization: Bearer nonsense", f"\nAuthorization: Bearer {tokens['read']}"):
        assert " 401 " in answer_to_head(hub, head + wrong)
    assert " 401 " in answer_to_head(hub, head.replace("/api/models/a/b/commit/main", "/lfs/upload?permission=forged"))


def test_who_may_write_is_read_on(hub: str, tokens: dict[str, str]) -> None:
    body = b"x" * (SMALL_BODY_BYTES + 1)
    sent = httpx.post(
        f"{hub}/api/models/of-write/b/commit/main",
        content=iter([body]),  # in chunks
        headers={"Authorization": f"Bearer {tokens['write']}"},
    )
    assert sent.status_code in (400, 404)  # a view has seen it


@pytest.mark.parametrize("error", [sqlite3.OperationalError("database is locked"), OSError(5, "no disk")])
def test_a_registry_that_cant_be_asked_ends_one_request(
    hub: str,
    tokens: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    error: Exception,
) -> None:
    """It is asked on the thread of all sockets, which an exception would end with a traceback."""

    def fail() -> None:
        raise error

    monkeypatch.setattr(large_bodies, "caller", fail)
    head = f"POST /api/models/a/b/commit/main HTTP/1.1\nHost: 127.0.0.1\nContent-Length: {1 << 33}"
    assert " 401 " in answer_to_head(hub, f"{head}\nAuthorization: Bearer {tokens['write']}")
    assert httpx.get(f"{hub}/health").status_code == 200 and "Traceback" not in caplog.text


def received(monkeypatch: pytest.MonkeyPatch) -> list[hub_server._Parser]:
    """The requests that the hub reads, in the order in which they came."""
    parsers: list[hub_server._Parser] = []

    def noted(self: hub_server._Parser, data: bytes) -> int:
        if self not in parsers:
            parsers.append(self)
        return read(self, data)

    read = hub_server._Parser.received
    monkeypatch.setattr(hub_server._Parser, "received", noted)
    return parsers


@pytest.mark.parametrize("length", [f"Content-Length: {6 << 20}", "Transfer-Encoding: chunked"])
def test_what_is_on_the_way_is_held_to_the_quota(
    hub: str, registry: Registry, tokens: dict[str, str], length: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bodies go to disk whole before a view asks for room: 200 connections of one user brought 17 GB each."""
    set_quota(registry.db, "of-write", Quota(bytes=10 << 20))
    head = f"POST /api/models/of-write/b/commit/main HTTP/1.1\nHost: 127.0.0.1\nAuthorization: Bearer {tokens['write']}\n{length}"
    piece = b"%x\r\n%s\r\n" % (1 << 20, bytes(1 << 20)) if "chunked" in length else bytes(1 << 20)
    parsers = received(monkeypatch)
    with ExitStack() as sockets:
        first, second = (
            sockets.enter_context(socket.create_connection(("127.0.0.1", int(hub.rpartition(":")[2])), timeout=10))
            for _ in range(2)
        )
        first.sendall(head.replace("\n", "\r\n").encode() + b"\r\n\r\n" + 5 * piece)
        until = time.monotonic() + 10
        while not parsers or parsers[0].body_bytes_received < 5 << 20:
            assert time.monotonic() < until
            time.sleep(0.01)
        with suppress(ConnectionError):  # refused in the midst, and hung up on
            second.sendall(head.replace("\n", "\r\n").encode() + b"\r\n\r\n" + 6 * piece)
        while len(parsers) < 2 or parsers[1].error is None:
            assert time.monotonic() < until
            time.sleep(0.01)
        assert parsers[1].error.code == 413 and parsers[0].error is None
        first.sendall(piece + b"0\r\n\r\n" if "chunked" in length else piece)
        assert b" 404 " in first.recv(4096)  # a view has seen it, whom the second took no room from
    monkeypatch.undo()
    parsers.clear()  # what the test keeps hold of is on the way

    def send() -> int:
        return httpx.post(
            f"{hub}/api/models/of-write/b/commit/main",
            content=bytes(6 << 20),
            headers={"Authorization": f"Bearer {tokens['write']}"},
        ).status_code

    until = time.monotonic() + 10  # the hub has yet to see that the connections are closed
    while send() != 404:
        assert time.monotonic() < until
        time.sleep(0.05)
    assert [send() for _ in range(3)] == [404] * 3  # what has been answered is on the way no more


def test_two_lengths_are_none(hub: str) -> None:
    head = "POST /api/validate-yaml HTTP/1.1\nHost: 127.0.0.1\nContent-Length: 4\nTransfer-Encoding: chunked"
    assert " 400 " in answer_to_head(hub, head)


def upload_links(hub: str, token: str, data: bytes) -> dict[str, object]:
    asked = {
        "operation": "upload",
        "transfers": ["multipart"],
        "objects": [{"oid": hashlib.sha256(data).hexdigest(), "size": len(data)}],
    }
    answered = httpx.post(
        f"{hub}/of-write/own.git/info/lfs/objects/batch", json=asked, headers={"Authorization": f"Bearer {token}"}
    )
    assert answered.status_code == 200, answered.text
    return answered.json()["objects"][0]["actions"]["upload"]


def test_a_link_ends_with_the_token_that_it_was_given_for(hub: str, registry: Registry, tokens: dict[str, str]) -> None:
    """With any other token of the user's left, whoever had stolen one went on to fill their quota for an hour."""
    registry.create_repo("of-write/own", user="of-write")
    another = create_token(registry.db, "of-write", "write", name="another")
    upload = upload_links(hub, tokens["write"], b"some bytes")
    revoke_tokens(registry.db, "of-write", token=tokens["write"])
    refused = httpx.put(upload["href"], content=b"some bytes")
    assert refused.status_code == 403 and "revoked" in refused.text
    assert measure_usage(registry.db, "of-write").bytes < 5000
    link = upload_links(hub, another, b"some bytes")["href"]
    assert httpx.put(link, content=b"some bytes").status_code == 200
    lasting = create_token(registry.db, "of-write", "write", life=timedelta(seconds=2))
    link = upload_links(hub, lasting, b"other bytes")["href"]
    time.sleep(2.1)
    assert httpx.put(link, content=b"other bytes").status_code == 403


def test_to_say_twice_that_all_parts_are_there_is_to_say_it_once(
    hub: str, registry: Registry, tokens: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(git_lfs, "PART_BYTES", 1 << 20)
    registry.create_repo("of-write/own", user="of-write")
    data = bytes(range(256)) * 8192
    upload = upload_links(hub, tokens["write"], data)
    parts = sorted((number, href) for number, href in upload["header"].items() if number.isdigit())
    for i, (_, href) in enumerate(parts):
        assert httpx.put(href, content=data[i << 20 : (i + 1) << 20]).status_code == 200
    with ThreadPoolExecutor(8) as pool:
        said = list(pool.map(lambda _: httpx.post(upload["href"]).status_code, range(8)))
    assert 200 in said and set(said) <= {200, 409}
    assert httpx.post(upload["href"]).status_code == 200
    assert registry.blobs.has(hashlib.sha256(data).hexdigest())
    assert not [path for path in registry.blobs.incoming.iterdir() if path.is_dir()]


def test_a_small_file_counts_as_the_block_that_it_takes(registry: Registry) -> None:
    first_admin(registry.db, "root")
    create_token(registry.db, "mallory", "write")
    before = measure_usage(registry.db, "mallory").bytes
    tiny = [Put(f"{i}.txt", registry.blobs.put_bytes(b"%d" % i)) for i in range(100)]
    registry.commit("mallory/tiny", tiny, title="x", user="mallory", create=True)
    assert measure_usage(registry.db, "mallory").bytes - before >= 100 * BLOCK_BYTES
