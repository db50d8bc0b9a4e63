"""What can go wrong in serving, each with its HTTP status and code."""

from typing import TypeVar

from graft.hub.errors import GraftError

Value = TypeVar("Value")


class RequestError(GraftError):
    """A request that can't be served as it stands."""

    code = "invalid_request"


class TooLongError(RequestError):
    """Prompt and answer are longer than a sequence may be. Clients shorten a conversation on this very code."""

    code = "context_length_exceeded"

    def __init__(self, message: str, param: str | None = None):
        super().__init__(message)
        self.param = param


class ConstraintError(RequestError):
    """A schema or grammar that no text can be held to here, and why. `param`: the field that it came in."""

    code = "invalid_constraint"

    def __init__(self, message: str, param: str | None = None):
        super().__init__(message)
        self.param = param


class EngineError(GraftError):
    """The engine failed at a step; only the requests of that step are lost."""

    status = 500
    code = "engine_error"


class BrokenError(EngineError):
    """Something failed that should not have. Its message is for the log: it may tell of internals."""

    code = "internal_error"


class NotFiniteError(EngineError):
    """An adapter's logits are not numbers any more."""

    status = 422
    code = "not_finite"

    def __init__(self) -> None:
        super().__init__("The logits are not finite: this adapter overflows on this prompt. Train it at a lower rate.")


class ConstraintFailedError(EngineError):
    """A text has come to a place from where the constraint can't be followed any further."""

    status = 422
    code = "constraint_failed"

    def __init__(self, reason: str) -> None:
        super().__init__(f"The constraint can't be followed any further: {reason}. Make it simpler.")


class EndedError(EngineError):
    """The engine has ended by a failure: it serves nobody any more."""

    status = 503
    code = "engine_ended"


class StuckError(EngineError):
    """The engine does not come back from a step; it may yet."""

    status = 503
    code = "engine_stuck"

    def __init__(self, seconds: float) -> None:
        super().__init__(
            f"The engine has been at one step for {seconds:.0f} s and serves nobody meanwhile. Its log says more."
        )


class StateLostError(BaseException):
    """What is free and what is held can't be told any more: the engine ends rather than serve on. Caught by nobody else."""


class CapacityError(EngineError):
    """The adapter does not fit into the memory that this server was given."""

    status = 422
    code = "no_capacity"


class StorageError(GraftError):
    """What was fetched can't be written down here."""

    status = 507
    code = "no_storage"


class BusyError(GraftError):
    """Too much is waiting already."""

    status = 429
    code = "overloaded"


class InvalidKeyError(GraftError):
    """No key was shown, or none that is good here."""

    status = 401
    code = "invalid_api_key"


class NotAllowedError(GraftError):
    """The key is good, and not for this."""

    status = 403
    code = "permission_denied"

    def __init__(self, message: str, param: str | None = None):
        super().__init__(message)
        self.param = param


class ClosedError(GraftError):
    """The engine has been closed."""

    status = 503
    code = "closed"


def unless_error(value: Value | GraftError) -> Value:
    """The value; raises the error that came in its place."""
    if isinstance(value, GraftError):
        raise value
    return value
