"""The pages that do something: signing in, publishing by drag and drop, promoting.

Each is an ordinary form; the scripts in static/ only make the same requests sooner. Cross-site posts are refused before
they get here (security.py).
"""

from flask import flash, jsonify, redirect, render_template, request, session, url_for
from werkzeug.datastructures import FileStorage
from werkzeug.wrappers import Response

from graft.hub.errors import ArtifactError, GraftError, UnauthorizedError
from graft.hub.registry.access import sessions
from graft.hub.registry.access.permissions import Action, require
from graft.hub.registry.commits.accepted_files import START_BYTES
from graft.hub.registry.commits.changes import Put, apply_changes
from graft.hub.registry.commits.commit_check import holds_adapter, prove
from graft.hub.registry.commits.trainer_leftovers import (
    LeftOut,
    find_leftover,
    list_leftovers,
    require_no_pickled_adapter,
)
from graft.hub.registry.naming import check_repo_name
from graft.hub.registry.queries import FACTS
from graft.hub.web.bodies import MAX_REASON_CHARS
from graft.hub.web.huggingface.read import writable_repo
from graft.hub.web.pages import blueprint
from graft.hub.web.request import SESSION, caller, expect_files, registry, room_for_body, set_body_aside

# Signing in


@blueprint.get("/signin")
def signin_page() -> str:
    return render_template("signin.html", failed=None)


@blueprint.post("/signin")
def sign_in() -> Response | tuple[str, int]:
    """Exchanges a token for the cookie of a new session; one that was open before ends."""
    token = request.form.get("token", "").strip()
    try:
        opened = sessions.start_session(registry().db, token)
    except UnauthorizedError:
        return render_template("signin.html", failed="This token is unknown, expired or was revoked."), 401
    _end_session()
    session[SESSION], session.permanent = opened, True
    return redirect(url_for("pages.browse"))


@blueprint.post("/signout")
def signout() -> Response:
    _end_session()
    return redirect(url_for("pages.browse"))


def _end_session() -> None:
    if opened := session.get(SESSION):
        sessions.end_session(registry().db, opened)
    session.clear()


# Publishing


@blueprint.get("/publish")
def publish() -> str:
    return render_template("publish.html", problem=None, name=request.args.get("name", ""))


@blueprint.post("/publish")
def publish_upload() -> Response | tuple[str, int]:
    name = ""
    try:
        expect_files()
        name, tag = request.form.get("name", "").strip(), request.form.get("tag", "").strip()
        check_repo_name(name)
        require(caller(), Action.REPO_CREATE, name)
        with room_for_body():
            puts, aside = _receive(request.files.getlist("files"))
            revision = registry().commit(
                name,
                puts,
                title=request.form.get("message", "").strip() or "Publish from the browser",
                user=caller().name,
                caller=caller(),
                tags=[tag] if tag else [],
                create=True,
                private=bool(request.form.get("private")),
                replace=True,
            )
    except GraftError as error:
        return render_template("publish.html", problem=str(error), name=name), error.status
    if aside:
        flash(_left_out_notice(aside))
    namespace, short = revision.repo.split("/")
    return redirect(url_for("pages.adapter", namespace=namespace, name=short))


@blueprint.post("/publish/check")
def check_publish() -> Response:
    """What publishing these files would find; nothing is committed."""
    expect_files()
    set_body_aside()  # what is only checked lies in the store until gc, too
    puts, aside = _receive(request.files.getlist("files"))
    tree = apply_changes({}, puts)
    if not holds_adapter(tree):
        raise ArtifactError("An adapter needs adapter_config.json and adapter_model.safetensors: add the missing one.")
    inspection = prove(registry().db, registry().blobs, tree, caller().name).inspection
    answer = {key: getattr(inspection, key) for key in (*FACTS, "warnings")}
    return jsonify(answer | {"warnings": [*answer["warnings"], *([_left_out_notice(aside)] if aside else [])]})


def _left_out_notice(aside: list[LeftOut]) -> str:
    return f"Left out, as no part of an adapter: {list_leftovers(aside)}."


def _receive(files: list[FileStorage]) -> tuple[list[Put], list[LeftOut]]:
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
        if leftover := find_leftover(path, size, start, registry().max_weights_bytes):
            aside.append(leftover)
        else:
            puts.append(Put(path, registry().store(path, file.stream, size)))
    return puts, aside


# Names that move


@blueprint.post("/<namespace>/<name>/promote")
def promote(namespace: str, name: str) -> Response:
    repo, why = writable_repo(namespace, name), request.form.get("why", "")[:MAX_REASON_CHARS]
    alias = request.form.get("alias", "").strip()
    if request.form.get("rollback"):
        registry().rollback(repo.name, alias, who=caller().name, why=why, caller=caller())
    else:
        ref = f"{repo.name}@{request.form.get('revision', 'main')}"
        registry().promote(ref, alias, who=caller().name, why=why, caller=caller())
    return redirect(url_for("pages.adapter", namespace=namespace, name=name, tab="versions"))
