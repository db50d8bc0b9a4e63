"""One answer, from a checked body to the HTTP response, whole or as a stream, whatever dialect it is written in."""

import logging
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from itertools import chain
from typing import Protocol

from flask import Response, g, jsonify, request

from graft.hub.errors import NotFoundError
from graft.server.chat.speech import Disconnected, Speech
from graft.server.http.answer import Answer, Piece
from graft.server.http.completions import AskedCompletions
from graft.server.http.response_shapes import Json
from graft.server.http.schemas import GenerationBody
from graft.server.http.service import find_speech, is_gone, service, taking_place, unknown_model
from graft.server.keys.usage import Usage
from graft.server.keys.visits import Visit

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
        visit = cleanup.enter_context(taking_place())
        speech = find_speech(body.model, chat_template, visit.client)
        asked = read(speech).by(visit.client, visit.weight)
        visit.reserve(asked.most_tokens(service().engine.base.max_model_len))
        under_way = Answer(service().engine, asked, is_gone(), speech.special)
        cleanup.callback(_close, under_way, visit, Usage(g.request_id, visit.key, request.path, body.model))
        try:
            first = under_way.begin()
        except NotFoundError as error:
            raise unknown_model(error) from None
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


def _close(answer: Answer, visit: Visit, usage: Usage) -> None:
    """Leave nothing under way, and count what was used: nothing where the engine has not begun."""
    whole = answer.complete
    answer.cancel()
    if prompt := answer.begun_prompt_tokens:
        adapter, digest = answer.served.name, answer.served.digest
        visit.use(
            replace(
                usage,
                adapter=adapter,
                digest=digest,
                prompt_tokens=prompt,
                completion_tokens=answer.completion_tokens,
                cut_off=not whole,
            )
        )


def _guard_stream(writer: AnswerWriter, pieces: Iterator[Piece], request_id: str) -> Iterator[bytes]:
    """The headers are out: a bug can only end the stream with an error event."""
    try:
        yield from writer.stream(pieces)
    except Disconnected:
        return
    except Exception:
        log.exception("request %s failed", request_id)
        yield writer.failure()
