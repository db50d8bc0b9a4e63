"""The description of graft's own API, made from what checks its bodies and writes its answers (bodies.py, answers.py).

Clients and the fuzz tests are made from it. The Hugging Face protocol is described by its own clients' documentation and is
not repeated here.
"""

from dataclasses import dataclass
from functools import cache
from typing import Any

from pydantic import BaseModel, TypeAdapter
from pydantic.json_schema import JsonSchemaMode

from graft.hub.base.manifest import BaseSpec
from graft.hub.registry.leaderboard import Evaluation
from graft.hub.registry.naming import REPO_NAME
from graft.hub.registry.naming import SLUG as TASK_NAME
from graft.hub.registry.queries import Revision
from graft.hub.registry.remote.extensions import TITLE
from graft.hub.registry.tasks import Task
from graft.hub.web import answers, bodies

Schema = dict[str, Any]  # JSON Schema, and what OpenAPI writes around it
TEXT: Schema = {"type": "string"}
NAME: Schema = {"type": "string", "pattern": f"^{REPO_NAME.pattern}$"}
SLUG: Schema = {"type": "string", "pattern": f"^{TASK_NAME.pattern}$"}
NUMBER: Schema = {"type": "integer", "minimum": 0, "maximum": 2**53}
PATH_PARTS = {"namespace": NAME, "name": NAME, "revision": TEXT, "alias": TEXT, "slug": SLUG, "id": NUMBER}
REFERENCE = "#/components/schemas/{model}"


@dataclass(frozen=True)
class Operation:
    """One method of one path. `answer` None: bytes."""

    method: str
    path: str
    summary: str
    answer: type | None
    arguments: type[bodies.Arguments] | None = None
    body: type | None = None


ADAPTER = "/api/adapters/{namespace}/{name}"
ALIAS = f"{ADAPTER}/aliases/{{alias}}"
OPERATIONS = (
    Operation("get", "/health", "Whether the hub works", answers.Health),
    Operation("get", "/api/adapters", "Search, with facet counts", answers.Found, arguments=bodies.Search),
    Operation("get", ADAPTER, "The main revision and what was found in it", answers.Version),
    Operation("get", f"{ADAPTER}/revision/{{revision}}", "A commit, branch, tag or alias", answers.Version),
    Operation("get", f"{ADAPTER}/history", "Revisions, refs, moves of refs", answers.History, arguments=bodies.Paging),
    Operation("get", f"{ADAPTER}/evaluations", "Scores of all its revisions", answers.Evaluations),
    Operation("put", ALIAS, "Promote a revision", Revision, body=bodies.Promotion),
    Operation("post", f"{ALIAS}/rollback", "Undo an alias's last move", Revision, body=bodies.Rollback),
    Operation("get", "/api/resolve", "A name, or task:T, as a revision", Revision, arguments=bodies.Name),
    Operation("get", "/api/tasks", "Every task", answers.Tasks),
    Operation("get", "/api/tasks/{slug}", "One task", Task),
    Operation("put", "/api/tasks/{slug}", "Add a task, or renew its evaluation set", Task, body=bodies.NewTask),
    Operation("put", "/api/tasks/{slug}/owners", "Who says what task:T serves", Task, body=bodies.Owners),
    Operation("get", "/api/tasks/{slug}/data", "An evaluation set, JSONL", None, arguments=bodies.DataHash),
    Operation(
        "get",
        "/api/tasks/{slug}/leaderboard",
        "Ranked scores on the present data",
        answers.Leaderboard,
        arguments=bodies.OnBase,
    ),
    Operation("get", "/api/evaluations/{id}", "One score", Evaluation),
    Operation("post", "/api/evaluations", "Record a score", Evaluation, body=bodies.NewEvaluation),
    Operation("get", "/api/bases", "Recorded bases", answers.Bases),
    Operation("post", "/api/bases", "Record a base's manifest", answers.BaseKey, body=BaseSpec),
)
FAILURES = {
    "400": "The request can't be understood",
    "401": "Sign in first",
    "403": "Not yours to do",
    "404": "No such thing, or not for you to see",
    "409": "Contradicts what is stored",
    "413": "Too large",
    "422": "The artifact is not sound",
    "429": "Too many requests",
}


@cache
def document() -> Schema:
    """OpenAPI 3.1."""
    refs, schemas = _schemas()
    paths: Schema = {}
    for operation in OPERATIONS:
        paths.setdefault(operation.path, {})[operation.method] = _described(operation, refs)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": TITLE,
            "version": "1",
            "description": "Adapters by task and base, scored and versioned.",
        },
        "components": {
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
            "schemas": schemas,
        },
        "paths": paths,
    }


def _schemas() -> tuple[dict[type, Schema], Schema]:
    """A reference to each body's and each answer's schema, and all schemas by name."""
    modes: dict[type, JsonSchemaMode] = {answers.Error: "serialization"}
    for operation in OPERATIONS:
        modes |= {operation.answer: "serialization"} if operation.answer else {}
        modes |= {operation.body: "validation"} if operation.body else {}
    made, shared = TypeAdapter.json_schemas(
        [(kind, mode, TypeAdapter(kind)) for kind, mode in modes.items()], ref_template=REFERENCE
    )
    return {kind: made[kind, mode] for kind, mode in modes.items()}, shared["$defs"]


def _described(operation: Operation, refs: dict[type, Schema]) -> Schema:
    failure = {"application/json": {"schema": refs[answers.Error]}}
    responses: Schema = {"200": {"description": "Done", "content": _content(operation.answer, refs)}}
    responses |= {status: {"description": text, "content": failure} for status, text in FAILURES.items()}
    described: Schema = {
        "summary": operation.summary,
        "operationId": _identifier(operation),
        "parameters": [*_path_parts(operation.path), *_arguments(operation.arguments)],
        "responses": responses,
    }
    if operation.body is not None:
        body = {"required": True, "content": _content(operation.body, refs)}
        described |= {"requestBody": body, "security": [{"token": []}]}
    return described


def _identifier(operation: Operation) -> str:
    return f"{operation.method}{operation.path}".replace("/", "_").replace("{", "").replace("}", "")


def _content(kind: type | None, refs: dict[type, Schema]) -> Schema:
    return {"application/octet-stream": {}} if kind is None else {"application/json": {"schema": refs[kind]}}


def _path_parts(path: str) -> list[Schema]:
    parts = [name for name in PATH_PARTS if f"{{{name}}}" in path]
    return [{"name": name, "in": "path", "required": True, "schema": PATH_PARTS[name]} for name in parts]


def _arguments(kind: type[BaseModel] | None) -> list[Schema]:
    properties = kind.model_json_schema()["properties"] if kind else {}
    return [{"name": name, "in": "query", "schema": schema} for name, schema in properties.items()]
