"""Anthropic's Messages over HTTP: POST /v1/messages, whole and streamed, and POST /v1/messages/count_tokens."""

import json
from collections.abc import Iterator

from flask import Blueprint, Response, g, jsonify

from graft.hub.errors import GraftError
from graft.hub.evaluation.tokenization import encode_rendered
from graft.hub.request_body import is_shallow
from graft.server.errors import TooLongError
from graft.server.http.access.gate import name_model
from graft.server.http.access.header_names import MESSAGE_ID
from graft.server.http.answer import Answer, Piece
from graft.server.http.completions import read_chat, read_conversation
from graft.server.http.dialects.answering import answer
from graft.server.http.dialects.messages_body import CountTokensBody, MessagesBody
from graft.server.http.dialects.parts import Closed, Grown, Opened, Part, Parts, Step
from graft.server.http.response_shapes import Json, broken_message, public_message, server_sent
from graft.server.http.service import find_speech, read_body, service, shown_model, taking_place

blueprint = Blueprint("messages", __name__)
PATH = "/v1/messages"
ERROR_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
}
TOO_LONG = "prompt is too long"  # clients shorten a conversation on these very words


@blueprint.post(PATH)
def create_message() -> Response:
    body = read_body(MessagesBody)
    name_model(body.model)
    chat = body.as_chat()

    def make_writer(under_way: Answer) -> MessageWriter:
        return MessageWriter(body, under_way, g.request_id)

    return answer(chat, lambda speech: read_chat(chat, speech), make_writer)


@blueprint.post(f"{PATH}/count_tokens")
def count_tokens() -> Response:
    body = read_body(CountTokensBody)
    name_model(body.model)
    chat = body.as_chat()
    with taking_place() as visit:
        speech = find_speech(body.model, "", visit.client)
        prompt = read_conversation(chat, speech, body.model, chat.constraint)
        return jsonify(input_tokens=len(encode_rendered(prompt.text, service().tokenizer)))


@blueprint.after_request
def name_request(response: Response) -> Response:
    response.headers[MESSAGE_ID] = g.request_id
    return response


def error_shape(status: int, message: str, code: str | None, request_id: str) -> Json:
    """Anthropic's one shape of an error."""
    type = ERROR_TYPES.get(status, "api_error" if status >= 500 else "invalid_request_error")
    text = f"{TOO_LONG}: {message}" if code == TooLongError.code else message
    return {"type": "error", "error": {"type": type, "message": text}, "request_id": request_id}


class MessageWriter:
    """Writes one answer."""

    def __init__(self, body: MessagesBody, under_way: Answer, request_id: str):
        self._body = body
        self._model = shown_model(body.model)
        self._answer = under_way
        self._request_id = request_id
        self._parts = Parts()

    def whole(self, pieces: Iterator[Piece]) -> Json:
        self._parts.gather(pieces)
        return self._message([_block(part) for part in self._parts.all]) | self._end() | {"usage": self._usage()}

    def opening(self) -> Iterator[bytes]:
        yield _event("message_start", message=self._message([]))
        yield _event("ping")

    def piece(self, piece: Piece) -> Iterator[bytes]:
        for step in self._parts.follow(piece):
            yield from _block_events(step)

    def ending(self) -> Iterator[bytes]:
        for step in self._parts.finish():
            yield from _block_events(step)
        yield _event("message_delta", delta=self._end(), usage=self._usage())
        yield _event("message_stop")

    def error(self, error: GraftError) -> bytes:
        shape = error_shape(error.status, public_message(error, self._request_id), error.code, self._request_id)
        return server_sent(shape, "error")

    def failure(self) -> bytes:
        return server_sent(error_shape(500, broken_message(self._request_id), None, self._request_id), "error")

    def _message(self, content: list[Json]) -> Json:
        return {
            "id": f"msg_{self._request_id}",
            "type": "message",
            "role": "assistant",
            "model": self._model,
            "content": content,
            "stop_reason": None,
            "stop_sequence": None,
            "usage": self._usage(),
        }

    def _end(self) -> Json:
        """Why it ended. An adapter's own stop strings are no sequences of the client's."""
        [choice] = self._answer.choices.values()
        sequence = choice.stop_string if choice.stop_string in self._body.stop_sequences else None
        reasons = {"length": "max_tokens", "tool_calls": "tool_use"}
        reason = reasons.get(self._parts.finish_reason or "", "stop_sequence" if sequence else "end_turn")
        return {"stop_reason": reason, "stop_sequence": sequence}

    def _usage(self) -> Json:
        """Tokens that were found in the cache are counted apart, as Anthropic has it."""
        cached = self._answer.cached_tokens
        return {
            "input_tokens": self._answer.asked.prompt_tokens - cached,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": cached,
            "output_tokens": self._answer.completion_tokens,
        }


def _block(part: Part) -> Json:
    """A whole one."""
    match part.kind:
        case "text":
            return {"type": "text", "text": part.text}
        case "reasoning":
            return {"type": "thinking", "thinking": part.text, "signature": ""}
        case "call":
            return {"type": "tool_use", "id": part.call_id, "name": part.name, "input": _arguments(part.text)}


def _arguments(text: str) -> Json:
    """What a call's JSON stands for. What is none, as of an answer that was cut off, is told as Anthropic advises to."""
    try:
        read = json.loads(text or "{}")
        json.dumps(read, allow_nan=False)  # Python reads more than JSON has
    except (ValueError, RecursionError):
        return {"INVALID_JSON": text}
    return read if isinstance(read, dict) and is_shallow(read) else {"INVALID_JSON": text}


def _block_events(step: Step) -> Iterator[bytes]:
    index = step.part.index
    match step:
        case Opened():
            yield _event("content_block_start", index=index, content_block=_block(step.part))
        case Grown():
            yield _event("content_block_delta", index=index, delta=_delta(step))
        case Closed():
            if step.part.kind == "reasoning":
                yield _event("content_block_delta", index=index, delta={"type": "signature_delta", "signature": ""})
            yield _event("content_block_stop", index=index)


def _delta(step: Grown) -> Json:
    match step.part.kind:
        case "text":
            return {"type": "text_delta", "text": step.text}
        case "reasoning":
            return {"type": "thinking_delta", "thinking": step.text}
        case "call":
            return {"type": "input_json_delta", "partial_json": step.text}


def _event(type: str, /, **rest: object) -> bytes:
    return server_sent({"type": type, **rest}, type)
