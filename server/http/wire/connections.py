"""The inference server's connections: what is no request the application can answer, large bodies, and the end of the server.

Who writes a stream stops at 64 KiB that its reader has not taken (http/streaming/pump.py); what the stream brings meanwhile stays in its
queue, a few hundred bytes a token, until the reader has caught up or is hung up on.
"""

import re
from collections.abc import Callable, Mapping

from waitress.task import WSGITask
from waitress.utilities import RequestEntityTooLarge
from werkzeug.exceptions import default_exceptions

from graft.hub.connections import Channel, Parser, Terms, look_after

REFUSED = "graft.refused"  # in a request's environment: the HTTPException for what came
MOST_UNREAD_BYTES = 256 << 10  # of a client's answers, beyond which their thread waits
MAX_BODY_BYTES = 32 << 20
_MOST_DISCARDED_BYTES = 128 << 20  # of a body that is too large: more is hung up on
_ORIGIN = re.compile(rb"^origin:[ \t]*([!-~]+)", re.IGNORECASE | re.MULTILINE)


class _Parser(Parser):
    """Reads a body that is too large to its end, and keeps none of it: who sends does not read before all is sent."""

    command, request_uri, query, url_scheme = "-", "/", "", "http"  # of a request whose head can't be read
    header_plus: bytes  # of a head that is not there whole, or can't be read
    _left = 0

    def received(self, data: bytes) -> int:
        if self._left:
            taken = min(self._left, len(data))
            self._left -= taken
            self.body_bytes_received += taken
            self.completed = not self._left
            return taken
        head = self.header_plus
        consumed = super().received(data)
        if self.error is not None:
            self.header_plus = head + data[:consumed]
        waits = self.expect_continue or self.chunked
        if isinstance(self.error, RequestEntityTooLarge) and not waits and self.content_length <= _MOST_DISCARDED_BYTES:
            self._left = self.content_length
            self.completed = False
        return consumed


class _RefusalTask(WSGITask):
    """What is refused before a view is asked. The application is told and answers, as it answers all: pages of other origins may
    read that, it has an id, and a line in the log."""

    def start(self) -> None:
        super().start()
        self.set_close_on_finish()

    def get_environment(self) -> Mapping[str, object]:
        error = self.request.error
        environment = {**super().get_environment(), REFUSED: default_exceptions[error.code](error.body)}
        if "HTTP_ORIGIN" not in environment and (found := _ORIGIN.search(self.request.header_plus)):
            environment["HTTP_ORIGIN"] = found[1].decode()
        return environment


class Connection(Channel):
    """One. `ending`: whether it ends with the answer that it waits for."""

    parser_class = _Parser
    error_task_class = _RefusalTask
    ending: Callable[[], bool]

    def service(self) -> None:
        if type(self).ending():
            self.requests[0].headers["CONNECTION"] = "close"
        super().service()


def look_after_clients(
    sockets: Mapping[int, object], connections: int, ending: Callable[[], bool], kind: type[Connection]
) -> None:
    """Of a server's sockets: such connections, so many at most."""
    terms = Terms(connections, kernel_bytes=MOST_UNREAD_BYTES)
    look_after(sockets, type("Connection", (kind,), {"terms": terms, "ending": staticmethod(ending)}))
