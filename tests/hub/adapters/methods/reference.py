"""Every method written out in plain torch: slow, obvious, for one sequence, sharing no code with hub/.

A method either changes a copy of the model (each projection becomes the equation of its paper, row by row;
each decoder layer is written out with its adapters in place) or says what precedes the text (rows before the
embeddings, a transformers cache of keys and values). The model itself runs as transformers wrote it, with
eager attention. `parameters` are the trainable ones: encoders are computed here too, by hand.
"""

import copy
import math
import re

import torch
from torch import Tensor, nn
from transformers import DynamicCache
from transformers.pytorch_utils import Conv1D

PREFIX = "base_model.model."
ACTIVATIONS = {
    "none": lambda x: x,
    "relu": lambda x: x.clamp(min=0),
    "silu": lambda x: x * torch.sigmoid(x),
    "swish": lambda x: x * torch.sigmoid(x),
    "tanh": torch.tanh,
    "sigmoid": lambda x: 1 / (1 + torch.exp(-x)),
    "gelu": lambda x: 0.5 * x * (1 + torch.erf(x / math.sqrt(2))),
    "gelu_new": lambda x: 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
    "leakyrelu": lambda x: torch.where(x > 0, x, 0.01 * x),
}


def reference_logits(model, method: str, config, parameters: dict[str, Tensor], ids: Tensor) -> Tensor:
    """Logits [T, V] of the text `ids` [T] under one adapter of `method`; `model` is left as it was."""
    model = copy.deepcopy(model)
    model.set_attn_implementation("eager")
    with torch.no_grad():
        return METHODS[method](model, config, parameters, ids)


def plain_logits(model, ids: Tensor) -> Tensor:
    """Logits [T, V] of the base alone."""
    return model(ids[None], use_cache=False).logits[0]


# On the weights


def lora(model, config, parameters, ids):
    for key in [key for key in parameters if key.endswith(".lora_A.weight")]:
        name = key.removeprefix(PREFIX).removesuffix(".lora_A.weight")
        own = {k.removeprefix(f"{PREFIX}{name}."): v for k, v in parameters.items() if k.startswith(f"{PREFIX}{name}.")}
        module = model.get_submodule(name)
        module.forward = _by_row(_lora_row(config, name, own, *_weight_and_bias(module)))
    for key, value in parameters.items():  # biases of modules without LoRA are replaced
        name = key.removeprefix(PREFIX).removesuffix(".bias")
        if key.endswith(".bias") and not name.endswith(("lora_B", "base_layer")):
            model.get_submodule(name).bias = nn.Parameter(value)
    return plain_logits(model, ids)


def _lora_row(config, name, own, W, bias):
    A, B = own["lora_A.weight"], own["lora_B.weight"]
    r = A.shape[0]
    alpha = next((v for k, v in config.alpha_pattern.items() if re.match(rf"(.*\.)?({k})$", name)), config.alpha)
    s = alpha / (math.sqrt(r) if config.rslora else r)
    bias = own.get("base_layer.bias", bias)

    def row(x):
        if config.dora:
            changed = W + s * (B @ A)
            norms = torch.tensor([math.sqrt(sum(float(w) ** 2 for w in line)) for line in changed])
            return own["lora_magnitude_vector"] / norms * (changed @ x) + bias
        extra = own.get("lora_B.bias", 0.0)
        return W @ x + bias + s * (B @ (A @ x) + extra)

    return row


def bitfit(model, config, parameters, ids):
    for key, added in parameters.items():
        module = model.get_submodule(key.removeprefix(PREFIX).removesuffix(".bitfit_bias"))
        module.forward = _then(module.forward, lambda y, added=added: y + added)
    return plain_logits(model, ids)


def ia3(model, config, parameters, ids):
    for key, vector in parameters.items():
        module = model.get_submodule(key.removeprefix(PREFIX).removesuffix(".ia3_l"))
        W, bias = _weight_and_bias(module)
        if vector.shape[0] == 1:  # feed-forward: scales the input
            row = lambda x, W=W, bias=bias, l=vector[0]: W @ (l * x) + bias  # noqa: E731
        else:
            row = lambda x, W=W, bias=bias, l=vector[:, 0]: l * (W @ x + bias)  # noqa: E731
        module.forward = _by_row(row)
    return plain_logits(model, ids)


# New layers


def series(model, config, parameters, ids):
    if config.placement == "linear":
        return _per_linear(model, config, parameters, ids, _series_row)

    def adapt(sublayer, layer, x, normed, d, stream):
        f = _block_bottleneck(config, parameters, layer, sublayer)
        return 0.0 if f is None else f(stream if config.reads == "stream" else d)

    return _with_layers_written_out(model, adapt, ids)


