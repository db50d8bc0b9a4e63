"""graft's own JSON API: tasks, leaderboards, scores, aliases, bases. Described at /openapi.json (openapi.py)."""

from dataclasses import asdict, replace

from flask import Blueprint, Response, jsonify, request
from werkzeug.datastructures import MultiDict

from graft.hub.base.manifest import parse_manifest
from graft.hub.errors import GraftError
from graft.hub.registry import base_models
from graft.hub.registry import leaderboard as scores
from graft.hub.registry import search as catalog
from graft.hub.registry.access.permissions import Action, may, require
from graft.hub.registry.leaderboard import Standing
from graft.hub.registry.queries import MOST_LISTED
from graft.hub.registry.search import Query
from graft.hub.registry.tasks import Task
from graft.hub.web.huggingface.read import body, readable_repo, text_field, texts_field, writable_repo
from graft.hub.web.openapi import document
from graft.hub.web.request import caller, expect_files, registry, unquote_part

blueprint = Blueprint("api", __name__)

ADAPTER = "/api/adapters/<namespace>/<name>"
MAX_REASON_CHARS = 1000


@blueprint.get("/openapi.json")
def openapi() -> Response:
    return jsonify(document())


@blueprint.get("/health")
def health() -> Response:
    registry().db.execute("SELECT 1 FROM repos LIMIT 1").fetchone()
    return jsonify({"status": "ok"})


# Browsing


@blueprint.get("/api/adapters")
def search() -> Response:
    query = query_of(request.args)
    page, facets = catalog.browse(registry().db, query, caller())
    facets = {} if request.args.get("facets") == "no" else facets
    return jsonify(
        {
            "total": page.total,
            "adapters": [asdict(entry) for entry in page.entries],
            "facets": {name: [{"value": v, "count": n} for v, n in counts] for name, counts in facets.items()},
        }
    )


def query_of(args: MultiDict[str, str]) -> Query:
    """The query that a URL's arguments spell. Raises GraftError for a number that is none."""
    limit, offset = page_of(args, 50)
    plain = {key: args.get(key, "") for key in ("task", "base", "method", "license", "author")}
    return Query(
        text=args.get("q", ""),
        labels=tuple(args.getlist("label")),
        sort=args.get("sort") or "updated",
        limit=limit,
        offset=offset,
        **plain,
    )


def page_of(args: MultiDict[str, str], limit: int) -> tuple[int, int]:
    """limit and offset, of a URL's arguments. Raises GraftError for a number that is none."""
    numbers = {"limit": limit, "offset": 0}
    for key in numbers:
        value = args.get(key, "")
        if value and (not (value.isascii() and value.isdecimal()) or len(value) > 9):
            raise GraftError(f"{key} must be a whole number, not {value!r}.")
        numbers[key] = int(value or numbers[key])
    return min(numbers["limit"], catalog.MAX_PAGE), numbers["offset"]


@blueprint.get(ADAPTER)
@blueprint.get(f"{ADAPTER}/revision/<revision>")
def adapter(namespace: str, name: str, revision: str = "main") -> Response:
    """One revision with all that was found in it."""
    repo = readable_repo(namespace, name)
    commit = registry().resolve(f"{repo.name}@{unquote_part(revision)}", caller=caller())
    inspection = registry().found(commit.id)
    details = asdict(inspection) if inspection else {}
    return jsonify(asdict(commit) | {"artifact": details, "files": [asdict(f) for f in registry().files(commit.id)]})


@blueprint.get("/api/resolve")
def resolve() -> Response:
    """`?name=ns/name@rev` or `?name=task:T&base=FINGERPRINT` -> the revision."""
    name = request.args.get("name", "")
    revision = registry().resolve(name, base=request.args.get("base") or None, caller=caller())
    return jsonify(asdict(revision))


# Names that move


@blueprint.get(f"{ADAPTER}/history")
def history(namespace: str, name: str) -> Response:
    """`limit` rows of each list, from the `offset`th on."""
    repo = readable_repo(namespace, name)
    limit, offset = page_of(request.args, MOST_LISTED)
    is_empty = registry().branch_head(repo, "main") is None
    revisions = [] if is_empty else registry().revisions(repo.name, limit=limit, offset=offset)
    return jsonify(
        {
            "revisions": [asdict(revision) for revision in revisions],
            "refs": [asdict(ref) for ref in registry().all_refs(repo.name, limit=limit, offset=offset)],
            "moves": [asdict(move) for move in registry().history(repo.name, limit=limit, offset=offset)],
        }
    )


