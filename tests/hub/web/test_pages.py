"""The pages as a reader without JavaScript gets them, and once each in a real browser."""

import errno
import http.server
import json
import re
import shutil
import subprocess
import threading
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import quote

import httpx
import pytest
from werkzeug.test import Client, TestResponse

from graft.hub.registry import withdrawal
from graft.hub.registry.access.tokens import create_token, first_admin
from graft.hub.registry.leaderboard import Evaluation
from graft.hub.registry.registry import Registry
from graft.hub.web.app import create_app

EVAL_SET = b'{"prompt": "a", "completion": "b"}\n'
HOSTILE = """---
tags: [lora, "task:news-topic"]
license: mit
base_model: acme/tiny-llama
---
# Title <script>alert(1)</script>

<img src=x onerror=alert(1)> [link](javascript:alert(1)) ![pixel](http://evil.example/x.png)
"""


@pytest.fixture
def filled(registry: Registry, tmp_path: Path, lora_folder) -> Registry:
    """Two adapters with scores, one promoted twice, one private."""
    task = registry.add_task("news-topic", "accuracy", EVAL_SET, "Which topic?")
    registry.add_task("sentiment", "accuracy", EVAL_SET, "Good or bad?")
    first = registry.publish(lora_folder(tmp_path / "a", card=HOSTILE), "ann/news", tags=["v1"], message="First")
    registry.promote("ann/news", "production", who="ann", why="first")
    second = registry.publish(lora_folder(tmp_path / "b", seed=1, rank=8), "ann/news", message="Second")
    registry.promote("ann/news", "production", who="ann", why="better")
    registry.publish(lora_folder(tmp_path / "c", seed=2, task="sentiment"), "bob/mood")
    registry.publish(lora_folder(tmp_path / "d", seed=3), "bob/secret", private=True)
    shared = {"task": "news-topic", "data_hash": task.data_hash, "metric": "accuracy", "n": 1}
    for revision, value in ((first, 0.7), (second, 0.9)):
        ours = {"repo": "ann/news", "revision": revision.id, "digest": revision.digest, "base_fingerprint": "f" * 64}
        registry.record_evaluation(Evaluation(**shared, **ours, value=value, low=value - 0.1, high=value + 0.05))
    registry.record_evaluation(Evaluation(**shared, base_fingerprint="f" * 64, value=0.5))
    return registry


@pytest.fixture
def client(filled: Registry) -> Client:
    """A stranger at a hub that has users."""
    first_admin(filled.db, "ann")
    return create_app(filled).test_client()


def paths(registry: Registry) -> list[str]:
    first = registry.resolve("ann/news@v1").id
    return [
        "/",
        "/?q=headlines&task=news-topic&sort=score",
        "/?method=lora&license=mit&offset=25",
        "/ann/news",
        f"/ann/news/tree/{first}",
        "/ann/news?tab=files",
        "/ann/news?tab=versions",
        "/ann/news?tab=evaluations",
        "/ann/news?tab=use",
        "/tasks",
        "/tasks/news-topic",
        "/tasks/sentiment",
        f"/compare?a=ann/news@{first}&a=ann/news&a=bob/mood",
        "/compare",
        "/publish",
        "/playground",
        "/signin",
    ]


class Links(HTMLParser):
    """Collects local links, labels without an input, and what the policy would refuse."""

    def __init__(self) -> None:
        super().__init__()
        self.links: set[str] = set()
        self.forbidden: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        if tag == "a" and (found.get("href") or "").startswith("/"):
            self.links.add(found["href"] or "")
        if (
            "style" in found
            or any(name.startswith("on") for name in found)
            or (tag == "script" and not found.get("src"))
        ):
            self.forbidden.append(f"{tag} {attrs}")


def test_every_page_and_every_link_on_it_works(client: Client, filled: Registry) -> None:
    seen: set[str] = set()
    for path in paths(filled):
        reply = client.get(path)
        assert reply.status_code == 200, path
        page = Links()
        page.feed(reply.text)
        assert page.forbidden == [], path
        seen |= page.links
    assert len(seen) > 20
    for link in sorted(seen):
        assert client.get(link, follow_redirects=True).status_code == 200, link


def test_the_list_says_what_is_in_production(client: Client, filled: Registry, tmp_path: Path, lora_folder) -> None:
    def shown(name: str) -> str:
        """The name's line of a card."""
        return client.get("/").text.partition(f'href="/{name}"')[2].partition('class="tags"')[0]

    promoted = filled.resolve("ann/news@production").id[:8]
    assert f'title="Revision {promoted} is in production">production</span>' in shown("ann/news")
    assert shown("bob/mood") and "production" not in shown("bob/mood")
    filled.publish(lora_folder(tmp_path / "later", seed=9), "ann/news")
    assert f'title="Revision {promoted} is in production">production: an earlier version</span>' in shown("ann/news")


