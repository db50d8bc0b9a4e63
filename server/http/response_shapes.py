"""The JSON of answers in OpenAI's two shapes, whole and as stream chunks.

A `ResponseShape` says how a choice's text, report and end are written; everything else is the same for completions and chat.
"""

import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

from pydantic_core import to_json

from graft.hub.errors import GraftError
from graft.server.chat.deltas import CallArguments, CallBegin, Content, Delta, Reasoning, Reply
from graft.server.chat.detokenizer import Names
from graft.server.errors import BrokenError
from graft.server.http.answer import Answer, Choice, Mark, Piece
from graft.server.http.prompt_report import finite_logprob, prompt_report

Json = dict[str, object]
# A quarter of what the standard library takes, of every token. ASCII: not all clients know which characters end an event's line.
_encode = partial(to_json, ensure_ascii=True, inf_nan_mode="null")
LogprobsJson = Json  # on log-probabilities, as `logprobs` has it


class ResponseShape(ABC):
    """One of the two routes."""

    object: str
    chunk_object: str
    id_prefix: str
    scores_prompt_once = False  # log-probabilities of the prompt are part of the answer, not of each choice

    @abstractmethod
    def choice(self, reply: Reply, report: LogprobsJson | None) -> Json:
        """A whole choice's own keys."""

    @abstractmethod
    def delta(self, deltas: Sequence[Delta], report: LogprobsJson | None) -> Json:
        """The same of a part in a stream."""

    @abstractmethod
    def report(self, marks: Sequence[Mark], names: Names) -> LogprobsJson:
        """Log-probabilities of some tokens."""

    def opening(self, index: int) -> list[Json]:
        """What a stream says of a choice before its text."""
        return []


class CompletionShape(ResponseShape):
    object = chunk_object = "text_completion"
    id_prefix = "cmpl-"

    def choice(self, reply: Reply, report: LogprobsJson | None) -> Json:
        return {"text": reply.content, "logprobs": report}

    def delta(self, deltas: Sequence[Delta], report: LogprobsJson | None) -> Json:
        return self.choice(Reply().add(deltas), report)

    def report(self, marks: Sequence[Mark], names: Names) -> LogprobsJson:
        tops = [_by_text(mark, names) for mark in marks]
        return {
            "tokens": [names.name(mark.token.id)[0] for mark in marks],
            "token_logprobs": [_number_or_none(mark.token.logprob) for mark in marks],
            "top_logprobs": tops,
            "text_offset": [mark.offset for mark in marks],
        }


class ChatShape(ResponseShape):
    object = "chat.completion"
    chunk_object = "chat.completion.chunk"
    id_prefix = "chatcmpl-"
    scores_prompt_once = True

    def choice(self, reply: Reply, report: LogprobsJson | None) -> Json:
        content = None if reply.calls and not reply.content else reply.content
        message: Json = {"role": "assistant", "content": content, "refusal": None}
        if reply.reasoning:
            message["reasoning_content"] = reply.reasoning
        if reply.calls:
            message["tool_calls"] = [
                {"id": one.id, "type": "function", "function": {"name": one.name, "arguments": one.arguments}}
                for one in reply.calls
            ]
        return {"message": message, "logprobs": report}

    def delta(self, deltas: Sequence[Delta], report: LogprobsJson | None) -> Json:
        texts: dict[str, str] = {}
        calls: dict[int, Json] = {}
        for delta in deltas:
            match delta:
                case Content():
                    texts["content"] = texts.get("content", "") + delta.text
                case Reasoning():
                    texts["reasoning_content"] = texts.get("reasoning_content", "") + delta.text
                case CallBegin():
                    head = {"index": delta.index, "id": delta.id, "type": "function"}
                    calls[delta.index] = {**head, "function": {"name": delta.name, "arguments": ""}}
                case CallArguments():
                    _add_arguments(calls.setdefault(delta.index, {"index": delta.index}), delta.text)
        own = {**texts, **({"tool_calls": list(calls.values())} if calls else {})}
        return {"delta": own, "logprobs": report}

    def opening(self, index: int) -> list[Json]:
        return [_choice(index, {"delta": {"role": "assistant", "content": ""}, "logprobs": None}, None)]

    def report(self, marks: Sequence[Mark], names: Names) -> LogprobsJson:
        content = [
            _entry(mark.token.id, mark.token.logprob, names)
            | {"top_logprobs": [_entry(id, logprob, names) for id, logprob in mark.token.top]}
            for mark in marks
        ]
        return {"content": content, "refusal": None}


def _add_arguments(call: Json, text: str) -> None:
    function = call.setdefault("function", {})
    assert isinstance(function, dict)  # as it is made here
    function["arguments"] = function.get("arguments", "") + text


COMPLETION, CHAT = CompletionShape(), ChatShape()


