"""Reasoning apart from the answer: what models that think write between two marks, before they answer."""

from dataclasses import dataclass

from graft.server.chat.deltas import Content, Delta, Reasoning
from graft.server.chat.detokenizer import overlap

_NEWLINES = "\r\n"
_SPACE = " \t\r\n"


@dataclass(frozen=True)
class ReasoningMarks:
    """The texts that begin and end reasoning."""

    begin: str
    end: str


_TABLE = (
    ReasoningMarks("<think>", "</think>"),  # Qwen 3, DeepSeek R1, SmolLM 3, and most others
    ReasoningMarks("[THINK]", "[/THINK]"),  # Magistral
    ReasoningMarks("<seed:think>", "</seed:think>"),
)


def find_reasoning(template: str) -> ReasoningMarks | None:
    """How a model with this chat template marks its reasoning, None where it doesn't think."""
    return next((marks for marks in _TABLE if marks.end in template), None)


def ends_within(prompt: str, marks: ReasoningMarks) -> bool:
    """Whether a prompt ends where reasoning has begun."""
    return prompt.rfind(marks.begin) > prompt.rfind(marks.end) and prompt.rstrip(_SPACE).endswith(marks.begin)


class ReasoningSplitter:
    """Of one answer. Reasoning stands at its beginning, once; newlines around the marks belong to neither part."""

    def __init__(self, marks: ReasoningMarks | None, begun: bool):
        """`begun`: the text begins within reasoning."""
        self._marks = marks
        self._state = self._reason if marks and begun else self._begin if marks else self._answer
        self._held = ""
        self._leading = True  # whether newlines are still to be left out

    def feed(self, text: str) -> list[Delta]:
        text, self._held = self._held + text, ""
        return self._state(text) if text else []

    def finish(self) -> list[Delta]:
        held, self._held = self._held, ""
        if not held:
            return []
        return [Reasoning(held) if self._state == self._reason else Content(held)]

    def _begin(self, text: str) -> list[Delta]:
        assert self._marks is not None
        letters = text.lstrip(_SPACE)
        if letters.startswith(self._marks.begin):
            self._state = self._reason
            return self._state(letters.removeprefix(self._marks.begin))
        if self._marks.begin.startswith(letters):
            self._held = text
            return []
        self._state, self._leading = self._answer, False
        return self._state(text)

    def _reason(self, text: str) -> list[Delta]:
        assert self._marks is not None
        if self._leading:
            text = text.lstrip(_NEWLINES)
        thought, end, answer = text.partition(self._marks.end)
        if end:
            self._state, self._leading = self._answer, True
            thought = thought.rstrip(_NEWLINES)
            return [*([Reasoning(thought)] if thought else ()), *self._state(answer)]
        certain = text[: len(text) - overlap(text, self._marks.end)].rstrip(_NEWLINES)
        self._held = text[len(certain) :]
        self._leading = self._leading and not certain
        return [Reasoning(certain)] if certain else []

    def _answer(self, text: str) -> list[Delta]:
        if self._marks and self._leading:
            text = text.lstrip(_NEWLINES)
            self._leading = not text
        return [Content(text)] if text else []
