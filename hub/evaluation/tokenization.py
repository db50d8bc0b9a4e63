"""From text to token ids: the one way, in training, in scoring and in serving. Torch-free. Knows no batches."""

from collections.abc import Sequence
from typing import Protocol

from graft.hub.chat.conversation import BaseTemplate, ChatTokenizer, Conversation, TemplateRefusalError
from graft.hub.errors import DataError
from graft.hub.evaluation.task_data import Example, Message


class Tokenizer(ChatTokenizer, Protocol):
    """As much of transformers' as is asked for here."""

    @property
    def bos_token_id(self) -> int | None: ...

    @property
    def eos_token_id(self) -> int | None: ...

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]: ...

    def decode(self, token_ids: list[int], *, skip_special_tokens: bool) -> str | list[str]: ...


def encode(example: Example, tokenizer: Tokenizer) -> tuple[list[int], list[int]]:
    """(prompt ids, completion ids), tokenised apart, so that every label of a prompt follows the same ids.

    The completion has no end: training adds EOS (`end_of`), a label's score has none. Raises DataError naming the
    example's line.
    """
    return prompt_of(example, tokenizer), encode_completion(example.completion, tokenizer)


def prompt_of(example: Example, tokenizer: Tokenizer, where: str = "") -> list[int]:
    """An example's prompt. Raises DataError naming its line, or `where` it stands if the line isn't known."""
    try:
        return encode_prompt(example.prompt, tokenizer)
    except TemplateRefusalError as error:
        raise TemplateRefusalError(f"{example.where or where or 'An example'}: {error}") from None


def encode_prompt(prompt: str | Sequence[Message], tokenizer: Tokenizer) -> list[int]:
    """A string as it stands, with what the tokenizer itself puts before a text (BOS); messages by the chat template.

    A text that begins with BOS already gets no second one. Raises DataError for a base without a chat template,
    TemplateRefusalError with the template's own words.
    """
    if isinstance(prompt, str):
        ids = tokenizer.encode(prompt, add_special_tokens=True)
        if tokenizer.bos_token_id is not None and ids[:2] == [tokenizer.bos_token_id] * 2:
            bare = tokenizer.encode(prompt, add_special_tokens=False)
            ids = ids[1:] if ids[1 : 1 + len(bare)] == bare else ids  # the text's own stay as they are
        # A few tokenizers also close a text with EOS; a prompt goes on.
        return ids[:-1] if len(ids) > 1 and ids[-1] == tokenizer.eos_token_id else ids
    if not tokenizer.chat_template:
        raise DataError(
            "The data holds messages, but this base's tokenizer has no chat template. Use plain prompt and "
            "completion strings, or a base that was trained to chat."
        )
    turns = [{"role": message.role, "content": message.content} for message in prompt]
    return encode_rendered(BaseTemplate(tokenizer).render(Conversation(turns)), tokenizer)


def encode_rendered(text: str, tokenizer: Tokenizer) -> list[int]:
    """The ids of a prompt that a chat template made: with the BOS that it wrote, and no other."""
    return tokenizer.encode(text, add_special_tokens=False)


def encode_completion(text: str, tokenizer: Tokenizer) -> list[int]:
    """A completion's (or a label's) ids, without BOS or EOS."""
    return tokenizer.encode(text, add_special_tokens=False)


def end_of(tokenizer: Tokenizer) -> int:
    """The id that ends a completion. Raises DataError for a tokenizer without one."""
    if tokenizer.eos_token_id is None:
        raise DataError("This base's tokenizer has no EOS token, so a completion could never end. Set one first.")
    return tokenizer.eos_token_id


def cut_left(prompt_ids: Sequence[int], room: int) -> list[int]:
    """The last `room` ids of a prompt: what is next to the completion stays."""
    return list(prompt_ids[max(0, len(prompt_ids) - room) :])


def spaces_at_the_join(examples: Sequence[Example]) -> str | None:
    """A word about text prompts that end in a space where the answers begin with none; None where there is none.

    Tokenizers put a space into the word after it, so such an answer is judged as it is seldom written. It is not moved on
    its own: a prompt is served as it is sent.
    """
    spaced_examples = [
        example
        for example in examples
        if isinstance(example.prompt, str)
        and example.prompt.endswith(" ")
        and not any(text[:1].isspace() for text in (example.completion, *example.labels))
    ]
    if not spaced_examples:
        return None
    return (
        f"{len(spaced_examples)} of {len(examples)} prompts end in a space, which stays a token of its own; read as "
        f"one text (as lm-eval scores it), it would be part of the answer's first word. Take it off the prompts, and "
        f"put it before completions and labels, in training and in use alike."
    )
