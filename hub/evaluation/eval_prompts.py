"""What is asked of a base to score an example, the same in the trainer's evaluation and the server's.

Classification: labels after the prompt, by the sum of their tokens' log-probabilities. Generation: greedy text of a
limited length after the prompt. Torch-free. Knows neither how the answers are computed nor how they are judged.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from graft.hub.chat.conversation import ChatTemplate
from graft.hub.errors import DataError
from graft.hub.evaluation.task_data import Example
from graft.hub.evaluation.tokenization import Tokenizer, answer_of, cut_left, encode_answer, prompt_of

_LONGER = 1.5  # a generation may be so much longer than the longest reference


@dataclass(frozen=True)
class LabelGroup:
    """Labels of one example that differ in their last id only: one sequence tells all of them."""

    prompt: tuple[int, ...]
    before: tuple[int, ...]  # what the labels share after the prompt
    last: dict[str, int]  # label -> its last id

    def ids(self, label: str) -> tuple[int, ...]:
        """All ids of a label."""
        return (*self.before, self.last[label])


def label_groups(
    example: Example, tokenizer: Tokenizer, room: int, where: str, template: ChatTemplate | None = None
) -> list[LabelGroup]:
    """The labels of an example after its prompt, in at most `room` tokens with the EOS that training adds.

    All of them follow the same prompt, cut for the longest. `template`: of messages (None: the base's own). Raises DataError beginning with `where` for an example
    without labels, or whose labels leave no room for a prompt.
    """
    if not example.labels:
        raise DataError(f'{where} has no "labels", which the metric chooses from.')
    encoded = {label: encode_answer(example, label, tokenizer) for label in example.labels}
    if empty := [label for label, ids in encoded.items() if not ids]:
        raise DataError(f"{where}: the label {empty[0]!r} is no token of this base.")
    prompt = _prompt(example, tokenizer, room - 1 - max(map(len, encoded.values())), where, template)
    groups: dict[tuple[int, ...], dict[str, int]] = {}
    for label, ids in encoded.items():
        groups.setdefault(tuple(ids[:-1]), {})[label] = ids[-1]
    return [LabelGroup(prompt, before, last) for before, last in groups.items()]


def text_prompts(
    examples: Sequence[Example], tokenizer: Tokenizer, room: int, template: ChatTemplate | None = None
) -> tuple[list[tuple[int, ...]], int]:
    """The prompt of every example, and the new tokens each may take: half as many again as the longest reference.

    Raises DataError naming an example whose prompt is no token.
    """
    longest = max(
        len(encode_answer(example, answer_of(example, tokenizer, template), tokenizer)) for example in examples
    )
    new_tokens = min(int(longest * _LONGER) + 1, room - 1)
    prompts = [
        _prompt(one, tokenizer, room - new_tokens, one.where or example_name(i), template)
        for i, one in enumerate(examples)
    ]
    return prompts, new_tokens


def text_of(ids: Sequence[int], tokenizer: Tokenizer) -> str:
    """A generation as metrics read it."""
    text = tokenizer.decode(list(ids), skip_special_tokens=True)
    assert isinstance(text, str)  # a list for several texts
    return text


def reference_of(example: Example, tokenizer: Tokenizer, template: ChatTemplate | None = None) -> str:
    """What a generation is compared with, read as generations are: of an answer with calls without its special tokens."""
    answer = answer_of(example, tokenizer, template)
    return text_of(tokenizer.encode(answer, add_special_tokens=False), tokenizer) if example.calls else answer


def example_name(number: int) -> str:
    """How errors call the example at this index."""
    return f"Evaluation example {number + 1}"


def _prompt(
    example: Example, tokenizer: Tokenizer, room: int, where: str, template: ChatTemplate | None
) -> tuple[int, ...]:
    prompt = prompt_of(example, tokenizer, where, template)
    if not prompt:
        raise DataError(f"{where}: its prompt is no token of this base.")
    if room < 1:
        raise DataError(f"{where}: its answer leaves no room for a prompt. Shorten it, or raise the longest length.")
    return tuple(cut_left(prompt, room))
