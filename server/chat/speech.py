"""How requests for one adapter become tokens: the base's ways with text, and the adapter's own words."""

from collections.abc import Iterable
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING

from graft.hub.chat.conversation import ChatTemplate
from graft.hub.chat.words import NO_WORDS, AdapterWords
from graft.hub.errors import GraftError
from graft.server.chat.chat_templates import ChatTemplates
from graft.server.chat.detokenizer import SpecialTokens
from graft.server.chat.prompts import ChatPrompts
from graft.server.engine.client import EngineClient
from graft.server.errors import TooLongError
from graft.server.interest import Interest
from graft.server.operations.patience import Patience

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class TextLimit:
    """Finds texts that are too long for any context before they are tokenized: that takes hundreds of bytes and a microsecond for
    each of their characters, and a template or a body may hold millions.

    `vocabulary`: a base's tokens as text, none of which stands for more characters than it has.
    """

    def __init__(self, vocabulary: Iterable[str], max_model_len: int):
        self._max_model_len = max_model_len
        self._most_chars = max_model_len * max(map(len, vocabulary), default=1)

    def check(self, text: str, param: str) -> None:
        """Raises TooLongError for a text that no number of tokens within the context can stand for."""
        if len(text) > self._most_chars:
            raise TooLongError(
                f"This model's maximum context length is {self._max_model_len} tokens; the prompt is too long: it has {len(text)} "
                "characters, which are more tokens than that.",
                param,
            )


@dataclass(frozen=True)
class Speech:
    """How an adapter's requests become tokens: the base's ways, and its own words. `template`: None where there is none."""

    engine: EngineClient
    base_name: str
    special: SpecialTokens
    prompts: ChatPrompts
    limit: TextLimit
    words: AdapterWords
    template: ChatTemplate | None

    @property
    def tokenizer(self) -> "PreTrainedTokenizerBase":
        """The base's."""
        tokenizer = self.engine.base.tokenizer
        assert tokenizer is not None  # Speeches
        return tokenizer

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """The adapter's own ends."""
        return own_ends(self.words, self.special, self.engine.base.spec.vocab_size)


class Speeches:
    """Makes them. Safe for many threads. `tool_format`: how calls of tools are written, whatever the chat template says."""

    def __init__(self, engine: EngineClient, base_name: str, tool_format: str | None):
        tokenizer = engine.base.tokenizer
        assert tokenizer is not None  # text comes in and goes out
        self._engine = engine
        self._base_name = base_name
        self.special = SpecialTokens(tokenizer)
        self.limit = TextLimit(tokenizer.get_vocab(), engine.base.max_model_len)
        self._prompts = ChatPrompts(tool_format, self.special.holds)
        self._templates = ChatTemplates(tokenizer)

    def speech(self, model: str, chat_template: str, client: str, patience: Patience) -> Speech:
        """For a request; waits until its adapter is in host memory. `chat_template`: the request's own, "" for none.

        Raises the GraftError that a request for the adapter would get, or what `patience` ends with.
        """
        words = NO_WORDS if model == self._base_name else _await_words(self._engine, model, client, patience)
        template = self._templates.choose(words, chat_template)
        return Speech(self._engine, self._base_name, self.special, self._prompts, self.limit, words, template)


def _await_words(engine: EngineClient, model: str, client: str, patience: Patience) -> AdapterWords:
    """An adapter's own words, once it is in host memory. Raises the GraftError that a request for it would get, or what `patience`
    ends with."""
    answers: SimpleQueue[AdapterWords | GraftError] = SimpleQueue()
    interest = Interest()
    engine.ask_words(model, client, answers.put, interest)
    try:
        answer = _take(answers, engine, patience)
    finally:
        interest.end()
    if isinstance(answer, GraftError):
        raise answer
    return answer


def _take(
    answers: SimpleQueue[AdapterWords | GraftError], engine: EngineClient, patience: Patience
) -> AdapterWords | GraftError:
    """The answer, once it is there. Raises what `patience` ends with, or why the engine serves nobody any more."""
    wait_s = 0.0
    while True:
        try:
            return answers.get(timeout=wait_s)
        except Empty:
            wait_s = patience.look(elsewhere=True)
            if (reason := engine.health()) is not None:  # a load that waits for a network is left to itself then
                raise reason from None


def own_ends(words: AdapterWords, tokens: SpecialTokens, vocabulary: int) -> tuple[int, ...]:
    """Ids that end an adapter's answers by its own words, as far as the base has such tokens."""
    ids = (*words.stop_ids, *map(tokens.token, words.stop_tokens))
    return tuple(id for id in ids if id is not None and id < vocabulary)
