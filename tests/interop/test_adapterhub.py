"""AdapterHub's and LLM-Adapters' directories, written by hand with their key names, answer by their equations."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from graft.hub.adapters.artifact import load_artifact, save_artifact
from graft.hub.errors import ArtifactError, GraftError, UnsupportedMethodError
from tests.conftest import tiny_model
from tests.hub.adapters.methods.cases import LONG, base_of, eager_model, served_logits

H, B = 32, 4  # width of the tiny bases and of the bottlenecks
GENERATOR = torch.Generator().manual_seed(11)
LAYERS = {"llama": "model.layers", "gpt2": "transformer.h", "gpt_neox": "gpt_neox.layers"}


def noise(*shape):
    return torch.randn(shape, generator=GENERATOR) * 0.3


def write(folder, config, tensors, *, weights="adapter.safetensors", name="my-task", model_type="llama"):
    """A minimal directory as `adapters` 1.x saves it."""
    raw = {
        "config": config, "hidden_size": H, "model_class": "LlamaForCausalLM", "model_name": "", "name": name,
        "model_type": model_type, "version": "adapters.1.3.0",
    }  # fmt: skip
    (folder / "adapter_config.json").write_text(json.dumps(raw))
    save_file(tensors, folder / weights)


def bottleneck_config(**settings):
    return {
        "mh_adapter": False, "output_adapter": True, "reduction_factor": 8, "non_linearity": "relu",
        "original_ln_before": True, "original_ln_after": True, "ln_before": False, "ln_after": False,
        "residual_before_ln": True, "adapter_residual_before_ln": False, "is_parallel": False, "scaling": 1.0,
        "leave_out": [], "use_gating": False, "phm_layer": False, "init_weights": "bert", "dropout": 0.0,
    } | settings  # fmt: skip


def bottlenecks(family, *places, layers=(0, 1), name="my-task", learned=False):
    tensors = {}
    for layer in layers:
        for place in places:
            key = f"{LAYERS[family]}.{layer}.{place}.adapters.{name}."
            tensors |= {
                f"{key}adapter_down.0.weight": noise(B, H), f"{key}adapter_down.0.bias": noise(B),
                f"{key}adapter_up.weight": noise(H, B), f"{key}adapter_up.bias": noise(H),
            }  # fmt: skip
            if learned:
                tensors[f"{key}scaling"] = noise(1) + 2
    return tensors


def f(tensors, layer, place, x, activation):
    """The bottleneck of AdapterHub's class: up(act(down(x))), before scaling."""
    own = {key.split(".adapters.my-task.")[1]: v for key, v in tensors.items() if f".{layer}.{place}." in key}
    down = x @ own["adapter_down.0.weight"].T + own["adapter_down.0.bias"]
    return activation(down) @ own["adapter_up.weight"].T + own["adapter_up.bias"]


def llama_logits(ids, after_attention, after_mlp):
    """A Llama run layer by layer: `after_attention(layer, x, d)` and `after_mlp(layer, x, d)` give the new stream."""
    model = tiny_model("llama")
    model.set_attn_implementation("eager")
    inner = model.model
    h = inner.embed_tokens(ids[None])
    positions = torch.arange(len(ids))[None]
    mask = torch.full((len(ids), len(ids)), float("-inf")).triu(1)[None, None]
    rotary = inner.rotary_emb(h, positions)
    for i, layer in enumerate(inner.layers):
        d = layer.self_attn(layer.input_layernorm(h), position_embeddings=rotary, attention_mask=mask)[0]
        h = after_attention(i, h, d)
        h = after_mlp(i, h, layer.mlp(layer.post_attention_layernorm(h)))
    return model.lm_head(inner.norm(h))[0]


def plain(layer, x, d):
    return x + d


def answers(folder, family="llama"):
    base = base_of(family)
    return served_logits(base, [(load_artifact(folder, base.spec).fold(base), LONG)])[0]


