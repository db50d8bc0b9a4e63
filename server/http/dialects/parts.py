"""An answer as parts that follow one another, as Responses and Messages have it: text, reasoning, calls of tools."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Literal

from graft.server.chat.deltas import CallArguments, CallBegin, Content, Delta, Reasoning
from graft.server.http.answer import Piece

Kind = Literal["text", "reasoning", "call"]


@dataclass
class Part:
    """A part, as far as it came. `text`: of a call its arguments, JSON as the model wrote it."""

    index: int
    kind: Kind
    text: str = ""
    call_id: str = ""
    name: str = ""


@dataclass(frozen=True)
class Opened:
    """The next part begins; the one before has ended."""

    part: Part


@dataclass(frozen=True)
class Grown:
    """There is more of the part that is open."""

    part: Part
    text: str


@dataclass(frozen=True)
class Closed:
    """The part is complete, or the answer ends within it."""

    part: Part


Step = Opened | Grown | Closed


class Parts:
    """Of an answer with one choice. `finish_reason`: None as long as it is under way."""

    def __init__(self) -> None:
        self.all: list[Part] = []
        self.finish_reason: str | None = None

    def follow(self, piece: Piece) -> Iterator[Step]:
        """What happens by a piece; the parts are put together meanwhile."""
        for delta in piece.deltas:
            yield from self._take(delta)
        self.finish_reason = piece.finish_reason or self.finish_reason

    def finish(self) -> Iterator[Step]:
        """The answer has ended. One that says nothing has an empty text."""
        if all(part.kind == "reasoning" for part in self.all):
            yield from self._open("text")
        yield from self._close()

    def gather(self, pieces: Iterator[Piece]) -> "Parts":
        """All of them, at the answer's end."""
        for _ in chain(chain.from_iterable(map(self.follow, pieces)), self.finish()):
            pass
        return self

    def _take(self, delta: Delta) -> Iterator[Step]:
        match delta:
            case CallBegin():
                yield from self._open("call", delta.id, delta.name)
                return
            case Content():
                yield from self._continue("text")
            case Reasoning():
                yield from self._continue("reasoning")
            case CallArguments():
                assert self.all[-1].kind == "call"  # they follow their call's beginning
        self.all[-1].text += delta.text
        yield Grown(self.all[-1], delta.text)

    def _continue(self, kind: Kind) -> Iterator[Step]:
        if not self.all or self.all[-1].kind != kind:
            yield from self._open(kind)

    def _open(self, kind: Kind, call_id: str = "", name: str = "") -> Iterator[Step]:
        yield from self._close()
        self.all.append(Part(len(self.all), kind, call_id=call_id, name=name))
        yield Opened(self.all[-1])

    def _close(self) -> Iterator[Step]:
        if self.all:
            yield Closed(self.all[-1])