def test_cards_are_harmless(client: Client, filled: Registry) -> None:
    page = client.get(f"/ann/news/tree/{filled.resolve('ann/news@v1').id}")
    article = page.text.partition('<article class="prose">')[2].partition("</article>")[0]
    assert "<script" not in article and "<img src=x" not in article
    assert not re.search(r"<[^>]*(onerror|javascript:)", article)
    policy = page.headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy and "img-src 'self' data:" in policy and "unsafe" not in policy
    assert page.headers["X-Content-Type-Options"] == "nosniff" and page.headers["X-Frame-Options"] == "DENY"


def test_private_adapters_are_on_no_page_of_a_stranger(client: Client) -> None:
    for path in ("/", "/?author=bob", "/api/adapters", "/api/models", "/index.json", "/compare"):
        assert "secret" not in client.get(path, follow_redirects=True).text, path
    for path in (
        "/bob/secret",
        "/api/adapters/bob/secret",
        "/bob/secret/resolve/main/README.md",
        "/compare?a=bob/secret",
    ):
        assert client.get(path).status_code == 404, path


def test_the_leaderboard_ranks_and_draws(client: Client) -> None:
    page = client.get("/tasks/news-topic").text
    assert page.index("0.900") < page.index("0.700") < page.index("bare base")
    assert page.count("<circle") == 2 and page.count('class="whisker') == 2 and 'class="level"' in page
    assert "Nothing measured" in client.get("/tasks/sentiment").text


def test_a_tasks_page_names_what_is_served(client: Client, filled: Registry) -> None:
    served = filled.resolve("task:news-topic").id
    for path in ("/tasks/news-topic", "/tasks/news-topic?base=acme/tiny-llama"):
        assert f'/{served}"' in client.get(path).text
    assert "nothing yet" in client.get("/tasks/sentiment").text
    filled.set_private("ann/news", True)
    assert served not in client.get("/tasks/news-topic").text  # no word of what the reader may not see


def test_a_page_that_is_not_there_says_so_as_a_page(client: Client) -> None:
    for path in ("/ann/nothing", "/tasks/nothing", "/ann/news/tree/nothing", "/a/b/c/d", "/?limit=x"):
        reply = client.get(path, headers={"Accept": "text/html"})
        assert reply.status_code in (400, 404) and "<title>" in reply.text, path
    assert client.get("/api/nothing").json["error"]


def test_signing_in_and_out(client: Client, filled: Registry) -> None:
    assert client.post("/signin", data={"token": "wrong"}).status_code == 401
    token = create_token(filled.db, "bob", "write")
    reply = client.post("/signin", data={"token": token})
    cookie = reply.headers["Set-Cookie"]
    assert "HttpOnly" in cookie and "SameSite=Lax" in cookie and token not in cookie
    assert "bob/secret" in client.get("/?author=bob").text.replace("<wbr>", "").replace(
        '<span class="ns">', ""
    ).replace("</span>", "")
    client.post("/signout")
    assert client.get("/bob/secret").status_code == 404


def test_writes_from_elsewhere_are_refused_even_with_the_cookie(client: Client, filled: Registry) -> None:
    client.post("/signin", data={"token": create_token(filled.db, "ann", "write")})
    form = {"alias": "production", "rollback": "1"}
    for headers in ({"Sec-Fetch-Site": "cross-site"}, {"Origin": "http://evil.example"}):
        assert client.post("/ann/news/promote", data=form, headers=headers).status_code == 403
    assert client.post("/ann/news/promote", data=form, headers={"Sec-Fetch-Site": "same-origin"}).status_code == 302
    assert filled.resolve("ann/news@production").title == "First"


def test_promoting_from_the_page(client: Client, filled: Registry) -> None:
    form = {"alias": "staging", "revision": filled.resolve("ann/news@v1").id, "why": "try it"}
    assert client.post("/ann/news/promote", data=form).status_code == 401
    client.post("/signin", data={"token": create_token(filled.db, "bob", "write")})
    assert client.post("/ann/news/promote", data=form).status_code == 403
    client.post("/signin", data={"token": create_token(filled.db, "ann", "write")})
    assert client.post("/ann/news/promote", data=form).status_code == 302
    assert "try it" in client.get("/ann/news?tab=versions").text
    for owners, said in (([], "admins promote"), (["ann"], "its owners (ann) or admins promote")):
        filled.set_task_owners("news-topic", owners)
        assert said in client.get("/tasks/news-topic").text
    assert "an owner of the task (ann) or an admin" in client.get("/ann/news?tab=versions").text


