"""graft's own API of a hub, over the Hugging Face client's session: one transport for all that travels.

That session takes no token along to another host. A write is not sent on by itself: whoever redirects it is named.
"""

import json
from collections.abc import Callable
from functools import cached_property
from typing import Any
from urllib.parse import urlsplit

from huggingface_hub import HfApi
from huggingface_hub import errors as hf
from huggingface_hub.errors import Response
from huggingface_hub.utils import build_hf_headers, get_session

from graft.hub.errors import GraftError, NotOfferedError, UnreachableError
from graft.hub.registry.remote.answers import LOOK_ELSEWHERE, T, error_of
from graft.hub.registry.remote.extensions import TITLE

TIMEOUT_S = 60.0


def checked_url(url: str) -> str:
    """Without a slash at its end. Raises GraftError for what is no address of a hub."""
    try:
        parts = urlsplit(url)
        is_address = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        is_address = False
    if not is_address or " " in url or not url.isprintable():
        raise GraftError(f"{url!r} is no URL of a hub: it starts with http:// or https:// and names a host.")
    return url.rstrip("/")


class HubApi:
    """Calls to the hub that `client` speaks with, bearing the client's token."""

    def __init__(self, client: HfApi):
        self.url = client.endpoint
        self.client = client

    @cached_property
    def is_graft(self) -> bool:
        """Whether the hub is graft's own, by how it describes itself; asked once.

        Raises UnreachableError where none answers, and what a graft hub refuses us with (a token that was revoked).
        """
        response = self._send("GET", "/openapi.json")
        said = _object_of(response.content)
        if (
            response.status_code >= 500 or {"error", "code"} <= said.keys()
        ):  # a graft hub that refuses us, as it would anything
            raise error_of(response.status_code, None, response.content)
        about = said.get("info")
        return isinstance(about, dict) and about.get("title") == TITLE

    def require_graft(self, what: str) -> None:
        """Raises NotOfferedError where the hub is of another kind than graft's, which has no `what`."""
        if not self.is_graft:
            raise NotOfferedError(
                f"{self.url} answers, and not as a graft hub does: only those have {what}. If it should be one, {LOOK_ELSEWHERE}"
            )

    def call(
        self, method: str, path: str, read: Callable[[Any], T], body: object = None, timeout: float = TIMEOUT_S
    ) -> T:
        """What `read` makes of the answer's JSON. Raises GraftError where it is no such JSON."""
        answer = self.fetch(method, path, body, timeout)
        try:
            return read(json.loads(answer))
        except (ValueError, KeyError, TypeError):
            raise GraftError(
                f"{self.url}{path} answers, and not as a graft hub of this version does: {LOOK_ELSEWHERE}"
            ) from None

    def fetch(self, method: str, path: str, body: object = None, timeout: float = TIMEOUT_S) -> bytes:
        """The bytes of an answer. Raises the GraftError that the hub answered with."""
        response = self._send(method, path, body, timeout)
        if 300 <= response.status_code < 400:
            raise GraftError(
                f"{self.url} sends this on to {response.headers.get('Location')}, and nothing is written by way of "
                "another address: give that one as --hub, if you trust it."
            )
        if response.status_code >= 400:
            raise error_of(response.status_code, response.headers.get("X-Error-Code"), response.content)
        return response.content

    def _send(self, method: str, path: str, body: object = None, timeout: float = TIMEOUT_S) -> Response:
        """Raises UnreachableError where nobody answers."""
        headers = build_hf_headers(token=self.client.token, headers={"Content-Type": "application/json"})
        data = None if body is None else json.dumps(body).encode()
        try:
            return get_session().request(
                method,
                self.url + path,
                content=data,
                headers=headers,
                timeout=timeout,
                follow_redirects=method == "GET",
            )
        except (hf.HTTPError, OSError) as error:  # HTTPError: of whichever transport this version of the client has
            reason = str(error) or type(error).__name__
            raise UnreachableError(f"No hub answers at {self.url} ({reason}): is it running?") from None


def _object_of(content: bytes) -> dict[str, object]:
    """The JSON object that an answer is; empty for anything else."""
    try:
        said = json.loads(content)
    except ValueError:
        return {}
    return said if isinstance(said, dict) else {}
