"""From an answer's text, as it comes, to its deltas: content, reasoning, calls of tools; never any of the markup.

However a text is cut into pieces, the same comes out. What looks like a call and is none comes out as content; a call that
breaks off, or breaks within its arguments, stays as far as it came. No text makes a parser raise.
"""

from collections.abc import Callable
from dataclasses import dataclass

from graft.server.chat.deltas import CallArguments, CallBegin, Content, Delta, merge
from graft.server.chat.detokenizer import overlap
from graft.server.chat.json_calls import ListReader, ObjectReader, Reader
from graft.server.chat.python_calls import PythonReader
from graft.server.chat.reasoning import ReasoningMarks, ReasoningSplitter
from graft.server.chat.tool_formats import Body, ToolFormat, new_id

_SPACE = " \t\r\n"
_SEPARATORS = ";,"  # between one object and the next


@dataclass(frozen=True)
class ReplyRules:
    """What to look for in an answer. `tools`: the names that were offered. `one_call`: no more than one is wanted.
    `reasoning_begun`: the prompt ends within reasoning."""

    format: ToolFormat | None = None
    tools: frozenset[str] = frozenset()
    one_call: bool = False
    reasoning: ReasoningMarks | None = None
    reasoning_begun: bool = False

    @property
    def marks(self) -> tuple[str, ...]:
        """Texts that a parser must be given, also where they are special tokens."""
        reasoning = (self.reasoning.begin, self.reasoning.end) if self.reasoning else ()
        return (*reasoning, *(self.format.marks if self.format else ()))


PLAIN_TEXT = ReplyRules()


class ReplyParser:
    """Of one answer. `complete`: all that was wanted is there, and what follows is left aside."""

    def __init__(self, rules: ReplyRules):
        self._splitter = ReasoningSplitter(rules.reasoning, rules.reasoning_begun)
        self._calls = _CallParser(rules.format, rules.tools, rules.one_call) if rules.format else None

    @property
    def called(self) -> bool:
        """Whether there are calls."""
        return self._calls is not None and self._calls.called

    @property
    def complete(self) -> bool:
        return self._calls is not None and self._calls.complete

    def feed(self, text: str) -> list[Delta]:
        """What has become certain by more text."""
        return self._read(self._splitter.feed(text))

    def finish(self) -> list[Delta]:
        """What was held back: the text has ended."""
        deltas = self._read(self._splitter.finish())
        return deltas + (self._calls.finish() if self._calls else [])

    def _read(self, split: list[Delta]) -> list[Delta]:
        deltas: list[Delta] = []
        for delta in split:
            deltas.extend(self._calls.feed(delta.text) if self._calls and isinstance(delta, Content) else [delta])
        return merge(deltas)