def test_publishing_from_the_page(client: Client, filled: Registry, tmp_path: Path, lora_folder) -> None:
    folder = lora_folder(tmp_path / "up", seed=9)

    def files() -> list:
        return [(path.open("rb"), f"up/{path.name}") for path in folder.iterdir()]

    assert client.post("/publish", data={"name": "ann/up", "files": files()}).status_code == 401
    assert "sign in</a> first" in client.get("/publish").text
    client.post("/signin", data={"token": create_token(filled.db, "ann", "write")})
    assert "sign in</a> first" not in client.get("/publish").text
    checked = client.post("/publish/check", data={"files": files()}).json
    assert checked["method"] == "lora" and checked["task"] == "news-topic"
    refused = client.post("/publish", data={"name": "bob/up", "files": files()})
    assert refused.status_code == 403 and "may not write" in refused.text
    assert client.post("/publish", data={"name": "ann/up", "tag": "v1", "files": files()}).status_code == 302
    assert filled.resolve("ann/up@v1").message == ""
    (folder / "adapter_model.safetensors").write_bytes(b"broken")
    spoilt = client.post("/publish", data={"name": "ann/bad", "files": files()})
    assert spoilt.status_code == 422 and "adapter_model.safetensors" in spoilt.text
    assert client.post("/publish/check", data={"files": files()}).json["error"]
    assert client.get("/ann/bad").status_code == 404


def test_too_many_requests_are_slowed(client: Client, filled: Registry) -> None:
    client.application.extensions["graft-rates"].limit = 3
    client.application.extensions["graft"] = type(client.application.extensions["graft"])(filled, False, None)
    replies = [client.get("/api/tasks") for _ in range(5)]
    assert [reply.status_code for reply in replies] == [200, 200, 200, 429, 429]
    assert int(replies[-1].headers["Retry-After"]) > 0


class Upstream(http.server.BaseHTTPRequestHandler):
    """Speaks the completions protocol, to see what the playground passes on."""

    half_read = threading.Event()  # a reader has the first event of a stream

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if asked["model"] == "bad/one":
            self.reply(404, json.dumps({"error": {"message": "no such adapter"}}).encode(), "application/json")
        elif asked["stream"]:
            pieces = [{"choices": [{"text": text}]} for text in ("good", " news")]
            first, second = (f"data: {json.dumps(piece)}\n\n".encode() for piece in pieces)
            rest = second + b"data: [DONE]\n\n"
            self.reply(200, first, "text/event-stream", more=len(rest))
            if asked["model"] == "ann/slow":
                self.half_read.wait(20)
            self.wfile.write(rest)
        else:
            self.reply(200, json.dumps({"choices": [{"text": "good <news>"}]}).encode(), "application/json")

    def reply(self, status: int, data: bytes, kind: str, more: int = 0) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data) + more))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def upstream() -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Upstream)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


def test_the_playground_passes_answers_on(filled: Registry, upstream: str) -> None:
    client = create_app(filled, inference_url=upstream).test_client()
    form = {"model": ["ann/news", "bad/one"], "prompt": "Hello", "base": "acme/tiny-llama"}
    page = client.post("/playground", data=form).text
    assert "good &lt;news&gt;" in page and "no such adapter" in page
    streamed = client.post("/playground/stream", json={"model": "ann/news", "prompt": "Hello", "max_tokens": 5})
    assert streamed.mimetype == "text/event-stream" and streamed.text.endswith("data: [DONE]\n\n")
    assert (
        client.post("/playground/stream", json={"model": "bad/one", "prompt": "x"}).json["error"] == "no such adapter"
    )
    assert client.post("/playground/stream", json={"model": "ann/news", "prompt": ""}).status_code == 400
    silent = create_app(filled, inference_url="http://127.0.0.1:9").test_client()
    assert (
        "is `graft serve` running"
        in silent.post("/playground/stream", json={"model": "a", "prompt": "x"}).json["error"]
    )


