"""Scores against the slow way: one label, one token, one sequence at a time."""

import pytest
import torch

from graft.hub.adapters.artifact import load_artifact
from graft.hub.errors import DataError
from graft.hub.evaluation.metrics import METRICS
from graft.hub.evaluation.task_data import Example
from graft.trainer import TrainConfig, train
from graft.trainer.data.packing import Pack
from graft.trainer.data.sequences import TokenSequence
from graft.trainer.evaluation.generation import generate
from graft.trainer.evaluation.scoring import predict_labels, score_examples
from graft.trainer.forward.passes import run_pass, served_forms
from tests.trainer.cases import plan

EXAMPLES = [
    Example("abc", " x", (" x", " yy", " yz", " longer label")),
    Example("what is it?", " yy", (" x", " yy", " yz", " longer label")),
    Example("q", " p", (" p", " pp")),
]


def slow_label(base, forms, example):
    sums = {}
    prompt = base.tokenizer.encode(example.prompt)
    for label in example.labels:
        ids = base.tokenizer.encode(label)
        with (
            torch.no_grad(),
            run_pass(base, Pack(((TokenSequence((*prompt, *ids), len(prompt)),),)), [forms]) as (logits, _),
        ):
            table = logits.log_softmax(-1)
        sums[label] = sum(table[i, id].item() for i, id in enumerate(ids))
    return max(sums, key=sums.get)


@pytest.mark.parametrize("method", ["lora", "prompt", "prefix"])
def test_labels_equal_one_at_a_time(llama, data, tmp_path, method):
    train(llama, [plan(data, tmp_path / "a", method)])
    forms = load_artifact(tmp_path / "a", llama.spec).fold(llama)
    with torch.no_grad():
        batched = predict_labels(llama, served_forms(llama, forms), EXAMPLES, 256)
    assert batched == [slow_label(llama, forms, example) for example in EXAMPLES]
    bare = predict_labels(llama, (), EXAMPLES, 256)
    assert bare == [slow_label(llama, (), example) for example in EXAMPLES]


@pytest.mark.parametrize("method", ["lora", "prefix"])
def test_generation_equals_recomputing_everything(base, tmp_path, data, method):
    train(base, [plan(data, tmp_path / "a", method)])
    with torch.no_grad():
        forms = served_forms(base, load_artifact(tmp_path / "a", base.spec).fold(base))
        prompts = [[5, 6, 7], [9], [11, 12, 13, 14, 15, 16, 17, 18]]
        made = generate(base, forms, prompts, 6, end=-1)
        for prompt, answer in zip(prompts, made, strict=True):
            ids = list(prompt)
            for _ in range(6):
                sequence = TokenSequence((*ids, 0), len(ids))
                with run_pass(base, Pack(((sequence,),)), [forms]) as (logits, _):
                    ids.append(int(logits[-1].argmax()))
            assert answer == ids[len(prompt) :]


def test_generation_ends_at_eos(llama):
    (free,) = generate(llama, (), [[5, 6, 7]], 8, end=-1)
    (ended,) = generate(llama, (), [[5, 6, 7]], 8, end=free[3])
    assert ended == free[: free.index(free[3])]


def test_texts_are_scored_against_the_reference(llama):
    found = score_examples(llama, (), [Example("abc", "xyz"), Example("b", "zz")], METRICS["chrf"], 256)
    assert len(found.values) == len(found.predictions) == 2 and 0 <= found.score.value <= 100
    with pytest.raises(DataError, match='no "labels"'):
        score_examples(llama, (), [Example("abc", "xyz")], METRICS["accuracy"], 256)


def test_a_learned_task_scores_full_marks(llama, data, tmp_path):
    recipe = TrainConfig(steps=80, batch_size=6, learning_rate=2e-2)
    test = tmp_path / "seen.jsonl"
    test.write_text('{"prompt": "ababx??", "completion": " xx", "labels": [" xx", " yy", " zz"]}\n')
    (outcome,) = train(llama, [plan(data, tmp_path / "out", recipe=recipe, eval_data=test)])
    assert outcome.score.value == 1.0
