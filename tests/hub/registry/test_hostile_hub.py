"""A hub that means harm to who pulls from it: nothing is written elsewhere, read without end, or ends in a traceback."""

import gzip
import json
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from urllib.parse import parse_qs

import pytest

from graft.hub.errors import GraftError
from graft.hub.registry.registry import Registry
from graft.hub.registry.remote import api, bounded, client
from graft.hub.registry.remote.client import RemoteRegistry
from graft.hub.registry.search import Query
from graft.hub.web.app import create_app

PIECE = b" " * (1 << 16)


def telling(part: str, change: Callable[[dict], None]) -> Callable:
    """Answers to paths with `part` in them, `change` having been made to their JSON, or to each row of a list."""

    def hostile(app: Callable, environ: dict, start: Callable) -> Iterable[bytes]:
        if part not in environ["PATH_INFO"]:
            return app(environ, start)
        heads: list = []
        said = json.loads(b"".join(app(environ, lambda *head: heads.append(head))))
        for row in said if isinstance(said, list) else [said]:
            change(row)
        body = json.dumps(said).encode()
        start(heads[0][0], [("Content-Type", "application/json"), ("Content-Length", str(len(body)))])
        return [body]

    return hostile


def sending(part: str, body: Callable[[], Iterable[bytes]], **headers: str) -> Callable:
    """`body` instead of what is answered to paths with `part` in them; without a length it is sent in chunks."""

    def hostile(app: Callable, environ: dict, start: Callable) -> Iterable[bytes]:
        if part not in environ["PATH_INFO"]:
            return app(environ, start)
        start("200 OK", [("Content-Type", "application/json"), *headers.items()])
        return body()

    return hostile


def pointing(header: str, value: str) -> Callable:
    """Files whose header says where a client's cache shall put them."""

    def hostile(app: Callable, environ: dict, start: Callable) -> Iterable[bytes]:
        def restart(status: str, headers: list) -> object:
            kept = [(key, said) for key, said in headers if key.lower() not in (header, "x-linked-etag")]
            return start(status, [*kept, (header, value)])

        return app(environ, restart if "/resolve/" in environ["PATH_INFO"] else start)

    return hostile


def endless() -> Iterable[bytes]:
    while True:
        yield PIECE


def slow() -> Iterable[bytes]:
    for _ in range(100):
        yield b" "
        time.sleep(0.1)


def paged(part: str, rows: Callable[[int], list], host: str = "http://elsewhere.example:1") -> Callable:
    """Pages of a list without end, linked to at another host: `rows` of the page that `p` says."""

    def hostile(app: Callable, environ: dict, start: Callable) -> Iterable[bytes]:
        if part not in environ["PATH_INFO"]:
            return app(environ, start)
        number = int(parse_qs(environ["QUERY_STRING"]).get("p", ["0"])[0])
        link = f'<{host}{environ["PATH_INFO"]}?p={number + 1}>; rel="next"'
        body = json.dumps(rows(number)).encode()
        start("200 OK", [("Content-Type", "application/json"), ("Content-Length", str(len(body))), ("Link", link)])
        return [body]

    return hostile


def cut_short(app: Callable, environ: dict, start: Callable) -> Iterable[bytes]:
    """Files of which a byte comes each time, and then nobody."""
    if "/resolve/" not in environ["PATH_INFO"]:
        return app(environ, start)
    start("206 Partial Content", [("Content-Length", "100000")])
    return [b"x"]


UP = "../" * 20
REFUSED = {
    "a commit that leads elsewhere": telling("/api/resolve", lambda row: row.update(id=f"{UP}tmp/x")),
    "a repo that leads elsewhere": telling("/api/resolve", lambda row: row.update(repo="../../x")),
    "a repo that retypes a terminal": telling("/api/resolve", lambda row: row.update(repo="ann/\x1b[2Jx")),
    "a file of less than nothing": telling("/tree/", lambda row: row.update(size=-1)),
    "a file of other bytes": telling("/tree/", lambda row: row.update(oid="0" * 40, lfs=None)),
    "a file without a size": telling("/tree/", lambda row: row.pop("size")),
    "a listing without end": sending("/tree/", endless),
    "an answer without end": sending("/api/resolve", endless),
    "a file without end": sending("/resolve/", endless),
    "a gzip bomb": sending("/tree/", lambda: [gzip.compress(b" " * (80 << 20))], **{"Content-Encoding": "gzip"}),
    "no gzip": sending("/tree/", lambda: [b"[]"], **{"Content-Encoding": "gzip"}),
    "a deep answer": sending("/api/resolve", lambda: [b"[" * 200_000]),
    "a slow answer": sending("/api/resolve", slow),
    "a slow file": sending("/resolve/", slow),
    "a listing of nothing": sending("/tree/", lambda: [b'[null, 1, "x"]']),
    "pages without end": paged("/tree/", lambda number: [{"type": "file", "path": f"{number}", "size": 1, "oid": "0"}]),
    "empty pages without end": paged("/tree/", lambda number: []),
    "a next page at no address": sending("/tree/", lambda: [b"[]"], Link='<http://[x>; rel="next"'),
    "a file that never ends": cut_short,
}  # fmt: skip
HARMLESS = {
    "a deep description": sending("/openapi.json", lambda: [b"[" * 200_000]),
    "a tag that leads elsewhere": pointing("etag", f'"{UP}tmp/graft-was-here"'),
    "a commit that leads elsewhere": pointing("x-repo-commit", f"{UP}tmp/graft-was-here"),
    "a path that leads elsewhere": telling("/tree/", lambda row: row["path"] == "LICENSE" and row.update(path=f"{UP}tmp/x")),
}  # fmt: skip