@pytest.mark.parametrize("model", ["bob/secret", "BOB/secret@main", "bob/mood", "ann/gone"])
def test_the_playground_asks_of_no_adapter_that_the_asker_does_not_see(
    client: Client, filled: Registry, upstream: str, model: str
) -> None:
    """The inference server may hold the registry itself, or an admin's token: all that is private was there for the asking."""
    filled.publish(Path(filled.path).parent / "a", "ann/gone")
    withdrawal.disable(filled.db, "ann/gone", "not ours", "ann")
    reading = create_app(filled, inference_url=upstream).test_client()
    tokens = {user: create_token(filled.db, user, "read") for user in ("mallory", "bob")}

    def ask(user: str) -> TestResponse:
        headers = {"Authorization": f"Bearer {tokens[user]}"}
        return reading.post("/playground/stream", json={"model": model, "prompt": "x"}, headers=headers)

    hidden = {"bob/mood": 200, "ann/gone": 403}.get(model, 404)
    assert ask("mallory").status_code == hidden
    assert ask("bob").status_code == (403 if model == "ann/gone" else 200)
    page = reading.post(
        "/playground", data={"model": model, "prompt": "x"}, headers={"Authorization": f"Bearer {tokens['mallory']}"}
    )
    assert ("good" in page.text) == (hidden == 200)


def test_prompts_do_not_take_all_threads(filled: Registry, upstream: str) -> None:
    client = create_app(filled, inference_url=upstream).test_client()
    asked = {"model": "ann/news", "prompt": "Hello"}
    taken = client.application.extensions["graft"].answers
    while taken.acquire(blocking=False):  # as answers on their way do
        pass
    assert client.post("/playground/stream", json=asked).status_code == 503
    assert "try again" in client.post("/playground", data=asked).text
    taken.release()
    assert client.post("/playground/stream", json=asked).status_code == 200
    for _ in range(2):  # what goes wrong gives its turn back
        assert client.post("/playground/stream", json=asked | {"model": "bad/one"}).status_code == 400


def _broken(how: str) -> Iterator[str]:
    """An inference server that doesn't keep its promises."""

    class Broken(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            if how == "drops":
                self.connection.close()
                return
            body = {"html": b"<!DOCTYPE html><p>Welcome", "refuses": b"<p>no"}.get(how, b'{"choices": [{"te')
            self.send_response(503 if how == "refuses" else 200)
            self.send_header("Content-Length", str(len(body) + (100 if how == "breaks off" else 0)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Broken)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("html", "is no inference server: check --inference"),
        ("no text", "is no inference server: check --inference"),
        ("refuses", "answered 503 without a reason"),
        ("breaks off", "stopped in the middle of its answer"),
        ("drops", "No inference server answers at"),
    ],
)
def test_what_an_inference_server_does_wrong_is_no_fault_of_the_hub(filled: Registry, how: str, said: str) -> None:
    for url in _broken(how):
        client = create_app(filled, inference_url=url).test_client()
        page = client.post("/playground", data={"model": "ann/news", "prompt": "Hello", "base": "acme/tiny-llama"})
        assert page.status_code == 200 and said in page.text
        streamed = client.post("/playground/stream", json={"model": "ann/news", "prompt": "Hello"})
        wanted = {"refuses": 400, "drops": 502}.get(how, 200)
        assert streamed.status_code == wanted, streamed.text
        if how == "breaks off":
            assert "stopped in the middle of its answer" in streamed.text


@pytest.mark.parametrize(
    ("raised", "status"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), 507),
        (OSError(errno.EROFS, "Read-only file system"), 507),
        (TimeoutError("timed out"), 500),
        (ConnectionResetError(errno.ECONNRESET, "reset"), 500),
    ],
)
def test_only_the_disk_is_an_operators_affair(filled: Registry, monkeypatch, raised: OSError, status: int) -> None:
    def fails(*_: object, **__: object) -> None:
        raise raised

    monkeypatch.setattr(type(filled), "tasks", fails)
    reply = create_app(filled).test_client().get("/api/tasks")
    assert reply.status_code == status and ("an operator has to look" in reply.json["error"]) == (status == 507)


def test_an_answer_is_passed_on_piece_by_piece(filled: Registry, upstream: str, running: dict) -> None:
    running["app"] = create_app(filled, inference_url=upstream)
    asked = {"model": "ann/slow", "prompt": "Hello"}
    with httpx.stream("POST", f"{running['url']}/playground/stream", json=asked, timeout=10) as reply:
        pieces = reply.iter_raw()
        assert b"good" in next(pieces)  # the upstream has not sent the rest yet
        Upstream.half_read.set()
        assert b"".join(pieces).endswith(b"data: [DONE]\n\n")


def browser() -> str | None:
    return shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--enable-logging=stderr",
    "--log-level=0",
]


