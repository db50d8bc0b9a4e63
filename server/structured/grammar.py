"""A constraint written down as the grammar library reads it: Lark rules, with schemas and clients' grammars beside them."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import singledispatchmethod

from llguidance import regex_to_lark
from llguidance.gbnf_to_lark import any_to_lark

from graft.server.errors import ConstraintError
from graft.server.structured.constraint import (
    Chain,
    Choice,
    Constraint,
    Grammar,
    Literal,
    OneOf,
    Regex,
    Repeat,
    Schema,
    SpecialToken,
    Tagged,
    Thought,
)
from graft.server.structured.schema_rules import prepare_schema

WHITESPACE = r"( |\r?\n[ \t]{0,40})"  # may stand between the tokens of JSON: enough to indent, and it comes to an end
_FREE = "FREE_TEXT"


def write_grammar(constraint: Constraint, special: Mapping[str, int]) -> str:
    """`special`: the base's special tokens, text -> id. Raises ConstraintError."""
    writer = _Writer(special)
    start = writer.expression(constraint)
    rules = [f"start: {start}", *writer.rules]
    return json.dumps({"grammars": [{"name": "constraint", "lark_grammar": "\n".join(rules)}, *writer.beside]})


@dataclass
class _Writer:
    special: Mapping[str, int]
    rules: list[str] = field(default_factory=list)
    beside: list[dict[str, object]] = field(default_factory=list)

    @singledispatchmethod
    def expression(self, constraint: Constraint) -> str:
        raise AssertionError(f"{type(constraint).__name__} is no constraint")

    @expression.register
    def _(self, constraint: Schema) -> str:
        schema = _read_schema(constraint.text)
        prepare_schema(schema)
        options = {"whitespace_flexible": True, "whitespace_pattern": WHITESPACE, "lenient": False}
        return self._beside({"json_schema": {**schema, "x-guidance": options}})

    @expression.register
    def _(self, constraint: Regex) -> str:
        pattern = regex_to_lark(constraint.pattern, use_ascii="")
        return self._beside({"lark_grammar": f"start: /{pattern}/"}) if constraint.pattern else '""'

    @expression.register
    def _(self, constraint: Choice) -> str:
        return f"({' | '.join(_quoted(text) for text in dict.fromkeys(constraint.texts))})"

    @expression.register
    def _(self, constraint: Grammar) -> str:
        try:
            lark = any_to_lark(constraint.text)
        except Exception as error:  # whatever a client's text makes of the converter
            raise ConstraintError(f"The grammar can't be read: {error}") from None
        return self._beside({"lark_grammar": lark})

    @expression.register
    def _(self, constraint: Literal) -> str:
        return self._text(constraint.text)

    @expression.register
    def _(self, constraint: SpecialToken) -> str:
        return self._token(constraint.text)

    @expression.register
    def _(self, constraint: Chain) -> str:
        return f"({' '.join(self.expression(part) for part in constraint.parts)})"

    @expression.register
    def _(self, constraint: OneOf) -> str:
        return f"({' | '.join(self.expression(part) for part in constraint.parts)})"

    @expression.register
    def _(self, constraint: Repeat) -> str:
        part = self.expression(constraint.part)
        again = f"({_quoted(constraint.between)} {part})" if constraint.between else part
        most = None if constraint.most is None else constraint.most - 1
        rest = "" if most == 0 else f" {again}{_times(max(0, constraint.least - 1), most)}"
        return f"({part}{rest})" if constraint.least else f"({part}{rest})?"

    @expression.register
    def _(self, constraint: Tagged) -> str:
        """Free text up to a trigger is one lexeme that ends where the first trigger does (lazy)."""
        names = []
        for tag in constraint.tags:
            name = self._name("tag")
            rest = f"{self._text(tag.begin[len(tag.trigger) :])} {self.expression(tag.body)} {self._text(tag.end)}"
            self.rules.append(f"{name}: {self._up_to(tag.trigger)} {rest}")
            names.append(name)
        self._add("free_end", _FREE)
        return f"(({' | '.join(names)}){_times(constraint.least, constraint.most)} free_end)"

    @expression.register
    def _(self, constraint: Thought) -> str:
        """A mark that begins it is looked for before anything else (lazy): free text would begin with it, too."""
        thought = self._up_to(constraint.end)
        if constraint.begin in self.special:
            thought = f"({self._token(constraint.begin)} {thought})?"
        elif constraint.begin:
            name = self._name("thought")
            self.rules.append(f"{name}[lazy]: {_quoted(constraint.begin)}")
            thought = f"({name} {thought})?"
        return f"({thought} {self.expression(constraint.then)})"

    def _up_to(self, mark: str) -> str:
        """Free text that ends with the first such mark."""
        self._add(_FREE, "/(.|\\n)*/")
        if mark in self.special:
            return f"{_FREE} {self._token(mark)}"
        name = self._name("up_to")
        self.rules.append(f"{name}[lazy]: {_FREE} {_quoted(mark)}")
        return name

    def _add(self, name: str, rule: str) -> None:
        """Once."""
        if (text := f"{name}: {rule}") not in self.rules:
            self.rules.append(text)

    def _text(self, text: str) -> str:
        """This text, whose special tokens (as the library takes them: all that were added to the vocabulary) are tokens."""
        marks = sorted((mark for mark in self.special if mark in text), key=len, reverse=True)
        if not marks:
            return _quoted(text)
        parts = re.split(f"({'|'.join(map(re.escape, marks))})", text)
        return " ".join(self._token(part) if part in self.special else _quoted(part) for part in parts if part)

    def _token(self, text: str) -> str:
        if text not in self.special:
            raise ConstraintError(f"This base has no special token {text!r}.")
        return f"<[{self.special[text]}]>"

    def _beside(self, grammar: dict[str, object]) -> str:
        name = self._name("part")
        self.beside.append({"name": name, **grammar})
        return f"@{name}"

    def _name(self, kind: str) -> str:
        return f"{kind}_{len(self.rules)}_{len(self.beside)}"


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _times(least: int, most: int | None) -> str:
    return f"{{{least},{'' if most is None else most}}}"


def _read_schema(text: str) -> dict[str, object]:
    schema = json.loads(text)
    if schema is True:
        return {}
    if not isinstance(schema, dict):
        raise ConstraintError("The schema must be a JSON object, and not one that nothing is valid for.")
    return schema
