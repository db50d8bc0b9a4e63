"""Examples as token sequences, each with the tokens that are learned."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from graft.hub.errors import DataError
from graft.hub.evaluation.task_data import Example
from graft.hub.evaluation.tokenization import cut_left, encode, end_of


@dataclass(frozen=True)
class TokenSequence:
    """Token ids, of which those from `answer_start` on are learned."""

    ids: tuple[int, ...]
    answer_start: int

    @property
    def learned(self) -> int:
        return len(self.ids) - self.answer_start


def sequences_of(
    examples: Iterable[Example], tokenizer: Any, limit: int, most: int | None = None
) -> list[TokenSequence]:
    """Examples as sequences of at most `limit` tokens: long prompts lose their beginning, completions stay whole.

    `most`: what the limit could be on this base. Raises DataError for a completion that leaves no room for a single token of its prompt.
    """
    end = end_of(tokenizer)
    made = []
    for number, example in enumerate(examples, start=1):
        prompt, completion = encode(example, tokenizer)
        answer = [*completion, end]
        if len(answer) >= limit:
            raise DataError(
                f"{example.where or f'Example {number}'}: its completion has {len(answer)} tokens, which leaves no room "
                f"for a prompt within {limit}{_advice(limit, most)}"
            )
        prompt = cut_left(prompt, limit - len(answer))
        made.append(TokenSequence((*prompt, *answer), len(prompt)))
    return made


def _advice(limit: int, most: int | None) -> str:
    if most is None or limit < most:
        return f". Shorten it, or raise --max-length{f' (to {most} at most)' if most else ''}."
    return ", all that this base has for a text. Shorten it, or leave the example out."


def without_overlap(examples: list[Example], held_out: Iterable[Example]) -> list[Example]:
    """The training examples whose prompt is not among the evaluation's. Raises DataError when none is left."""
    taken = {example.prompt for example in held_out}
    kept = [example for example in examples if example.prompt not in taken]
    if not kept:
        raise DataError("Every training prompt is in the evaluation data too: there is nothing left to train on.")
    return kept
