"""The accounts of keys where they are kept by an ingress, for all engines behind it: reached over HTTP. Torch-free.

One object a request: its address says which. What comes back is an account's standing, or why the request may not go on.
"""

import http.client
import json
import logging
from collections.abc import Mapping
from dataclasses import asdict
from urllib.parse import urlsplit

from graft.hub.errors import GraftError, UnreachableError
from graft.server.keys.accounts import AnyAccounts
from graft.server.keys.holders import UNLIMITED, Limits
from graft.server.keys.standing import AboveLimitError, Level, RateLimitError, Standing
from graft.server.keys.usage import Usage

log = logging.getLogger(__name__)
WAIT_S = 5.0
_REFUSALS = {kind.code: kind for kind in (RateLimitError, AboveLimitError)}


class FarAccounts:
    """An AnyAccounts. `url`: of the request's account. `here`: counts what this engine has been used for, too."""

    def __init__(self, url: str, headers: Mapping[str, str], here: AnyAccounts):
        self._url = urlsplit(url)
        self._headers = {**headers, "Content-Type": "application/json"}
        self._here = here

    def enter(self, who: str, limits: Limits) -> Standing:
        return Standing() if limits == UNLIMITED else self._ask("enter", {})

    def reserve(self, who: str, limits: Limits, tokens: int) -> Standing:
        return Standing() if limits == UNLIMITED else self._ask("reserve", {"tokens": tokens})

    def leave(self, who: str, limits: Limits, reserved: int, used: Usage | None) -> None:
        """What can't be told any more is logged; an ingress that has gone counts nothing any more either."""
        self._here.leave(who, UNLIMITED, 0, used)
        try:
            self._ask("leave", {"reserved": reserved, "used": used and asdict(used)})
        except UnreachableError as error:
            log.error("%s; not counted: %s", error, used)

    def _ask(self, what: str, body: Mapping[str, object]) -> Standing:
        """Raises RateLimitError, AboveLimitError, or UnreachableError."""
        connection = http.client.HTTPConnection(self._url.netloc, timeout=WAIT_S)
        try:
            connection.request("POST", f"{self._url.path}/{what}", json.dumps(body), self._headers)
            response = connection.getresponse()
            told = json.loads(response.read())
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise UnreachableError(f"The ingress, which counts what keys use, does not answer ({error}).") from None
        finally:
            connection.close()
        return read_standing(told)


def write_standing(standing: Standing, refusal: GraftError | None = None) -> dict[str, object]:
    """As JSON, with why the request may not go on."""
    told: dict[str, object] = asdict(standing)
    if isinstance(refusal, RateLimitError | AboveLimitError):
        told["refusal"] = {"code": refusal.code, "message": str(refusal)}
    if isinstance(refusal, RateLimitError):
        told |= asdict(refusal.standing) | {"retry_s": refusal.retry_s}
    return told


def read_standing(told: Mapping[str, dict[str, object]]) -> Standing:
    """Raises the refusal that came with it."""
    standing = Standing(_level(told["requests"]), _level(told["tokens"]))
    if refusal := told.get("refusal"):
        error = _REFUSALS[str(refusal["code"])](refusal["message"])
        if isinstance(error, RateLimitError):
            error.retry_s, error.standing = float(told["retry_s"]), standing  # type: ignore[arg-type]
        raise error
    return standing


def _level(told: Mapping[str, object] | None) -> Level | None:
    return told and Level(**told)  # type: ignore[arg-type, return-value]
