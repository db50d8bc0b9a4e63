"""The reading half of the Hugging Face Hub protocol, and what manages repos: enough for unmodified clients.

One view an endpoint; json_answers.py has the words. Uploads: commit.py. What isn't there: not_offered.py.
"""

from collections.abc import Mapping, Sequence
from urllib.parse import urlencode

from flask import Blueprint, Response, jsonify, request, send_file
from werkzeug.datastructures import MultiDict

from graft.hub.errors import (
    ConflictError,
    EntryNotFoundError,
    GraftError,
    NotFoundError,
    RepoNotFoundError,
)
from graft.hub.registry import base_models, search
from graft.hub.registry.access.permissions import Action, require
from graft.hub.registry.naming import MAIN, branch_of, check_repo_name
from graft.hub.registry.queries import Repo, Revision
from graft.hub.registry.search import Query
from graft.hub.web.error_responses import failure_of
from graft.hub.web.huggingface import file_piece, json_answers
from graft.hub.web.huggingface.bodies import NewBranch, NewRepo, NewTag, Paths, Renaming, Settings
from graft.hub.web.request import caller, endpoint, read_body, read_body_if_any, registry, unquote_part

blueprint = Blueprint("protocol", __name__)

MODEL = "/api/models/<namespace>/<name>"
PAGE = 100
SORTS = {
    "lastModified": "updated",
    "last_modified": "updated",
    "createdAt": "created",
    "created_at": "created",
    "downloads": "downloads",
    "likes": "downloads",
    "trendingScore": "downloads",
    "trending_score": "downloads",
    "score": "score",
}
# A client counts as one download when it fetches the file that every adapter has.
COUNTED = "adapter_config.json"
# A public file at a commit id never changes, so caches may keep it; for as long it may be had there once it is withdrawn or hidden.
FOR_CACHES = "public, max-age=3600, immutable"
TRUE = ("true", "1")


def readable_repo(namespace: str, name: str) -> Repo:
    """The repo. Raises RepoNotFoundError, also for what the caller may not see, DisabledRepoError for a withdrawn one, and
    NotFoundError for a base that is known here by this name."""
    try:
        return registry().repo(f"{namespace}/{name}", caller())
    except RepoNotFoundError:
        raise absent_repo(f"{namespace}/{name}") from None


def absent_repo(name: str) -> NotFoundError:
    """Why there is no repo of this name. Of a base, no RepoNotFoundError: a client then looks into its download cache."""
    if base_models.is_known(registry().db, name):
        return NotFoundError(
            f"{name} is a base. This hub knows it and keeps none of its files, only adapters: load it from a folder, or "
            f"fetch it once without HF_ENDPOINT (`hf download {name}`); then it is found in the download cache."
        )
    return RepoNotFoundError(f"There is no adapter {name!r} here, or it is private and you are not signed in.")


def writable_repo(namespace: str, name: str, action: Action = Action.REPO_WRITE) -> Repo:
    """As `readable_repo`, and raises UnauthorizedError or ForbiddenError where the caller may not do that to it."""
    repo = readable_repo(namespace, name)
    require(caller(), action, repo.name)
    return repo


# Access


@blueprint.get(f"{MODEL}/auth-check")
def auth_check(namespace: str, name: str) -> Response:
    readable_repo(namespace, name)
    return jsonify({})


@blueprint.get(f"{MODEL}/auth-check/write")
def auth_check_write(namespace: str, name: str) -> Response:
    require(caller(), Action.REPO_CREATE, f"{namespace}/{name}")  # asked before a repo is made, too
    writable_repo(namespace, name)
    return jsonify({})


# Repos


@blueprint.post("/api/repos/create")
def create_repo() -> Response:
    wanted = read_body(NewRepo)
    if wanted.type != "model":
        raise GraftError("This hub keeps adapters only: create a repo of type 'model'.")
    full = wanted.full_name(caller().name)
    check_repo_name(full)
    require(caller(), Action.REPO_CREATE, full)
    url = {"url": f"{endpoint()}/{full}", "name": full}
    try:
        repo = registry().create_repo(full, private=wanted.is_private, user=caller().name)
    except ConflictError as error:
        return failure_of(error, url)
    return jsonify(url | {"id": str(repo.id)})


@blueprint.delete("/api/repos/delete")
def delete_repo() -> Response:
    repo = writable_repo(*check_repo_name(read_body(NewRepo).full_name(caller().name)), Action.REPO_DELETE)
    registry().delete_repo(repo.name, user=caller().name, caller=caller())
    return jsonify({})


