"""An adapter's own words: how the texts that it was trained on were made tokens."""

from collections.abc import Sequence

from graft.hub.base.model import Base
from graft.hub.chat.conversation import BaseTemplate
from graft.hub.chat.words import AdapterWords, GenerationDefaults
from graft.hub.evaluation.task_data import Example
from graft.hub.evaluation.tokenization import end_of


def words_of_training(base: Base, examples: Sequence[Example], defaults: GenerationDefaults) -> AdapterWords:
    """The chat template where there were messages, the token that ended completions, and the `defaults` that were asked for."""
    assert base.tokenizer is not None  # it was trained on text
    chats = any(not isinstance(example.prompt, str) for example in examples)
    tools = any(example.tools for example in examples)
    template = BaseTemplate(base.tokenizer).text(with_tools=tools) if chats else None
    return AdapterWords(template=template, stop_ids=(end_of(base.tokenizer),), defaults=defaults)
