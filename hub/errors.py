"""The errors a user can meet. Each message says what happened, why, and what to do.

Knows nothing of torch, HTTP or the terminal: `status` and `code` are what an HTTP room answers with,
and a command prints the message and exits 1.
"""

from collections.abc import Callable


class GraftError(Exception):
    """Something the caller can mend. The message is written for that person."""

    status = 400
    code = "bad_request"
    param: str | None = None  # the field of a request's body that is meant

    def __reduce__(self) -> "tuple[Callable[..., GraftError], tuple[object, ...]]":
        """As it is, whatever its constructor takes: errors are told from one process of a server to another."""
        return _rebuild, (type(self), self.args, vars(self))


def _rebuild(kind: type[GraftError], args: tuple[object, ...], attributes: dict[str, object]) -> GraftError:
    error = kind.__new__(kind)
    error.args = args
    vars(error).update(attributes)
    return error


class NotFoundError(GraftError):
    """The named adapter, revision, task, base or file does not exist (or may not be seen)."""

    status = 404
    code = "not_found"


class RepoNotFoundError(NotFoundError):
    """No such repo, or one the caller may not see: both look the same from outside."""

    code = "repo_not_found"


class RevisionNotFoundError(NotFoundError):
    """The repo has no such commit, branch, tag or alias."""

    code = "revision_not_found"


class EntryNotFoundError(NotFoundError):
    """The revision has no such file."""

    code = "entry_not_found"


class UnauthorizedError(GraftError):
    """The caller is unknown and would have to sign in."""

    status = 401
    code = "unauthorized"


class ConflictError(GraftError):
    """The write would contradict what is stored (name taken, stale parent, ...)."""

    status = 409
    code = "conflict"


class StaleParentError(ConflictError):
    """The branch has moved on since the caller read it."""

    status = 412
    code = "stale_parent"


class TooLargeError(GraftError):
    """More bytes, files or lines than the hub takes."""

    status = 413
    code = "too_large"


class ForbiddenError(GraftError):
    """The caller is known and may not do this."""

    status = 403
    code = "forbidden"


class DisabledRepoError(ForbiddenError):
    """The hub's operator has withdrawn the repo. `sentence` is what Hugging Face clients know this by."""

    code = "repo_disabled"
    sentence = "Access to this resource is disabled."


class ArtifactError(GraftError):
    """The artifact is malformed, incomplete, hostile or without effect."""

    status = 422
    code = "bad_artifact"


class UnsupportedMethodError(ArtifactError):
    """The artifact is of a kind, or uses an option, that is not served per request."""

    code = "unsupported_method"


class BaseMismatchError(ArtifactError):
    """The artifact was made for another base."""

    status = 409
    code = "base_mismatch"


class BaseModelError(GraftError):
    """The base folder can't be used: unknown family, missing parts, unreadable weights."""

    code = "bad_base"


class NotOfferedError(GraftError):
    """The hub is there and has no such thing as was asked for: discussions, or on a hub of another kind, aliases."""

    status = 501
    code = "not_offered"


class UnreachableError(GraftError):
    """Another server that is needed gives no answer, or none but that it can't now: what was known of it may still hold."""

    status = 502
    code = "unreachable"


class UnavailableError(GraftError):
    """Others are being answered: later it can be done."""

    status = 503
    code = "busy"


class DataError(GraftError):
    """A data set can't be used; the message names the file and the line."""

    code = "bad_data"