def check(folder, expected, family="llama"):
    with torch.no_grad():
        torch.testing.assert_close(answers(folder, family), expected(), atol=1e-4, rtol=1e-4)


def test_seq_bn(tmp_path):
    tensors = bottlenecks("llama", "output_adapters")
    write(tmp_path, bottleneck_config(), tensors)

    def mlp(layer, x, d):
        return x + d + f(tensors, layer, "output_adapters", x + d, torch.relu)

    check(tmp_path, lambda: llama_logits(LONG, plain, mlp))


def test_double_seq_bn(tmp_path):
    tensors = bottlenecks("llama", "attention_adapters", "output_adapters")
    settings = {"mh_adapter": True, "original_ln_before": False, "non_linearity": "swish"}
    write(tmp_path, bottleneck_config(**settings), tensors)
    silu = torch.nn.functional.silu

    def attention(layer, x, d):
        return x + d + f(tensors, layer, "attention_adapters", d, silu)

    def mlp(layer, x, d):
        return x + d + f(tensors, layer, "output_adapters", d, silu)

    check(tmp_path, lambda: llama_logits(LONG, attention, mlp))


@pytest.mark.parametrize("scaling", [4.0, "learned"])
def test_par_bn(tmp_path, scaling):
    tensors = bottlenecks("llama", "output_adapters", learned=scaling == "learned")
    settings = {"is_parallel": True, "original_ln_before": False, "scaling": scaling, "init_weights": "mam_adapter"}
    write(tmp_path, bottleneck_config(**settings), tensors, weights="adapter_model.safetensors")

    def mlp(layer, x, d):
        scale = tensors.get(f"model.layers.{layer}.output_adapters.adapters.my-task.scaling", scaling)
        return x + d + scale * f(tensors, layer, "output_adapters", x, torch.relu)

    check(tmp_path, lambda: llama_logits(LONG, plain, mlp))


def test_a_layer_left_out(tmp_path):
    tensors = bottlenecks("llama", "output_adapters", layers=(1,))
    write(tmp_path, bottleneck_config(leave_out=[0]), tensors)

    def mlp(layer, x, d):
        return x + d + (f(tensors, 1, "output_adapters", x + d, torch.relu) if layer == 1 else 0)

    check(tmp_path, lambda: llama_logits(LONG, plain, mlp))


@pytest.mark.parametrize("family", ["gpt2", "gpt_neox"])
def test_keys_of_another_architecture(family, tmp_path):
    write(tmp_path, bottleneck_config(), bottlenecks(family, "output_adapters"), model_type=family)
    (base,) = served_logits(base_of(family), [(None, LONG)])
    assert (answers(tmp_path, family) - base).abs().max() > 1e-2
    with pytest.raises(ArtifactError, match="lacks"):
        load_artifact(tmp_path, base_of("opt").spec)


@pytest.mark.parametrize(
    "setting",
    [{"ln_before": True}, {"phm_layer": True}, {"use_gating": True}, {"residual_before_ln": "post_add"},
     {"inv_adapter": "nice"}, {"scaling": "channel"}, {"mh_adapter": True, "is_parallel": True}],
)  # fmt: skip
def test_options_are_refused_by_name(setting, tmp_path):
    write(tmp_path, bottleneck_config(**setting), bottlenecks("llama", "output_adapters"))
    with pytest.raises(UnsupportedMethodError, match=next(iter(setting))):
        load_artifact(tmp_path, base_of("llama").spec)


def test_another_adapters_tensors_are_not_taken(tmp_path):
    write(tmp_path, bottleneck_config(), bottlenecks("llama", "output_adapters", name="other"))
    with pytest.raises(ArtifactError, match="lacks"):
        load_artifact(tmp_path, base_of("llama").spec)


