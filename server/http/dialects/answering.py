"""One answer, from a checked body to the HTTP response, whole or as a stream, whatever dialect it is written in."""

import logging
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from itertools import chain
from typing import Protocol

from flask import Response, g, jsonify

from graft.hub.errors import NotFoundError
from graft.server.chat.speech import Disconnected, Speech
from graft.server.http.answer import Answer, Piece
from graft.server.http.completions import AskedCompletions
from graft.server.http.response_shapes import Json
from graft.server.http.schemas import GenerationBody
from graft.server.http.service import UnknownModelError, find_speech, is_gone, service, taking_place

log = logging.getLogger("graft.server")


class AnswerWriter(Protocol):
    """Writes one answer in a dialect."""

    def whole(self, pieces: Iterator[Piece]) -> Json:
        """The answer once it is complete."""
        ...

    def stream(self, pieces: Iterator[Piece]) -> Iterator[bytes]:
        """Server-sent events. A GraftError on the way becomes the last of them."""
        ...

    def failure(self) -> bytes:
        """The last event of a stream that broke on our own account."""
        ...


def answer(
    body: GenerationBody,
    read: Callable[[Speech], AskedCompletions],
    make_writer: Callable[[Answer], AnswerWriter],
    chat_template: str = "",
) -> Response:
    """One answer, whole or as a stream. Nothing stays under way in the engine once this request has ended.

    `read`: what the body asks, of an adapter with such words. `chat_template`: the request's own, if it has one.
    """
    with ExitStack() as cleanup:
        client = cleanup.enter_context(taking_place())
        speech = find_speech(body.model, chat_template, client)
        under_way = Answer(service().engine, read(speech).by(client), is_gone(), speech.special)
        cleanup.callback(under_way.cancel)
        try:
            first = under_way.begin()
        except NotFoundError as error:
            raise UnknownModelError(str(error)) from None
        finally:
            g.served = under_way.served if under_way.served.digest else g.served
        writer = make_writer(under_way)
        pieces = chain(first, under_way.pieces())
        if not body.stream:
            return jsonify(writer.whole(pieces))
        response = Response(_guard_stream(writer, pieces, g.request_id), mimetype="text/event-stream")
        response.headers["Cache-Control"] = "no-cache"
        response.headers["X-Accel-Buffering"] = "no"
        response.call_on_close(cleanup.pop_all().close)
        return response


def _guard_stream(writer: AnswerWriter, pieces: Iterator[Piece], request_id: str) -> Iterator[bytes]:
    """The headers are out: a bug can only end the stream with an error event."""
    try:
        yield from writer.stream(pieces)
    except Disconnected:
        return
    except Exception:
        log.exception("request %s failed", request_id)
        yield writer.failure()