@pytest.fixture
def pull(hub: str, running: dict, registry: Registry, adapter: Path, tmp_path: Path, monkeypatch) -> Callable:
    """`pull(hostile)` pulls an adapter into a new folder from a hub that is so."""
    cache = tmp_path / "a" / "b" / "c" / "cache"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    for module, name, value in (
        (client, "GREETING_S", 0.5),
        (api, "TIMEOUT_S", 0.5),
        (api, "MAX_ANSWER_BYTES", 1 << 20),
        (api, "CUT_PAUSE_S", 0.001),
    ):
        monkeypatch.setattr(module, name, value)
    (adapter / "LICENSE").write_text("as is")
    registry.publish(adapter, "ann/news")

    def from_hostile(hostile: Callable) -> None:
        app = create_app(registry)
        running["app"] = lambda environ, start: hostile(app, environ, start)
        RemoteRegistry(hub).pull("ann/news", tmp_path / "out")

    return from_hostile


@pytest.mark.parametrize("hostile", REFUSED.values(), ids=REFUSED)
def test_what_no_hub_answers_is_refused_in_words(pull: Callable, hostile: Callable, tmp_path: Path) -> None:
    began = time.monotonic()
    with pytest.raises(GraftError):
        pull(hostile)
    assert time.monotonic() - began < 8 and not (tmp_path / "out").exists()


@pytest.mark.parametrize("hostile", HARMLESS.values(), ids=HARMLESS)
def test_no_word_of_a_hub_says_where_a_file_is_written(pull: Callable, hostile: Callable, tmp_path: Path) -> None:
    """An ETag with `../` in it was a file of the hub's choice anywhere on the disk of who pulled."""
    written = Path("/tmp/graft-was-here")
    pull(hostile)
    assert not written.exists()
    assert {path.name for path in tmp_path.iterdir() if "registry" not in path.name} == {"news-lora", "out"}


UPLOADS = {
    "an answer without end": ("/api/repos/create", endless),
    "a name without end": ("/preupload/", endless),
    "a slow answer": ("/preupload/", slow),
    "an end without end": ("/commit/", endless),
    "a gzip bomb": ("/api/repos/create", lambda: [gzip.compress(b" " * (80 << 20))]),
}


@pytest.mark.parametrize("case", UPLOADS)
def test_no_answer_to_an_upload_is_read_without_end(
    hub: str, running: dict, registry: Registry, adapter: Path, monkeypatch, case: str
) -> None:
    """The client that uploads takes any answer whole."""
    monkeypatch.setattr(api, "TIMEOUT_S", 0.5)
    monkeypatch.setattr(api, "MAX_ANSWER_BYTES", 1 << 20)
    (part, body), app = UPLOADS[case], create_app(registry)
    headers = {"Content-Encoding": "gzip"} if "gzip" in case else {}
    running["app"] = lambda environ, start: sending(part, body, **headers)(app, environ, start)
    began = time.monotonic()
    with pytest.raises(GraftError):
        RemoteRegistry(hub).publish(adapter, "ann/news")
    assert time.monotonic() - began < 8
    running["app"] = app
    assert RemoteRegistry(hub).publish(adapter, "ann/other").digest  # nothing is bounded for good


def test_an_upload_reads_so_many_pages(hub: str, running: dict, registry: Registry, adapter: Path, monkeypatch) -> None:
    monkeypatch.setattr(bounded, "MOST_ANSWERS", 50)
    app = create_app(registry)
    running["app"] = lambda environ, start: paged("/tree/", lambda number: [], host=hub)(app, environ, start)
    with pytest.raises(GraftError, match="answer 51 to one upload"):
        RemoteRegistry(hub).publish(adapter, "ann/news")


def test_a_search_reads_so_many_pages(hub: str, running: dict, registry: Registry) -> None:
    """A hub that is not graft's answered with empty pages for ever."""
    app, asked = create_app(registry), []

    def plain(environ: dict, start: Callable) -> Iterable[bytes]:
        asked.append(environ["PATH_INFO"])
        if environ["PATH_INFO"] == "/openapi.json":
            return sending("/openapi.json", lambda: [b"{}"])(app, environ, start)
        return paged("/api/models", lambda number: [])(app, environ, start)

    running["app"] = plain
    with pytest.raises(GraftError, match="more than 200 pages"):
        RemoteRegistry(hub).search(Query())
    assert asked.count("/api/models") == 200
