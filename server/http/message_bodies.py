"""Messages and tools as OpenAI's chat completions send them. Fields that nobody here knows are left aside."""

from typing import Annotated, Literal

from pydantic import BeforeValidator, ConfigDict, Discriminator, Field, Tag, model_validator

from graft.hub.chat.turns import ChatTurn, PastCall, Tool
from graft.hub.request_body import Body
from graft.server.chat.request import ToolUse
from graft.server.http.field_types import BadField, Text
from graft.server.http.request_fields import MESSAGE_NEUTRAL, find_refused

MAX_TOOLS = 128
MAX_MESSAGES = 10_000  # each costs 30 us to check, in which the interpreter is nobody else's
ToolName = Annotated[str, Field(pattern=r"^[a-zA-Z0-9_.:/-]{1,128}$")]


class _Part(Body):
    model_config = ConfigDict(extra="ignore")


def _require_text(type: object) -> object:
    if type != "text":
        raise ValueError(f"this server reads parts of the type 'text' only, not {type!r:.100}")
    return type


class TextPart(_Part):
    """A part of a message's content."""

    type: Annotated[Literal["text"], BeforeValidator(_require_text)]
    text: Text


class PastFunction(_Part):
    """What an earlier answer called."""

    name: Text = Field(min_length=1)
    arguments: Annotated[
        Annotated[Text, Tag("(text)")] | Annotated[dict[str, object], Tag("(object)")],
        Discriminator(lambda given: "(object)" if isinstance(given, dict) else "(text)"),
    ] = "{}"


class PastCallBody(_Part):
    """A call that an earlier answer made."""

    id: Text = ""
    type: Literal["function"] = "function"
    function: PastFunction


class MessageBody(_Part):
    """One turn. `content` may come in parts of text, which are put together."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Annotated[
        Annotated[Text, Tag("(text)")] | Annotated[list[TextPart], Tag("(parts)")],
        Discriminator(lambda given: "(parts)" if isinstance(given, list) else "(text)"),
    ] = ""
    name: Text | None = None
    tool_calls: list[PastCallBody] = Field(default_factory=list)
    tool_call_id: Text | None = None
    reasoning_content: Text | None = None
    reasoning: Text | None = Field(None, description="Another name for reasoning_content.")

    @model_validator(mode="before")
    @classmethod
    def _refuse_unhonoured(cls, given: object) -> object:
        """Refuse by name what would change the prompt. What an earlier answer carries besides says nothing here."""
        if isinstance(given, dict) and (key := find_refused(given, MESSAGE_NEUTRAL)):
            raise ValueError(f"{key} is not supported here: leave it out")
        return given

    def as_turn(self) -> ChatTurn:
        text = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        calls = [PastCall(call.id, call.function.name, call.function.arguments) for call in self.tool_calls]
        reasoning = self.reasoning if self.reasoning_content is None else self.reasoning_content
        return ChatTurn(self.role, text, self.name, reasoning, tuple(calls), self.tool_call_id)


class FunctionBody(_Part):
    """A function that the model may call."""

    name: ToolName
    description: Text | None = None
    parameters: dict[str, object] | None = Field(None, description="A JSON schema of the arguments.")
    strict: bool = Field(False, description="Calls fit the schema, where the model's way of calling can be held to it.")


class ToolBody(_Part):
    """A tool."""

    type: Literal["function"]
    function: FunctionBody

    def as_tool(self) -> Tool:
        one = self.function
        return Tool(one.name, one.description, one.parameters, one.strict)


class NamedFunction(_Part):
    name: Text


class NamedTool(_Part):
    """The one tool that has to be called."""

    type: Literal["function"]
    function: NamedFunction


ToolChoice = Annotated[
    Annotated[Literal["none", "auto", "required"], Tag("(word)")] | Annotated[NamedTool, Tag("(named)")],
    Discriminator(lambda given: "(named)" if isinstance(given, (dict, NamedTool)) else "(word)"),
]


def tool_use(tools: list[ToolBody], choice: "str | NamedTool", parallel: bool) -> ToolUse:
    """Raises BadField where tools and choice don't agree."""
    offered = tuple(tool.as_tool() for tool in tools)
    names = [tool.name for tool in offered]
    named = choice.function.name if isinstance(choice, NamedTool) else None
    if (required := choice == "required" or named is not None) and not offered:
        raise BadField("tool_choice asks for a call, and there are no tools to call.", "tool_choice")
    if named is not None and named not in names:
        raise BadField(f"tool_choice names {named!r}, which is none of the tools: {', '.join(names)}.", "tool_choice")
    if len(set(names)) != len(names):
        raise BadField("Two tools have the same name.", "tools")
    return ToolUse(() if choice == "none" else offered, required, named, parallel)
