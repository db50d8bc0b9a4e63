"""HF PEFT as the oracle: its adapters answer here as they do there, and ours answer there as they do here."""

import pytest
import torch
from peft import (
    IA3Config,
    LoraConfig,
    PeftModel,
    PrefixTuningConfig,
    PromptEncoderConfig,
    PromptTuningConfig,
    get_peft_model,
)
from safetensors.torch import load_file

from graft.hub.adapters.artifact import load_artifact, save_artifact
from tests.conftest import FAMILIES as BASES
from tests.conftest import tiny_model
from tests.hub.adapters.methods.cases import LONG, TEXTS, VARIANTS, base_of, case, served_logits

# GQA; Conv1D, fused qkv, learned positions, biases everywhere; windows shorter than the text, soft-caps,
# post-norms; biases on q, k, v only
FAMILIES = ("llama", "gpt2", "gemma2", "qwen2")
# family -> (some linears, one of them, MLP's last linear, layer list)
NAMES = {
    "gpt2": (["c_attn", "mlp.c_proj"], "c_attn", "mlp.c_proj", "h"),
    **{family: (["q_proj", "down_proj"], "q_proj", "down_proj", "layers") for family in ("llama", "gemma2", "qwen2")},
}
IDS = [torch.tensor(text) for text in TEXTS]


def _lora(family, **settings):
    some, _, _, _ = NAMES[family]
    defaults = {"r": 4, "lora_alpha": 6, "target_modules": some, "fan_in_fan_out": family == "gpt2"}
    return LoraConfig(task_type="CAUSAL_LM", **(defaults | settings))


def _ia3(family, **settings):
    some, _, last, _ = NAMES[family]
    defaults = {"target_modules": some, "feedforward_modules": [last], "fan_in_fan_out": family == "gpt2"}
    return IA3Config(task_type="CAUSAL_LM", **(defaults | settings))


KINDS = {
    "lora": _lora,
    "lora with dropout and gaussian start": lambda f: _lora(f, lora_dropout=0.1, init_lora_weights="gaussian"),
    "rslora": lambda f: _lora(f, use_rslora=True),
    "dora": lambda f: _lora(f, use_dora=True),
    "dora and replaced biases": lambda f: _lora(f, use_dora=True, bias="all"),
    "lora_bias": lambda f: _lora(f, lora_bias=True, target_modules=[NAMES[f][1]] if f == "qwen2" else NAMES[f][0]),
    "bias=all": lambda f: _lora(f, bias="all"),
    "bias=lora_only": lambda f: _lora(f, bias="lora_only"),
    "patterns": lambda f: _lora(
        f,
        rank_pattern={f"{NAMES[f][3]}.0.*{NAMES[f][1]}": 2, NAMES[f][2]: 7},
        alpha_pattern={NAMES[f][1]: 32, f"^.*1.*{NAMES[f][2]}": 3},
    ),
    "one layer": lambda f: _lora(f, layers_to_transform=[1]),
    "one layer by number and pattern": lambda f: _lora(f, layers_to_transform=0, layers_pattern=NAMES[f][3]),
    "regex": lambda f: _lora(f, target_modules=rf".*\.(0|1)\..*{NAMES[f][1]}"),
    "all-linear": lambda f: _lora(f, target_modules="all-linear"),
    "excluded": lambda f: _lora(f, target_modules="all-linear", exclude_modules=[NAMES[f][1]]),
    "output projection": lambda f: _lora(f, target_modules=["lm_head", NAMES[f][1]]),
    "ia3": _ia3,
    "ia3 by regex": lambda f: _ia3(f, target_modules=rf".*{NAMES[f][1]}", feedforward_modules=[]),
    "prompt": lambda f: PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=9),
    "short prompt": lambda f: PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=1),
    "ptuning mlp": lambda f: PromptEncoderConfig(task_type="CAUSAL_LM", num_virtual_tokens=4, encoder_hidden_size=16),
    "ptuning lstm": lambda f: PromptEncoderConfig(
        task_type="CAUSAL_LM", num_virtual_tokens=6, encoder_hidden_size=16, encoder_reparameterization_type="LSTM"
    ),
    "prefix": lambda f: PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=5),
    "prefix projection": lambda f: PrefixTuningConfig(
        task_type="CAUSAL_LM", num_virtual_tokens=8, prefix_projection=True, encoder_hidden_size=16
    ),
}
# PEFT itself refuses these pairs: a trained bias on B needs a base linear with a bias
REFUSED_BY_PEFT = {("lora_bias", "llama"), ("lora_bias", "gemma2")}
PAIRS = [(family, kind) for family in FAMILIES for kind in KINDS if (kind, family) not in REFUSED_BY_PEFT]
every_pair = pytest.mark.parametrize(("family", "kind"), PAIRS)


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")  # PEFT asks a hub for the base's config when embeddings are targets


