"""From a conversation to what the engine is asked: the prompt's text, what to look for in the answer, what it must be."""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from threading import Lock

from graft.hub.chat.conversation import RESERVED, ChatTemplate, Conversation, TemplateRefusalError
from graft.hub.chat.template_tools import missing_tool, takes_tools, wants_text_arguments
from graft.hub.chat.turns import template_turns
from graft.server.chat.forced import forced_calls, forced_format, strict_calls
from graft.server.chat.reasoning import ReasoningMarks, ends_within, find_reasoning
from graft.server.chat.reply_parser import ReplyRules
from graft.server.chat.request import ChatError, ChatRequest
from graft.server.chat.tool_formats import FORMATS, ToolFormat, find_format
from graft.server.structured.constraint import Constraint, OneOf, Tagged, Thought

_MOST_KNOWN = 64  # templates whose ways are remembered


@dataclass(frozen=True)
class ChatPrompt:
    """`text`: the whole prompt. `rules`: of the answer's parser. `constraint`: what the answer must be, if anything. `unheld`: what
    was asked of the answer that it can't be held to, as fields of the request."""

    text: str
    rules: ReplyRules
    constraint: Constraint | None
    unheld: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Ways:
    """What a template's model does: how it writes calls and reasoning. What the template does: whether it writes tools, and how it
    wants earlier arguments."""

    takes_tools: bool
    format: ToolFormat | None
    reasoning: ReasoningMarks | None
    text_arguments: bool


class ChatPrompts:
    """Makes prompts. Safe for many threads.

    `tool_format`: how calls are written, whatever the template says (a name of FORMATS). `is_special`: whether a text is one
    special token of the base's.
    """

    def __init__(self, tool_format: str | None, is_special: Callable[[str], bool]):
        self._format = FORMATS[tool_format] if tool_format else None
        self._is_special = is_special
        self._ways: OrderedDict[str, _Ways] = OrderedDict()  # by a template's text
        self._lock = Lock()

    def prompt(self, request: ChatRequest, template: ChatTemplate) -> ChatPrompt:
        """Raises ChatError naming what can't be used."""
        with_tools = bool(request.use.tools)
        text = template.text(with_tools=with_tools)
        ways = self._look_up(template, text)
        if reserved := sorted(request.variables.keys() & RESERVED):
            raise ChatError(f"{reserved[0]} is no variable of a chat template's: leave it out.", "chat_template_kwargs")
        if with_tools:
            self._require_tools(ways, template, request)
        prompt = self._render(request, template, ways)
        if missing := missing_tool(prompt, [tool.as_sent() for tool in request.use.tools]):
            raise ChatError(
                f"{template.whose} leaves the tool {missing} out of this prompt, so the model would not know of it: leave "
                "tools out, or look up what the template writes them for (a system message, a switch in chat_template_kwargs).",
                "tools",
            )
        format = ways.format if with_tools else None
        constraint, format = self._constrain(request, format)
        unheld = () if constraint is not None or format is None or not request.use.strict else ("tools.strict",)
        begun = ways.reasoning is not None and ends_within(prompt, ways.reasoning)
        if begun and ways.reasoning and constraint is not None and not isinstance(constraint, Tagged):
            prompt, begun = (
                f"{prompt}{ways.reasoning.end}\n\n",
                False,
            )  # it holds the whole answer, from the first token on
        rules = ReplyRules(
            format,
            frozenset(tool.name for tool in request.use.callable),
            one_call=not request.use.parallel,
            reasoning=ways.reasoning,
            reasoning_begun=begun,
        )
        if ways.reasoning is not None and request.answer is None and isinstance(constraint, Tagged):
            constraint = Thought("" if begun else ways.reasoning.begin, ways.reasoning.end, constraint)
        return ChatPrompt(prompt, rules, constraint, unheld)

    def _constrain(
        self, request: ChatRequest, format: ToolFormat | None
    ) -> tuple[Constraint | None, ToolFormat | None]:
        """What the answer must be, behind what a model may think, and how its calls are written then."""
        if format is None:
            return request.answer, None
        special = {mark for mark in format.marks if self._is_special(mark)}
        if not request.use.required and request.answer is None:
            return strict_calls(format, request.use, special), format
        calls = forced_calls(format, request.use, special)
        either = calls if request.use.required or request.answer is None else OneOf((calls, request.answer))
        return either, forced_format(format)

    def _render(self, request: ChatRequest, template: ChatTemplate, ways: _Ways) -> str:
        conversation = Conversation(
            template_turns(request.turns, text_arguments=ways.text_arguments),
            [tool.as_sent() for tool in request.use.tools],
            request.variables,
            request.opens_reply,
            request.continues,
        )
        try:
            prompt = template.render(conversation)
        except TemplateRefusalError as error:
            raise ChatError(str(error), "messages") from None
        if not prompt:
            raise ChatError(f"{template.whose} makes nothing of these messages.", "messages")
        try:
            prompt.encode()
        except UnicodeEncodeError:  # tools, arguments and variables hold whatever JSON can say
            raise ChatError("The prompt would hold half a surrogate pair, which is no character.", "messages") from None
        return prompt

    def _require_tools(self, ways: _Ways, template: ChatTemplate, request: ChatRequest) -> None:
        variables = request.variables
        if not ways.takes_tools and not (variables and takes_tools(template, variables)):  # which may switch them on
            raise ChatError(
                f"{template.whose} has no place for tools: none that is offered comes into a prompt. Leave tools out, or use a "
                "base, or an adapter with a chat template, that was trained to call them.",
                "tools",
            )
        if ways.format is None:
            raise ChatError(
                f"{template.whose} takes tools, but how its model writes calls is not known here: start the server with "
                f"--tool-format, one of {', '.join(sorted(FORMATS))}.",
                "tools",
            )

    def _look_up(self, template: ChatTemplate, text: str) -> _Ways:
        with self._lock:
            if text in self._ways:
                self._ways.move_to_end(text)
                return self._ways[text]
        format = self._format or find_format(text)
        with_tools = "tools" in text and takes_tools(template)
        as_text = "tool_calls" in text and wants_text_arguments(template)
        ways = _Ways(with_tools, format, find_reasoning(text), as_text)
        with self._lock:
            self._ways[text] = ways
            while len(self._ways) > _MOST_KNOWN:
                self._ways.popitem(last=False)
        return ways
