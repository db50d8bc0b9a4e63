"""What a generated text has to be: descriptions that are frozen, hashable, and know no library.

A description is a tree. Whoever answers requests builds one and puts it into `engine.request.Request.constraint`; the
engine has it compiled (compiler.py) and draws only tokens that keep the text a beginning of what is described. A request
ends with "stop" where the text is complete, with "length" at a legal beginning of one.

Leaves: `Schema`, `Regex`, `Choice`, `Grammar` (what clients send), `Literal` and `SpecialToken` (what surrounds them).
Nodes: `Chain`, `OneOf`, `Repeat`, `Tagged`, which leaves the text free until a tag begins, and `Thought`, which does until one has ended.

A call of the function `f` in Hermes' format, forced:

    Chain((Literal('<tool_call>\\n{"name": "f", "arguments": '), Schema(parameters), Literal("}\\n</tool_call>")))

One or more calls of `f` or `g`, in Mistral's, whose mark is a special token:

    Chain((SpecialToken("[TOOL_CALLS]"), Literal("["), Repeat(OneOf((call_of_f, call_of_g)), between=", "), Literal("]")))
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Schema:
    """JSON that a JSON schema, given as JSON, holds valid; properties in the schema's order."""

    text: str


@dataclass(frozen=True)
class Regex:
    """A text that the pattern matches as a whole."""

    pattern: str


@dataclass(frozen=True)
class Choice:
    """One of these texts. None is empty."""

    texts: tuple[str, ...]


@dataclass(frozen=True)
class Grammar:
    """A text of a context-free grammar, in Lark's notation or in GBNF."""

    text: str


@dataclass(frozen=True)
class Literal:
    """This very text."""

    text: str


@dataclass(frozen=True)
class SpecialToken:
    """A special token of the base's, by its text; in a grammar no other ever comes."""

    text: str


@dataclass(frozen=True)
class Chain:
    """One part after another."""

    parts: "tuple[Constraint, ...]"


@dataclass(frozen=True)
class OneOf:
    """One of the parts."""

    parts: "tuple[Constraint, ...]"


@dataclass(frozen=True)
class Repeat:
    """A part several times, with a text `between`. `most`: None for any number."""

    part: "Constraint"
    least: int = 1
    most: int | None = None
    between: str = ""


@dataclass(frozen=True)
class Tag:
    """A stretch of constrained text that starts with `begin`: from `trigger`, with which `begin` begins, nothing else may come."""

    trigger: str
    begin: str
    body: "Constraint"
    end: str


@dataclass(frozen=True)
class Tagged:
    """Free text in which tags may come. `least`: how many have to; `most`: None for any number."""

    tags: tuple[Tag, ...]
    least: int = 0
    most: int | None = None


@dataclass(frozen=True)
class Thought:
    """What a model thinks, free up to its mark `end`, and then `then`. `begin`: the mark that begins it, without which there is none;
    "" where it has begun."""

    begin: str
    end: str
    then: "Constraint"


Constraint = Schema | Regex | Choice | Grammar | Literal | SpecialToken | Chain | OneOf | Repeat | Tagged | Thought

ANY_OBJECT = Schema('{"type":"object"}')
