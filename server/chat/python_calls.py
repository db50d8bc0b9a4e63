"""Calls of tools written as Python: [f(a=1), g()], or a line each between two marks. Read, never run.

A call's arguments are told once all of the body is there: where a Python literal ends is known no sooner.
"""

import ast
import json

from graft.server.chat.json_calls import Brackets, Found, Reader

_MOST_CHARS = 1 << 16  # of one body
_WORDS = {"true": True, "false": False, "null": None}  # JSON's, which models mix in


class PythonReader(Reader):
    """`closers`: what ends the body; with none it ends with its first bracket."""

    def __init__(self, found: Found, closers: tuple[str, ...]):
        self._found = found
        self._closers = closers
        self._text = ""
        self._brackets = Brackets("'\"")

    def push(self, char: str) -> None:
        self._text += char
        if len(self._text) > _MOST_CHARS or (not self._closers and not self._brackets.push(char)):
            self.broken = True
        elif closer := next((closer for closer in self._closers if self._text.endswith(closer)), None):
            self._text = self._text.removesuffix(closer)
            self._read()
        elif not self._closers and self._brackets.closed:
            self._read()

    def finish(self) -> None:
        """A model that ends with its calls may leave the mark out."""
        self._read()

    def _read(self) -> None:
        calls = _calls(self._text) or []
        self.done = bool(calls) and all(self._found.accepts(name) for name, _ in calls)
        self.broken = not self.done
        for name, arguments in calls if self.done else ():
            self._found.begin(name)
            self._found.arguments(json.dumps(arguments, ensure_ascii=False))
            self._found.end()


def _calls(text: str) -> list[tuple[str, dict[str, object]]] | None:
    """(name, arguments) of each call; None where there is anything else."""
    try:
        body = ast.parse(text.strip()).body
        statements = [one.value for one in body if isinstance(one, ast.Expr)]
        if len(statements) != len(body):
            return None
        written = [call for one in statements for call in (one.elts if isinstance(one, ast.List) else [one])]
        return [(_name(call), _arguments(call)) for call in written]
    except (SyntaxError, ValueError, RecursionError, MemoryError):  # as the parser ends over hostile texts
        return None


def _name(call: ast.expr) -> str:
    """Raises ValueError for what is no call of a named tool."""
    if not isinstance(call, ast.Call):
        raise ValueError("no call")
    name, parts = call.func, list[str]()
    while isinstance(name, ast.Attribute):
        parts.append(name.attr)
        name = name.value
    if not isinstance(name, ast.Name):
        raise ValueError("no name")
    return ".".join([name.id, *reversed(parts)])


def _arguments(call: ast.expr) -> dict[str, object]:
    """Raises ValueError for arguments without a name, and for what JSON can't say."""
    assert isinstance(call, ast.Call)  # _name
    if call.args or not all(keyword.arg for keyword in call.keywords):
        raise ValueError("arguments without a name")
    arguments = {str(keyword.arg): _value(keyword.value) for keyword in call.keywords}
    json.dumps(arguments, allow_nan=False, ensure_ascii=False).encode()  # a UnicodeEncodeError is a ValueError
    return arguments


def _value(node: ast.expr) -> object:
    """A literal as JSON has it. Raises ValueError for anything else."""
    match node:
        case ast.Constant(value=None | bool() | int() | float() | str() as value):
            return value
        case ast.Name(id=word) if word in _WORDS:
            return _WORDS[word]
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() | float() as number)):
            return -number
        case ast.List(elts=items) | ast.Tuple(elts=items):
            return [_value(item) for item in items]
        case ast.Dict(keys=keys, values=values):
            names = [key.value for key in keys if isinstance(key, ast.Constant) and isinstance(key.value, str)]
            if len(names) != len(keys):
                raise ValueError("a key that is no text")
            return {name: _value(value) for name, value in zip(names, values, strict=True)}
    raise ValueError("no literal")
