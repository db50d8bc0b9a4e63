"""A hub's token goes to that hub and nowhere else, whatever the hub answers."""

import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from werkzeug.test import Client

from graft.hub.cli.hub_server import http_server
from graft.hub.errors import GraftError
from graft.hub.registry.registry import Registry
from graft.hub.registry.remote.client import RemoteRegistry
from graft.hub.registry.search import Query
from graft.hub.web.app import create_app

TOKEN = "hf_secret"


class Elsewhere:
    """Another host: a hub that writes down what it is asked and with which token."""

    def __init__(self) -> None:
        self.app: Callable | None = None
        self.asked: list[tuple[str, str, str | None]] = []

    def __call__(self, environ: dict, start: Callable) -> object:
        self.asked.append((environ["REQUEST_METHOD"], environ["PATH_INFO"], environ.pop("HTTP_AUTHORIZATION", None)))
        return self.app(environ, start)


@pytest.fixture(scope="module")
def second() -> Iterator[tuple[Elsewhere, str]]:
    elsewhere = Elsewhere()
    server = http_server(elsewhere, "127.0.0.1", 0, threads=4)
    threading.Thread(target=server.run, daemon=True).start()
    yield elsewhere, f"http://127.0.0.1:{server.effective_port}"


def sending_on(app: Callable, to: str, status: str, part: str) -> Callable:
    """`app`, whose answers to paths with `part` in them are redirects to the same path at `to`."""

    def answer(environ: dict, start: Callable) -> object:
        environ.pop("HTTP_AUTHORIZATION", None)  # of no user here
        if part not in environ["PATH_INFO"]:
            return app(environ, start)
        query = environ["QUERY_STRING"] and f"?{environ['QUERY_STRING']}"
        headers = [("Location", f"{to}{environ['PATH_INFO']}{query}"), ("Content-Length", "0")]
        if part == "/resolve/":  # what a hub tells of a file that lies on a storage host
            told = Client(app).head(environ["PATH_INFO"]).headers
            headers += [(key, value) for key, value in told.items() if key.startswith("X-")]
        start(status, headers)
        return [b""]

    return answer


@pytest.fixture(params=["301 Moved Permanently", "302 Found", "307 Temporary Redirect", "308 Permanent Redirect"])
def redirected(request, hub: str, running: dict, registry: Registry, second, tmp_path: Path, monkeypatch) -> Callable:
    """`redirected(part)` is a client of a hub that sends all paths with `part` in them on to another host."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    elsewhere, url = second
    elsewhere.app, elsewhere.asked = create_app(registry), []

    def client(part: str) -> RemoteRegistry:
        running["app"] = sending_on(create_app(registry), url, request.param, part)
        return RemoteRegistry(hub, token=TOKEN)

    return client


def test_reads_are_followed_without_the_token(redirected, second, registry: Registry, adapter: Path, tmp_path: Path):
    registry.publish(adapter, "ann/news")
    remote, asked = redirected("/api/"), second[0].asked
    assert [entry.name for entry in remote.search(Query()).entries] == ["ann/news"] and remote.tasks() == []
    assert remote.revisions("ann/news") == registry.revisions("ann/news")
    remote.pull("ann/news", tmp_path / "out")
    assert len(asked) > 3 and {token for _, _, token in asked} == {None}


def test_files_are_fetched_without_the_token(redirected, second, registry: Registry, adapter: Path, tmp_path: Path):
    registry.publish(adapter, "ann/news")
    redirected("/resolve/").pull("ann/news", tmp_path / "out")
    weights = "adapter_model.safetensors"
    assert (tmp_path / "out" / weights).read_bytes() == (adapter / weights).read_bytes()
    assert [path for _, path, _ in second[0].asked if path.endswith(weights)]
    assert {token for _, _, token in second[0].asked} == {None}


def test_writes_are_not_sent_on(redirected, second, registry: Registry, adapter: Path):
    registry.publish(adapter, "ann/news")
    remote = redirected("/api/")
    for write in (
        lambda: remote.promote("ann/news", "production"),
        lambda: remote.rollback("ann/news", "production"),
        lambda: remote.add_task("news", "accuracy", b'{"prompt": "a", "completion": "b"}\n', ""),
    ):
        with pytest.raises(GraftError, match=r"sends this on to http://127\.0\.0\.1:\d+/api/.* if you trust it"):
            write()
    assert second[0].asked == [] and registry.tasks() == [] and len(registry.history("ann/news")) == 1


def test_a_publish_that_is_sent_on_bears_no_token(redirected, second, registry: Registry, adapter: Path):
    remote = redirected("/api/")
    with suppress(GraftError):  # where the redirect made a GET of the POST
        remote.publish(adapter, "ann/news")
    assert {token for _, _, token in second[0].asked} == {None}
