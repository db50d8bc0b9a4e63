"""What a hub answers, read into the registry's own records; its errors as ours."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

from huggingface_hub import errors as hf
from huggingface_hub.hf_api import ModelInfo

from graft.hub.adapters.model_card import TASK_PREFIX, UNTASKED
from graft.hub.errors import (
    ArtifactError,
    ConflictError,
    EntryNotFoundError,
    ForbiddenError,
    GraftError,
    NotFoundError,
    RepoNotFoundError,
    RevisionNotFoundError,
    UnauthorizedError,
)
from graft.hub.registry.leaderboard import Evaluation, Standing
from graft.hub.registry.queries import FACTS, Revision
from graft.hub.registry.search import SearchHit

T = TypeVar("T")
BASE_LABEL = "base_model:adapter:"
BY_STATUS: dict[int, type[GraftError]] = {
    401: UnauthorizedError,
    403: ForbiddenError,
    404: NotFoundError,
    409: ConflictError,
    412: ConflictError,
    422: ArtifactError,
}
BY_CODE: dict[str, type[GraftError]] = {
    "RepoNotFound": RepoNotFoundError,
    "RevisionNotFound": RevisionNotFoundError,
    "EntryNotFound": EntryNotFoundError,
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
        raise GraftError(f"No hub answers at {url} ({type(error).__name__}): is it running?") from None
    except ValueError as error:  # the client's own checks of names and cards
        raise GraftError(str(error)) from None


def error_of(status: int, code: str | None, body: bytes) -> GraftError:
    try:
        said = json.loads(body)
        message = said["error"] if isinstance(said["error"], str) else str(said)
    except (ValueError, KeyError, TypeError):
        message = f"The hub answered {status}: check the URL of --hub, and the proxy on the way, if there is one."
    return BY_CODE.get(code or "", BY_STATUS.get(status, GraftError))(message)


def revision_of(info: ModelInfo) -> Revision:
    """A commit as its hub describes it; only graft's own hub tells the digest and its kin."""
    facts = vars(info).get("graft") or {}
    if info.sha is None:
        raise RevisionNotFoundError(f"{info.id} has no commit yet: publish something first.")
    return Revision(
        repo=info.id,
        id=info.sha,
        parent=None,
        author=info.author or "",
        title="",
        message="",
        created_at=info.last_modified.isoformat() if info.last_modified else "",
        **{key: facts.get(key) for key in FACTS},
    )


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
        license=_label_value(labels, "license:"),
        parameters=facts.get("parameters"),
        bytes=facts.get("bytes") or 0,
        score=facts.get("score"),
        downloads=info.downloads or 0,
        created_at=info.created_at.isoformat() if info.created_at else "",
        updated_at=info.last_modified.isoformat() if info.last_modified else "",
    )


def one_of(kind: Callable[..., T]) -> Callable[[Any], T]:
    return lambda answer: kind(**answer)


def many_of(kind: Callable[..., T], key: str) -> Callable[[Any], list[T]]:
    return lambda answer: [kind(**row) for row in answer[key]]


def require_rows(answer: Any) -> None:
    """Raises TypeError for what is no list of anything."""
    if not isinstance(answer, list):
        raise TypeError


def ignore(answer: Any) -> None:
    """What the hub says to a write that is answered by nothing but its success."""


def standing_of(evaluation: Mapping[str, Any], **row: Any) -> Standing:
    return Standing(evaluation=Evaluation(**evaluation), **row)


def _label_value(labels: Sequence[str], prefix: str) -> str:
    return next((label.removeprefix(prefix) for label in labels if label.startswith(prefix)), "")
