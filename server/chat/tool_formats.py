"""How models write calls of tools: one table. A base's format is found by what its chat template says.

A format says where calls begin and end in a text, and how they are written between (json_calls.py and python_calls.py read
that).
"""

import secrets
from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import Enum
from string import ascii_letters, digits


class Body(Enum):
    """How calls are written."""

    OBJECTS = "objects"  # {"name": ..., "arguments": {...}}, one after another
    LIST = "list"  # [{"name": ..., "arguments": {...}}, ...]
    NAMED = "named"  # name[ARGS]{...}
    PYTHON = "python"  # [f(a=1), g()], or a line each


@dataclass(frozen=True)
class ToolFormat:
    """One way of writing calls.

    `known_by`: what a chat template holds, all of one of the alternatives. `openers` and `closers`: the texts around calls; an
    answer that begins with `bare` begins with a call too, if it is one of a tool that was offered. `arguments_key`: what the
    arguments are called. `parallel`: whether an answer may hold several calls. `id_chars`: the length of a call's id, of
    letters and digits; None: any text.
    """

    name: str
    families: str
    body: Body
    known_by: tuple[tuple[str, ...], ...]
    openers: tuple[str, ...] = ()
    closers: tuple[str, ...] = ()
    bare: str = ""
    arguments_key: str = "arguments"
    inner_marks: tuple[str, ...] = ()
    parallel: bool = True
    id_chars: int | None = None

    @property
    def marks(self) -> tuple[str, ...]:
        """Texts that must be seen where they are special tokens."""
        return (*self.openers, *self.closers, *self.inner_marks)


_MISTRAL = ToolFormat(
    "mistral",
    "Mistral 7B v0.3, Nemo, Large 2, Small up to 3.1",
    Body.LIST,
    known_by=(("[TOOL_CALLS]",),),
    openers=("[TOOL_CALLS]",),
    inner_marks=("[CALL_ID]", "[ARGS]"),
    id_chars=9,
)
_TABLE = (
    replace(
        _MISTRAL,
        name="mistral_args",
        families="Mistral Small 3.2, Ministral 3, Devstral, Magistral",
        body=Body.NAMED,
        known_by=(("[TOOL_CALLS]", "[ARGS]"),),
    ),
    _MISTRAL,
    ToolFormat("granite", "Granite 3", Body.LIST, known_by=(("<|tool_call|>",),), openers=("<|tool_call|>",)),
    ToolFormat(
        "hermes",
        "Hermes, Qwen 2.5 and 3, Granite 4, SmolLM 3",
        Body.OBJECTS,
        known_by=(("<tool_call>",),),
        openers=("<tool_call>",),
        closers=("</tool_call>",),
    ),
    ToolFormat(
        "llama3_json",
        "Llama 3.1, 3.2 and 3.3",
        Body.OBJECTS,
        known_by=(("<|start_header_id|>", '"parameters": '),),
        openers=("<|python_tag|>",),
        bare="{",
        arguments_key="parameters",
        parallel=False,
    ),
    ToolFormat(
        "pythonic",
        "Gemma 3, Llama 4, OLMo 3",
        Body.PYTHON,
        known_by=(("tool_code",), ("func_name1(",), ("<function_calls>",)),
        openers=("```tool_code", "<function_calls>", "<|python_start|>"),
        closers=("```", "</function_calls>", "<|python_end|>"),
        bare="[",
    ),
)
# What an answer is written in that must be a call, where the model's own way can't be forced.
PLAIN_JSON = ToolFormat("json", "any", Body.OBJECTS, known_by=(), bare="{")
FORMATS: Mapping[str, ToolFormat] = {one.name: one for one in _TABLE}
_OTHERS = ("<function=", "<arg_key>", "<parameter name=")  # calls written in ways that are none of these


def new_id(format: ToolFormat) -> str:
    """A call's id, which nobody can guess and no other call has."""
    if format.id_chars is None:
        return f"call_{secrets.token_hex(12)}"
    return "".join(secrets.choice(ascii_letters + digits) for _ in range(format.id_chars))


def find_format(template: str) -> ToolFormat | None:
    """How a model with this chat template writes calls; None where its way is not known here."""
    if any(mark in template for mark in _OTHERS):
        return None
    return next((one for one in _TABLE if any(all(mark in template for mark in marks) for marks in one.known_by)), None)