def parallel(model, config, parameters, ids):
    if config.placement == "linear":
        return _per_linear(model, config, parameters, ids, _parallel_row)

    def adapt(sublayer, layer, x, normed, d, stream):
        f = _block_bottleneck(config, parameters, layer, sublayer)
        return 0.0 if f is None else f(x if config.reads == "stream" else normed)

    return _with_layers_written_out(model, adapt, ids)


_READS_SUBLAYER_INPUT = (
    "q_proj", "k_proj", "v_proj", "qkv_proj", "c_attn", "query_key_value",
    "gate_proj", "up_proj", "gate_up_proj", "c_fc", "dense_h_to_4h", "fc1",
)  # fmt: skip


def _per_linear(model, config, parameters, ids, make_row):
    for key in [key for key in parameters if key.endswith(".adapter_down.weight")]:
        name = key.removeprefix(PREFIX).removesuffix(".adapter_down.weight")
        D, U = parameters[key], parameters[f"{PREFIX}{name}.adapter_up.weight"]
        f = _bottleneck_row(D, None, U, None, ACTIVATIONS[config.activation], config.scale)
        module = model.get_submodule(name)
        module.forward = _by_row(make_row(name, f, *_weight_and_bias(module)))
    return plain_logits(model, ids)


def _series_row(name, f, W, bias):
    if name.rpartition(".")[2] in _READS_SUBLAYER_INPUT:
        return lambda x: W @ (x + f(x)) + bias
    return lambda x: (W @ x + bias) + f(W @ x + bias)


def _parallel_row(name, f, W, bias):
    return lambda x: W @ x + bias + f(x)


def _block_bottleneck(config, parameters, layer, sublayer):
    place = {"attention": "attention_adapters", "mlp": "output_adapters"}[sublayer]
    own = {k.split(".adapters.graft.")[1]: v for k, v in parameters.items() if f".{layer}.{place}.adapters." in k}
    if not own:
        return None
    scale = own.get("scaling", config.scale)
    D, d = own["adapter_down.0.weight"], own["adapter_down.0.bias"]
    U, u = own["adapter_up.weight"], own["adapter_up.bias"]
    return _by_row(_bottleneck_row(D, d, U, u, ACTIVATIONS[config.activation], scale))


def _bottleneck_row(D, d, U, u, activation, scale):
    d, u = (0.0 if bias is None else bias for bias in (d, u))
    return lambda x: scale * (U @ activation(D @ x + d) + u)


# A decoder layer's parts: first norm, attention, its post-norm, second norm, MLP, its post-norm
_LLAMA = ("input_layernorm", "self_attn", None, "post_attention_layernorm", "mlp", None)
_GEMMA = (
    "input_layernorm", "self_attn", "post_attention_layernorm",
    "pre_feedforward_layernorm", "mlp", "post_feedforward_layernorm",
)  # fmt: skip
LAYERS = {
    "llama": ("model.layers", _LLAMA),
    "mistral": ("model.layers", _LLAMA),
    "qwen2": ("model.layers", _LLAMA),
    "qwen3": ("model.layers", _LLAMA),
    "phi3": ("model.layers", _LLAMA),
    "gemma2": ("model.layers", _GEMMA),
    "gemma3_text": ("model.layers", _GEMMA),
    "gpt2": ("transformer.h", ("ln_1", "attn", None, "ln_2", "mlp", None)),
    "gpt_neox": ("gpt_neox.layers", ("input_layernorm", "attention", None, "post_attention_layernorm", "mlp", None)),
    "opt": ("model.decoder.layers", ("self_attn_layer_norm", "self_attn", None, "final_layer_norm", None, None)),
}


def _with_layers_written_out(model, adapt, ids):
    path, names = LAYERS[model.config.model_type]
    for i, layer in enumerate(model.get_submodule(path)):
        layer.forward = _layer_forward(model.config, layer, names, i, adapt)
    return plain_logits(model, ids)


