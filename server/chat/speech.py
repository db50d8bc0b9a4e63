"""How requests for one adapter become tokens: the base's ways with text, and the adapter's own words."""

from collections.abc import Callable
from dataclasses import dataclass
from queue import Empty, SimpleQueue

from graft.hub.chat.conversation import BaseTemplate, ChatTemplate
from graft.hub.chat.words import NO_WORDS, AdapterWords
from graft.hub.errors import GraftError
from graft.server.chat.detokenizer import SpecialTokens
from graft.server.chat.prompts import ChatPrompts
from graft.server.chat.template_workers import ForeignTemplate, TemplateWorkers
from graft.server.engine.client import EngineClient

LOOK_S = 0.5  # how often a silent client is looked after while nothing comes
_ADAPTERS_TEMPLATES, _REQUESTS_TEMPLATES = 8, 2  # processes that render strangers' chat templates


class Disconnected(Exception):
    """The client has gone; nobody reads the answer."""


@dataclass(frozen=True)
class Speech:
    """How an adapter's requests become tokens: the base's ways, and its own words. `template`: None where there is none."""

    engine: EngineClient
    base_name: str
    special: SpecialTokens
    prompts: ChatPrompts
    words: AdapterWords
    template: ChatTemplate | None

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """The adapter's own ends, as far as the base has such tokens."""
        ids = (*self.words.stop_ids, *map(self.special.token, self.words.stop_tokens))
        return tuple(id for id in ids if id is not None and id < self.engine.base.spec.vocab_size)


class Speeches:
    """Makes them. Safe for many threads. `tool_format`: how calls of tools are written, whatever the chat template says."""

    def __init__(self, engine: EngineClient, base_name: str, tool_format: str | None):
        tokenizer = engine.base.tokenizer
        assert tokenizer is not None  # text comes in and goes out
        self._engine = engine
        self._base_name = base_name
        self._tokenizer = tokenizer
        self._base_template = BaseTemplate(tokenizer)
        self.special = SpecialTokens(tokenizer)
        self._prompts = ChatPrompts(tool_format, self.special.holds)
        self._adapters_workers = TemplateWorkers(_ADAPTERS_TEMPLATES)
        self._requests_workers = TemplateWorkers(_REQUESTS_TEMPLATES)

    def speech(self, model: str, chat_template: str, client: str, gone: Callable[[], bool]) -> Speech:
        """For a request; waits until its adapter is in host memory. `chat_template`: the request's own, "" for none.

        Raises the GraftError that a request for the adapter would get, or Disconnected.
        """
        words = NO_WORDS if model == self._base_name else _await_words(self._engine, model, client, gone)
        template = self._template(words, chat_template)
        return Speech(self._engine, self._base_name, self.special, self._prompts, words, template)

    def _template(self, words: AdapterWords, asked: str) -> ChatTemplate | None:
        """The request's, else the adapter's, else the base's."""
        own = self._base_template.text(with_tools=False)
        if asked:
            return self._foreign(asked, "The request's chat template", self._requests_workers)
        if words.template and words.template != own:
            return self._foreign(words.template, "The adapter's chat template", self._adapters_workers)
        return self._base_template if own else None

    def _foreign(self, text: str, whose: str, workers: TemplateWorkers) -> ForeignTemplate:
        return ForeignTemplate(text, whose, self._tokenizer.special_tokens_map, workers)


def _await_words(engine: EngineClient, model: str, client: str, gone: Callable[[], bool]) -> AdapterWords:
    """An adapter's own words, once it is in host memory. Raises the GraftError that a request for it would get, or
    Disconnected."""
    answers: SimpleQueue[AdapterWords | GraftError] = SimpleQueue()
    engine.ask_words(model, client, answers.put)
    while not gone():
        try:
            answer = answers.get(timeout=LOOK_S)
        except Empty:
            continue
        if isinstance(answer, GraftError):
            raise answer
        return answer
    raise Disconnected
