"""The description of graft's own API, from which clients and the fuzz tests are made.

The Hugging Face protocol is described by its own clients' documentation and is not repeated here.
"""

from typing import Any

from graft.hub.evaluation.metrics import METRICS
from graft.hub.registry import leaderboard
from graft.hub.registry.naming import REPO_NAME
from graft.hub.registry.naming import SLUG as TASK_NAME
from graft.hub.registry.search import SORTS

Schema = dict[str, Any]  # JSON Schema, and what OpenAPI writes around it
TEXT: Schema = {"type": "string"}
NAME: Schema = {"type": "string", "pattern": f"^{REPO_NAME.pattern}$"}
SLUG: Schema = {"type": "string", "pattern": f"^{TASK_NAME.pattern}$"}
COUNT: Schema = {"type": "integer", "minimum": 0, "maximum": 999_999_999}

ADAPTER = "/api/adapters/{namespace}/{name}"
PATH_PARTS = {"namespace": NAME, "name": NAME, "revision": TEXT, "alias": NAME, "slug": SLUG}

PAGING = {"limit": COUNT, "offset": COUNT}
SEARCH = {
    **dict.fromkeys(("q", "task", "base", "method", "license", "author"), TEXT),
    "label": {"type": "array", "items": TEXT},
    "sort": {"enum": list(SORTS)},
    "facets": {"enum": ["yes", "no"]},
    **PAGING,
}
PROMOTION = {"revision": TEXT, "why": TEXT}
TASK = {"metric": {"enum": list(METRICS)}, "description": TEXT, "data": TEXT}
SCHEMAS: dict[type, Schema] = {str: TEXT, int: COUNT, float: {"type": "number"}, dict: {"type": "object"}}
EVALUATION = {name: SCHEMAS[kinds[-1]] for name, kinds in leaderboard.FIELDS.items()}

# (method, path, what it does, query arguments, body fields, required body fields)
OPERATIONS: tuple[tuple[str, str, str, Schema, Schema | None, tuple[str, ...]], ...] = (
    ("get", "/health", "Whether the hub works", {}, None, ()),
    ("get", "/api/adapters", "Search, with facet counts", SEARCH, None, ()),
    ("get", ADAPTER, "The main revision and what was found in it", {}, None, ()),
    ("get", f"{ADAPTER}/revision/{{revision}}", "A commit, branch, tag or alias", {}, None, ()),
    ("get", f"{ADAPTER}/history", "Revisions, refs, and the moves of refs", PAGING, None, ()),
    ("get", f"{ADAPTER}/evaluations", "Scores of all its revisions", {}, None, ()),
    ("put", f"{ADAPTER}/aliases/{{alias}}", "Promote a revision", {}, PROMOTION, ()),
    ("post", f"{ADAPTER}/aliases/{{alias}}/rollback", "Undo an alias's last move", {}, {"why": TEXT}, ()),
    ("get", "/api/resolve", "A name, or task:T, as a revision", {"name": TEXT, "base": TEXT}, None, ()),
    ("get", "/api/tasks", "Every task", {}, None, ()),
    ("get", "/api/tasks/{slug}", "One task", {}, None, ()),
    ("put", "/api/tasks/{slug}", "Add a task, or renew its evaluation set (admin)", {}, TASK, ("metric", "data")),
    ("get", "/api/tasks/{slug}/data", "The evaluation set, JSONL", {}, None, ()),
    ("get", "/api/tasks/{slug}/leaderboard", "Ranked scores on the present data", {"base": TEXT}, None, ()),
    ("post", "/api/evaluations", "Record a score", {}, EVALUATION, leaderboard.REQUIRED),
    ("get", "/api/bases", "Recorded bases", {}, None, ()),
    ("post", "/api/bases", "Record a base's manifest", {}, {"id": TEXT, "fingerprint": TEXT}, ("id", "fingerprint")),
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
ERROR = {"type": "object", "required": ["error"], "properties": {"error": TEXT}}


def document() -> Schema:
    """OpenAPI 3.1."""
    paths: Schema = {}
    for method, path, summary, query, fields, required in OPERATIONS:
        paths.setdefault(path, {})[method] = _operation(path, summary, query, fields, required)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "graft hub",
            "version": "1",
            "description": "Adapters by task and base, scored and versioned.",
        },
        "components": {
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
            "schemas": {"Error": ERROR},
        },
        "paths": paths,
    }


def _operation(path: str, summary: str, query: Schema, fields: Schema | None, required: tuple[str, ...]) -> Schema:
    parts = [name for name in PATH_PARTS if f"{{{name}}}" in path]
    parameters = [{"name": name, "in": "path", "required": True, "schema": PATH_PARTS[name]} for name in parts]
    parameters += [{"name": name, "in": "query", "schema": schema} for name, schema in query.items()]
    failure = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
    responses: Schema = {"200": {"description": "Done"}}
    responses |= {status: {"description": text, "content": failure} for status, text in FAILURES.items()}
    operation: Schema = {"summary": summary, "parameters": parameters, "responses": responses}
    if fields is not None:
        schema = {"type": "object", "properties": fields, "required": list(required)}
        operation |= {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}
        operation |= {"security": [{"token": []}]}
    return operation
