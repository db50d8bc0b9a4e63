"""What a route answers besides 200, of all routes: for its description alone (response_shapes.py, dialects/messages.py)."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from pydantic import BaseModel

from graft.server.http.access.header_names import (
    AUTHENTICATE,
    IGNORED_FIELDS,
    MESSAGE_ID,
    REQUEST_ID,
    RETRY_AFTER,
    SHOULD_RETRY,
)
from graft.server.http.access.limit_headers import ANTHROPIC, OPENAI
from graft.server.http.access.routes import Need
from graft.server.http.openapi.answers import Shown
from graft.server.http.openapi.headers import ADAPTER


class ErrorTold(Shown):
    """What happened, and what to do. `code`: for programs. `param`: the field that it lies in."""

    message: str
    type: str
    code: str | None
    param: str | None


class Error(Shown):
    """OpenAI's shape."""

    error: ErrorTold


class MessagesErrorTold(Shown):
    """What happened, and what to do."""

    type: str
    message: str


class MessagesError(Shown):
    """Anthropic's shape."""

    type: Literal["error"]
    error: MessagesErrorTold
    request_id: str


@dataclass(frozen=True)
class Failure:
    """`keyed`: only where a key may be asked for. `counted`: only of what takes one of the places for answers."""

    what: str
    headers: tuple[str, ...] = ()
    keyed: bool = False
    counted: bool = False


# Status, or range of those that are not here themselves -> what it says.
FAILURES: Mapping[str, Failure] = {
    "401": Failure("No key was shown, or none that is good here.", (AUTHENTICATE,), keyed=True),
    "403": Failure("The key is good, and not for this.", keyed=True),
    "429": Failure("Too much is under way, or a limit of the key is used up.", (RETRY_AFTER,), counted=True),
    "4XX": Failure("What is wrong with the request.", (SHOULD_RETRY,)),
    "503": Failure("It is about to end, or its engine serves nobody.", (RETRY_AFTER,)),
    "5XX": Failure("What went wrong here."),
}


# Shape -> headers that its failures may have, whatever their status.
_OF_ANY = (*ADAPTER, IGNORED_FIELDS)
ERRORS: Mapping[type[BaseModel], tuple[str, ...]] = {
    Error: (REQUEST_ID, *_OF_ANY, *OPENAI.names),
    MessagesError: (REQUEST_ID, MESSAGE_ID, *_OF_ANY, *ANTHROPIC.names),
}


def failures_of(need: Need, *, counted: bool) -> Iterator[str]:
    """Statuses of those of a route."""
    for status, failure in FAILURES.items():
        if (need is not Need.NOTHING or not failure.keyed) and (counted or not failure.counted):
            yield status
