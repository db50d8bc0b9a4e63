"""OpenAI's Responses over HTTP: POST /v1/responses, whole and streamed. Every request holds all of its conversation."""

import time
from collections.abc import Iterator

from flask import Blueprint, Response, g

from graft.hub.errors import GraftError
from graft.hub.evaluation.tokenization import encode_completion
from graft.server.http.access.gate import name_model
from graft.server.http.answer import Answer, Piece
from graft.server.http.completions import read_chat
from graft.server.http.dialects.answering import answer
from graft.server.http.dialects.chat_bodies import fields_called
from graft.server.http.dialects.parts import Closed, Grown, Opened, Part, Parts, Step
from graft.server.http.dialects.responses_body import ResponsesBody
from graft.server.http.response_shapes import Json, broken_message, public_message, server_sent
from graft.server.http.service import read_body, service, shown_model

blueprint = Blueprint("responses", __name__)
# What chats call a field -> what it is called here.
FIELDS = {"messages": "input", "max_tokens": "max_output_tokens", "response_format": "text.format"}


@blueprint.post("/v1/responses")
def create_response() -> Response:
    body = read_body(ResponsesBody)
    name_model(body.model)

    def make_writer(under_way: Answer) -> ResponseWriter:
        return ResponseWriter(body, under_way, g.request_id)

    with fields_called(FIELDS):
        chat = body.as_chat()
        return answer(chat, lambda speech: read_chat(chat, speech), make_writer)


class ResponseWriter:
    """Writes one answer."""

    def __init__(self, body: ResponsesBody, under_way: Answer, request_id: str):
        self._body = body
        self._answer = under_way
        self._request_id = request_id
        self._model = shown_model(body.model)
        self._parts = Parts()
        self._created = int(time.time())
        self._tokenizer = service().tokenizer
        self._sent = 0  # events

    def whole(self, pieces: Iterator[Piece]) -> Json:
        self._parts.gather(pieces)
        return self._response(self._status)

    def opening(self) -> Iterator[bytes]:
        yield self._event("response.created", response=self._response("in_progress"))
        yield self._event("response.in_progress", response=self._response("in_progress"))

    def piece(self, piece: Piece) -> Iterator[bytes]:
        for step in self._parts.follow(piece):
            yield from self._step_events(step)

    def ending(self) -> Iterator[bytes]:
        for step in self._parts.finish():
            yield from self._step_events(step)
        yield self._event(f"response.{self._status}", response=self._response(self._status))

    def error(self, error: GraftError) -> bytes:
        return self._failed(public_message(error, self._request_id), error.code)

    def failure(self) -> bytes:
        return self._failed(broken_message(self._request_id), "internal_error")

    @property
    def _status(self) -> str:
        """Of the whole at its end."""
        return "incomplete" if self._parts.finish_reason == "length" else "completed"

    def _step_events(self, step: Step) -> Iterator[bytes]:
        part = step.part
        match step:
            case Opened():
                yield self._event(
                    "response.output_item.added", output_index=part.index, item=self._item(part, "in_progress")
                )
                if part.kind != "call":
                    yield self._of(part, "response.content_part.added", content_index=0, part=_content(part))
            case Grown():
                yield self._of(part, f"{_EVENTS[part.kind]}.delta", **_PLACES[part.kind], delta=step.text)
            case Closed():
                yield self._of(part, f"{_EVENTS[part.kind]}.done", **_PLACES[part.kind], **_whole_text(part))
                if part.kind != "call":
                    yield self._of(part, "response.content_part.done", content_index=0, part=_content(part))
                yield self._event(
                    "response.output_item.done", output_index=part.index, item=self._item(part, self._status_of(part))
                )

    def _item(self, part: Part, status: str) -> Json:
        """A part as one of the output's items."""
        content = [] if status == "in_progress" else [_content(part)]
        match part.kind:
            case "text":
                own: Json = {"type": "message", "role": "assistant", "content": content}
            case "reasoning":
                own = {"type": "reasoning", "summary": [], "content": content}
            case "call":
                own = {"type": "function_call", "call_id": part.call_id, "name": part.name, "arguments": part.text}
        return {"id": self._id(part), "status": status, **own}

    def _status_of(self, part: Part) -> str:
        return self._status if part is self._parts.all[-1] else "completed"

    def _id(self, part: Part) -> str:
        return f"{_PREFIXES[part.kind]}_{self._request_id}_{part.index}"

    def _failed(self, message: str, code: str) -> bytes:
        error = {"code": code, "message": message}
        return self._event("response.failed", response=self._response("failed") | {"error": error})

    def _of(self, part: Part, type: str, /, **rest: object) -> bytes:
        return self._event(type, item_id=self._id(part), output_index=part.index, **rest)

    def _event(self, type: str, /, **rest: object) -> bytes:
        event = {"type": type, "sequence_number": self._sent, **rest}
        self._sent += 1
        return server_sent(event, type)

    def _response(self, status: str) -> Json:
        ended, body = status in ("completed", "incomplete"), self._body
        drawn = self._answer.asked.requests[0].sampling
        return {
            "id": f"resp_{self._request_id}",
            "object": "response",
            "created_at": self._created,
            "status": status,
            "background": False,
            "error": None,
            "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
            "instructions": body.instructions or None,
            "max_output_tokens": body.max_output_tokens,
            "metadata": body.metadata,
            "model": self._model,
            "output": [self._item(part, self._status_of(part)) for part in self._parts.all] if ended else [],
            "parallel_tool_calls": body.parallel_tool_calls,
            "previous_response_id": None,
            "reasoning": {"effort": None, "summary": None},
            "store": False,
            "temperature": drawn.temperature,
            "text": body.text.model_dump(by_alias=True, include={"format"}),
            "tool_choice": body.tool_choice if isinstance(body.tool_choice, str) else body.tool_choice.model_dump(),
            "tools": [tool.model_dump() for tool in body.tools],
            "top_p": drawn.top_p,
            "truncation": "disabled",
            "usage": self._usage() if ended else None,
        }

    def _usage(self) -> Json:
        prompt, made = self._answer.asked.prompt_tokens, self._answer.completion_tokens
        thoughts = [part.text for part in self._parts.all if part.kind == "reasoning"]
        thought = sum(len(encode_completion(text, self._tokenizer)) for text in thoughts)
        return {
            "input_tokens": prompt,
            "input_tokens_details": {"cached_tokens": self._answer.cached_tokens, "cache_write_tokens": 0},
            "output_tokens": made,
            "output_tokens_details": {"reasoning_tokens": min(thought, made)},
            "total_tokens": prompt + made,
        }


_PREFIXES = {"text": "msg", "reasoning": "rs", "call": "fc"}
_EVENTS = {
    "text": "response.output_text",
    "reasoning": "response.reasoning_text",
    "call": "response.function_call_arguments",
}
_PLACES: dict[str, Json] = {
    "text": {"content_index": 0, "logprobs": []},
    "reasoning": {"content_index": 0},
    "call": {},
}


def _content(part: Part) -> Json:
    """What is in a message, or in reasoning."""
    if part.kind == "reasoning":
        return {"type": "reasoning_text", "text": part.text}
    return {"type": "output_text", "text": part.text, "annotations": [], "logprobs": []}


def _whole_text(part: Part) -> Json:
    return {"name": part.name, "arguments": part.text} if part.kind == "call" else {"text": part.text}
