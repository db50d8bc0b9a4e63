"""One answer, from a checked body to the HTTP response, whole or as a stream, whatever dialect it is written in."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from itertools import chain
from typing import Protocol

from flask import Response, g, jsonify, request

from graft.hub.errors import NotFoundError
from graft.server.chat.speech import Speech
from graft.server.http.answer import Answer, Piece
from graft.server.http.completions import AskedCompletions
from graft.server.http.response_shapes import Json
from graft.server.http.schemas import GenerationBody
from graft.server.http.service import find_speech, service, shown_model, taking_place, unknown_model
from graft.server.http.streaming.pump import Streamed, StreamWriter
from graft.server.http.streaming.response import EventStream
from graft.server.keys.usage import Usage
from graft.server.keys.visits import Visit


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
        visit = cleanup.enter_context(taking_place())
        speech = find_speech(body.model, chat_template, visit.client)
        asked = read(speech).by(visit.client, visit.weight)
        g.ignored = [*g.ignored, *asked.unheld]
        visit.reserve(asked.most_tokens(service().engine.base.max_model_len))
        under_way = Answer(service().engine, asked, g.patience, speech.special)
        cleanup.callback(under_way.describe, g.record)  # once all is counted
        cleanup.callback(
            _close, under_way, visit, Usage(g.request_id, visit.key, request.path, shown_model(body.model))
        )
        try:
            first = under_way.begin()
        except NotFoundError as error:
            raise unknown_model(error) from None
        finally:
            g.served = under_way.served if under_way.served.digest else g.served
        writer = make_writer(under_way)
        if not body.stream:
            return jsonify(writer.whole(chain(first, under_way.pieces())))
        return EventStream(service().pump, Streamed(under_way, writer, first, cleanup.pop_all().close, g.request_id))


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
