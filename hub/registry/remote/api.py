"""graft's own API of a hub, over the Hugging Face client's session: one transport for all that travels.

That session takes no token along to another host. A write is not sent on by itself: whoever redirects it is named. No answer
is read beyond the bytes and the seconds that it may take, whatever a hub goes on to send.
"""

import json
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any
from urllib.parse import urlsplit

from huggingface_hub import HfApi
from huggingface_hub import errors as hf
from huggingface_hub.errors import Response
from huggingface_hub.utils import build_hf_headers, get_session

from graft.hub.errors import GraftError, NotOfferedError, TooLargeError, UnreachableError
from graft.hub.registry.remote.answers import LOOK_ELSEWHERE, T, error_of, read_json
from graft.hub.registry.remote.extensions import TITLE

TIMEOUT_S = 60.0
MAX_ANSWER_BYTES = 64 << 20
SLOWEST_BYTES_PER_S = 16 << 10  # of a download
MOST_CUTS = 20  # after which a download is given up
CUT_PAUSE_S, LONGEST_PAUSE_S = 0.1, 5.0  # before it is taken up again: twice as long each time
LIST_S, MAX_PAGES = 300.0, 200  # of a list that comes page by page
_NEXT = re.compile(r'<([^<>]*)>[^,<>]*;\s*rel="?next\b')  # in a Link header


Read = Callable[[Any], T]  # makes something of JSON; raises ValueError, KeyError or TypeError where it can't


