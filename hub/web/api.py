"""graft's own JSON API: tasks, leaderboards, scores, aliases, bases. Described at /openapi.json (openapi.py)."""

from flask import Blueprint, Response, jsonify, request

from graft.hub.base.manifest import parse_manifest
from graft.hub.registry import base_models
from graft.hub.registry import search as catalog
from graft.hub.registry.access.permissions import Action, may
from graft.hub.registry.leaderboard import MEASURED, REPORTED
from graft.hub.web import bodies
from graft.hub.web.answers import (
    BaseKey,
    BaseRow,
    Bases,
    Evaluations,
    FacetCount,
    Found,
    Health,
    History,
    Leaderboard,
    Tasks,
    answer,
    version,
)
from graft.hub.web.huggingface.read import readable_repo, writable_repo
from graft.hub.web.openapi import document
from graft.hub.web.request import caller, expect_files, read_arguments, read_body, registry, unquote_part

blueprint = Blueprint("api", __name__)

ADAPTER = "/api/adapters/<namespace>/<name>"


@blueprint.get("/openapi.json")
def openapi() -> Response:
    return jsonify(document())


@blueprint.get("/health")
def health() -> Response:
    registry().db.execute("SELECT 1 FROM repos LIMIT 1").fetchone()
    return answer(Health())


# Browsing


@blueprint.get("/api/adapters")
def search() -> Response:
    asked = read_arguments(bodies.Search)
    page, facets = catalog.browse(registry().db, asked.query(), caller())
    wanted = facets if asked.facets == "yes" else {}
    counts = {name: [FacetCount(value, n) for value, n in values] for name, values in wanted.items()}
    return answer(Found(page.total, page.entries, counts))


@blueprint.get(ADAPTER)
@blueprint.get(f"{ADAPTER}/revision/<revision>")
def adapter(namespace: str, name: str, revision: str = "main") -> Response:
    """One revision with all that was found in it."""
    repo = readable_repo(namespace, name)
    commit = registry().resolve(f"{repo.name}@{unquote_part(revision)}", caller=caller())
    return answer(version(commit, registry().found(commit.id), registry().files(commit.id)))


@blueprint.get("/api/resolve")
def resolve() -> Response:
    """`?name=ns/name@rev` or `?name=task:T&base=FINGERPRINT` -> the revision."""
    asked = read_arguments(bodies.Name)
    return answer(registry().resolve(asked.name, base=asked.base, caller=caller()))


# Names that move


@blueprint.get(f"{ADAPTER}/history")
def history(namespace: str, name: str) -> Response:
    repo, page = readable_repo(namespace, name), read_arguments(bodies.Paging)
    limit, offset = page.size, page.offset
    is_empty = registry().branch_head(repo, "main") is None
    return answer(
        History(
            revisions=[] if is_empty else registry().revisions(repo.name, limit=limit, offset=offset),
            refs=registry().all_refs(repo.name, limit=limit, offset=offset),
            moves=registry().history(repo.name, limit=limit, offset=offset),
        )
    )


@blueprint.put(f"{ADAPTER}/aliases/<alias>")
def promote(namespace: str, name: str, alias: str) -> Response:
    repo, wanted = writable_repo(namespace, name), read_body(bodies.Promotion)
    ref = f"{repo.name}@{wanted.revision}"
    return answer(registry().promote(ref, unquote_part(alias), who=caller().name, why=wanted.why, caller=caller()))


@blueprint.post(f"{ADAPTER}/aliases/<alias>/rollback")
def rollback(namespace: str, name: str, alias: str) -> Response:
    repo, why = writable_repo(namespace, name), read_body(bodies.Rollback).why
    return answer(registry().rollback(repo.name, unquote_part(alias), who=caller().name, why=why, caller=caller()))


# Tasks and scores


@blueprint.get("/api/tasks")
def tasks() -> Response:
    return answer(Tasks(registry().tasks()))


@blueprint.get("/api/tasks/<slug>")
def task(slug: str) -> Response:
    return answer(registry().task(slug))


@blueprint.put("/api/tasks/<slug>")
def add_task(slug: str) -> Response:
    expect_files()
    new = read_body(bodies.NewTask)
    data = new.data.encode()
    made = registry().add_task(slug, new.metric, data, new.description, owners=new.owners, user=caller().name)
    return answer(made)


@blueprint.put("/api/tasks/<slug>/owners")
def set_task_owners(slug: str) -> Response:
    return answer(registry().set_task_owners(slug, read_body(bodies.Owners).owners, user=caller().name))


@blueprint.get("/api/tasks/<slug>/data")
def task_data(slug: str) -> Response:
    data = registry().task_data(slug, read_arguments(bodies.DataHash).hash)
    return Response(data, mimetype="application/octet-stream")


@blueprint.get("/api/tasks/<slug>/leaderboard")
def leaderboard(slug: str) -> Response:
    standings = registry().leaderboard(slug, read_arguments(bodies.OnBase).base, caller())
    task = registry().task(slug)
    return answer(Leaderboard(task, task.lower_is_better, standings))


@blueprint.get(f"{ADAPTER}/evaluations")
def evaluations(namespace: str, name: str) -> Response:
    return answer(Evaluations(registry().evaluations(readable_repo(namespace, name).name)))


@blueprint.get("/api/evaluations/<int:id>")
def evaluation(id: int) -> Response:
    return answer(registry().evaluation(id, caller()))


@blueprint.post("/api/evaluations")
def add_evaluation() -> Response:
    """Measured by graft is what an evaluator sends, of any adapter they see or a bare base; what an adapter's owner sends
    is self-reported."""
    measures = may(caller(), Action.SCORE_MEASURE)
    evaluation = read_body(bodies.NewEvaluation).evaluation(MEASURED if measures else REPORTED)
    if evaluation.repo is not None:
        readable_repo(*evaluation.repo.partition("/")[::2])
    return answer(registry().record_evaluation(evaluation, user=caller().name, caller=caller()))


# Bases


@blueprint.get("/api/bases")
def list_bases() -> Response:
    return answer(Bases([BaseRow(**row) for row in registry().bases()]))


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
    return answer(BaseKey(spec.id, spec.fingerprint, for_everybody=for_all))
