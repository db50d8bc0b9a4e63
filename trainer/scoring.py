"""How good an adapter is on examples: the most probable label, or greedy text against the reference.

Adapters are scored as they are served (soft prompts as cache rows), in packed batches. Knows nothing of files.
"""

from collections.abc import Sequence as Listed
from dataclasses import dataclass

import torch
from torch import Tensor

from graft.hub.base import Base
from graft.hub.errors import DataError
from graft.hub.examples import Example, cut_left, encode_completion, encode_prompt, end_of
from graft.hub.forms import Form
from graft.hub.metrics import Metric, Score, score
from graft.trainer.data import Pack, Sequence
from graft.trainer.generation import generate
from graft.trainer.passes import running, served

_ROWS = 2048  # of one pass: forwards without gradients need little memory, and larger passes are not faster
_LONGER = 1.5  # a generation may be so much longer than the longest reference


@dataclass(frozen=True)
class Scored:
    """A score and what it is made of, example by example."""

    score: Score
    values: list[float]
    predictions: list[str]


def score_examples(base: Base, forms: tuple[Form, ...], examples: list[Example], metric: Metric, limit: int) -> Scored:
    """Score an adapter (`()`: the bare base) with sequences of at most `limit` tokens.

    Raises DataError where the metric needs labels and an example has none.
    """
    with torch.no_grad():
        forms = served(base, forms)
        predict = {"labels": predict_labels, "text": predict_texts}[metric.answers]
        predictions = predict(base, forms, examples, limit)
    values = metric.values(predictions, [example.completion for example in examples])
    return Scored(score(metric, values), values, predictions)


def predict_labels(base: Base, forms: tuple[Form, ...], examples: list[Example], limit: int) -> list[str]:
    """The label with the largest sum of token log-probabilities after the prompt."""
    for number, example in enumerate(examples, start=1):
        if not example.labels:
            raise DataError(f'Evaluation example {number} has no "labels", which the metric accuracy chooses from.')
    jobs = [job for i, example in enumerate(examples) for job in _label_jobs(i, example, base.tokenizer, limit)]
    jobs.sort(key=lambda job: len(job.sequence.ids))
    sums: list[dict[str, float]] = [{} for _ in examples]
    for batch in _batched(jobs):
        pack = Pack((tuple(job.sequence for job in batch),))
        with running(base, pack, [forms]) as (logits, _):
            table = logits.float().log_softmax(dim=-1)
        for job, rows in zip(batch, table.split([job.sequence.learned for job in batch]), strict=True):
            for label, ids in job.labels.items():
                sums[job.example][label] = _total(rows, ids)
    return [max(found, key=found.get) for found in sums]


@dataclass(frozen=True)
class _LabelJob:
    """Labels of one example that differ in their last token only: one sequence tells all of them."""

    example: int
    sequence: Sequence
    labels: dict[str, list[int]]


def _label_jobs(index: int, example: Example, tokenizer, limit: int) -> list[_LabelJob]:
    encoded = {label: encode_completion(label, tokenizer) for label in example.labels}
    groups: dict[tuple[int, ...], dict[str, list[int]]] = {}
    for label, ids in encoded.items():
        groups.setdefault(tuple(ids[:-1]), {})[label] = ids
    # all labels of an example follow the same prompt, cut for the longest and for the EOS that training adds
    prompt = cut_left(encode_prompt(example.prompt, tokenizer), limit - 1 - max(map(len, encoded.values())))
    if not prompt:
        raise DataError(f"Evaluation example {index + 1}: its labels leave no room for a prompt within {limit} tokens.")
    jobs = []
    for labels in groups.values():
        first = next(iter(labels.values()))
        jobs.append(_LabelJob(index, Sequence((*prompt, *first), len(prompt)), labels))
    return jobs


def _total(rows: Tensor, ids: list[int]) -> float:
    return float(rows[torch.arange(len(ids)), torch.tensor(ids)].sum())


def predict_texts(base: Base, forms: tuple[Form, ...], examples: list[Example], limit: int) -> list[str]:
    """Greedy completions up to EOS, at most half as long again as the longest reference."""
    tokenizer = base.tokenizer
    longest = max(len(encode_completion(example.completion, tokenizer)) for example in examples)
    new_tokens = min(int(longest * _LONGER) + 1, limit - 1)
    prompts = [cut_left(encode_prompt(example.prompt, tokenizer), limit - new_tokens) for example in examples]
    made = generate(base, forms, prompts, new_tokens, end_of(tokenizer))
    return [tokenizer.decode(ids, skip_special_tokens=True) for ids in made]


def _batched(jobs: Listed[_LabelJob]) -> list[list[_LabelJob]]:
    """Batches of at most _ROWS rows, at least one sequence each."""
    made: list[list[_LabelJob]] = []
    rows = _ROWS
    for job in jobs:
        need = len(job.sequence.ids) - 1
        if not made or rows + need > _ROWS:
            made.append([])
            rows = 0
        made[-1].append(job)
        rows += need
    return made