@dataclass
class Writer:
    """Writes one answer."""

    shape: ResponseShape
    answer: Answer
    model: str
    request_id: str
    fingerprint: str
    names: Names
    include_usage: bool = False  # in a stream, at its end
    continuous_usage: bool = False  # in every event of one

    def __post_init__(self) -> None:
        self._head = {
            "id": self.shape.id_prefix + self.request_id,
            "created": int(time.time()),
            "model": self.model,
            "system_fingerprint": self.fingerprint,
        }
        head = _encode({"object": self.shape.chunk_object, **self._head})
        self._event_head = b"data: " + head[:-1] + b","  # of every event the same

    def whole(self, pieces: Iterator[Piece]) -> Json:
        """The answer once it is complete."""
        replies = [Reply() for _ in self.answer.choices]
        marks: list[list[Mark]] = [[] for _ in replies]
        ends: dict[int, str | None] = {}
        for piece in pieces:
            replies[piece.index].add(piece.deltas)
            marks[piece.index].extend(piece.marks)
            ends[piece.index] = piece.finish_reason
        shown = self.answer.shown()
        choices = [
            _choice(place, self.shape.choice(replies[one.index], self._report(marks[one.index])), ends[one.index])
            | ({} if self.shape.scores_prompt_once else self._prompt_logprobs(one))
            for place, one in enumerate(shown)
        ]
        whole = {"object": self.shape.object, **self._head, "choices": choices, "usage": self._usage()}
        return whole | (self._prompt_logprobs(shown[0]) if self.shape.scores_prompt_once else {})

    def opening(self) -> Iterator[bytes]:
        """A stream's first events."""
        for index in range(len(self.answer.choices)):
            for opening in self.shape.opening(index):
                yield self._event({"choices": [opening], **self._stream_usage()})

    def piece(self, piece: Piece) -> Iterator[bytes]:
        own = self.shape.delta(piece.deltas, self._report(piece.marks) if piece.marks else None)
        yield self._event({"choices": [_choice(piece.index, own, piece.finish_reason)], **self._stream_usage()})

    def ending(self) -> Iterator[bytes]:
        if self.include_usage:
            yield self._event({"choices": [], "usage": self._usage()})
        yield b"data: [DONE]\n\n"

    def error(self, error: GraftError) -> bytes:
        """The last event of a stream that fails."""
        message = public_message(error, self.request_id)
        return server_sent({"error": error_body(error.status, message, error.code)})

    def failure(self) -> bytes:
        """The last event of a stream that broke on our own account."""
        return server_sent({"error": error_body(500, broken_message(self.request_id), "internal_error")})

    def _stream_usage(self) -> Json:
        """Of each event."""
        if self.continuous_usage:
            return {"usage": self._usage()}
        return {"usage": None} if self.include_usage else {}  # OpenAI's: the key is there from the beginning

    def _event(self, rest: Json) -> bytes:
        return self._event_head + _encode(rest)[1:] + b"\n\n"

    def _report(self, marks: Sequence[Mark]) -> LogprobsJson | None:
        return None if self.answer.asked.logprobs is None else self.shape.report(marks, self.names)

    def _prompt_logprobs(self, choice: Choice) -> Json:
        top = self.answer.asked.prompt_logprobs
        if top is None:
            return {}
        return {"prompt_logprobs": prompt_report(self.answer.scored_prompt(choice), top, self.names)}

    def _usage(self) -> Json:
        prompt, completion = self.answer.asked.prompt_tokens, self.answer.completion_tokens
        return {
            "prompt_tokens": prompt,
            "completion_tokens": completion,
            "total_tokens": prompt + completion,
            "prompt_tokens_details": {"cached_tokens": self.answer.cached_tokens},
        }


def public_message(error: GraftError, request_id: str) -> str:
    """What a client may read of an error."""
    return broken_message(request_id) if isinstance(error, BrokenError) else str(error)


def broken_message(request_id: str) -> str:
    return f"The server failed on its own account; its log has request {request_id}."


_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}


def error_body(status: int, message: str, code: str | None, param: str | None = None) -> Json:
    """OpenAI's one shape of an error."""
    type = _TYPES.get(status, "server_error" if status >= 500 else "invalid_request_error")
    return {"message": message, "type": type, "code": code, "param": param}


def _choice(index: int, own: Json, finish_reason: str | None) -> Json:
    return {"index": index, **own, "finish_reason": finish_reason}


def _entry(id: int, logprob: float | None, names: Names) -> Json:
    text, raw = names.name(id)
    return {"token": text, "logprob": _number_or_none(logprob), "bytes": list(raw)}


def _by_text(mark: Mark, names: Names) -> dict[str, float] | None:
    """The alternatives and the token itself, the most probable first; of equal texts the more probable one."""
    if mark.token.logprob is None:
        return None
    by_text: dict[str, float] = {}
    for id, logprob in (*mark.token.top, (mark.token.id, mark.token.logprob)):
        by_text.setdefault(names.name(id)[0], finite_logprob(logprob))
    return by_text


def _number_or_none(logprob: float | None) -> float | None:
    return None if logprob is None else finite_logprob(logprob)


def server_sent(event: Json, name: str = "") -> bytes:
    """An event of a stream, by name where the dialect has names for them."""
    return (f"event: {name}\n" if name else "").encode() + b"data: " + _encode(event) + b"\n\n"
