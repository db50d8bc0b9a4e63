"""A conversation, and how a chat template makes a prompt's text of it. Torch-free; knows neither tokens nor HTTP."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Protocol

from jinja2 import Environment, TemplateError

from graft.hub.errors import DataError

# What a template may raise over messages that it has no place for, besides its own refusals.
_TEMPLATE_ERRORS = (TemplateError, TypeError, ValueError, LookupError, AttributeError, ArithmeticError, RecursionError)
# Variables that are said otherwise, or that are no business of a template's.
RESERVED = frozenset(
    (
        "messages", "conversation", "tools", "documents", "chat_template", "add_generation_prompt", "continue_final_message",
        "tokenize", "sanitize_control_tokens", "padding", "truncation", "max_length", "return_tensors", "return_dict",
        "return_assistant_tokens_mask", "tokenizer_kwargs",
    )
)  # fmt: skip

_TOOL_LISTS = ("tools", "xml_tools")  # what templates call the tools: transformers' own name, and SmolLM 3's

Turn = Mapping[str, object]  # a message as templates take it: "role", "content", and what else they look at


class TemplateRefusalError(DataError):
    """The chat template can't make a prompt of these messages."""


@dataclass(frozen=True)
class Conversation:
    """What a prompt is made of. `tools`: those that are offered, in OpenAI's shape. `variables`: a template's own switches.

    `opens_reply`: the prompt ends where the assistant's answer begins; `continues`: it ends within the last message.
    """

    turns: Sequence[Turn]
    tools: Sequence[Mapping[str, object]] = ()
    variables: Mapping[str, object] = field(default_factory=dict)
    opens_reply: bool = True
    continues: bool = False


class ChatTokenizer(Protocol):
    """As much of transformers' as is asked for here."""

    @property
    def chat_template(self) -> object: ...

    @property
    def apply_chat_template(self) -> Callable[..., object]: ...


class ChatTemplate(Protocol):
    """Makes prompts. `whose`: as errors call it."""

    whose: str

    def text(self, *, with_tools: bool) -> str:
        """The template itself. Of several the one for conversations with tools, or without."""
        ...

    def render(self, conversation: Conversation) -> str:
        """The prompt's text. Raises TemplateRefusalError."""
        ...


class BaseTemplate:
    """The base's own, which its owner has chosen: rendered here, by transformers."""

    whose = "The base's chat template"

    def __init__(self, tokenizer: ChatTokenizer):
        self._tokenizer = tokenizer

    def text(self, *, with_tools: bool) -> str:
        given = self._tokenizer.chat_template
        if isinstance(given, dict):  # several, by name
            given = given.get("tool_use" if with_tools else "default") or given.get("default")
        return given if isinstance(given, str) else ""

    def render(self, conversation: Conversation) -> str:
        try:
            text = self._tokenizer.apply_chat_template(
                [dict(turn) for turn in conversation.turns],
                [dict(tool) for tool in conversation.tools] or None,
                add_generation_prompt=conversation.opens_reply,
                continue_final_message=conversation.continues,
                tokenize=False,
                **{
                    **tool_variables(self.text(with_tools=bool(conversation.tools)), conversation.tools),
                    **conversation.variables,
                },
            )
        except _TEMPLATE_ERRORS as error:
            raise refusal(self.whose, error) from None
        assert isinstance(text, str)  # token ids only where they are asked for
        return text


def tool_variables(template: str, tools: Sequence[Mapping[str, object]]) -> dict[str, object]:
    """Tools under the name by which a template asks for them, where it does not by the usual one; none where there are none."""
    wanted = tool_list(template) if tools else None
    return {wanted: [dict(tool) for tool in tools]} if wanted not in (None, _TOOL_LISTS[0]) else {}


@lru_cache(maxsize=64)
def tool_list(template: str) -> str | None:
    """The variable that a template reads tools from; None for one that reads none, or is none."""
    try:
        named = {text for _, kind, text in Environment().lex(template) if kind == "name"}
    except TemplateError:
        return None
    return next((name for name in _TOOL_LISTS if name in named), None)


def refusal(whose: str, error: Exception) -> TemplateRefusalError:
    """What a template raised, in its own words."""
    reason = str(error) if isinstance(error, TemplateError) else f"{type(error).__name__}: {error}"
    return TemplateRefusalError(f"{whose} refuses these messages: {reason}.")
