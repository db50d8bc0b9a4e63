"""A conversation as clients ask for it, whatever dialect they speak: its turns, and which of its tools may be called."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from graft.hub.chat.turns import ChatTurn, Tool
from graft.server.errors import RequestError
from graft.server.structured.constraint import Constraint


class ChatError(RequestError):
    """A part of a conversation that can't be used. `param` names it, as OpenAI's API calls it."""

    def __init__(self, message: str, param: str):
        super().__init__(message)
        self.param = param


@dataclass(frozen=True)
class ToolUse:
    """`required`: an answer must be a call. `named`: of this tool. `parallel`: it may be several."""

    tools: tuple[Tool, ...] = ()
    required: bool = False
    named: str | None = None
    parallel: bool = True

    @property
    def strict(self) -> bool:
        """Whether arguments of any tool must fit its schema."""
        return any(tool.strict for tool in self.tools)

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
