"""Bases and sites off the common path: the output projection, post-norm, side-by-side sublayers, one key head."""

from functools import cache

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from graft.hub.adapters.batched_apply import RowOwners, Stack, Step
from graft.hub.adapters.methods import METHODS, InitContext
from graft.hub.adapters.packed_attention import PackedAttention
from graft.hub.adapters.serving_forms import CacheRows, InputRows
from graft.hub.base.hook_points import Tap, normed_in, stream_in, stream_out, sublayer_out
from graft.hub.base.model import Base
from tests.conftest import FAMILIES, tiny_tokenizer
from tests.hub.adapters.methods.cases import LONG, TEXTS, base_of, case, served_logits, trained_logits
from tests.hub.adapters.methods.reference import plain_logits, reference_logits

# bases that the ten families' tiny ones do not cover
SPECIAL = {
    "opt post-norm": FAMILIES["opt"] | {"do_layer_norm_before": False},
    "opt narrow embeddings": FAMILIES["opt"] | {"word_embed_proj_dim": 16, "do_layer_norm_before": False},
    "neox one after the other": FAMILIES["gpt_neox"] | {"use_parallel_residual": False},
    "one key head": FAMILIES["llama"] | {"num_key_value_heads": 1},
    "wide heads": FAMILIES["gemma2"] | {"head_dim": 12},
    "biases everywhere": FAMILIES["llama"] | {"attention_bias": True, "mlp_bias": True},
}
VARIED = {
    "lora": ("lora", {"r": "3"}),
    "DoRA": ("lora", {"r": "3", "dora": "true", "bias": "all"}),
    "houlsby": ("series", {"bottleneck": "4"}),
    "of the stream": ("series", {"bottleneck": "4", "reads": "stream"}),
    "parallel": ("parallel", {"bottleneck": "4"}),
    "parallel of the stream": ("parallel", {"bottleneck": "4", "reads": "stream"}),
    "prompt": ("prompt", {"tokens": "3"}),
    "prefix": ("prefix", {"tokens": "4"}),
    "bitfit": ("bitfit", {}),
    "ia3": ("ia3", {}),
}


@cache
def special(name: str):
    config = SPECIAL[name]
    torch.manual_seed(5)
    models = []
    for _ in range(2):
        torch.manual_seed(5)
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**config), dtype=torch.float32)
        with torch.no_grad():
            for p in model.parameters():
                p.add_(torch.randn_like(p) * 0.1) if p.ndim == 1 else p.copy_(
                    torch.randn_like(p) * 0.5 / p.shape[-1] ** 0.5
                )
        models.append(model.eval())
    models[0].set_attn_implementation("eager")  # as cases.py: sdpa leaves soft-caps out
    return models[0], Base(models[1], tiny_tokenizer(), id="test/special")


def made(base, method, options):
    method = METHODS[method]
    config = method.from_options(options, base.spec)
    generator = torch.Generator().manual_seed(1)
    fresh = method.init(config, InitContext(base, generator, texts=TEXTS))
    parameters = {key: p + 0.2 * torch.randn(p.shape, generator=generator) for key, p in fresh.items()}
    return method, config, parameters


