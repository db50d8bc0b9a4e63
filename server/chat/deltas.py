"""What an answer to a conversation is made of, as it comes: text for the reader, reasoning, and calls of tools.

The parsers of this room produce these; whoever writes an answer (one of the dialects over HTTP) puts them into its shape.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Content:
    """More text for the reader."""

    text: str


@dataclass(frozen=True, slots=True)
class Reasoning:
    """More of what the model thought before it answered."""

    text: str


@dataclass(frozen=True, slots=True)
class CallBegin:
    """The call at `index` of this answer has begun; its arguments follow."""

    index: int
    id: str
    name: str


@dataclass(frozen=True, slots=True)
class CallArguments:
    """More of the arguments of the call at `index`: a piece of JSON text."""

    index: int
    text: str


Delta = Content | Reasoning | CallBegin | CallArguments


@dataclass
class Call:
    """A call put together. `arguments`: JSON text as the model wrote it, which nobody has checked against a schema."""

    id: str
    name: str
    arguments: str = ""


@dataclass
class Reply:
    """An answer put together from its deltas."""

    content: str = ""
    reasoning: str = ""
    calls: list[Call] = field(default_factory=list)

    def add(self, deltas: Iterable[Delta]) -> "Reply":
        for delta in deltas:
            match delta:
                case Content():
                    self.content += delta.text
                case Reasoning():
                    self.reasoning += delta.text
                case CallBegin():
                    self.calls.append(Call(delta.id, delta.name))
                case CallArguments():
                    self.calls[delta.index].arguments += delta.text
        return self


def merge(deltas: list[Delta]) -> list[Delta]:
    """The same with neighbours of one kind put together."""
    if len(deltas) < 2:
        return deltas
    merged: list[Delta] = []
    for delta in deltas:
        match merged[-1] if merged else None, delta:
            case Content() as last, Content():
                merged[-1] = Content(last.text + delta.text)
            case Reasoning() as last, Reasoning():
                merged[-1] = Reasoning(last.text + delta.text)
            case CallArguments() as last, CallArguments() if last.index == delta.index:
                merged[-1] = CallArguments(last.index, last.text + delta.text)
            case _:
                merged.append(delta)
    return merged