class _CallParser:
    """Splits content from calls. Is told of calls by the body's reader (json_calls.Found)."""

    def __init__(self, format: ToolFormat, tools: frozenset[str], one_call: bool):
        self._format = format
        self._tools = tools
        self._one_call = one_call
        self._state: Callable[[str], str] = self._begin
        self._deltas: list[Delta] = []
        self._held = ""  # what may yet turn out to be markup
        self._raw = ""  # of the body at hand, since its last call was complete
        self._reader: Reader | None = None
        self._bare = False  # whether the body at hand has no opener
        self._open = False  # whether a call is under way
        self._sound = False  # whether the arguments of one that broke were complete
        self._count = 0
        self.complete = False

    @property
    def called(self) -> bool:
        return self._count > 0

    def feed(self, text: str) -> list[Delta]:
        """Each state takes what it can of the text, and leaves the rest to the next."""
        text, self._held = self._held + text, ""
        while text and not self.complete:
            text = self._state(text)
        return self._take()

    def finish(self) -> list[Delta]:
        if self._reader is not None and not self._open:
            self._reader.finish()
            if not self._reader.done:
                self._give(self._raw)
        elif not self._open and (self._held.strip(_SPACE) or not self.called):
            self._give(self._held)
        return self._take()

    # Told by a reader

    def accepts(self, name: str) -> bool:
        return not self._bare or name in self._tools

    def begin(self, name: str) -> None:
        if not self.complete:
            self._deltas.append(CallBegin(self._count, new_id(self._format), name))
            self._count += 1
            self._open = True

    def arguments(self, text: str) -> None:
        if text and not self.complete:
            self._deltas.append(CallArguments(self._count - 1, text))

    def end(self) -> None:
        self._open = False
        self._raw = ""
        self.complete = self._one_call

    # States: each returns what it leaves of a text that is not empty

    def _begin(self, text: str) -> str:
        """Before the answer's first letter."""
        letters = text.lstrip(_SPACE)
        if not letters:
            return self._hold(text)
        self._state = self._read_text
        if self._format.bare and letters[0] in self._format.bare:
            self._begin_body(text[: len(text) - len(letters)], bare=True)
            return letters
        return text

    def _read_text(self, text: str) -> str:
        found = [(at, opener) for opener in self._format.openers if (at := text.find(opener)) >= 0]
        if found:
            at, opener = min(found)
            before = text[:at].rstrip(_SPACE)
            self._give(before)
            self._begin_body(text[len(before) : at + len(opener)], bare=False)
            return text[at + len(opener) :]
        keep = max((overlap(text, opener) for opener in self._format.openers), default=0)
        certain = text[: len(text) - keep].rstrip(_SPACE)
        self._give(certain)
        return self._hold(text[len(certain) :])

    def _read_body(self, text: str) -> str:
        reader = self._reader
        assert reader is not None  # _begin_body
        for at, char in enumerate(text):
            self._raw += char
            reader.push(char)
            if self.complete:
                return ""
            if reader.done:
                self._reader, self._state = None, self._read_after
                return text[at + 1 :]
            if reader.broken:
                return self._mend(text[at + 1 :])
        return ""

    def _read_after(self, text: str) -> str:
        """After a body: its closer, or another object, or text."""
        letters = text.lstrip(_SPACE)
        if not letters:
            return self._hold(text)
        for closer in self._format.closers:
            if letters.startswith(closer):
                self._state = self._read_text
                return letters.removeprefix(closer)
            if closer.startswith(letters):
                return self._hold(text)
        if self._format.body is Body.OBJECTS:
            rest = letters[letters[0] in _SEPARATORS :].lstrip(_SPACE)
            if not rest:
                return self._hold(text)
            if rest[0] == "{":
                self._begin_body(text[: len(text) - len(rest)], bare=self._bare)
                return rest
        self._state = self._read_text
        return text

    def _read_broken(self, text: str) -> str:
        """A call that went wrong: all up to the closer belongs to its arguments, what the model wrote, whatever it is
        worth; where those were complete, to nothing."""
        found = [(at, closer) for closer in self._format.closers if (at := text.find(closer)) >= 0]
        if found:
            at, closer = min(found)
            self._tell_broken(text[:at].rstrip(_SPACE))
            self.end()
            self._state = self._read_text
            return text[at + len(closer) :]
        keep = max((overlap(text, closer) for closer in self._format.closers), default=0)
        certain = text[: len(text) - keep].rstrip(_SPACE)
        self._tell_broken(certain)
        return self._hold(text[len(certain) :])

    def _tell_broken(self, text: str) -> None:
        if not self._sound:
            self.arguments(text)

    def _begin_body(self, raw: str, *, bare: bool) -> None:
        """`raw`: what was read of it."""
        self._raw, self._bare, self._state = raw, bare, self._read_body
        match self._format.body:
            case Body.OBJECTS:
                self._reader = ObjectReader(self)
            case Body.LIST | Body.NAMED:
                self._reader = ListReader(self)
            case Body.PYTHON:
                self._reader = PythonReader(self, () if bare else self._format.closers)

    def _mend(self, rest: str) -> str:
        """The body at hand is none: it is text, or arguments that went wrong."""
        reader, self._reader = self._reader, None
        assert reader is not None  # _read_body
        if not self._open:
            self._state = self._read_text
            self._give(self._raw)
            return rest
        self._state, self._sound = self._read_broken, reader.has_arguments
        return self._raw[-1] + rest

    def _hold(self, text: str) -> str:
        self._held = text
        return ""

    def _give(self, text: str) -> None:
        if text:
            self._deltas.append(Content(text))

    def _take(self) -> list[Delta]:
        deltas, self._deltas = self._deltas, []
        return merge(deltas)
