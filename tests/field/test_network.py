"""No network, nobody at an address, and a proxy that answers every request with a page."""

import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from graft.hub.errors import GraftError
from graft.hub.terminal.options import open_registry
from tests.field.conftest import graft, refused

NOBODY = "http://127.0.0.1:9"
PAGE = b"<!DOCTYPE html><html><body>Please sign in to the network.</body></html>"


@pytest.fixture(scope="module", params=[200, 502])
def proxy(request) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(request.param)
            self.send_header("Content-Type", "text/html")
            self.send_header("Content-Length", str(len(PAGE)))
            self.end_headers()
            self.wfile.write(PAGE)

        def log_message(self, *words: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()


def commands(place, hub: str) -> list[tuple[object, ...]]:
    base = ("--base", place / "base")
    training = ("--method", "lora", "--data", place / "train.jsonl", "--out", place / "never")
    return [
        ("search", "--hub", hub),
        ("pull", "me/adapter", "--hub", hub),
        ("publish", place / "lora", "me/adapter", "--hub", hub),
        ("promote", "me/adapter@v1", "production", "--hub", hub),
        ("history", "me/adapter", "--hub", hub),
        ("task", "list", "--hub", hub),
        ("train", *base, *training, "--publish", "me/adapter", "--hub", hub),
        ("eval", *base, "--task", "letters", "--adapters", "all", "--hub", hub),
        ("serve", *base, "--hub", hub),
    ]


def test_nobody_at_a_hubs_address_is_found_at_once(place):
    for words in commands(place, NOBODY):
        refused(graft(*words), f"No hub answers at {NOBODY}", "is it running?")


def test_a_proxys_page_is_no_hub(place, proxy):
    for words in commands(place, proxy):
        refused(graft(*words), "check the URL of --hub", "proxy on the way")


def test_a_base_that_cannot_be_fetched_is_told_at_once(monkeypatch, proxy):
    refused(graft("estimate", "--method", "lora", "--base", "org/nosuch"), f"{NOBODY} does not answer", "the network")
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", proxy)
    refused(graft("estimate", "--method", "lora", "--base", "org/nosuch"), "does not answer as a model hub", "proxy")


def test_a_silent_address_is_given_up(monkeypatch):
    monkeypatch.setattr("graft.hub.registry.remote.client.GREETING_S", 0.2)
    with (
        socket.create_server(("127.0.0.1", 0)) as silent,
        pytest.raises(GraftError, match=r"No hub answers at .*timed out"),
    ):
        open_registry("registry.db", f"http://127.0.0.1:{silent.getsockname()[1]}")


def test_a_word_that_names_no_base_asks_nobody(place):
    for words in (("estimate", "--method", "lora"), ("serve",)):
        refused(graft(*words, "--base", "nosuch"), "There is no folder nosuch", "graft base import")
