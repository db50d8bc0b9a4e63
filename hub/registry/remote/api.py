"""graft's own API of a hub, over the Hugging Face client's session: one transport for all that travels.

That session takes no token along to another host. A write is not sent on by itself: whoever redirects it is named.
"""

import json
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

from huggingface_hub import HfApi
from huggingface_hub import errors as hf
from huggingface_hub.utils import build_hf_headers, get_session

from graft.hub.errors import GraftError
from graft.hub.registry.remote.answers import T, error_of

TIMEOUT_S = 60.0
LOOK_ELSEWHERE = "check the URL of --hub, and the proxy on the way, if there is one (HTTP_PROXY, NO_PROXY)."


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
        self._client = client

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
        headers = build_hf_headers(token=self._client.token, headers={"Content-Type": "application/json"})
        data = None if body is None else json.dumps(body).encode()
        try:
            response = get_session().request(
                method,
                self.url + path,
                content=data,
                headers=headers,
                timeout=timeout,
                follow_redirects=method == "GET",
            )
        except (hf.HTTPError, OSError) as error:  # HTTPError: of whichever transport this version of the client has
            reason = str(error) or type(error).__name__
            raise GraftError(f"No hub answers at {self.url} ({reason}): is it running?") from None
        if 300 <= response.status_code < 400:
            raise GraftError(
                f"{self.url} sends this on to {response.headers.get('Location')}, and nothing is written by way of "
                "another address: give that one as --hub, if you trust it."
            )
        if response.status_code >= 400:
            raise error_of(response.status_code, response.headers.get("X-Error-Code"), response.content)
        return response.content