LORA = {
    "architecture": "lora", "composition_mode": "add", "alpha": 6, "r": 3, "attn_matrices": ["q", "v"], "dropout": 0.0,
    "selfattn_lora": True, "intermediate_lora": True, "output_lora": False, "leave_out": [], "use_gating": False,
    "init_weights": "lora", "use_dora": False, "vera_b": None, "vera_d": None,
}  # fmt: skip
SIZES = {"self_attn.q_proj": (32, 32), "self_attn.v_proj": (32, 16), "mlp.down_proj": (48, 32)}


def lora_tensors(layers=(0, 1)):
    tensors = {}
    for layer in layers:
        for part, (reads, adds) in SIZES.items():
            key = f"model.layers.{layer}.{part}.loras.my-task."
            tensors |= {f"{key}lora_A": noise(3, reads), f"{key}lora_B": noise(adds, 3)}
    return tensors


def merged_logits(change):
    """`change(layer, part, W)` gives each adapted linear's new weight."""
    model = tiny_model("llama")
    for layer in (0, 1):
        for part in SIZES:
            module = model.get_submodule(f"model.layers.{layer}.{part}")
            module.weight.data = change(layer, part, module.weight.data)
    return model(LONG[None]).logits[0]


@pytest.mark.parametrize("left_out", [[], [1]])
def test_lora(tmp_path, left_out):
    tensors = lora_tensors(layers=[layer for layer in (0, 1) if layer not in left_out])
    write(tmp_path, LORA | {"leave_out": left_out}, tensors)

    def change(layer, part, W):
        if layer in left_out:
            return W
        key = f"model.layers.{layer}.{part}.loras.my-task."
        return W + 6 / 3 * tensors[f"{key}lora_B"] @ tensors[f"{key}lora_A"]

    check(tmp_path, lambda: merged_logits(change))


def test_lora_with_a_lost_layer_is_refused(tmp_path):
    write(tmp_path, LORA, lora_tensors(layers=(0,)))
    with pytest.raises(ArtifactError, match="lacks"):
        load_artifact(tmp_path, base_of("llama").spec)


def test_ia3(tmp_path):
    tensors = {
        f"model.layers.{layer}.{part}.loras.my-task.lora_B": noise(adds, 1) + 1
        for layer in (0, 1)
        for part, (_, adds) in SIZES.items()
    }
    write(tmp_path, LORA | {"composition_mode": "scale", "alpha": 1, "r": 1, "init_weights": "ia3"}, tensors)
    check(
        tmp_path,
        lambda: merged_logits(lambda i, part, W: tensors[f"model.layers.{i}.{part}.loras.my-task.lora_B"] * W),
    )


def test_lora_options_are_refused_by_name(tmp_path):
    write(tmp_path, LORA | {"use_gating": True}, lora_tensors())
    with pytest.raises(UnsupportedMethodError, match="use_gating"):
        load_artifact(tmp_path, base_of("llama").spec)


PREFIX_KEY = "model.prefix_tuning.prefix_tunings.my-task.self_prefix.control_trans"


def test_flat_prefix(tmp_path):
    """Keys and values precede the text, whose positions begin at 0."""
    from transformers import DynamicCache

    rows = noise(5 * 2 * 2 * 2 * 8)
    write(tmp_path, {"architecture": "prefix_tuning", "flat": True, "prefix_length": 5}, {PREFIX_KEY: rows})
    cache = DynamicCache()
    for layer, (keys, values) in enumerate(rows.view(5, 2, 2, 2, 8).permute(1, 2, 3, 0, 4)):
        cache.update(keys[None], values[None], layer)
    model = tiny_model("llama")
    check(
        tmp_path,
        lambda: model(LONG[None], past_key_values=cache, position_ids=torch.arange(len(LONG))[None]).logits[0],
    )
    artifact = load_artifact(tmp_path, base_of("llama").spec)
    again = tmp_path / "again"
    save_artifact(again, artifact.method, artifact.config, artifact.tensors, base_of("llama").spec)
    (saved,) = load_file(again / "adapter_model.safetensors").values()
    assert torch.equal(saved, rows)
    assert load_artifact(again, base_of("llama").spec).digest == artifact.digest


