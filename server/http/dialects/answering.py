"""One answer, from a checked body to the HTTP response, whole or as a stream, whatever dialect it is written in."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from itertools import chain
from typing import Protocol

from flask import Response, g, jsonify

from graft.hub.errors import NotFoundError
from graft.server.chat.speech import Speech
from graft.server.http.answer import Answer, Piece
from graft.server.http.completions import AskedCompletions
from graft.server.http.response_shapes import Json
from graft.server.http.schemas import GenerationBody
from graft.server.http.service import UnknownModelError, find_speech, is_gone, service, taking_place
from graft.server.http.streaming.pump import StreamWriter
from graft.server.http.streaming.response import EventStream


class AnswerWriter(StreamWriter, Protocol):
    """Writes one answer in a dialect, whole or as a stream."""

    def whole(self, pieces: Iterator[Piece]) -> Json:
        """The answer once it is complete."""
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
        if not body.stream:
            return jsonify(writer.whole(chain(first, under_way.pieces())))
        response = EventStream(service().pump, under_way, writer, first, g.request_id)
        response.call_on_close(cleanup.pop_all().close)
        return response
