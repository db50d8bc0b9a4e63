"""Who is asking, who is who, and what somebody has published, as Hugging Face clients ask for it."""

from flask import Blueprint, Response, jsonify, request

from graft.hub.errors import NotFoundError
from graft.hub.registry import queries
from graft.hub.registry.access.permissions import Action, may
from graft.hub.registry.search import Query
from graft.hub.web.huggingface.read import linked_page, page_of
from graft.hub.web.request import caller, registry

blueprint = Blueprint("people", __name__)

NOT_COUNTED = ("numDatasets", "numSpaces", "numFollowers")  # there are none
NOT_COUNTED_OF_USERS = (*NOT_COUNTED, "numDiscussions", "numPapers", "numUpvotes", "numLikes", "numFollowing")


@blueprint.get("/api/whoami-v2")
def whoami() -> Response:
    me = caller()
    token = {"displayName": "graft", "role": "write" if may(me, Action.ADAPTER_CHECK) else "read"}
    return jsonify(
        {
            "type": "user",
            "id": me.name,
            "name": me.name,
            "fullname": me.name,
            "orgs": [{"type": "org", "id": name, "name": name, "fullname": name} for name in _shared_namespaces()],
            "auth": {"type": "access_token", "accessToken": token},
            "graft": {"scope": me.scope},
        }
    )


def _shared_namespaces() -> list[str]:
    """The caller's namespaces besides their own."""
    return sorted(name for name in caller().namespaces or () if name != caller().name.lower())


@blueprint.get("/api/users/<name>/overview")
def user_overview(name: str) -> Response:
    models = _count_models(name)
    orgs = _shared_namespaces() if name.lower() == caller().name.lower() else []
    listed = [{"name": org, "fullname": org, "avatarUrl": ""} for org in orgs]
    named = {"user": name, "fullname": name, "type": "user", "avatarUrl": "", "isPro": False, "isFollowing": False}
    return jsonify({**named, "numModels": models, "orgs": listed, **dict.fromkeys(NOT_COUNTED_OF_USERS, 0)})


@blueprint.get("/api/organizations/<name>/overview")
def organization_overview(name: str) -> Response:
    named = {"name": name, "fullname": name, "avatarUrl": "", "numModels": _count_models(name)}
    return jsonify({**named, **dict.fromkeys(NOT_COUNTED, 0)})


def _count_models(name: str) -> int:
    """How many adapters under a namespace the caller may see. Raises NotFoundError where they can't know of it."""
    count = registry().search(Query(author=name, limit=0), caller()).total
    if not count and name.lower() not in {caller().name.lower(), *(caller().namespaces or ())}:
        raise NotFoundError(f"There is no user or namespace {name!r} here, or nothing of theirs that you may see.")
    return count


@blueprint.get("/api/settings/repositories")
def my_repositories() -> Response:
    return _repositories(None)


@blueprint.get("/api/organizations/<name>/settings/repositories")
def repositories_of(name: str) -> Response:
    if not caller().reaches(name):
        raise NotFoundError(f"{name!r} is none of your namespaces: list_models(author={name!r}) lists what is public.")
    return _repositories(name)


def _repositories(namespace: str | None) -> Response:
    page, limit = page_of(request.args)
    rows = queries.stored_repos(registry().db, caller(), namespace, limit=limit + 1, offset=page * limit)
    listed = [
        {
            "id": row.name,
            "type": "model",
            "updatedAt": row.updated_at,
            "visibility": "private" if row.private else "public",
            "storage": row.bytes,
            "storagePercent": 100 * row.bytes / row.all_bytes if row.all_bytes else 0,
        }
        for row in rows[:limit]
    ]
    return linked_page(listed, page, has_more=len(rows) > limit)
