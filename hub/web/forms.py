"""The pages that do something: signing in, publishing by drag and drop, promoting, the playground.

Each is an ordinary form; the scripts in static/ only make the same requests sooner. Cross-site posts are refused before
they get here (security.py).
"""

import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any

from flask import flash, jsonify, redirect, render_template, request, session, stream_with_context, url_for
from werkzeug.datastructures import FileStorage
from werkzeug.wrappers import Response

from graft.hub.errors import ArtifactError, ForbiddenError, GraftError, UnauthorizedError
from graft.hub.registry import search as catalog
from graft.hub.registry import users as access
from graft.hub.registry.commits.changes import START_BYTES, Put, changed, check_repo_name
from graft.hub.registry.commits.commit_check import holds_adapter, prove
from graft.hub.registry.commits.trainer_leftovers import LeftOut, left_out, listed, require_no_pickled_adapter
from graft.hub.registry.queries import FACTS
from graft.hub.web.huggingface.read import body, text_field, writable
from graft.hub.web.pages import blueprint
from graft.hub.web.request import caller, expect_files, hub, registry

MAX_ASKED = 6
MAX_PROMPT_CHARS = 20_000
MAX_NEW_TOKENS = 512
INFERENCE_TIMEOUT_S = 120
EVENT_BYTES = 4096


# Signing in


@blueprint.get("/signin")
def signin() -> str:
    return render_template("signin.html", failed=None)


@blueprint.post("/signin")
def signed_in() -> Response | tuple[str, int]:
    """Exchanges a token for a cookie that holds its hash."""
    token = request.form.get("token", "").strip()
    try:
        access.caller_of(registry().db, token)
    except UnauthorizedError:
        return render_template("signin.html", failed="This token is unknown or was revoked."), 401
    session.clear()
    session["token_hash"] = access.token_hash(token)
    return redirect(url_for("pages.browse"))


@blueprint.post("/signout")
def signout() -> Response:
    session.clear()
    return redirect(url_for("pages.browse"))


# Publishing


@blueprint.get("/publish")
def publish() -> str:
    return render_template("publish.html", problem=None, name=request.args.get("name", ""))


@blueprint.post("/publish")
def published() -> Response | tuple[str, int]:
    name = ""
    try:
        caller().require("write")
        expect_files()
        name, tag = request.form.get("name", "").strip(), request.form.get("tag", "").strip()
        caller().require_namespace(check_repo_name(name)[0])
        puts, aside = _received(request.files.getlist("files"))
        revision = registry().commit(
            name,
            puts,
            title=request.form.get("message", "").strip() or "Publish from the browser",
            user=caller().name,
            tags=[tag] if tag else [],
            create=True,
            private=bool(request.form.get("private")),
            replace=True,
        )
    except GraftError as error:
        return render_template("publish.html", problem=str(error), name=name), error.status
    if aside:
        flash(_said(aside))
    namespace, short = revision.repo.split("/")
    return redirect(url_for("pages.adapter", namespace=namespace, name=short))


@blueprint.post("/publish/check")
def check_publish() -> Response:
    """What publishing these files would find; nothing is committed."""
    caller().require("write")
    expect_files()
    puts, aside = _received(request.files.getlist("files"))
    tree = changed({}, puts)
    if not holds_adapter(tree):
        raise ArtifactError("An adapter needs adapter_config.json and adapter_model.safetensors: add the missing one.")
    found = prove(registry().db, registry().blobs, tree).found
    answer = {key: getattr(found, key) for key in (*FACTS, "warnings")}
    return jsonify(answer | {"warnings": [*answer["warnings"], *([_said(aside)] if aside else [])]})


def _said(aside: list[LeftOut]) -> str:
    return f"Left out, as no part of an adapter: {listed(aside)}."


def _received(files: list[FileStorage]) -> tuple[list[Put], list[LeftOut]]:
    """Uploaded files into the store, and what is left out. A dropped folder's own name is no part of the paths."""
    given = [(file.filename or "", file) for file in files if file.filename]
    if not given:
        raise ArtifactError("No file arrived: choose the files of an adapter's folder.")
    tops = {path.partition("/")[0] for path, _ in given}
    strip = f"{tops.pop()}/" if len(tops) == 1 and all("/" in path for path, _ in given) else ""
    require_no_pickled_adapter(path.removeprefix(strip) for path, _ in given)
    puts, aside = [], []
    for path, file in given:
        path = path.removeprefix(strip)
        start = file.stream.read(START_BYTES)
        size = file.stream.seek(0, 2)
        file.stream.seek(0)
        if found := left_out(path, size, start, registry().max_weights_bytes):
            aside.append(found)
        else:
            puts.append(Put(path, registry().store(path, file.stream, size)))
    return puts, aside