@pytest.mark.slow
@pytest.mark.skipif(browser() is None, reason="no chromium, chromium-browser or google-chrome on the PATH")
@pytest.mark.parametrize("width", [420, 1280])
def test_a_browser_shows_every_page_without_complaint(filled: Registry, hub: str, tmp_path: Path, width: int) -> None:
    for number, path in enumerate(paths(filled)):
        picture, profile = tmp_path / f"{number}.png", tmp_path / f"profile-{number}"
        words = [
            browser(),
            *FLAGS,
            f"--user-data-dir={profile}",
            f"--window-size={width},900",
            f"--screenshot={picture}",
        ]
        done = subprocess.run([*words, hub + path], capture_output=True, text=True, timeout=60)
        assert picture.stat().st_size > 5000, path
        assert "CONSOLE" not in done.stderr, done.stderr  # neither a script's error nor a refusal by the policy


SCRIPTS = "<img src=x onerror=\"document.title='OWNED'\"><script>document.title='OWNED'</script>\u202egnihton"


@pytest.mark.slow
@pytest.mark.skipif(browser() is None, reason="no chromium, chromium-browser or google-chrome on the PATH")
def test_no_strangers_words_run_in_a_browser(registry: Registry, hub: str, tmp_path: Path, lora_folder) -> None:
    """Names, tags, messages, metrics, a description, a card, templates: all that a page shows of others."""
    quoted = json.dumps(SCRIPTS)
    claims = f"model-index: [{{name: {quoted}, results: [{{task: {{name: {quoted}}}, metrics: [{{type: {quoted}, value: 1}}]}}]}}]"
    front = f"base_model: acme/tiny-llama\nlicense: {quoted}\ntags: [task:news-topic, {quoted}]\n{claims}"
    links = f"[x](javascript:document.title='OWNED')\n<svg onload=\"document.title='OWNED'\"></svg>\n{SCRIPTS}"
    folder = lora_folder(tmp_path / "w", card=f"---\n{front}\n---\n# {SCRIPTS}\n\n{links}\n")
    (folder / "chat_template.jinja").write_text(SCRIPTS)
    (folder / "generation_config.json").write_text(json.dumps({"stop_strings": [SCRIPTS]}))
    registry.add_task("news-topic", "accuracy", b'{"prompt": "a", "completion": "b"}\n', SCRIPTS)
    registry.publish(folder, "mallory/own", message=f"{SCRIPTS}\n\n{SCRIPTS}")
    registry.promote("mallory/own", "production", why=SCRIPTS)
    tabs = [f"/mallory/own?tab={tab}" for tab in ("card", "files", "versions", "evaluations", "use")]
    others = ["/", "/tasks", "/tasks/news-topic", f"/?q={quote(SCRIPTS)}", f"/compare?a=mallory/own&a={quote(SCRIPTS)}"]
    for number, path in enumerate([*tabs, *others]):
        words = [browser(), *FLAGS, f"--user-data-dir={tmp_path / f'profile-{number}'}", "--dump-dom", hub + path]
        done = subprocess.run(words, capture_output=True, text=True, timeout=60)
        title = re.search(r"<title>(.*?)</title>", done.stdout, re.DOTALL)
        assert title and title[1] != "OWNED" and "CONSOLE" not in done.stderr, (path, done.stderr)


def test_the_page_shows_an_adapters_own_words(registry: Registry, tmp_path: Path, lora_folder) -> None:
    folder = lora_folder(tmp_path / "w")
    (folder / "chat_template.jinja").write_text("{{ messages }}<script>alert(1)</script>")
    words = {"eos_token_id": [2, 7], "temperature": 0.5, "top_k": -3, "stop_strings": ["<b>END"]}
    (folder / "generation_config.json").write_text(json.dumps(words))
    (folder / "tokenizer_config.json").write_text("[" * 100_000)
    registry.publish(folder, "ann/words")
    registry.publish(lora_folder(tmp_path / "p", seed=1), "ann/plain")
    client = create_app(registry).test_client()
    page = client.get("/ann/words?tab=use").text
    assert "{{ messages }}&lt;script&gt;" in page and "<script>alert" not in page and "<b>END" not in page
    assert "<code>7</code>" in page and '<th scope="row">temperature</th><td><code>0.5</code>' in page
    assert "top_k is no number" in page and "tokenizer_config.json is no JSON object" in page
    assert "Its own words" not in client.get("/ann/plain?tab=use").text


def test_a_host_that_is_not_the_hubs_is_refused_to_browsers_and_clients_alike(registry: Registry) -> None:
    """A page could have no links there."""
    client = Client(create_app(registry))
    for host in ("evil.example", "a b"):
        for accept in ("text/html", "application/json"):
            reply = client.get("/", headers={"Accept": accept, "Host": host})
            assert reply.status_code == 400 and "not trusted" in reply.json["error"], (host, reply.text)
