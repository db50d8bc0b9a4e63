"""A response whose body is a stream of events: written by the pump where the server lets it, else by the thread at hand."""

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import TYPE_CHECKING

from flask import Response

from graft.server.http.streaming.pump import Body, Pump, PumpedStream, Streamed, written_here

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

BODY = "graft.body"  # in a request's environment: where to write the answer's body to (pump.Body)


class EventStream(Response):
    """Of one answer, which is settled when the response is closed at the latest."""

    def __init__(self, pump: Pump, streamed: Streamed):
        super().__init__(written_here(streamed), mimetype="text/event-stream")
        self.headers["Cache-Control"] = "no-cache"
        self.headers["X-Accel-Buffering"] = "no"
        self.call_on_close(streamed.settle)
        self._make_stream = partial(PumpedStream, pump, streamed)

    def __call__(self, environ: "WSGIEnvironment", start_response: "StartResponse") -> Iterable[bytes]:
        body: Body | None = environ.get(BODY)
        if body is None:
            return super().__call__(environ, start_response)
        _, status, headers = self.get_wsgi_response(environ)
        start_response(status, headers)
        return _Waiting(self._make_stream(body), self.close)


class _Waiting:
    """Iterated over by the server's thread: holds it until the stream has ended, and has nothing to add."""

    def __init__(self, stream: PumpedStream, close: Callable[[], None]):
        self._stream = stream
        self.close = close

    def __iter__(self) -> Iterator[bytes]:
        self._stream.run()
        return iter(())
