"""The mixed run scores every system as the trainer scores it alone."""

import random

import pytest
import torch

from graft.hub.adapters.packed_attention import PackedAttention
from graft.hub.errors import DataError
from graft.hub.evaluation.metrics import METRICS
from graft.hub.evaluation.task_data import Example
from graft.server.engine.client import EngineClient
from graft.server.engine.engine import Engine
from graft.server.engine.request import Request
from graft.server.evaluation.evaluate import evaluate
from graft.trainer.evaluation.scoring import score_examples

KINDS = ("lora", "houlsby", "prompt", "prefix")


def examples(count=12):
    rng = random.Random(5)
    words = ["red", "green", "blue", "fast", "slow", "old"]
    labels = (" no", " yes", " maybe so")  # one id each way differs last, one earlier
    return [
        Example(" ".join(rng.choices(words, k=rng.randint(2, 9))), rng.choice(labels), labels) for _ in range(count)
    ]


class Noting:
    """A listener that keeps what it is told."""

    def __init__(self):
        self.systems, self.done, self.counts, self.told = 0, [], [], []

    def loaded(self, systems):
        self.systems = systems

    def refused(self, model, why):
        self.told.append(model)

    def scored(self, found):
        self.done.append(found)
        self.told.append(found.model)

    def answered(self, done, total):
        self.counts.append((done, total))


@pytest.mark.parametrize("metric", ["accuracy", "chrf"])
def test_every_system_is_scored_as_if_alone(llama, make_folder, make_forms, metric):
    folders = {kind: make_folder(kind, llama, seed) for seed, kind in enumerate(KINDS)}
    with Engine(llama, folders) as engine:
        found = evaluate(EngineClient(engine), KINDS, examples(), METRICS[metric], noted := Noting())
    assert noted.counts[-1][0] == noted.counts[-1][1] > 0 and noted.systems == 5
    assert noted.done == found.systems and found.seconds >= sum(system.seconds for system in found.systems)
    assert [system.model for system in found.systems] == [None, *KINDS]
    for system in found.systems:
        forms = make_forms(system.model, llama, KINDS.index(system.model)) if system.model else ()
        alone = score_examples(llama, forms, examples(), METRICS[metric], 200)
        assert system.predictions == alone.predictions
        assert system.score == alone.score
        assert (system.p is None) == (system.model is None)


def test_an_adapter_that_can_not_be_served_is_named_and_the_others_go_on(llama, make_folder):
    good, cut = make_folder("lora", llama), make_folder("lora", llama, name="cut")
    weights = cut / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-9])
    with Engine(llama, {"good": good, "cut": cut}) as engine:
        found = evaluate(EngineClient(engine), ["good", "cut"], examples(3), METRICS["accuracy"], noted := Noting())
    assert [system.model for system in found.systems] == [None, "good"]
    assert noted.told[0] == "cut", "a refusal is known before anything is scored"
    assert "cut off" in found.failed["cut"]


def test_an_example_without_room_for_its_prompt_is_named_before_anything_runs(llama):
    crowded = Example("short", " yes", (" yes", " " + "o" * 300))
    noted = Noting()
    with Engine(llama, {}) as engine, pytest.raises(DataError, match=r"Evaluation example 2: .* no room for a prompt"):
        evaluate(EngineClient(engine), [], [*examples(1), crowded], METRICS["accuracy"], noted)
    assert not noted.counts


def test_what_follows_the_prompt_is_scored_for_every_asked_id(llama):
    prompt, asked = tuple(range(5, 15)), (7, 30, 99)
    attention = PackedAttention([len(prompt)], None, llama.device)
    rows = llama.embed(torch.tensor(prompt))
    logits = llama.forward(rows, torch.arange(len(prompt)), attention)[-1].detach()
    with Engine(llama, {}) as engine:
        found = engine.submit(Request(prompt=prompt, max_tokens=0, score_next=asked)).result()
    assert [token.id for token in found.prompt] == list(asked)
    expected = logits.float().log_softmax(-1)[list(asked)].tolist()
    assert [token.logprob for token in found.prompt] == pytest.approx(expected, abs=1e-4)
