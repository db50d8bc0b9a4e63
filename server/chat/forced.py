"""What an answer must look like where a tool has to be called, or where arguments have to fit their schema."""

import json
from collections.abc import Collection, Mapping

from graft.hub.chat.turns import Tool
from graft.server.chat.request import ToolUse
from graft.server.chat.tool_formats import PLAIN_JSON, Body, ToolFormat
from graft.server.structured.constraint import (
    ANY_OBJECT,
    Chain,
    Constraint,
    Literal,
    OneOf,
    Repeat,
    Schema,
    SpecialToken,
    Tag,
    Tagged,
)

MOST_CALLS = 8  # of one forced answer: small models go on and on


def forced_format(format: ToolFormat) -> ToolFormat:
    """The format that forced calls are written in: the model's own, where its arguments are JSON."""
    return PLAIN_JSON if format.body is Body.PYTHON else format


def forced_calls(format: ToolFormat, use: ToolUse, special: Collection[str]) -> Constraint:
    """One or more calls of the tools that may be called, and nothing else. `special`: marks that are special tokens."""
    several = use.parallel and use.named is None and format.parallel
    return _calls(forced_format(format), use.callable, 1, MOST_CALLS if several else 1, special)


def strict_calls(format: ToolFormat, use: ToolUse, special: Collection[str]) -> Constraint | None:
    """Free text in which calls of strict tools fit their schemas; None where nothing asks for that, or nothing can hold it."""
    if not use.strict or not format.closers or format.body is not Body.OBJECTS:
        return None
    opener, closer = format.openers[0], format.closers[0]
    if opener in special or closer in special:
        return None
    tags = tuple(
        Tag(
            opener, f"{opener}\n{_head(format, tool)}", _arguments(tool) if tool.strict else ANY_OBJECT, f"}}\n{closer}"
        )
        for tool in use.tools
    )
    return Tagged(tags, most=None if use.parallel else 1)


def _calls(format: ToolFormat, tools: Collection[Tool], least: int, most: int, special: Collection[str]) -> Constraint:
    opener = _mark(format.openers[0], special) if format.openers else Literal("")
    if format.body is Body.NAMED:
        name_end = _mark(format.inner_marks[-1], special)
        calls = [Chain((opener, Literal(tool.name), name_end, _arguments(tool))) for tool in tools]
        return Repeat(OneOf(tuple(calls)), least, most)
    objects = OneOf(tuple(Chain((Literal(_head(format, tool)), _arguments(tool), Literal("}"))) for tool in tools))
    if format.body is Body.LIST:
        return Chain((opener, Literal("["), Repeat(objects, least, most, ", "), Literal("]")))
    if format.bare:
        return Repeat(objects, least, most, "; ")
    closer = _mark(format.closers[0], special)
    return Repeat(Chain((opener, Literal("\n"), objects, Literal("\n"), closer)), least, most, "\n")


def _mark(text: str, special: Collection[str]) -> Constraint:
    return SpecialToken(text) if text in special else Literal(text)


def _head(format: ToolFormat, tool: Tool) -> str:
    """A call up to its arguments."""
    return f'{{"name": {json.dumps(tool.name, ensure_ascii=False)}, "{format.arguments_key}": '


def _arguments(tool: Tool) -> Schema:
    if not tool.parameters:
        return ANY_OBJECT
    schema: Mapping[str, object] = {"type": "object", **tool.parameters}
    return Schema(json.dumps(schema, ensure_ascii=False, separators=(",", ":")))
