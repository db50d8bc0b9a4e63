"""Which chat template a request goes through: its own, else its adapter's, else the base's."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from graft.hub.chat.conversation import BaseTemplate, ChatTemplate, Conversation
from graft.hub.chat.words import AdapterWords
from graft.server.chat.template_workers import TemplateWorkers

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_ADAPTERS, _REQUESTS = 8, 2  # processes that render strangers' templates


class ForeignTemplate:
    """A stranger's template on a base's tokens (hub/chat/conversation.py: ChatTemplate)."""

    def __init__(self, text: str, whose: str, special_tokens: Mapping[str, object], workers: TemplateWorkers):
        self.whose = whose
        self._text = text
        self._special_tokens = special_tokens
        self._workers = workers

    def text(self, *, with_tools: bool) -> str:
        return self._text

    def render(self, conversation: Conversation) -> str:
        return self._workers.render(self._text, self.whose, self._special_tokens, conversation)


class ChatTemplates:
    """Of one base. Safe for many threads."""

    def __init__(self, tokenizer: "PreTrainedTokenizerBase"):
        self._tokenizer = tokenizer
        self._base = BaseTemplate(tokenizer)
        self._adapters = TemplateWorkers(_ADAPTERS)
        self._requests = TemplateWorkers(_REQUESTS)

    def choose(self, words: AdapterWords, asked: str = "") -> ChatTemplate | None:
        """For an adapter with such words; `asked`: the request's own, "" for none. None where there is none at all."""
        own, tokens = self._base.text(with_tools=False), self._tokenizer.special_tokens_map
        if asked:
            return ForeignTemplate(asked, "The request's chat template", tokens, self._requests)
        if words.template and words.template != own:
            return ForeignTemplate(words.template, "The adapter's chat template", tokens, self._adapters)
        return self._base if own else None
