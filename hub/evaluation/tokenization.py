"""From text to token ids: the one way, in training, in scoring and in serving. Torch-free. Knows no batches."""

import json
from collections.abc import Sequence
from typing import Protocol

from graft.hub.chat.conversation import (
    BaseTemplate,
    ChatTemplate,
    ChatTokenizer,
    Conversation,
    TemplateRefusalError,
)
from graft.hub.chat.template_tools import missing_tool, wants_text_arguments
from graft.hub.chat.turns import ChatTurn, template_turns
from graft.hub.errors import DataError
from graft.hub.evaluation.task_data import Example


class Tokenizer(ChatTokenizer, Protocol):
    """As much of transformers' as is asked for here."""

    @property
    def bos_token_id(self) -> int | None: ...

    @property
    def eos_token_id(self) -> int | None: ...

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]: ...

    def decode(self, token_ids: list[int], *, skip_special_tokens: bool) -> str | list[str]: ...


def encode(example: Example, tokenizer: Tokenizer) -> tuple[list[int], list[int]]:
    """(prompt ids, completion ids), tokenised apart, so that every label of a prompt follows the same ids. Spaces at the
    prompt's end belong to the completion.

    The completion has no end: training adds EOS (`end_of`), a label's score has none. Raises DataError naming the
    example's line.
    """
    return prompt_of(example, tokenizer), encode_answer(example, answer_of(example, tokenizer), tokenizer)


def prompt_of(
    example: Example, tokenizer: Tokenizer, where: str = "", template: ChatTemplate | None = None
) -> list[int]:
    """An example's prompt, without spaces at its end. Raises DataError naming its line, or `where` it stands if the line
    isn't known."""
    try:
        return encode_prompt(_split_spaces(example)[0], tokenizer, template, example.tools)
    except TemplateRefusalError as error:
        raise TemplateRefusalError(f"{example.where or where or 'An example'}: {error}") from None


def answer_of(example: Example, tokenizer: Tokenizer, template: ChatTemplate | None = None) -> str:
    """What is learned as an example's answer: its completion, and where it makes calls what the chat template writes of it, up to
    the EOS. Raises DataError naming the example's line where the template writes it as no answer to the prompt."""
    if not example.calls or isinstance(example.prompt, str):
        return example.completion
    where, own = example.where or "An example", template or BaseTemplate(tokenizer)
    answer = ChatTurn("assistant", example.completion, calls=example.calls)
    try:
        before = own.render(_conversation(example.prompt, own, example.tools))
        whole = own.render(_conversation((*example.prompt, answer), own, example.tools, opens_reply=False))
    except TemplateRefusalError as error:
        raise TemplateRefusalError(f"{where}: {error}") from None
    end = tokenizer.decode([end_of(tokenizer)], skip_special_tokens=False)
    assert isinstance(end, str)  # of one sequence
    written = whole.removeprefix(before)
    text = written.rpartition(end)[0] if end and written.rstrip().endswith(end) else written
    missing = [call.name for call in example.calls if call.name not in text]
    if not whole.startswith(before) or missing:
        raise DataError(
            f"{where}: {own.whose[0].lower()}{own.whose[1:]} does not write this answer's calls behind its prompt. Write the answer "
            f"as text, as the model is to write it, or give another template with --chat-template."
        )
    return text


def _conversation(
    turns: Sequence[ChatTurn], template: ChatTemplate, tools: str, *, opens_reply: bool = True
) -> Conversation:
    """As a server makes it of a request."""
    as_text = any(turn.calls for turn in turns) and wants_text_arguments(template)
    return Conversation(
        template_turns(turns, text_arguments=as_text), json.loads(tools or "[]"), opens_reply=opens_reply
    )


def encode_prompt(
    prompt: str | Sequence[ChatTurn], tokenizer: Tokenizer, template: ChatTemplate | None = None, tools: str = ""
) -> list[int]:
    """A string as it stands, with what the tokenizer itself puts before a text (BOS); messages by the chat template (None: the
    base's own), with `tools` (hub/evaluation/task_data.py: Example).

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
    if template is None and not tokenizer.chat_template:
        raise DataError(
            "The data holds messages, but this base's tokenizer has no chat template. Use plain prompt and "
            "completion strings, or a base that was trained to chat."
        )
    own = template or BaseTemplate(tokenizer)
    text = own.render(_conversation(prompt, own, tools))
    if left_out := missing_tool(text, json.loads(tools or "[]")):
        raise TemplateRefusalError(f"{own.whose} leaves the tool {left_out} out of the prompt.")
    return encode_rendered(text, tokenizer)


def encode_rendered(text: str, tokenizer: Tokenizer) -> list[int]:
    """The ids of a prompt that a chat template made: with the BOS that it wrote, and no other."""
    return tokenizer.encode(text, add_special_tokens=False)


def encode_answer(example: Example, text: str, tokenizer: Tokenizer) -> list[int]:
    """The ids of an answer (a completion, or a label) to an example's prompt, without BOS or EOS.

    Spaces at the prompt's end are part of the answer's first word, as they are where prompt and answer are read as one text
    (by lm-eval and TRL, and in what bases were trained on).
    """
    prompt, spaces = _split_spaces(example)
    if not spaces:
        return encode_completion(text, tokenizer)
    before, whole = encode_prompt(prompt, tokenizer), encode_prompt(f"{prompt}{spaces}{text}", tokenizer)
    joined = whole[: len(before)] == before
    return whole[len(before) :] if joined else encode_completion(f"{spaces}{text}", tokenizer)


def _split_spaces(example: Example) -> tuple[str | tuple[ChatTurn, ...], str]:
    """The prompt, and the spaces at the end of one that is a text."""
    if not isinstance(example.prompt, str) or not (prompt := example.prompt.rstrip(" ")):
        return example.prompt, ""
    return prompt, example.prompt[len(prompt) :]


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
    """A word about text prompts that end in a space; None where there is none.

    Tokenizers put a space into the word after it. It is moved there in training and scoring, and can't be in serving: a prompt
    is served as it is sent.
    """
    spaced = sum(bool(_split_spaces(example)[1]) for example in examples)
    if not spaced:
        return None
    return (
        f"{spaced} of {len(examples)} prompts end in a space. It is read as part of the answer's first word, as lm-eval "
        f"and TRL do, in training and in scoring; a server reads prompts as they are sent, so leave it out there."
    )
