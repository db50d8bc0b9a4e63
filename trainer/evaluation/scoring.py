"""How good an adapter is on examples: the most probable label, or greedy text against the reference.

Adapters are scored as they are served (soft prompts as cache rows), in packed batches. Knows nothing of files.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from graft.hub.adapters.serving_forms import Form
from graft.hub.base.model import Base
from graft.hub.evaluation.eval_prompts import (
    LabelGroup,
    example_name,
    label_groups,
    reference_of,
    text_of,
    text_prompts,
)
from graft.hub.evaluation.metrics import Metric, Score, score
from graft.hub.evaluation.task_data import Example
from graft.hub.evaluation.tokenization import end_of
from graft.trainer.data.packing import Pack
from graft.trainer.data.sequences import TokenSequence
from graft.trainer.evaluation.generation import generate
from graft.trainer.forward.passes import run_pass, served_forms

_ROWS = 2048  # of one pass: forwards without gradients need little memory, and larger passes are not faster


@dataclass(frozen=True)
class Scored:
    """A score and what it is made of, example by example."""

    score: Score
    values: list[float]
    predictions: list[str]


def score_examples(base: Base, forms: tuple[Form, ...], examples: list[Example], metric: Metric, limit: int) -> Scored:
    """Score an adapter (`()`: the bare base) with sequences of at most `limit` tokens.

    Raises DataError naming an example that lacks labels the metric needs, or has no room for its prompt.
    """
    with torch.no_grad():
        forms = served_forms(base, forms)
        predict = {"labels": predict_labels, "text": predict_texts}[metric.answers]
        predictions = predict(base, forms, examples, limit)
    assert base.tokenizer is not None  # examples are text
    values = metric.values(predictions, [reference_of(example, base.tokenizer) for example in examples])
    return Scored(score(metric, values), values, predictions)


def predict_labels(base: Base, forms: tuple[Form, ...], examples: list[Example], limit: int) -> list[str]:
    """The label with the largest sum of token log-probabilities after the prompt."""
    assert base.tokenizer is not None  # examples are text
    jobs = [
        _LabelJob(index, group)
        for index, example in enumerate(examples)
        for group in label_groups(example, base.tokenizer, limit, example.where or example_name(index))
    ]
    jobs.sort(key=lambda job: len(job.sequence.ids))
    sums: list[dict[str, float]] = [{} for _ in examples]
    for batch in _batch(jobs):
        pack = Pack((tuple(job.sequence for job in batch),))
        with run_pass(base, pack, [forms]) as (logits, _):
            table = logits.float().log_softmax(dim=-1)
        for job, rows in zip(batch, table.split([job.sequence.learned for job in batch]), strict=True):
            for label in job.group.last:
                sums[job.example][label] = _total(rows, job.group.ids(label))
    return [max(by_label, key=by_label.__getitem__) for by_label in sums]


def check_scorable(base: Base, examples: list[Example], metric: Metric, limit: int) -> None:
    """Raises DataError for the example that `score_examples` would refuse: to be known before the training."""
    assert base.tokenizer is not None
    if metric.answers == "text":
        text_prompts(examples, base.tokenizer, limit)
    else:
        for index, example in enumerate(examples):
            label_groups(example, base.tokenizer, limit, example.where or example_name(index))


@dataclass(frozen=True)
class _LabelJob:
    """A group of labels of one example, and the sequence that tells them all: it ends in any of the last ids."""

    example: int
    group: LabelGroup

    @cached_property
    def sequence(self) -> TokenSequence:
        prompt = self.group.prompt
        return TokenSequence((*prompt, *self.group.ids(next(iter(self.group.last)))), len(prompt))


def _total(rows: Tensor, ids: tuple[int, ...]) -> float:
    return float(rows[torch.arange(len(ids)), torch.tensor(ids)].sum())


def predict_texts(base: Base, forms: tuple[Form, ...], examples: list[Example], limit: int) -> list[str]:
    """Greedy completions up to EOS."""
    assert base.tokenizer is not None
    prompts, new_tokens = text_prompts(examples, base.tokenizer, limit)
    made = generate(base, forms, prompts, new_tokens, end_of(base.tokenizer))
    return [text_of(ids, base.tokenizer) for ids in made]


def _batch(jobs: Sequence[_LabelJob]) -> list[list[_LabelJob]]:
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
