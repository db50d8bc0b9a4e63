"""Clients that ask for much and read nothing, or never finish asking, keep no thread, file or connection from others."""

import os
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack

import httpx
import pytest

from graft.hub.cli import hub_server
from graft.hub.registry.commits.changes import Put
from graft.hub.registry.registry import Registry
from graft.hub.web.app import create_app

THREADS = 16  # of the server that tests share
SIZE = 24 << 20  # more than the buffers between a server and a client take


@pytest.fixture
def hub(registry: Registry, running: dict) -> Iterator[str]:
    data = Put("large.jsonl", registry.blobs.put_bytes(b"0123456789abcdef" * (SIZE // 16)))
    registry.commit("ann/large", [data], title="large", create=True)
    running["app"] = create_app(registry)
    yield running["url"]


FILE = "GET /ann/large/resolve/main/large.jsonl HTTP/1.1\r\nHost: 127.0.0.1\r\n{}\r\n"
ASKED = {
    "a part of a file": FILE.format("Range: bytes=1-\r\n"),
    "a file and more": FILE.format("") + FILE.format("Range: bytes=1-\r\n") + FILE.format(""),
}


@pytest.mark.parametrize("asked", ASKED.values(), ids=ASKED)
def test_who_reads_nothing_holds_up_nobody(hub: str, monkeypatch: pytest.MonkeyPatch, asked: str) -> None:
    monkeypatch.setattr(hub_server, "MAX_UNREAD_BYTES", 1 << 20)
    idle = []
    try:
        for _ in range(THREADS + 1):
            client = socket.socket()
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.connect(("127.0.0.1", int(hub.rpartition(":")[2])))
            client.sendall(asked.encode())
            client.recv(1)  # it is being answered
            idle.append(client)
        for _ in range(THREADS + 1):
            assert httpx.get(f"{hub}/health", timeout=10).status_code == 200
    finally:
        for client in idle:
            client.close()


@pytest.mark.parametrize(
    ("range", "start", "stop"),
    [("0-", 0, SIZE), ("5-20", 5, 21), ("-7", SIZE - 7, SIZE), ("3000000-9000000", 3_000_000, 9_000_001)],
)
def test_parts_of_files_arrive_whole(hub: str, range: str, start: int, stop: int) -> None:
    url, headers = f"{hub}/ann/large/resolve/main/large.jsonl", {"Range": f"bytes={range}"}
    whole = httpx.get(url).content
    part = httpx.get(url, headers=headers)
    assert part.status_code == 206 and part.content == whole[start:stop]
    assert part.headers["Content-Range"] == f"bytes {start}-{stop - 1}/{SIZE}"
    assert httpx.head(url, headers=headers).headers["Content-Length"] == str(stop - start)


def _connect(hub: str, sent: bytes) -> socket.socket:
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.connect(("127.0.0.1", int(hub.rpartition(":")[2])))
    client.sendall(sent)
    return client


def test_many_answers_that_nobody_reads_keep_few_files_open(hub: str) -> None:
    """Six clients with a few kilobytes of small requests had a thousand files open, which is all that a process may."""
    asked = (
        FILE.format("").encode()
        + b"GET /ann/large/resolve/main/large.jsonl HTTP/1.1\r\nHost: 127.0.0.1\r\nRange: bytes=1-1\r\n\r\n" * 500
    )
    before = len(os.listdir("/proc/self/fd"))
    with ExitStack() as clients:
        for _ in range(3):
            clients.enter_context(_connect(hub, asked)).recv(1)
        most, until = 0, time.monotonic() + 2
        while time.monotonic() < until:
            most = max(most, len(os.listdir("/proc/self/fd")))
            time.sleep(0.01)
        assert most < before + 100
        assert httpx.get(f"{hub}/health", timeout=10).status_code == 200


@pytest.mark.parametrize(
    "sent", [b"GET / HTTP/1.1\r\nX-Slow: ", b"POST /signin HTTP/1.1\r\nContent-Length: 99\r\n\r\ntok"]
)
def test_who_never_finishes_asking_keeps_nobody_out(hub: str, sent: bytes) -> None:
    """As many half-open requests as there may be connections were a hub that answered nobody."""
    with ExitStack() as clients:
        half = [clients.enter_context(_connect(hub, sent)) for _ in range(hub_server.CONNECTIONS + 50)]
        for _ in range(3):
            assert httpx.get(f"{hub}/health", timeout=10).status_code == 200
            half[-1].sendall(b"x")  # whoever has said something lately is kept