# Names that move


@blueprint.post("/<namespace>/<name>/promote")
def promote(namespace: str, name: str) -> Response:
    repo, why = writable(namespace, name), request.form.get("why", "")[:1000]
    alias = request.form.get("alias", "").strip()
    if request.form.get("rollback"):
        registry().rollback(repo.name, alias, who=caller().name, why=why)
    else:
        ref = f"{repo.name}@{request.form.get('revision', 'main')}"
        registry().promote(ref, alias, who=caller().name, why=why)
    return redirect(url_for("pages.adapter", namespace=namespace, name=name, tab="versions"))


# Playground


@blueprint.get("/playground")
def playground() -> str:
    return _playground([])


@blueprint.post("/playground")
def played() -> str:
    """The way without JavaScript: all answers, when all are there."""
    names = request.form.getlist("model")[:MAX_ASKED]
    return _playground([(name, _answer(_asked(name, request.form, stream=False))) for name in names])


def _playground(answers: list[tuple[str, str]]) -> str:
    """Adapters of one base, since one server has one base."""
    bases = [base for base, _ in catalog.facets(registry().db, catalog.Query(), caller())["base"] if base]
    base = request.values.get("base") or (bases[0] if bases else "")
    found = registry().search(catalog.Query(base=base, sort="name", limit=200), caller()).entries if base else ()
    return render_template(
        "playground.html",
        bases=bases,
        base=base,
        adapters=[entry for entry in found if entry.digest],
        chosen=request.values.getlist("model"),
        prompt=request.values.get("prompt", ""),
        answers=answers,
        most=MAX_ASKED,
    )


@blueprint.post("/playground/stream")
def stream() -> Response:
    """One model's answer as it comes, passed on from the inference server so that pages talk to one origin only."""
    given = body()
    upstream = _open(_asked(text_field(given, "model"), given, stream=True))

    def events() -> Iterator[bytes]:
        with upstream:
            while chunk := upstream.read1(EVENT_BYTES):
                yield chunk

    return Response(stream_with_context(events()), mimetype="text/event-stream")


def _asked(model: str, given: Any, *, stream: bool) -> dict[str, Any]:
    """The completion request. Raises GraftError for a prompt or a length out of bounds."""
    caller().require("read")
    prompt, tokens = str(given.get("prompt", "")), str(given.get("max_tokens") or "48")
    if not prompt or len(prompt) > MAX_PROMPT_CHARS:
        raise GraftError(f"The prompt must have 1 to {MAX_PROMPT_CHARS:,} characters.")
    if not tokens.isdecimal() or not 0 < int(tokens[:6]) <= MAX_NEW_TOKENS:
        raise GraftError(f"The answer's length must be 1 to {MAX_NEW_TOKENS} tokens.")
    return {"model": model, "prompt": prompt, "max_tokens": int(tokens), "temperature": 0, "stream": stream}


def _open(wanted: dict[str, Any]) -> Any:
    """Raises GraftError with the inference server's own message, or saying that there is none."""
    url = hub().inference_url
    if url is None:
        raise ForbiddenError("This hub knows no inference server: start it with `graft hub serve --inference URL`.")
    data = json.dumps(wanted).encode()
    asked = urllib.request.Request(f"{url}/v1/completions", data, {"Content-Type": "application/json"})
    try:
        return urllib.request.urlopen(asked, timeout=INFERENCE_TIMEOUT_S)
    except urllib.error.HTTPError as error:
        raise GraftError(_upstream_message(error.read())) from None
    except OSError as error:
        raise GraftError(f"No inference server answers at {url} ({error}): is `graft serve` running?") from None


def _answer(wanted: dict[str, Any]) -> str:
    try:
        with _open(wanted) as reply:
            return json.load(reply)["choices"][0]["text"]
    except GraftError as error:
        return f"({error})"


def _upstream_message(data: bytes) -> str:
    try:
        return str(json.loads(data)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return "The inference server refused this without a reason."
