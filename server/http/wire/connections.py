"""The inference server's connections: errors in OpenAI's shape where no view is asked, large bodies, and the end of the server.

Who writes a stream stops at 64 KiB that its reader has not taken (http/streaming/pump.py); what the stream brings meanwhile stays in its
queue, a few hundred bytes a token, until the reader has caught up or is hung up on.
"""

import json
from collections.abc import Callable, Mapping

from waitress.task import ErrorTask
from waitress.utilities import RequestEntityTooLarge

from graft.hub.connections import Channel, Parser, Terms, look_after
from graft.server.http.response_shapes import error_body

MOST_UNREAD_BYTES = 256 << 10  # of a client's answers, beyond which their thread waits
MAX_BODY_BYTES = 32 << 20
_MOST_DISCARDED_BYTES = 128 << 20  # of a body that is too large: more is hung up on


class _Parser(Parser):
    """Reads a body that is too large to its end, and keeps none of it: who sends does not read before all is sent."""

    _left = 0

    def received(self, data: bytes) -> int:
        if self._left:
            taken = min(self._left, len(data))
            self._left -= taken
            self.body_bytes_received += taken
            self.completed = not self._left
            return taken
        consumed = super().received(data)
        waits = self.expect_continue or self.chunked
        if isinstance(self.error, RequestEntityTooLarge) and not waits and self.content_length <= _MOST_DISCARDED_BYTES:
            self._left = self.content_length
            self.completed = False
        return consumed


class _ErrorTask(ErrorTask):
    """What is refused before it reaches the application."""

    def execute(self) -> None:
        error = self.request.error
        code = error.reason.lower().replace(" ", "_")
        said = f"The body is larger than {MAX_BODY_BYTES} bytes." if error.code == 413 else error.body
        body = json.dumps({"error": error_body(error.code, said, code)}).encode()
        self.status = f"{error.code} {error.reason}"
        self.response_headers.append(("Content-Type", "application/json"))
        self.set_close_on_finish()
        self.content_length = len(body)
        self.write(body)


class Connection(Channel):
    """One. `ending`: whether it ends with the answer that it waits for."""

    parser_class = _Parser
    error_task_class = _ErrorTask
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
