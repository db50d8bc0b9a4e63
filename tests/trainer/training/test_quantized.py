"""`--quantize`: an adapter learns on a quantised base, and belongs to the whole one."""

import sys

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from graft.hub.adapters.artifact import load_artifact
from graft.hub.adapters.packed_attention import PackedAttention
from graft.hub.adapters.probe import ProofOutcome
from graft.hub.base.manifest import record
from graft.hub.base.model import Base, load_base
from graft.hub.errors import BaseModelError, GraftError
from graft.server.engine.engine import Engine
from graft.server.engine.request import Request
from graft.trainer import RunConfig, TrainConfig, train
from tests.conftest import FAMILIES, tiny_tokenizer
from tests.trainer.cases import plan
from tests.trainer.commands.test_commands import FAST, graft


@pytest.fixture(scope="module")
def wide_folder(tmp_path_factory):
    """Quantised by blocks of 64 numbers in a row: the usual tiny base is too narrow for the kernels."""
    folder = tmp_path_factory.mktemp("wide")
    torch.manual_seed(0)
    sizes = FAMILIES["llama"] | {"hidden_size": 128, "intermediate_size": 256}
    base = Base(AutoModelForCausalLM.from_config(AutoConfig.for_model(**sizes)).float(), tiny_tokenizer(), "test/wide")
    base.model.save_pretrained(folder)
    base.tokenizer.save_pretrained(folder)
    record(folder, base.spec)
    return folder


def logits_of(base, ids=tuple(range(5, 25))):
    rows = base.embed(torch.tensor(ids))
    attention = PackedAttention([len(ids)], None, base.device)
    with torch.no_grad():
        return base.forward(rows, torch.arange(len(ids)), attention)


def test_the_quantised_base_is_the_base_with_rounded_weights(wide_folder):
    bitsandbytes = pytest.importorskip("bitsandbytes")
    whole, small = (load_base(wide_folder, dtype="float32", device="cpu", quantize=q) for q in (None, "4bit"))
    assert small.quantized and not whole.quantized and small.spec == whole.spec
    assert (logits_of(whole) - logits_of(small)).abs().max() > 1e-3
    with torch.no_grad():
        for name, module in small.model.named_modules():
            if isinstance(module, bitsandbytes.nn.Linear4bit):
                rounded = bitsandbytes.functional.dequantize_4bit(module.weight.data, module.weight.quant_state)
                whole.model.get_submodule(name).weight.copy_(rounded)
    torch.testing.assert_close(logits_of(small), logits_of(whole), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["4bit", "8bit"])
@pytest.mark.parametrize("method", ["lora", "prefix"])
def test_an_adapter_learns_on_it_and_loads_on_the_whole_base(wide_folder, data, tmp_path, method, kind):
    pytest.importorskip("bitsandbytes")
    base = load_base(wide_folder, dtype="float32", device="cpu", quantize=kind)
    losses = []

    class Watch:
        def stepped(self, learner, seconds):
            losses.append(learner.progress.history[-1]["loss"])

        def evaluated(self, learner, score): ...

        def round_ended(self, learners): ...

    adapter = plan(data, tmp_path / "out", method, recipe=TrainConfig(steps=30, batch_size=6, learning_rate=5e-2))
    logits_of(base)  # a pass without gradients first, as evaluations on the way make them
    (outcome,) = train(base, [adapter], watchers=[Watch()])
    assert losses[-1] < 0.9 * losses[0]
    whole = load_base(wide_folder, dtype="float32", device="cpu")
    artifact = load_artifact(outcome.folder, whole.spec)
    assert artifact.fold(whole) and artifact.provenance["base"]["quantized"]
    with Engine(
        whole, {"a": outcome.folder}
    ) as engine:  # what it does on the stored base was written down all the same
        engine.generate([Request((5, 6, 7), "a")])
        assert engine.loader.snapshot()[0].case.verdict.outcome is ProofOutcome.PROVEN


def test_what_needs_the_weights_is_refused(base_folder, data, tmp_path):
    flags = ["--base", base_folder, "--data", data, "--out", tmp_path / "out", "--quantize", "4bit", *FAST]
    full = graft("train", *flags, "--method", "full")
    assert full.exit_code == 1 and "can't be quantised" in full.stderr
    pytest.importorskip("bitsandbytes")
    dora = graft("train", *flags, "--method", "lora", "--set", "dora=true")
    assert dora.exit_code == 1 and "quantised base has no more" in dora.stderr and not (tmp_path / "out").exists()


def test_without_the_package_or_a_manifest_it_is_explained(base_folder, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(BaseModelError, match="needs the package bitsandbytes"):
        load_base(base_folder, device="cpu", quantize="4bit")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(BaseModelError, match="has no manifest"):
        load_base(tmp_path, device="cpu", quantize="4bit")
    with pytest.raises(GraftError, match="4bit, 8bit"):
        RunConfig(quantize="2bit")