def test_prefix_with_its_network_is_refused(tmp_path):
    write(tmp_path, {"architecture": "prefix_tuning", "flat": False, "prefix_length": 5}, {PREFIX_KEY: noise(8)})
    with pytest.raises(UnsupportedMethodError, match="flat"):
        load_artifact(tmp_path, base_of("llama").spec)


def llm_adapters(folder, tensors, **settings):
    raw = {
        "peft_type": "BOTTLENECK", "task_type": "CAUSAL_LM", "base_model_name_or_path": "x", "bottleneck_size": B,
        "non_linearity": "tanh", "adapter_dropout": 0.0, "scaling": 1.0, "use_parallel_adapter": False,
        "use_adapterp": False, "target_modules": ["gate_proj", "down_proj"], "init_weights": "bert", "bias": "none",
        "modules_to_save": None, "inference_mode": True,
    } | settings  # fmt: skip
    (folder / "adapter_config.json").write_text(json.dumps(raw))
    save_file(tensors, folder / "adapter_model.safetensors")


def llm_tensors(sizes):
    return {
        f"base_model.model.model.layers.{layer}.mlp.{part}.adapter_{side}.weight": noise(*shape)
        for layer in (0, 1)
        for part, (reads, adds) in sizes.items()
        for side, shape in (("down", (B, reads)), ("up", (adds, B)))
    }


def mlp_logits(rewrite):
    """`rewrite(layer, part, x, linear)` is the new forward of gate_proj and down_proj."""
    model = tiny_model("llama")
    for layer in (0, 1):
        for part in ("gate_proj", "down_proj"):
            module = model.get_submodule(f"model.layers.{layer}.mlp.{part}")
            module.forward = lambda x, i=layer, p=part, W=module.weight: rewrite(i, p, x, W)
    return model(LONG[None]).logits[0]


def test_llm_adapters_series(tmp_path):
    tensors = llm_tensors({"gate_proj": (32, 32), "down_proj": (32, 32)})
    llm_adapters(tmp_path, tensors, scaling=2.0)

    def bottleneck(i, part, x):
        key = f"base_model.model.model.layers.{i}.mlp.{part}.adapter_"
        return 2.0 * torch.tanh(x @ tensors[f"{key}down.weight"].T) @ tensors[f"{key}up.weight"].T

    def rewrite(i, part, x, W):
        if part == "gate_proj":
            return (x + bottleneck(i, part, x)) @ W.T
        return x @ W.T + bottleneck(i, part, x @ W.T)

    check(tmp_path, lambda: mlp_logits(rewrite))


def test_llm_adapters_parallel(tmp_path):
    tensors = llm_tensors({"gate_proj": (32, 48), "down_proj": (48, 32)})
    llm_adapters(tmp_path, tensors, use_parallel_adapter=True)

    def rewrite(i, part, x, W):
        key = f"base_model.model.model.layers.{i}.mlp.{part}.adapter_"
        return x @ W.T + torch.tanh(x @ tensors[f"{key}down.weight"].T) @ tensors[f"{key}up.weight"].T

    check(tmp_path, lambda: mlp_logits(rewrite))


@pytest.mark.parametrize("setting", [{"bias": "all"}, {"scaling": "learned"}, {"modules_to_save": ["lm_head"]}])
def test_llm_adapters_options_are_refused_by_name(setting, tmp_path):
    llm_adapters(tmp_path, llm_tensors({"gate_proj": (32, 32), "down_proj": (32, 32)}), **setting)
    with pytest.raises(GraftError, match=next(iter(setting))):
        load_artifact(tmp_path, base_of("llama").spec)


def test_the_plain_run_is_transformers_own():
    with torch.no_grad():
        torch.testing.assert_close(llama_logits(LONG, plain, plain), eager_model("llama")(LONG[None]).logits[0])
