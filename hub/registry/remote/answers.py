"""What a hub answers, read into the registry's own records; its errors as ours."""

import json
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

from huggingface_hub import errors as hf
from huggingface_hub.hf_api import ModelInfo
from pydantic import TypeAdapter

from graft.hub.adapters.model_card import TASK_PREFIX, UNTASKED
from graft.hub.errors import (
    ArtifactError,
    BaseMismatchError,
    BaseModelError,
    ConflictError,
    DataError,
    DisabledRepoError,
    EntryNotFoundError,
    ForbiddenError,
    GraftError,
    NotFoundError,
    NotOfferedError,
    RepoNotFoundError,
    RevisionNotFoundError,
    StaleParentError,
    TooLargeError,
    UnauthorizedError,
    UnreachableError,
    UnsupportedMethodError,
)
from graft.hub.registry.access.callers import Caller
from graft.hub.registry.access.permissions import SCOPES
from graft.hub.registry.leaderboard import Evaluation, Standing
from graft.hub.registry.naming import COMMIT_ID
from graft.hub.registry.queries import FACTS, Revision
from graft.hub.registry.refs import Move, Ref
from graft.hub.registry.search import SearchHit
from graft.hub.registry.tasks import Task

T = TypeVar("T")
LOOK_ELSEWHERE = "check the URL of --hub, and the proxy on the way, if there is one (HTTP_PROXY, NO_PROXY)."
BASE_LABEL = "base_model:adapter:"
LICENSE_LABEL = "license:"
_REPO = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?", re.ASCII)
# Read JSON as the registry's records. Fields that this version doesn't know are left aside; ValueError for anything else.
EVALUATION = TypeAdapter(Evaluation)
EVALUATIONS = TypeAdapter(list[Evaluation])
HITS = TypeAdapter(list[SearchHit])
MOVES = TypeAdapter(list[Move])
REFS = TypeAdapter(list[Ref])
_REVISION = TypeAdapter(Revision)
_OBJECT = TypeAdapter(dict[str, object])
REVISIONS = TypeAdapter(list[Revision])
STANDINGS = TypeAdapter(list[Standing])
TASK = TypeAdapter(Task)
TASKS = TypeAdapter(list[Task])
# What a graft hub calls an error in its body; where the hub is another one, its status must do.
BY_KIND: dict[str, type[GraftError]] = {
    kind.code: kind
    for kind in (
        ArtifactError,
        BaseMismatchError,
        BaseModelError,
        ConflictError,
        DisabledRepoError,
        DataError,
        EntryNotFoundError,
        ForbiddenError,
        NotFoundError,
        NotOfferedError,
        RepoNotFoundError,
        RevisionNotFoundError,
        StaleParentError,
        TooLargeError,
        UnauthorizedError,
        UnreachableError,
        UnsupportedMethodError,
    )
}
BY_CODE: dict[str, type[GraftError]] = {
    "RepoNotFound": RepoNotFoundError,
    "RevisionNotFound": RevisionNotFoundError,
    "EntryNotFound": EntryNotFoundError,
}
BY_STATUS: dict[int, type[GraftError]] = {
    401: UnauthorizedError,
    403: ForbiddenError,
    404: NotFoundError,
    409: ConflictError,
    412: StaleParentError,
    413: TooLargeError,
    422: ArtifactError,
    501: NotOfferedError,
    **dict.fromkeys((429, 500, 502, 503, 504, 507), UnreachableError),
}


@contextmanager
def errors_of_client(url: str) -> Iterator[None]:
    """The client's exceptions as ours."""
    try:
        yield
    except hf.HfHubHTTPError as error:
        response = error.response
        raise error_of(response.status_code, response.headers.get("X-Error-Code"), response.content) from None
    # HTTPError is the base of whichever transport this version of the client has.
    except (hf.HTTPError, hf.LocalEntryNotFoundError, hf.OfflineModeIsEnabled) as error:
        raise UnreachableError(f"No hub answers at {url} ({type(error).__name__}): is it running?") from None
    except hf.HFValidationError as error:  # a name that it won't send
        raise GraftError(str(error)) from None
    except (json.JSONDecodeError, KeyError, TypeError, AttributeError, RecursionError):  # of an answer that is no hub's
        raise UnreachableError(f"{url} answers, and not as a hub does: {LOOK_ELSEWHERE}") from None