@blueprint.put(f"{ADAPTER}/aliases/<alias>")
def promote(namespace: str, name: str, alias: str) -> Response:
    repo, fields = writable_repo(namespace, name), body()
    why = text_field(fields, "why", "")[:MAX_REASON_CHARS]
    ref = f"{repo.name}@{text_field(fields, 'revision', 'main')}"
    return jsonify(asdict(registry().promote(ref, unquote_part(alias), who=caller().name, why=why, caller=caller())))


@blueprint.post(f"{ADAPTER}/aliases/<alias>/rollback")
def rollback(namespace: str, name: str, alias: str) -> Response:
    repo = writable_repo(namespace, name)
    why = text_field(body(), "why", "")[:MAX_REASON_CHARS]
    return jsonify(
        asdict(registry().rollback(repo.name, unquote_part(alias), who=caller().name, why=why, caller=caller()))
    )


# Tasks and scores


@blueprint.get("/api/tasks")
def tasks() -> Response:
    return jsonify({"tasks": [asdict(task) for task in registry().tasks()]})


@blueprint.get("/api/tasks/<slug>")
def task(slug: str) -> Response:
    return jsonify(asdict(registry().task(slug)))


@blueprint.put("/api/tasks/<slug>")
def add_task(slug: str) -> Response:
    """Body: {metric, description, data: JSONL text, owners: the namespaces that say what task:T serves}."""
    expect_files()
    fields = body()
    metric, description = text_field(fields, "metric"), text_field(fields, "description", "")
    data, owners = text_field(fields, "data").encode(), texts_field(fields, "owners") if "owners" in fields else None
    made = registry().add_task(slug, metric, data, description, owners=owners, user=caller().name)
    return jsonify(asdict(made))


@blueprint.put("/api/tasks/<slug>/owners")
def set_task_owners(slug: str) -> Response:
    """Body: {owners}, all of them."""
    return jsonify(asdict(registry().set_task_owners(slug, texts_field(body(), "owners"), user=caller().name)))


@blueprint.get("/api/tasks/<slug>/data")
def task_data(slug: str) -> Response:
    """The present evaluation set, or an earlier one: `?hash=`."""
    return Response(registry().task_data(slug, request.args.get("hash")), mimetype="application/octet-stream")


@blueprint.get("/api/tasks/<slug>/leaderboard")
def leaderboard(slug: str) -> Response:
    standings = registry().leaderboard(slug, request.args.get("base") or None, caller())
    return jsonify({"task": _task(registry().task(slug)), "standings": [_standing(row) for row in standings]})


@blueprint.get(f"{ADAPTER}/evaluations")
def evaluations(namespace: str, name: str) -> Response:
    return jsonify(
        {"evaluations": [asdict(row) for row in registry().evaluations(readable_repo(namespace, name).name)]}
    )


@blueprint.get("/api/evaluations/<int:id>")
def evaluation(id: int) -> Response:
    return jsonify(asdict(registry().evaluation(id, caller())))


@blueprint.post("/api/evaluations")
def add_evaluation() -> Response:
    """Body: the fields of an evaluation. Measured by graft is what an evaluator sends, of any adapter they see or a bare
    base; what an adapter's owner sends is self-reported."""
    fields = body()
    evaluation, measures = scores.read_evaluation(fields), may(caller(), Action.SCORE_MEASURE)
    if fields.get("source") is None and not measures:
        evaluation = replace(evaluation, source=scores.REPORTED)
    if evaluation.repo is not None:
        repo = readable_repo(*evaluation.repo.partition("/")[::2])
        if not measures:
            require(caller(), Action.SCORE_CLAIM, repo.name)
    if evaluation.repo is None or evaluation.source == scores.MEASURED:
        require(caller(), Action.SCORE_MEASURE)
    return jsonify(asdict(registry().record_evaluation(evaluation, user=caller().name)))


# Bases


@blueprint.get("/api/bases")
def list_bases() -> Response:
    return jsonify({"bases": registry().bases()})


@blueprint.post("/api/bases")
def add_base() -> Response:
    """Body: a base's manifest, as it lies beside its weights. An admin's counts for everybody, and changes none that is
    recorded; a publisher's counts for their own commits."""
    spec = parse_manifest(request.get_data(as_text=True))
    for_all = may(caller(), Action.BASE_RECORD)
    if for_all:
        registry().add_base(spec, user=caller().name, replace=False)
    else:
        base_models.claim_base(registry().db, spec, caller().name)
    return jsonify({"id": spec.id, "fingerprint": spec.fingerprint, "for_everybody": for_all})


def _task(task: Task) -> dict[str, object]:
    return asdict(task) | {"lower_is_better": task.lower_is_better}


def _standing(row: Standing) -> dict[str, object]:
    return asdict(row)
