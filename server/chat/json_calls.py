"""Calls of tools written as JSON, read character by character: a call is told as soon as its name is known, its arguments as
they come.

A reader takes characters until it is `done`, or `broken`: then what it read is no call. No text makes one raise.
"""

import json
from abc import ABC, abstractmethod
from collections.abc import Callable
from enum import Enum, auto
from typing import Protocol

SPACE = " \t\r\n"
MOST_NAME = 256  # characters
_ARGUMENTS = ("arguments", "parameters")  # models mix them up
_NAMED, _NUMBERED = "[ARGS]", "[CALL_ID]"  # name[CALL_ID]id[ARGS]{...}, as Mistral's later models write


_PAIRS = {"}": "{", "]": "[", ")": "("}
_MOST_DEPTH = 64


class Brackets:
    """`quotes`: what begins and ends a string, within which a backslash makes the next character one of the text."""

    def __init__(self, quotes: str = '"'):
        self._quotes = quotes
        self._open: list[str] = []
        self._quote = ""
        self._escaped = False
        self.begun = False

    @property
    def closed(self) -> bool:
        """Whether all brackets and strings are."""
        return not self._open and not self._quote

    def push(self, char: str) -> bool:
        """False for a bracket that closes none, or that is nested too deeply."""
        self.begun = True
        if self._quote:
            if self._escaped or char == "\\":
                self._escaped = not self._escaped
            elif char == self._quote:
                self._quote = ""
        elif char in self._quotes:
            self._quote = char
        elif char in "{[(":
            self._open.append(char)
            return len(self._open) <= _MOST_DEPTH
        elif char in _PAIRS:
            return bool(self._open) and self._open.pop() == _PAIRS[char]
        return True


class Found(Protocol):
    """Who is told of calls."""

    def accepts(self, name: str) -> bool:
        """Whether this may be a call; if not, the body is broken."""
        ...

    def begin(self, name: str) -> None:
        """A call has begun."""
        ...

    def arguments(self, text: str) -> None:
        """More of its arguments."""
        ...

    def end(self) -> None:
        """It is complete."""
        ...


class Reader(ABC):
    """Of one body of calls."""

    done = False
    broken = False
    has_arguments = False  # whether those of the call under way are complete

    @abstractmethod
    def push(self, char: str) -> None:
        """The next character, of a body that is neither done nor broken."""

    def finish(self) -> None:
        """The text has ended within the body; a call that has been told stays as far as it came."""
        return


class _At(Enum):
    """Where in {"name": ..., "arguments": {...}} the next character stands."""

    START = auto()
    FIRST_KEY = auto()
    NEXT_KEY = auto()
    KEY = auto()
    COLON = auto()
    VALUE = auto()
    TEXT = auto()
    NESTED = auto()
    WORD = auto()
    AFTER = auto()


