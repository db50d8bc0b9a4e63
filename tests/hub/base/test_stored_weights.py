"""A base run over its stored weights says what the loaded one says in float32, and a content hash knows one weight."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from graft.hub.adapters.probe import ProbeQuestion
from graft.hub.adapters.probe_replay import answers, likely_tokens, replay_of
from graft.hub.base.model import load_base
from graft.hub.base.stored_weights import Arithmetic, stored_base, stored_weights
from tests.conftest import tiny_model, tiny_tokenizer
from tests.server.conftest import KINDS, random_tensors

QUESTIONS = (ProbeQuestion(tuple(range(5, 25)), ((3, 4), (5, 6), (7, 8))), ProbeQuestion((9, 8, 7), ((1, 2),)))


def written(folder, family, dtype=torch.float32, seed=0, **how):
    tiny_model(family, seed).to(dtype).save_pretrained(folder, **how)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def close(a, b, most=1e-4):
    pairs = zip(flat(a), flat(b), strict=True)
    return max(abs(x - y) for x, y in pairs) <= most


def random_forms(kind, base, seed):
    method, config, tensors = random_tensors(kind, base, seed)
    return method.fold(config, tensors, base)


def said(base, *adapters):
    """By adapters in one pass; by the bare base where there are none."""
    return answers(base, [(replay_of(forms, base.dtype), QUESTIONS) for forms in adapters or ((),)])


def flat(tables):
    return [value for own in tables for table in own for row in table for value in row]


def plain(base, **how):
    return stored_base(base, stored_weights(base), Arithmetic(**how))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_family_says_what_the_loaded_one_says(tmp_path, family, dtype):
    folder = written(tmp_path / "base", family, dtype)
    base = load_base(folder, dtype="float32", device="cpu")
    assert stored_weights(base).files
    expected = said(base)
    assert close(said(plain(base)), expected)
    assert close(said(plain(base, dtype=torch.float64)), expected)
    assert not close(said(plain(base, rounded=True)), expected)
    # what serves it does not matter: the same from a base that is loaded in another dtype
    assert said(plain(load_base(folder, dtype="bfloat16", device="cpu"))) == said(plain(base))


@pytest.mark.parametrize("kind", KINDS)
def test_adapters_together_say_what_each_says_alone(llama, kind):
    stored, forms = plain(llama), random_forms(kind, llama, 1)
    others = [random_forms(other, llama, 2) for other in ("lora", "prefix", "prompt")]
    bare, told = said(stored, (), forms)
    together = said(stored, *others, forms, ())
    assert close([told, bare], together[-2:], 1e-5) and not close([told], [bare])
    assert close([told], said(llama, forms))


def test_the_likeliest_tokens_are_those_of_the_logits(llama):
    (rows,) = likely_tokens(plain(llama), [(5, 6, 7)], 2, 3)
    with torch.no_grad():
        expected = (
            llama.model(torch.tensor([[5, 6, 7]]), attention_mask=None, graft=_whole(3)).logits[0, 1:].topk(3).indices
        )
    assert rows == tuple(map(tuple, expected.tolist()))


def _whole(length):
    from graft.hub.adapters.packed_attention import PackedAttention

    return PackedAttention([length], None, torch.device("cpu"))


def test_content_is_of_the_weights_not_of_the_files(tmp_path):
    one, shards, other = (load_base(written(tmp_path / name, "gpt2", **how), device="cpu") for name, how in (
        ("one", {}), ("shards", {"max_shard_size": "30KB"}), ("other", {"seed": 1}),
    ))  # fmt: skip
    assert len(stored_weights(shards).files) > 1
    assert stored_weights(one).content == stored_weights(shards).content != stored_weights(other).content
    rounded = load_base(written(tmp_path / "bf16", "gpt2", torch.bfloat16), device="cpu")
    assert stored_weights(rounded).content != stored_weights(one).content
    assert stored_weights(rounded).dtype == "bfloat16"
    # one weight of one file is changed: neither its size nor what was found out before hides it
    path = tmp_path / "one" / "model.safetensors"
    tensors = load_file(path)
    before = stored_weights(one).content
    name = sorted(tensors)[0]
    tensors[name].view(-1)[7] += 1e-3
    save_file(tensors, path, metadata={"format": "pt"})
    assert stored_weights(load_base(tmp_path / "one", device="cpu")).content != before


def test_files_without_the_models_prefix_are_found(tmp_path):
    folder = written(tmp_path / "base", "gpt2")
    path = folder / "model.safetensors"
    tensors = {name.removeprefix("transformer."): tensor for name, tensor in load_file(path).items()}
    assert "wte.weight" in tensors
    save_file(tensors, path, metadata={"format": "pt"})
    base = load_base(folder, device="cpu", dtype="float32")
    assert stored_weights(base).files
    assert close(said(plain(base)), said(base))


def test_a_base_without_files_is_taken_as_it_is_loaded(llama):
    weights = stored_weights(llama)
    assert not weights.files and weights.dtype == "float32"
    assert weights.tensors["model.norm.weight"].data_ptr() == llama.model.model.norm.weight.data_ptr()  # no copy


def test_work_is_cut_into_pieces_and_pauses_between_them(llama):
    pauses = []
    stored = stored_base(llama, stored_weights(llama), Arithmetic(pause=lambda: pauses.append(None)))
    said(stored)
    linears = 7 * llama.spec.num_layers + 1
    assert len(pauses) >= linears


def test_pieces_follow_the_time_they_take_only_where_somebody_waits():
    """Beside other load a piece takes long because its threads wait for each other: smaller ones would take longer."""
    alone, beside = Arithmetic(), Arithmetic(pause=lambda: None)
    least = beside._weights(rows=48)
    sizes = []
    for seconds in (1e-6, 1e-6, 0.1, 0.1, 0.1):
        for how in (alone, beside):
            how._adapt(1 << 24, seconds)
        sizes.append(beside._weights(rows=48))
    assert sizes[1] > sizes[0] > least and sizes[2] < sizes[1] and sizes[-1] == least
    assert alone._weights(rows=48) == Arithmetic()._weights(rows=1)