@dataclass(frozen=True)
class Answer:
    """What came back, whole."""

    status: int
    headers: Mapping[str, str]
    content: bytes


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
        came = self._send("GET", "/openapi.json")
        said = _object_of(came.content)
        if came.status >= 500 or {"error", "code"} <= said.keys():  # a graft hub that refuses us, as it would anything
            raise error_of(came.status, None, came.content)
        about = said.get("info")
        return isinstance(about, dict) and about.get("title") == TITLE

    def require_graft(self, what: str) -> None:
        """Raises NotOfferedError where the hub is of another kind than graft's, which has no `what`."""
        if not self.is_graft:
            raise NotOfferedError(
                f"{self.url} answers, and not as a graft hub does: only those have {what}. If it should be one, {LOOK_ELSEWHERE}"
            )

    def call(self, method: str, path: str, read: Read[T], body: object = None, timeout: float = TIMEOUT_S) -> T:
        """What `read` makes of the answer's JSON. Raises GraftError where it is no such JSON."""
        return self._read_as(path, self.fetch(method, path, body, timeout), read)

    def pages(self, path: str, read: Read[T]) -> Iterator[T]:
        """What `read` makes of each page of a list, following the links from one to the next, all of them at this hub whatever
        host they name. Raises TooLargeError after MAX_PAGES, UnreachableError after LIST_S seconds, and as `call` does."""
        until = time.monotonic() + LIST_S
        for _ in range(MAX_PAGES):
            if (left := until - time.monotonic()) <= 0:
                raise UnreachableError(f"{self.url}{path} takes more than {LIST_S:.0f} s: try again later.")
            came = self._accepted("GET", path, timeout=min(TIMEOUT_S, left))
            yield self._read_as(path, came.content, read)
            following = _NEXT.search(came.headers.get("Link", ""))
            if following is None:
                return
            path = self._path_here(following[1])
        raise TooLargeError(f"{self.url}{path} has more than {MAX_PAGES} pages before it: {LOOK_ELSEWHERE}")

    def _path_here(self, url: str) -> str:
        """What a link says beyond the hub's own address."""
        try:
            parts = urlsplit(url)
        except ValueError:
            raise GraftError(f"{self.url} links a list's next page to no address: {LOOK_ELSEWHERE}") from None
        path = "/" + parts.path.removeprefix(urlsplit(self.url).path).lstrip("/")
        return f"{path}?{parts.query}"

    def _read_as(self, path: str, content: bytes, read: Read[T]) -> T:
        try:
            return read(read_json(content))
        except (ValueError, KeyError, TypeError):
            raise UnreachableError(
                f"{self.url}{path} answers, and not as a graft hub of this version does: {LOOK_ELSEWHERE}"
            ) from None

    def fetch(
        self,
        method: str,
        path: str,
        body: object = None,
        timeout: float = TIMEOUT_S,
        most: int = MAX_ANSWER_BYTES,
    ) -> bytes:
        """The bytes of an answer, at most `most`. Raises the GraftError that the hub answered with."""
        return self._accepted(method, path, body, timeout, most).content

    def _accepted(
        self,
        method: str,
        path: str,
        body: object = None,
        timeout: float = TIMEOUT_S,
        most: int = MAX_ANSWER_BYTES,
    ) -> Answer:
        came = self._send(method, path, body, timeout, most)
        if 300 <= came.status < 400:
            raise GraftError(
                f"{self.url} sends this on to {came.headers.get('Location')}, and nothing is written by way of "
                "another address: give that one as --hub, if you trust it."
            )
        if came.status >= 400:
            raise error_of(came.status, came.headers.get("X-Error-Code"), came.content)
        return came

    def download(self, path: str, size: int) -> Iterator[bytes]:
        """A file piece by piece; where it is cut off on the way, the rest is asked for, MOST_CUTS times at most. That what comes
        then is of the same file is for who takes it to check, by its hash.

        Raises TooLargeError where more than `size` bytes come, UnreachableError where fewer than SLOWEST_BYTES_PER_S do or none
        come at all, and the GraftError that the hub answered with.
        """
        until = time.monotonic() + TIMEOUT_S + size / SLOWEST_BYTES_PER_S
        came, cuts = 0, 0
        while True:
            try:
                for piece in self._rest(path, came, size, until):
                    came += len(piece)
                    yield piece
                return
            except UnreachableError:
                pause = min(CUT_PAUSE_S * 2**cuts, LONGEST_PAUSE_S)
                if came == size:
                    return
                if not came or cuts == MOST_CUTS or time.monotonic() + pause > until:
                    raise
            cuts += 1
            time.sleep(pause)

    def _rest(self, path: str, start: int, size: int, until: float) -> Iterator[bytes]:
        """A file from byte `start` on, also from a hub that answers with all of it. `until`: a time.monotonic()."""
        headers = {"Accept-Encoding": "identity", **({"Range": f"bytes={start}-"} if start else {})}
        with self._open("GET", path, None, TIMEOUT_S, headers) as response:
            if response.status_code >= 400:
                said = b"".join(self._read(response, MAX_ANSWER_BYTES, TIMEOUT_S))
                raise error_of(response.status_code, response.headers.get("X-Error-Code"), said)
            known = 0 if response.status_code == 206 else start
            for piece in self._read(response, size - start + known, until - time.monotonic()):
                new, known = piece[known:], max(0, known - len(piece))
                if new:
                    yield new

    def _send(
        self,
        method: str,
        path: str,
        body: object = None,
        timeout: float = TIMEOUT_S,
        most: int = MAX_ANSWER_BYTES,
    ) -> Answer:
        """Raises UnreachableError where nobody answers, or none that ends within `timeout` seconds, TooLargeError above `most`
        bytes."""
        data = None if body is None else json.dumps(body).encode()
        with self._open(method, path, data, timeout, {"Content-Type": "application/json"}) as response:
            content = b"".join(self._read(response, most, timeout))
            return Answer(response.status_code, response.headers, content)

    @contextmanager
    def _open(
        self, method: str, path: str, data: bytes | None, timeout: float, headers: dict[str, str]
    ) -> Iterator[Response]:
        """An answer of which the head has come."""
        with ExitStack() as closing:
            with self._errors():
                asked = get_session().stream(
                    method,
                    self.url + path,
                    content=data,
                    headers=build_hf_headers(token=self.client.token, headers=headers),
                    timeout=timeout,
                    follow_redirects=method == "GET",
                )
                response = closing.enter_context(asked)
            yield response

    def _read(self, response: Response, most: int, seconds: float) -> Iterator[bytes]:
        """The rest of an answer, unpacked, piece by piece."""
        read, until = 0, time.monotonic() + seconds
        with self._errors():
            for piece in response.iter_bytes():
                read += len(piece)
                if read > most:
                    raise TooLargeError(f"{response.url} sends more than {most:,} bytes: {LOOK_ELSEWHERE}")
                if time.monotonic() > until:
                    raise UnreachableError(
                        f"{response.url} sent {read:,} bytes in {seconds:.0f} s and is not done: try again later."
                    )
                yield piece

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """The transport's exceptions as ours."""
        try:
            yield
        except (hf.HTTPError, OSError) as error:  # HTTPError: of whichever transport this version of the client has
            reason = str(error) or type(error).__name__
            raise UnreachableError(f"No hub answers at {self.url} ({reason}): is it running?") from None


def _object_of(content: bytes) -> dict[str, object]:
    """The JSON object that an answer is; empty for anything else."""
    try:
        said = read_json(content)
    except ValueError:
        return {}
    return said if isinstance(said, dict) else {}