@blueprint.post("/api/repos/move")
def move_repo() -> Response:
    names = read_body(Renaming)
    repo = writable_repo(*check_repo_name(names.fromRepo), Action.REPO_MOVE)
    check_repo_name(names.toRepo)
    require(caller(), Action.REPO_CREATE, names.toRepo)
    registry().move_repo(repo.name, names.toRepo, user=caller().name, caller=caller())
    return jsonify({})


@blueprint.put(f"{MODEL}/settings")
def settings(namespace: str, name: str) -> Response:
    repo, wanted = writable_repo(namespace, name), read_body(Settings)
    if wanted.gated:
        raise GraftError("This hub has no gated repos: make the repo private instead.")
    if wanted.becomes_private is not None:
        registry().set_private(repo.name, wanted.becomes_private, user=caller().name, caller=caller())
    return jsonify({"private": registry().repo(repo.name).private})


# What there is


@blueprint.get("/api/models")
def list_models() -> Response:
    page, limit = page_of(request.args)
    labels = [label for key in ("filter", "pipeline_tag", "tags") for label in request.args.getlist(key)]
    query = Query(
        text=request.args.get("search", ""),
        author=request.args.get("author", ""),
        labels=tuple(label for group in labels for label in group.split(",") if label),
        sort=SORTS.get(request.args.get("sort", "trendingScore"), "updated"),
        limit=limit,
        offset=page * limit,
    )
    listing = registry().search(query, caller()) if request.args.get("gated") != "true" else search.Page((), 0)
    full = bool({"full", "cardData", "expand"} & request.args.keys())
    models = json_answers.model_list(registry(), listing.entries, full)
    return linked_page(models, page, has_more=limit > 0 and query.offset + limit < listing.total)


@blueprint.get(MODEL)
@blueprint.get(f"{MODEL}/revision/<revision>")
def model_info(namespace: str, name: str, revision: str = "main") -> Response:
    repo = readable_repo(namespace, name)
    commit = None if _is_empty(repo, revision) else _revision(repo, revision)
    [info] = json_answers.infos(registry(), [(repo, commit)], sizes="blobs" in request.args)
    wanted = request.args.getlist("expand")
    return jsonify({key: value for key, value in info.items() if key in ("id", "_id", *wanted)} if wanted else info)


@blueprint.get(f"{MODEL}/tree/<revision>")
@blueprint.get(f"{MODEL}/tree/<revision>/<path:path>")
def tree(namespace: str, name: str, revision: str, path: str = "") -> Response:
    repo, prefix = readable_repo(namespace, name), unquote_part(path).strip("/")
    if _is_empty(repo, revision):
        return jsonify([])
    files = registry().files(_revision(repo, revision).id)
    inside = [file for file in files if not prefix or file.path.startswith(f"{prefix}/")]
    if prefix and not inside:
        raise EntryNotFoundError(f"There is no folder {prefix!r} in {namespace}/{name}@{revision}.")
    folders = json_answers.folders(inside, prefix)
    if request.args.get("recursive", "").lower() not in TRUE:
        depth = prefix.count("/") + 1 if prefix else 0
        inside = [file for file in inside if file.path.count("/") == depth]
        folders = [folder for folder in folders if folder["path"].count("/") == depth]
    expand = request.args.get("expand", "").lower() in TRUE
    return jsonify([*folders, *json_answers.tree_entries(registry(), inside, expand)])


@blueprint.post(f"{MODEL}/paths-info/<revision>")
def paths_info(namespace: str, name: str, revision: str) -> Response:
    files = registry().files(_revision(readable_repo(namespace, name), revision).id)
    asked = _paths_of_a_form() if request.form else read_body_if_any(Paths)
    wanted, expand = {path.strip("/") for path in asked.paths}, str(asked.expand).lower() in TRUE
    folders = [folder for folder in json_answers.folders(files, "") if folder["path"] in wanted]
    there = [file for file in files if file.path in wanted]
    return jsonify([*folders, *json_answers.tree_entries(registry(), there, expand)])


def _paths_of_a_form() -> Paths:
    """Older clients send a form."""
    return Paths(paths=request.form.getlist("paths"), expand=request.form.get("expand", ""))


@blueprint.get(f"{MODEL}/commits/<revision>")
def commits(namespace: str, name: str, revision: str) -> Response:
    repo = readable_repo(namespace, name)
    page, limit = page_of(request.args)
    line = registry().revisions(repo.name, ref=_revision(repo, revision).id, limit=limit + 1, offset=page * limit)
    shown = [
        {
            "id": commit.id,
            "title": commit.title,
            "message": commit.message,
            "date": commit.created_at,
            "authors": [{"user": commit.author}],
        }
        for commit in line[:limit]
    ]
    return linked_page(shown, page, has_more=len(line) > limit)


