"""Data that asks for a token which the base never met is noticed, and what can learn it is said."""

from dataclasses import replace

import pytest
import torch

from graft.trainer import train
from graft.trainer.data.alike_tokens import alike_tokens
from graft.trainer.data.sequences import TokenSequence
from tests.conftest import tiny_base
from tests.trainer.cases import plan

END, OTHERS = 1, [7, 200]  # what every completion ends with; tokens of no meaning


@pytest.fixture(scope="module")
def unmet():
    """A base whose end token has the row of two others, but for rounding; a row behind the vocabulary has it, too."""
    base = tiny_base("llama", seed=5)
    rows = base.model.get_output_embeddings().weight
    with torch.no_grad():
        rows[[*OTHERS, 299]] = rows[END].clone()
        rows[200] *= 1.003
    return base


def alike(base, *sequences):
    return alike_tokens(base.tokenizer, base.model.get_output_embeddings().weight, sequences)


def test_only_added_tokens_that_are_learned_count(unmet, llama):
    learned = TokenSequence((0, 7, 9, END), 1)
    assert alike(unmet, learned) == {"</s>": 2}
    assert alike(unmet, TokenSequence((END, 7, 9), 1)) == alike(llama, learned) == {}


def test_zero_rows_are_alike():
    base = tiny_base("llama", seed=6)
    with torch.no_grad():
        base.model.get_output_embeddings().weight[[END, 9]] = 0
    assert alike(base, TokenSequence((0, END), 1)) == {"</s>": 1}


@pytest.mark.parametrize(
    ("method", "targets", "says"), [("lora", "q_proj,lm_head", False), ("lora", "q_proj", True), ("prefix", None, True)]
)
def test_the_run_says_so_unless_the_output_is_adapted(unmet, data, tmp_path, method, targets, says):
    adapter = plan(data, tmp_path / "out", method)
    if targets:
        adapter = replace(adapter, options={"targets": targets})
    said = []
    train(unmet, [adapter], say=said.append)
    notes = [line for line in said if "can't be learned" in line]
    assert len(notes) == says and all("</s>" in note and "2 other tokens" in note for note in notes)
