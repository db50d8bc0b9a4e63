"""A base's fingerprint: the same for every copy of the same weights, another for anything that changes answers."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from graft.hub.base.fingerprint import same_weight
from graft.hub.base.model import Base, load_base
from tests.conftest import FAMILIES, tiny_model, tiny_tokenizer


def fingerprint_of(model, tokenizer=None):
    return Base(model, tokenizer or tiny_tokenizer()).spec.fingerprint


@pytest.mark.parametrize("family", FAMILIES)
def test_copies_agree(family, tmp_path):
    found = {fingerprint_of(tiny_model(family)), fingerprint_of(tiny_model(family).bfloat16())}
    assert len(found) == 1
    tiny_model(family).save_pretrained(tmp_path / "fp32")
    tiny_model(family).bfloat16().save_pretrained(tmp_path / "bf16")
    for name in ("fp32", "bf16"):
        tiny_tokenizer().save_pretrained(tmp_path / name)
    loaded = [
        load_base(tmp_path / name, dtype=dtype, device="cpu")
        for name in ("fp32", "bf16")
        for dtype in ("float32", "bfloat16")
    ]
    # transformers may read a saved tokenizer as its family's own class, with a token more
    in_memory = fingerprint_of(tiny_model(family), loaded[0].tokenizer)
    assert {base.spec.fingerprint for base in loaded} == {in_memory}


@pytest.mark.parametrize("family", FAMILIES)
def test_other_weights_differ(family):
    assert fingerprint_of(tiny_model(family, seed=1)) != fingerprint_of(tiny_model(family, seed=0))


def test_every_tensor_counts():
    first = fingerprint_of(tiny_model("llama"))
    for name, _ in tiny_model("llama").named_parameters():
        model = tiny_model("llama")
        with torch.no_grad():
            model.get_parameter(name).mul_(1.1)
        assert fingerprint_of(model) != first, name


def test_the_vocabulary_counts():
    other = tiny_tokenizer()
    other.add_tokens(["<new>"])
    assert fingerprint_of(tiny_model("llama"), other) != fingerprint_of(tiny_model("llama"))


@pytest.mark.parametrize(
    ("family", "change"),
    [("llama", {"rms_norm_eps": 1e-3}), ("llama", {"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}),
     ("llama", {"hidden_act": "gelu"}), ("llama", {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16}),
     ("mistral", {"sliding_window": 7}), ("gemma2", {"attn_logit_softcapping": 6.0}),
     ("gemma2", {"query_pre_attn_scalar": 9}), ("gpt_neox", {"use_parallel_residual": False}),
     ("gpt_neox", {"hidden_act": "relu"}), ("gpt2", {"activation_function": "relu"}), ("gpt2", {"scale_attn_weights": False}),
     ("gpt2", {"scale_attn_by_inverse_layer_idx": True}), ("opt", {"do_layer_norm_before": False}),
     ("phi3", {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}})],
)  # fmt: skip
def test_config_keys_that_change_answers_count(family, change):
    def of(settings):
        config = AutoConfig.for_model(**settings)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        with torch.no_grad():
            for p in model.parameters():
                p.fill_(0.5)
        return fingerprint_of(model)

    assert of(FAMILIES[family] | change) != of(FAMILIES[family])


def test_what_does_not_change_answers_does_not_count():
    first = tiny_model("llama")
    second = tiny_model("llama")
    second.config.transformers_version, second.config._name_or_path = "1.2.3", "/somewhere/else"
    second.config.use_cache, second.config.dtype = False, "float16"
    assert fingerprint_of(first) == fingerprint_of(second)


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("saved", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("served", [torch.float32, torch.bfloat16, torch.float16])
def test_copies_of_a_whole_tensor_in_whatever_dtypes(stored, saved, served):
    """Rounded once to the dtype it is stored in, once more to those of the training and of serving."""
    original = (torch.randn(5000, 7) * torch.logspace(-9, 2, 7)).to(stored)  # down to where float16 has few bits
    ours, theirs = original.to(served), original.to(saved)
    assert same_weight(ours, theirs) and same_weight(theirs, ours)
    coarse = 2.0**-6
    for change in (theirs * (1 + 2 * coarse), theirs + 1e-5, theirs.roll(1, 0), theirs[:, :6]):
        assert not same_weight(ours, change), change.shape
    one = theirs.clone()
    one[4999, 6] *= 1 + coarse
    assert not same_weight(ours, one)