def peft_base(family):
    model = tiny_model(family)
    model.set_attn_implementation("eager")  # the one that knows soft-caps
    return model


def made_by_peft(family: str, kind: str, folder) -> PeftModel:
    """A PEFT model whose trained weights are far from their start, saved to `folder`."""
    torch.manual_seed(3)
    model = get_peft_model(peft_base(family), KINDS[kind](family)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.2 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    return model


def peft_log_probs(model: PeftModel, ids: torch.Tensor) -> torch.Tensor:
    """[T, V] of the text, its virtual tokens left out."""
    with torch.no_grad():
        logits = model(input_ids=ids[None], attention_mask=torch.ones_like(ids)[None]).logits[0]
    return logits[-len(ids) :].log_softmax(-1)


@every_pair
def test_pefts_adapter_answers_here_as_there(family, kind, tmp_path):
    model = made_by_peft(family, kind, tmp_path)
    base = base_of(family)
    forms = load_artifact(tmp_path, base.spec).fold(base)
    for ids, logits in zip(IDS, served_logits(base, [(forms, ids) for ids in IDS]), strict=True):
        torch.testing.assert_close(logits.log_softmax(-1), peft_log_probs(model, ids), atol=1e-4, rtol=1e-4)


@every_pair
def test_round_trip_through_peft_is_bit_equal(family, kind, tmp_path):
    """PEFT saves, we load and save, PEFT loads and saves: the same tensors, the same answers, the same digest."""
    model = made_by_peft(family, kind, tmp_path / "theirs")
    spec = base_of(family).spec
    artifact = load_artifact(tmp_path / "theirs", spec)
    save_artifact(tmp_path / "ours", artifact.method, artifact.config, artifact.tensors, spec)
    again = PeftModel.from_pretrained(peft_base(family), tmp_path / "ours").eval()
    torch.testing.assert_close(peft_log_probs(again, LONG), peft_log_probs(model, LONG), atol=1e-5, rtol=1e-5)
    again.save_pretrained(tmp_path / "again")
    first, last = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("theirs", "again"))
    assert first.keys() == last.keys()
    assert all(torch.equal(first[name], last[name]) for name in first)
    assert load_artifact(tmp_path / "again", spec).digest == artifact.digest


@pytest.mark.parametrize("family", FAMILIES)
def test_pefts_adapters_mixed_in_one_batch(family, tmp_path):
    """Every kind at once, prompts of unequal length among them: each as PEFT answers it alone."""
    base, requests, expected = base_of(family), [], []
    for i, kind in enumerate(kind for own, kind in PAIRS if own == family):
        model = made_by_peft(family, kind, tmp_path / kind)
        requests.append((load_artifact(tmp_path / kind, base.spec).fold(base), IDS[i % 3]))
        expected.append(peft_log_probs(model, IDS[i % 3]))
    for logits, log_probs in zip(served_logits(base, requests), expected, strict=True):
        torch.testing.assert_close(logits.log_softmax(-1), log_probs, atol=1e-4, rtol=1e-4)


OURS = [
    (family, variant)
    for family in (*FAMILIES, "opt", "gpt_neox", "phi3")
    for variant, (method, _) in VARIANTS.items()
    if method in ("lora", "prompt", "ptuning", "prefix", "ia3") and variant != "prefix beside the text"
    if not (variant == "LoRA bias" and family in ("llama", "gemma2", "phi3", "qwen2"))
]


@pytest.mark.parametrize(("family", "variant"), OURS)
def test_what_we_save_answers_in_peft(family, variant, tmp_path):
    c = case(family, variant)
    tensors = c.method.encode(c.config, c.parameters)
    save_artifact(tmp_path, c.method, c.config, tensors, c.base.spec)
    theirs = PeftModel.from_pretrained(peft_base(family), tmp_path).eval()
    (logits,) = served_logits(c.base, [(load_artifact(tmp_path, c.base.spec).fold(c.base), LONG)])
    torch.testing.assert_close(logits.log_softmax(-1), peft_log_probs(theirs, LONG), atol=1e-4, rtol=1e-4)


def test_the_bases_have_what_the_oracle_should_see():
    assert BASES["gemma2"]["sliding_window"] < len(LONG)
    assert BASES["gemma2"]["attn_logit_softcapping"] and BASES["gemma2"]["final_logit_softcapping"]
    assert base_of("gpt2").bias("transformer.h.0.attn.c_attn").abs().max() > 0.01
    assert base_of("llama").spec.num_kv_heads < base_of("llama").spec.num_heads