@pytest.mark.parametrize("name", SPECIAL)
@pytest.mark.parametrize("variant", VARIED)
def test_special_bases_equal_the_reference(name, variant):
    model, base = special(name)
    method, config, parameters = made(base, *VARIED[variant])
    expected = reference_logits(model, method.name, config, parameters, LONG)
    forms = method.fold(config, method.encode(config, parameters), base)
    with torch.no_grad():
        torch.testing.assert_close(trained_logits(base, forms, LONG), expected, atol=1e-4, rtol=1e-4)
    (served,) = served_logits(base, [(forms, LONG)])
    torch.testing.assert_close(served, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2"])
def test_lora_on_the_output_projection_where_only_some_rows_have_logits(family):
    """At lm_head the rows are others: of each sequence the last one or two, of one none."""
    base = base_of(family)
    method, config, parameters = made(base, "lora", {"targets": "lm_head", "r": "3"})
    heads = method.fold(config, parameters, base)
    other = case(family, "lora").forms(case(family, "lora").parameters)
    texts = [torch.tensor(text) for text in TEXTS]
    lengths = [len(text) for text in texts]  # the bare base, then the head's own, then another LoRA
    step = Step(
        Stack([heads, other], base.dtype, base.device),
        RowOwners(lengths[0], (lengths[1], lengths[2])),
        lm_head=base.spec.parts.lm_head,
        logit_rows=RowOwners(1, (2, 1)),
    )
    ends = torch.tensor(lengths).cumsum(0)
    wanted = torch.tensor([ends[0] - 1, ends[1] - 3, ends[1] - 1, ends[2] - 1])
    positions = torch.cat([torch.arange(n) for n in lengths])
    with torch.no_grad():
        context = PackedAttention(lengths, None, base.device)
        logits = base.forward(base.embed(torch.cat(texts)), positions, context, step, wanted)
    alone = [served_logits(base, [(forms, ids)])[0] for forms, ids in zip((None, heads, other), texts, strict=True)]
    expected = torch.stack([alone[0][-1], alone[1][-3], alone[1][-1], alone[2][-1]])
    torch.testing.assert_close(logits, expected, atol=2e-5, rtol=1e-4)
    assert (alone[1] - served_logits(base, [(None, texts[1])])[0]).abs().max() > 1e-2


def test_taps_of_the_families():
    """Where each BLOCK site lies, written down by hand."""
    gemma, neox = base_of("gemma2").spec, base_of("gpt_neox").spec
    layer = "model.layers.1"
    assert sublayer_out(gemma, 1, "attention") == Tap(f"{layer}.post_attention_layernorm", "out")
    assert sublayer_out(gemma, 1, "mlp") == Tap(f"{layer}.post_feedforward_layernorm", "out")
    assert stream_in(gemma, 1, "mlp") == Tap(f"{layer}.pre_feedforward_layernorm", "in")
    assert normed_in(gemma, 1, "mlp") == Tap(f"{layer}.mlp.gate_proj", "in")
    layer = "gpt_neox.layers.0"
    sides = Tap(f"{layer}.attention.dense", "out"), Tap(f"{layer}.mlp.dense_4h_to_h", "out")
    assert stream_out(neox, 0, "mlp") == (Tap(f"{layer}.post_attention_layernorm", "in"), *sides)
    assert stream_out(neox, 0, "attention") == (Tap(f"{layer}.input_layernorm", "in"), sides[0])
    _, post = special("opt post-norm")
    assert stream_in(post.spec, 0, "mlp") == Tap("model.decoder.layers.0.fc1", "in")
    assert stream_in(post.spec, 0, "attention") == Tap("model.decoder.layers.0.self_attn.q_proj", "in")


def gradients(base, forms_of, parameters, checkpointing):
    """Of a loss over LONG, with the base's layers recomputed in the backward or not."""
    leaves = {name: p.clone().requires_grad_() for name, p in parameters.items()}
    forms = forms_of(leaves)
    prefix = next((form for form in forms if isinstance(form, CacheRows)), None)
    before = [form.rows for form in forms if isinstance(form, InputRows)]
    rows = torch.cat([*before, base.embed(LONG)])
    start = prefix.text_start if prefix else 0
    step = Step(Stack([forms], base.dtype, base.device), RowOwners(0, (len(rows),)), lm_head=base.spec.parts.lm_head)
    context = PackedAttention([len(rows)], [prefix], base.device)
    calls = []
    # what autograd must have again in every case: with a later module some versions of torch stop before it
    first = base.model.get_submodule(base.spec.module(0, base.spec.parts.linears[0]))
    hook = first.register_forward_hook(lambda *_: calls.append(1))
    if checkpointing:
        base.model.gradient_checkpointing_enable({"use_reentrant": False})
        base.model.train()
    try:
        with base.attachment.activate(step):
            logits = base.forward(rows, torch.arange(start, start + len(rows)), context)[-len(LONG) :]
            torch.nn.functional.cross_entropy(logits[:-1], LONG[1:]).backward()
    finally:
        hook.remove()
        base.model.gradient_checkpointing_disable()
        base.model.eval()
    return {name: leaf.grad for name, leaf in leaves.items()}, len(calls)


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt_neox"])
@pytest.mark.parametrize(
    "variant", ["lora", "DoRA", "houlsby of the stream", "parallel", "prompt", "prefix mlp", "ia3"]
)
def test_gradient_checkpointing(family, variant):
    """The layers are run again in the backward, with the same detours and prefixes, to the same gradients."""
    c = case(family, variant)
    plain, once = gradients(c.base, c.forms, c.parameters, checkpointing=False)
    again, twice = gradients(c.base, c.forms, c.parameters, checkpointing=True)
    assert (once, twice) == (1, 2)
    for name, expected in plain.items():
        torch.testing.assert_close(again[name], expected, atol=1e-6, rtol=1e-4)


def test_the_bare_special_bases_are_transformers_own():
    for name in SPECIAL:
        model, base = special(name)
        torch.testing.assert_close(
            served_logits(base, [(None, LONG)])[0], plain_logits(model, LONG).detach(), atol=2e-5, rtol=1e-5
        )