@contextmanager
def errors_of_upload(url: str) -> Iterator[None]:
    """As `errors_of_client`, and what the client finds wrong with a model card, which it tells by a bare ValueError."""
    with errors_of_client(url):
        try:
            yield
        except (json.JSONDecodeError, hf.HFValidationError):
            raise
        except ValueError as error:
            raise ArtifactError(str(error)) from None


def error_of(status: int, code: str | None, body: bytes) -> GraftError:
    """The error that a hub answered with: `code` is its X-Error-Code."""
    kind = BY_CODE.get(code or "", BY_STATUS.get(status, GraftError))
    try:
        said = _OBJECT.validate_python(read_json(body))
        message = said["error"] if isinstance(said["error"], str) else str(said)
        return BY_KIND.get(str(said.get("code")), kind)(message)
    except (ValueError, KeyError, TypeError):
        return kind(f"The hub answered {status}: {LOOK_ELSEWHERE}")


def read_json(body: bytes) -> object:
    """Raises ValueError for what is none, or so deep that it can't be read."""
    try:
        said: object = json.loads(body)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    return said


def read_revision(answer: object) -> Revision:
    """A commit as graft's hub tells it. Raises ValueError for one whose names can't be names."""
    revision = _REVISION.validate_python(answer)
    if not _REPO.fullmatch(revision.repo) or not COMMIT_ID.fullmatch(revision.id):
        raise ValueError(f"{revision.repo}@{revision.id} names no commit")
    return revision


def read_caller(answer: object) -> Caller:
    """Who somebody is, as any hub tells it; only graft's own hub tells what their token is for, elsewhere it may read. Raises
    ValueError for what names nobody."""
    told = _OBJECT.validate_python(answer)
    name, scope = told.get("name"), _OBJECT.validate_python(told.get("graft") or {}).get("scope")
    if not isinstance(name, str) or not name:
        raise ValueError("it names nobody")
    return Caller(name, scope if isinstance(scope, str) and scope in SCOPES else "read", frozenset((name.lower(),)))


def revision_of(answer: object) -> Revision:
    """A commit as any hub describes it; only graft's own hub tells the digest and its kin."""
    info = _OBJECT.validate_python(answer)
    facts = _OBJECT.validate_python(info.get("graft") or {})
    if info.get("sha") is None:
        raise RevisionNotFoundError(f"{info['id']} has no commit yet: publish something first.")
    known: dict[str, object] = {"repo": info["id"], "id": info["sha"], "author": info.get("author") or ""}
    known |= {"created_at": info.get("lastModified") or "", "parent": None, "title": "", "message": ""}
    return read_revision(known | {key: facts.get(key) for key in FACTS})


def entry_of(info: ModelInfo) -> SearchHit:
    """A list entry, read from the labels that every hub keeps."""
    facts, labels = vars(info).get("graft") or {}, info.tags or []
    return SearchHit(
        name=info.id,
        revision_id=info.sha or "",
        digest=facts.get("digest"),
        private=bool(info.private),
        task=_label_value(labels, TASK_PREFIX) or UNTASKED,
        base=_label_value(labels, BASE_LABEL),
        method=facts.get("method") or "",
        license=_label_value(labels, LICENSE_LABEL),
        parameters=facts.get("parameters"),
        bytes=facts.get("bytes") or 0,
        score=facts.get("score"),
        downloads=info.downloads or 0,
        created_at=info.created_at.isoformat() if info.created_at else "",
        updated_at=info.last_modified.isoformat() if info.last_modified else "",
    )


def within(key: str, kind: TypeAdapter[T]) -> Callable[[Any], T]:
    """Reads an answer that has what is wanted under `key`."""
    return lambda answer: kind.validate_python(answer[key])


def require_rows(answer: Any) -> None:
    """Raises TypeError for what is no list of anything."""
    if not isinstance(answer, list):
        raise TypeError


def ignore(answer: Any) -> None:
    """What the hub says to a write that is answered by nothing but its success."""


def _label_value(labels: Sequence[str], prefix: str) -> str:
    return next((label.removeprefix(prefix) for label in labels if label.startswith(prefix)), "")