class ObjectReader(Reader):
    """One {"name": ..., "arguments": {...}}, in any order; other keys are left aside."""

    def __init__(self, found: Found):
        self._found = found
        self._at = _At.START
        self._key = self._value = ""
        self._brackets = Brackets()
        self._begun = False  # whether the call has been told
        self._telling = False  # whether the value at hand is the arguments
        self._waiting = ""  # arguments that came before the name
        self._told = False  # whether arguments came
        self._steps: dict[_At, Callable[[str], None]] = {
            _At.START: self._start,
            _At.FIRST_KEY: self._begin_key,
            _At.NEXT_KEY: self._begin_key,
            _At.KEY: self._go_on_key,
            _At.COLON: self._colon,
            _At.VALUE: self._begin_value,
            _At.TEXT: self._go_on_text,
            _At.NESTED: self._go_on_nested,
            _At.WORD: self._go_on_word,
            _At.AFTER: self._after,
        }

    def push(self, char: str) -> None:
        self._steps[self._at](char)

    def _start(self, char: str) -> None:
        self._expect(char, {"{": _At.FIRST_KEY})

    def _begin_key(self, char: str) -> None:
        if char == "}" and self._at is _At.FIRST_KEY:
            self._end()
        elif self._expect(char, {'"': _At.KEY}):
            self._key, self._brackets = char, Brackets()
            self._brackets.push(char)

    def _go_on_key(self, char: str) -> None:
        self._key += char
        self._brackets.push(char)
        if self._brackets.closed:
            self._at, self._key = _At.COLON, _decode(self._key) or ""
        elif len(self._key) > MOST_NAME:
            self.broken = True

    def _colon(self, char: str) -> None:
        self._expect(char, {":": _At.VALUE})

    def _begin_value(self, char: str) -> None:
        if char in SPACE:
            return
        self._telling = self._key in _ARGUMENTS and not self._told
        self._value, self._brackets = char, Brackets()
        if char.isalnum() or char == "-":
            self._at = _At.WORD
        elif self._expect(char, {'"': _At.TEXT, "{": _At.NESTED, "[": _At.NESTED}):
            self._brackets.push(char)
            if self._at is _At.NESTED:
                self._tell(char)

    def _go_on_text(self, char: str) -> None:
        self._value += char
        self._brackets.push(char)
        if not self._brackets.closed:
            self.broken = self._key == "name" and len(self._value) > MOST_NAME
            return
        self._at = _At.AFTER
        if self._key == "name":
            self._take_name(_decode(self._value))
        else:  # arguments that are JSON within a text
            self._tell(_decode(self._value) or "")

    def _go_on_nested(self, char: str) -> None:
        if not self._brackets.push(char):
            self.broken = True
            return
        self._tell(char)
        if self._brackets.closed:
            self._at, self.has_arguments = _At.AFTER, self._told

    def _go_on_word(self, char: str) -> None:
        if char in ",}" or char in SPACE:
            self._tell("" if self._value == "null" else self._value)
            self._after(char)
        elif char.isalnum() or char in "+-.":
            self._value += char
        else:
            self.broken = True

    def _after(self, char: str) -> None:
        self._at = _At.AFTER
        if char == "}":
            self._end()
        else:
            self._expect(char, {",": _At.NEXT_KEY})

    def _expect(self, char: str, ways: dict[str, _At]) -> bool:
        """Go on where one of these comes; any space may come before."""
        if char in ways:
            self._at = ways[char]
            return True
        self.broken = char not in SPACE
        return False

    def _take_name(self, name: str | None) -> None:
        if self._begun or not name or not self._found.accepts(name):
            self.broken = True
            return
        self._found.begin(name)
        self._begun = True
        if self._waiting:
            self._found.arguments(self._waiting)

    def _tell(self, text: str) -> None:
        if not self._telling or not text:
            return
        self._told = True
        if self._begun:
            self._found.arguments(text)
        else:
            self._waiting += text

    def _end(self) -> None:
        if not self._begun:
            self.broken = True
            return
        if not self._told:
            self._found.arguments("{}")
        self._found.end()
        self.done = True


class ListReader(Reader):
    """[{...}, {...}] of such objects, one of them alone, or name[ARGS]{...}: the first character tells."""

    def __init__(self, found: Found):
        self._found = found
        self._reader: Reader | None = None

    def push(self, char: str) -> None:
        if self._reader is None:
            if char in SPACE:
                return
            kinds: dict[str, Callable[[Found], Reader]] = {"[": _ArrayReader, "{": ObjectReader}
            self._reader = kinds.get(char, _NamedReader)(self._found)
        self._reader.push(char)
        self.done, self.broken = self._reader.done, self._reader.broken
        self.has_arguments = self._reader.has_arguments


class _ArrayReader(Reader):
    def __init__(self, found: Found):
        self._found = found
        self._object: Reader | None = None
        self._awaited = "["

    def push(self, char: str) -> None:
        if self._object is not None:
            self._object.push(char)
            self.broken, self.has_arguments = self._object.broken, self._object.has_arguments
            if self._object.done:
                self._object, self._awaited = None, ",]"
        elif char in SPACE:
            return
        elif char == "{" and "{" in self._awaited:
            self._object = ObjectReader(self._found)
            self._object.push(char)
        elif char not in self._awaited:
            self.broken = True
        else:
            self.done, self._awaited = char == "]", "{]" if char == "[" else "{"


class _NamedReader(Reader):
    def __init__(self, found: Found):
        self._found = found
        self._name = ""
        self._brackets: Brackets | None = None  # of the arguments, once there is a name

    def push(self, char: str) -> None:
        if self._brackets is None:
            self._go_on_name(char)
        elif self._brackets.begun or char == "{":
            self._go_on_arguments(self._brackets, char)
        else:
            self.broken = char not in SPACE

    def _go_on_name(self, char: str) -> None:
        self._name += char
        if self._name.endswith(_NAMED):
            name = self._name.removesuffix(_NAMED).partition(_NUMBERED)[0].strip()
            self._brackets = Brackets()
            if name and self._found.accepts(name):
                self._found.begin(name)
            else:
                self.broken = True
        else:
            self.broken = len(self._name) > MOST_NAME

    def _go_on_arguments(self, brackets: Brackets, char: str) -> None:
        if not brackets.push(char):
            self.broken = True
            return
        self._found.arguments(char)
        if brackets.closed:
            self._found.end()
            self.done = True


def _decode(text: str) -> str | None:
    """The text that a JSON string stands for; None where it is none, or holds half a surrogate pair."""
    try:
        decoded = json.loads(text, strict=False)  # models write line breaks as they are
        decoded.encode()
    except ValueError:
        return None
    assert isinstance(decoded, str)  # what begins with a quote
    return decoded