def _layer_forward(config, layer, names, index, adapt):
    norm1, attention, post1, norm2, mlp, post2 = (name and layer.get_submodule(name) for name in names)
    post1, post2 = post1 or (lambda x: x), post2 or (lambda x: x)
    mlp = mlp or (lambda x: layer.fc2(layer.activation_fn(layer.fc1(x))))
    norm_first = getattr(config, "do_layer_norm_before", True)
    side_by_side = getattr(config, "use_parallel_residual", False)

    def forward(h, *args, **kwargs):
        if config.model_type == "gpt2":  # its blocks take the cache, the mask and an encoder's states by place
            kwargs |= {"past_key_values": args[0], "attention_mask": args[1]}
            kwargs = {key: value for key, value in kwargs.items() if not key.startswith("encoder_")}
        x = h
        normed = norm1(x) if norm_first else x
        d = post1(attention(normed, **kwargs)[0])
        d = attention_added = d + adapt("attention", index, x, normed, d, x + d)
        if not side_by_side:
            x = x + d if norm_first else norm1(x + d)
        normed = norm2(x) if norm_first else x
        d = post2(mlp(normed))
        d = d + adapt("mlp", index, x, normed, d, x + d + (attention_added if side_by_side else 0))
        if side_by_side:
            return h + attention_added + d
        return x + d if norm_first else norm2(x + d)

    return forward


# In the sequence


def prompt(model, config, parameters, ids):
    return _after_rows(model, parameters["prompt_embeddings"], ids)


def ptuning(model, config, parameters, ids):
    rows = parameters["embedding"]
    if config.encoder == "lstm":
        for layer in range(config.layers):
            forwards = _lstm(rows, parameters, f"l{layer}")
            backwards = _lstm(rows.flip(0), parameters, f"l{layer}_reverse").flip(0)
            rows = torch.cat([forwards, backwards], dim=1)
    depth = 2 if config.encoder == "lstm" else 3
    for i in range(depth):
        rows = rows @ parameters[f"head.{2 * i}.weight"].T + parameters[f"head.{2 * i}.bias"]
        rows = rows.clamp(min=0) if i < depth - 1 else rows
    return _after_rows(model, rows, ids)


def _lstm(rows, parameters, suffix):
    """One direction of one LSTM layer, row by row: input, forget, cell and output gates."""
    w_in, w_state = parameters[f"lstm.weight_ih_{suffix}"], parameters[f"lstm.weight_hh_{suffix}"]
    bias = parameters[f"lstm.bias_ih_{suffix}"] + parameters[f"lstm.bias_hh_{suffix}"]
    state = cell = torch.zeros(w_state.shape[1])
    out = []
    for x in rows:
        i, f, g, o = (w_in @ x + w_state @ state + bias).chunk(4)
        cell = torch.sigmoid(f) * cell + torch.sigmoid(i) * torch.tanh(g)
        state = torch.sigmoid(o) * torch.tanh(cell)
        out.append(state)
    return torch.stack(out)


def _after_rows(model, rows, ids):
    text = model.get_input_embeddings()(ids)
    logits = model(inputs_embeds=torch.cat([rows, text])[None], use_cache=False).logits[0]
    return logits[rows.shape[0] :]


def prefix(model, config, parameters, ids):
    if config.projection:
        inner = torch.tanh(parameters["embedding"] @ parameters["in.weight"].T + parameters["in.bias"])
        rows = inner @ parameters["out.weight"].T + parameters["out.bias"]
    else:
        rows = parameters["prompt_embeddings"]
    heads = getattr(model.config, "num_key_value_heads", None) or model.config.num_attention_heads
    layers = model.config.num_hidden_layers
    per_layer = rows.view(len(rows), layers, 2, heads, -1)
    cache = DynamicCache()
    for layer in range(layers):
        keys, values = (per_layer[:, layer, side].transpose(0, 1)[None] for side in (0, 1))
        cache.update(keys, values, layer)
    start = len(rows) if config.shifts_text else 0
    positions = torch.arange(start, start + len(ids))[None]
    return model(ids[None], past_key_values=cache, position_ids=positions, use_cache=True).logits[0]


METHODS = {
    "lora": lora,
    "series": series,
    "parallel": parallel,
    "prompt": prompt,
    "prefix": prefix,
    "ptuning": ptuning,
    "bitfit": bitfit,
    "ia3": ia3,
}


def _by_row(function):
    """A forward of rows [..., in] that calls `function` for every row alone."""

    def forward(rows):
        flat = [function(x) for x in rows.reshape(-1, rows.shape[-1])]
        return torch.stack(flat).view(*rows.shape[:-1], -1)

    return forward


def _then(forward, change):
    return lambda *args, **kwargs: change(forward(*args, **kwargs))


def _weight_and_bias(module) -> tuple[Tensor, Tensor | float]:
    """W [out, in] and the bias, 0 where there is none."""
    W = module.weight.T if isinstance(module, Conv1D) else module.weight
    return W.clone(), 0.0 if module.bias is None else module.bias.clone()
