"""Tiny random bases of every family, built in memory: no downloads, a fraction of a second each."""

import os
import tempfile

# Before anything reads them: no test reaches a model hub, and none depends on the settings of who runs it.
for _name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_TOKEN"):
    os.environ.pop(_name, None)
os.environ["HF_ENDPOINT"] = "http://127.0.0.1:9"
_cache = tempfile.TemporaryDirectory(prefix="graft-test-cache-")  # what tests find out is not kept for later
os.environ["GRAFT_CACHE"] = _cache.name

from graft.hub.machine.openmp_wait import wait_briefly

wait_briefly()  # before torch is imported, as commands do

import pytest
import torch

# Triton's kernels run on the GPU, or, where there is none, in its interpreter: read when triton is first imported.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from graft.hub.base.model import Base

torch.set_num_threads(1)  # tiny tensors: a second thread only waits

VOCAB = 300
_LLAMA = dict(
    vocab_size=VOCAB, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, max_position_embeddings=256, bos_token_id=0, eos_token_id=1, pad_token_id=1,
)  # fmt: skip
_NEOX = {key: value for key, value in _LLAMA.items() if key != "num_key_value_heads"}
# family -> config; windows shorter than the text, soft-caps and biases where the family has them
FAMILIES = {
    "llama": dict(model_type="llama", tie_word_embeddings=True, **_LLAMA),
    "mistral": dict(model_type="mistral", sliding_window=6, **_LLAMA),
    "qwen2": dict(model_type="qwen2", **_LLAMA),
    "qwen3": dict(model_type="qwen3", head_dim=8, **_LLAMA),
    "gemma2": dict(
        model_type="gemma2", head_dim=8, sliding_window=6, query_pre_attn_scalar=8, attn_logit_softcapping=5.0,
        final_logit_softcapping=3.0, **_LLAMA,
    ),
    "gemma3_text": dict(model_type="gemma3_text", head_dim=8, sliding_window=6, query_pre_attn_scalar=8, **_LLAMA),
    "phi3": dict(model_type="phi3", **_LLAMA),
    "gpt2": dict(
        model_type="gpt2", vocab_size=VOCAB, n_embd=32, n_layer=2, n_head=4, n_positions=256, bos_token_id=0,
        eos_token_id=1,
    ),
    "gpt_neox": dict(model_type="gpt_neox", use_parallel_residual=True, **_NEOX),
    "opt": dict(
        model_type="opt", vocab_size=VOCAB, hidden_size=32, ffn_dim=48, num_hidden_layers=2, num_attention_heads=4,
        word_embed_proj_dim=32, max_position_embeddings=256, bos_token_id=0, eos_token_id=1, pad_token_id=1,
    ),
}  # fmt: skip


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """Bytes as tokens: ids 0 and 1 are <s> and </s>, the rest the byte alphabet."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {"<s>": 0, "</s>": 1, **{letter: i + 2 for i, letter in enumerate(alphabet)}}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="</s>", model_max_length=256
    )


def tiny_model(family: str, seed: int = 0):
    """A random model whose norms are not constant and whose biases are not zero; weights large enough to matter."""
    config = dict(FAMILIES[family])
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**config), dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.randn_like(parameter) * 0.1)
            else:
                parameter.copy_(torch.randn_like(parameter) * (0.5 / parameter.shape[-1] ** 0.5))
    return model.eval()


def tiny_base(family: str, seed: int = 0) -> Base:
    return Base(tiny_model(family, seed), tiny_tokenizer(), id=f"test/{family}")


# What `make test-fast` (--fast) keeps and leaves out: fused and separate projections, rotary and learned positions, taps of
# every kind; no compiler of Triton's, no commands in processes of their own, no other libraries.
FAST = {"family": ("llama", "gpt2", "gpt_neox"), "kind": ("eager", "fast-2"), "kernels": (2,)}  # by fixture
SLOWER = (
    "tests/field", "tests/interop", "tests/server/commands", "tests/server/runners/cuda", "tests/test_benchmarks.py",
    "tests/test_tutorial.py", "tests/hub/base/test_dtype_choice.py", "tests/hub/registry/test_properties.py",
    "tests/trainer/commands", "tests/hub/web/test_clients.py", "tests/server/engine/test_random_requests.py",
    "tests/hub/base/test_named_bases.py", "tests/server/http/test_faults.py",
    "tests/server/engine/test_fault_injection.py",
)  # fmt: skip


def pytest_addoption(parser):
    parser.addoption("--fast", action="store_true", help="three families, nothing that takes long (make test-fast)")


def pytest_collection_modifyitems(config, items):
    if not config.getoption("--fast"):
        return
    kept = [item for item in items if _is_fast(item)]
    config.hook.pytest_deselected(items=[item for item in items if item not in set(kept)])
    items[:] = kept


def _is_fast(item) -> bool:
    parameters = item.callspec.params if "callspec" in vars(item) else {}
    return not item.nodeid.startswith(SLOWER) and all(
        parameters.get(name) in (None, *kept)
        for name, kept in FAST.items()
        if name != "kind" or "runners" in item.nodeid
    )


@pytest.fixture(params=FAMILIES)
def family(request) -> str:
    return request.param


@pytest.fixture
def base(family) -> Base:
    return tiny_base(family)


@pytest.fixture
def llama() -> Base:
    return tiny_base("llama")


@pytest.fixture(scope="session")
def ray_address():
    """Of a Ray cluster with a CPU on each of two nodes, on this machine."""
    from tests.ray_cluster import nodes  # few tests need it

    with nodes(1, 1) as cluster:
        yield cluster.address
