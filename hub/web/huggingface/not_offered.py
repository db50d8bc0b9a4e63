"""What the Hugging Face protocol has and this hub hasn't, said in words that its clients show.

A list of what does not exist is empty. A feature that is not there answers 501, and never that the repo is missing: clients
would then advise to create it. `/api/...` is never a repo's name.
"""

from flask import Blueprint, Response, jsonify, request

from graft.hub.errors import NotFoundError, NotOfferedError, RepoNotFoundError
from graft.hub.web.huggingface.read import MODEL, absent_repo, readable_repo
from graft.hub.web.request import endpoint

blueprint = Blueprint("not_offered", __name__)

ANY = ["GET", "POST", "PUT", "PATCH", "DELETE"]
NO_DISCUSSIONS = {"discussions": [], "count": 0, "start": 0, "numClosedDiscussions": 0}
# Path -> the answer.
EMPTY: dict[str, object] = {
    "/api/datasets": [],
    "/api/spaces": [],
    "/api/collections": [],
    "/api/daily_papers": [],
    "/api/papers/search": [],
    "/api/settings/webhooks": [],
    "/api/models-tags-by-type": {},
    "/api/datasets-tags-by-type": {},
    "/api/users/<user>/likes": [],
    "/api/users/<user>/followers": [],
    "/api/users/<user>/following": [],
    "/api/organizations/<user>/followers": [],
    "/api/buckets/<user>": [],
    f"{MODEL}/likers": [],
    f"{MODEL}/discussions": NO_DISCUSSIONS,
    f"{MODEL}/user-access-request/<status>": [],
}
# The first part of a path below /api, or below a repo's -> what is not there, and what to do instead.
FEATURES = {
    "buckets": "buckets: publish adapters as repos of type model",
    "collections": "collections: tag adapters in their cards and list them by the tag",
    "jobs": "jobs",
    "kernels": "kernels",
    "papers": "papers",
    "scheduled-jobs": "jobs",
    "spaces": "spaces",
}
REPO_FEATURES = {
    "discussions": "discussions and no pull requests: commit to a branch (create_branch) and promote what is good",
    "duplicate": "duplicates: pull the adapter and publish it under its new name, which stores no byte twice",
    "lfs-files": "list of LFS files apart: list_repo_tree lists all files, and a commit deletes them",
    "like": "likes",
    "resource-group": "resource groups: a namespace's members are set with `graft hub token --namespace`",
    "safetensors-metadata": "sharded weights: get_safetensors_metadata reads an adapter's one file",
    "super-squash": "squashing: a version stays what it was, since scores and servers refer to it",
    "user-access-request": "gated repos: make the repo private and give its readers a token",
    "xet-read-token": "xet storage: set HF_HUB_DISABLE_XET=1",
    "xet-write-token": "xet storage: set HF_HUB_DISABLE_XET=1",
}


def list_nothing(**parts: str) -> Response:
    if "namespace" in parts:
        readable_repo(parts["namespace"], parts["name"])
    return jsonify(EMPTY[str(request.url_rule)])


for _path in EMPTY:
    blueprint.add_url_rule(_path, view_func=list_nothing)


@blueprint.route(f"{MODEL}/<path:feature>", methods=ANY)
def feature_of_a_repo(namespace: str, name: str, feature: str) -> Response:
    readable_repo(namespace, name)
    part = feature.partition("/")[0]
    raise NotOfferedError(f"This hub has no {REPO_FEATURES.get(part, f'{part!r} of a repo')}.")


@blueprint.route("/api/models/<name>", methods=ANY)
@blueprint.route("/<name>/resolve/<revision>/<path:path>")
def repo_without_a_namespace(name: str, revision: str = "", path: str = "") -> Response:
    raise absent_repo(name)


@blueprint.route("/api/<any(datasets, spaces):kind>/<path:rest>", methods=ANY)
@blueprint.route("/<any(datasets, spaces):kind>/<namespace>/<name>/resolve/<revision>/<path:rest>")
def repo_of_another_kind(kind: str, rest: str, **parts: str) -> Response:
    raise RepoNotFoundError(f"This hub has no {kind}: it keeps adapters, as NAMESPACE/NAME among the models.")


@blueprint.route("/api", methods=ANY)
@blueprint.route("/api/<path:rest>", methods=ANY)
def anything_else(rest: str = "") -> Response:
    part = rest.partition("/")[0]
    if part in FEATURES:
        raise NotOfferedError(f"This hub has no {FEATURES[part]}.")
    raise NotFoundError(f"There is no {request.method} {request.path} here: /openapi.json lists what there is.")


@blueprint.get("/<namespace>/<name>/info/refs")
def git(namespace: str, name: str) -> Response:
    """What git asks before it clones or pushes. It shows plain text to whoever called it."""
    repo = f"{namespace}/{name.removesuffix('.git')}"
    said = (
        "This hub is no git server: its versions are not git's.\n"
        f"To fetch:   graft pull {repo} --hub {endpoint()}\n"
        f"or          HF_ENDPOINT={endpoint()} hf download {repo}\n"
        f"To publish: graft publish FOLDER {repo} --hub {endpoint()}\n"
        f"or          HF_ENDPOINT={endpoint()} hf upload {repo} FOLDER\n"
    )
    return Response(said, 501, mimetype="text/plain")
