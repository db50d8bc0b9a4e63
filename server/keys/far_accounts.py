"""The accounts of keys where they are kept by an ingress, for all engines behind it: reached over HTTP. Torch-free.

One object a request: its address says which. What comes back is an account's standing, or why the request may not go on.
"""

import http.client
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

from pydantic import TypeAdapter, ValidationError

from graft.hub.errors import UnreachableError
from graft.server.keys.accounts import AnyAccounts
from graft.server.keys.holders import UNLIMITED, Limits
from graft.server.keys.standing import AboveLimitError, RateLimitError, Standing
from graft.server.keys.usage import Usage

log = logging.getLogger(__name__)
WAIT_S = 5.0


@dataclass(frozen=True)
class Told:
    """What an engine says: tokens that it `reserve`s, or, when it leaves, all that it has `reserved` and what was used."""

    tokens: int = 0
    reserved: int = 0
    used: Usage | None = None


@dataclass(frozen=True)
class Answer:
    """How the account stands. `refusal`: the code of why the request may not go on, `message` and `retry_s` as of that error."""

    standing: Standing
    refusal: str | None = None
    message: str = ""
    retry_s: float = 0.0

    @classmethod
    def refusing(cls, error: RateLimitError | AboveLimitError) -> "Answer":
        if isinstance(error, RateLimitError):
            return cls(error.standing, error.code, str(error), error.retry_s)
        return cls(Standing(), error.code, str(error))

    def result(self) -> Standing:
        """Raises the refusal."""
        if self.refusal is None:
            return self.standing
        if self.refusal == AboveLimitError.code:
            raise AboveLimitError(self.message)
        error = RateLimitError(self.message)
        error.retry_s, error.standing = self.retry_s, self.standing
        raise error


TOLD, ANSWER = TypeAdapter(Told), TypeAdapter(Answer)


class FarAccounts:
    """An AnyAccounts. `url`: of the request's account. `here`: counts what this engine has been used for, too."""

    def __init__(self, url: str, headers: Mapping[str, str], here: AnyAccounts):
        self._url = urlsplit(url)
        self._headers = dict(headers)
        self._here = here

    def enter(self, who: str, limits: Limits) -> Standing:
        return Standing() if limits == UNLIMITED else self._tell("enter", Told())

    def reserve(self, who: str, limits: Limits, tokens: int) -> Standing:
        return Standing() if limits == UNLIMITED else self._tell("reserve", Told(tokens))

    def leave(self, who: str, limits: Limits, reserved: int, used: Usage | None) -> None:
        """What can't be told any more is logged; an ingress that has gone counts nothing any more either."""
        self._here.leave(who, UNLIMITED, 0, used)
        try:
            self._tell("leave", Told(reserved=reserved, used=used))
        except UnreachableError as error:
            log.error("%s; not counted: %s", error, used)

    def _tell(self, what: str, told: Told) -> Standing:
        """Raises RateLimitError, AboveLimitError, or UnreachableError."""
        connection = http.client.HTTPConnection(self._url.netloc, timeout=WAIT_S)
        try:
            connection.request("POST", f"{self._url.path}/{what}", TOLD.dump_json(told), self._headers)
            answer = ANSWER.validate_json(connection.getresponse().read())
        except (OSError, http.client.HTTPException, ValidationError) as error:
            raise UnreachableError(f"The ingress, which counts what keys use, does not answer ({error}).") from None
        finally:
            connection.close()
        return answer.result()