@blueprint.get(f"{MODEL}/refs")
def list_refs(namespace: str, name: str) -> Response:
    groups: dict[str, list[dict[str, str]]] = {"branches": [], "converts": [], "tags": [], "pullRequests": []}
    spelled = {"branch": ("branches", "refs/heads/"), "tag": ("tags", "refs/tags/")}
    for ref in registry().all_refs(readable_repo(namespace, name).name):
        if ref.kind in spelled:
            group, prefix = spelled[ref.kind]
            groups[group].append({"name": ref.name, "ref": prefix + ref.name, "targetCommit": ref.revision})
    return jsonify(groups)


@blueprint.post(f"{MODEL}/tag/<revision>")
def create_tag(namespace: str, name: str, revision: str) -> Response:
    repo, tag = writable_repo(namespace, name), read_body(NewTag).tag
    registry().create_ref(repo.name, "tag", tag, unquote_part(revision), user=caller().name, caller=caller())
    return jsonify({})


@blueprint.post(f"{MODEL}/branch/<branch>")
def create_branch(namespace: str, name: str, branch: str) -> Response:
    repo = writable_repo(namespace, name)
    start = read_body_if_any(NewBranch).startingPoint
    registry().create_ref(repo.name, "branch", unquote_part(branch), start, user=caller().name, caller=caller())
    return jsonify({})


@blueprint.delete(f"{MODEL}/<any(tag, branch):kind>/<ref>")
def delete_ref(namespace: str, name: str, kind: str, ref: str) -> Response:
    registry().delete_ref(
        writable_repo(namespace, name).name, kind, unquote_part(ref), user=caller().name, caller=caller()
    )
    return jsonify({})


# Bytes


@blueprint.get("/<namespace>/<name>/resolve/<revision>/<path:path>")
@blueprint.get("/<namespace>/<name>/raw/<revision>/<path:path>")
def resolve(namespace: str, name: str, revision: str, path: str) -> Response:
    """A file, always as an attachment; HEAD carries its true length, for a client takes 0 for an empty file."""
    repo = readable_repo(namespace, name)
    if _is_empty(repo, revision):
        raise EntryNotFoundError(f"{repo.name} holds no file yet.")
    commit = _revision(repo, revision)
    try:
        file = registry().file(commit.id, unquote_part(path))
    except EntryNotFoundError as error:
        response = failure_of(error)
        response.headers["X-Repo-Commit"] = commit.id
        return response
    blobs = registry().blobs
    blobs.open(file.sha256).close()  # a missing blob is our failure, not an absent file
    response = send_file(
        blobs.path(file.sha256).absolute(),
        mimetype="application/octet-stream",
        as_attachment=True,
        download_name=file.path.rpartition("/")[2],
        conditional=True,
        etag=json_answers.etag(file),
        max_age=0,
    )
    if response.status_code == 206:
        file_piece.hand_over(response, blobs.path(file.sha256))
    if unquote_part(revision) == commit.id and not repo.private:
        response.headers["Cache-Control"] = FOR_CACHES
    response.headers["X-Repo-Commit"] = commit.id
    response.headers["X-Linked-Size"] = str(file.size)
    response.headers["X-Linked-ETag"] = f'"{json_answers.etag(file)}"'
    if request.method == "GET" and response.status_code == 200 and file.path == COUNTED:
        registry().count_download(repo.name)
    return response


# Arguments


def _revision(repo: Repo, revision: str) -> Revision:
    return registry().resolve(f"{repo.name}@{unquote_part(revision)}", caller=caller())


def _is_empty(repo: Repo, revision: str) -> bool:
    """Whether this asks for the main branch of a repo without commits, which clients expect to exist."""
    return branch_of(revision) == MAIN and registry().branch_head(repo, MAIN) is None


def page_of(args: MultiDict[str, str]) -> tuple[int, int]:
    """The page's number, from 0, and how many rows it has. Raises GraftError for a number that is none."""
    numbers = []
    for key, default in (("p", 0), ("limit", PAGE)):
        value = args.get(key, str(default))
        if not (value.isascii() and value.isdecimal()) or len(value) > 9:
            raise GraftError(f"{key} must be a whole number, not {value!r}.")
        numbers.append(int(value))
    return numbers[0], min(numbers[1], search.MAX_PAGE)


def linked_page(rows: Sequence[Mapping[str, object]], page: int, *, has_more: bool) -> Response:
    """A page as clients read it, which follow the link to the next."""
    response = jsonify(rows)
    if has_more:
        others = [(key, value) for key, value in request.args.items(multi=True) if key != "p"]
        response.headers["Link"] = f'<{request.base_url}?{urlencode([*others, ("p", page + 1)])}>; rel="next"'
    return response
