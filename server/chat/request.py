"""A conversation as clients ask for it, whatever dialect they speak: turns, tools, which of them may be called."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from graft.server.errors import RequestError
from graft.server.structured.constraint import Constraint


class ChatError(RequestError):
    """A part of a conversation that can't be used. `param` names it, as OpenAI's API calls it."""

    def __init__(self, message: str, param: str):
        super().__init__(message)
        self.param = param


@dataclass(frozen=True)
class PastCall:
    """A call that an earlier answer made. `arguments`: JSON text, or what it stands for."""

    id: str
    name: str
    arguments: str | Mapping[str, object]


@dataclass(frozen=True)
class ChatTurn:
    """A message. `call_id`: whose result it is, in a turn of the role "tool"."""

    role: str
    text: str = ""
    name: str | None = None
    reasoning: str | None = None
    calls: tuple[PastCall, ...] = ()
    call_id: str | None = None


@dataclass(frozen=True)
class Tool:
    """A function that the model may ask for. `parameters`: a JSON schema of its arguments. `strict`: they must fit it."""

    name: str
    description: str | None = None
    parameters: Mapping[str, object] | None = None
    strict: bool = False

    def as_sent(self) -> dict[str, object]:
        """In OpenAI's shape, which templates take."""
        rest = {"description": self.description, "parameters": self.parameters}
        given = {key: value for key, value in rest.items() if value is not None}
        return {"type": "function", "function": {"name": self.name, **given}}


@dataclass(frozen=True)
class ToolUse:
    """`required`: an answer must be a call. `named`: of this tool. `parallel`: it may be several."""

    tools: tuple[Tool, ...] = ()
    required: bool = False
    named: str | None = None
    parallel: bool = True

    @property
    def callable(self) -> tuple[Tool, ...]:
        """The tools that an answer may call."""
        return tuple(tool for tool in self.tools if self.named in (None, tool.name))


@dataclass(frozen=True)
class ChatRequest:
    """What is asked. `variables`: the template's own switches. `opens_reply`, `continues`: where the prompt ends
    (hub/chat/conversation.py). `answer`: what an answer must be that is no call."""

    turns: tuple[ChatTurn, ...]
    use: ToolUse = field(default_factory=ToolUse)
    variables: Mapping[str, object] = field(default_factory=dict)
    opens_reply: bool = True
    continues: bool = False
    answer: Constraint | None = None
