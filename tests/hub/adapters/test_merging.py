"""Merging, summing and converting: the answers stay, what can't be done exactly is refused by name."""

import json

import pytest
import torch
from click.testing import CliRunner
from transformers import AutoModelForCausalLM

from graft.hub.adapters.artifact import load_artifact, save_artifact
from graft.hub.adapters.formats import convert
from graft.hub.adapters.merging import merge, weighted_sum
from graft.hub.cli.export import export
from graft.hub.errors import ArtifactError, UnsupportedMethodError
from tests.conftest import FAMILIES, tiny_base, tiny_tokenizer
from tests.hub.adapters.methods.cases import LONG, VARIANTS, base_of, case, served_logits

MERGEABLE = [v for v, (method, _) in VARIANTS.items() if method in ("lora", "ia3", "bitfit")]
UNMERGEABLE = ["houlsby", "parallel", "parallel per linear", "prompt", "ptuning mlp", "prefix"]


def saved(folder, family, variant):
    c = case(family, variant)
    save_artifact(folder, c.method, c.config, c.method.encode(c.config, c.parameters), c.base.spec)
    return load_artifact(folder, c.base.spec)


def answers(base, artifact, ids=LONG):
    return served_logits(base, [(artifact.fold(base), ids)])[0]


@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox"])
@pytest.mark.parametrize("variant", MERGEABLE)
def test_a_merged_base_answers_as_with_the_adapter(family, variant, tmp_path):
    artifact, base = saved(tmp_path, family, variant), tiny_base(family)
    expected = answers(base, artifact)
    if family == "llama" and (artifact.method.name == "bitfit" or artifact.config.__dict__.get("lora_bias")):
        with pytest.raises(UnsupportedMethodError, match="no place"):
            merge(artifact, base)
        (bare,) = served_logits(base, [(None, LONG)])
        assert torch.equal(bare, served_logits(base_of(family), [(None, LONG)])[0]), "refused before any change"
        return
    merge(artifact, base)
    (merged,) = served_logits(base, [(None, LONG)])
    torch.testing.assert_close(merged, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("variant", UNMERGEABLE)
def test_what_is_no_change_of_weights_is_refused_by_name(variant, tmp_path):
    artifact = saved(tmp_path, "llama", variant)
    with pytest.raises(UnsupportedMethodError, match=f"{artifact.method.title} can't be merged"):
        merge(artifact, tiny_base("llama"))


def test_a_weighted_sum_adds_the_changes(tmp_path):
    base = tiny_base("gpt2")
    parts = [(saved(tmp_path / v, "gpt2", v), w) for v, w in (("lora patterns", 0.7), ("rsLoRA", -0.4))]
    config, tensors = weighted_sum(parts, base)
    save_artifact(tmp_path / "sum", parts[0][0].method, config, tensors, base.spec)
    summed = load_artifact(tmp_path / "sum", base.spec)
    changes = {}
    for artifact, weight in parts:
        for form in artifact.fold(base):
            changes[form.adds_to] = changes.get(form.adds_to, 0) + weight * form.scale * (form.A.T @ form.B)
    for form in summed.fold(base):
        torch.testing.assert_close(form.scale * (form.A.T @ form.B), changes.pop(form.adds_to), atol=1e-5, rtol=1e-5)
    assert not changes


def test_a_sum_that_cancels_out_is_refused(tmp_path):
    part = saved(tmp_path, "llama", "lora patterns")
    with pytest.raises(ArtifactError, match="cancel each other out"):
        weighted_sum([(part, 1.0), (part, -1.0)], base_of("llama"))


def test_a_sum_of_what_is_not_linear_is_refused(tmp_path):
    with pytest.raises(UnsupportedMethodError, match="DoRA"):
        weighted_sum([(saved(tmp_path, "llama", "DoRA"), 1.0)], base_of("llama"))


@pytest.mark.parametrize("family", sorted(set(FAMILIES) - {"gpt2", "opt"}))
def test_a_prefix_moves_between_peft_and_adapterhub(family, tmp_path):
    artifact, base = saved(tmp_path / "a", family, "prefix"), base_of(family)
    convert(artifact, base, "adapterhub", tmp_path / "b")
    assert (tmp_path / "b" / "adapter.safetensors").exists()
    moved = load_artifact(tmp_path / "b", base.spec)
    assert moved.fold(base)[0].text_start == 0 < artifact.fold(base)[0].text_start
    torch.testing.assert_close(answers(base, moved), answers(base, artifact), atol=1e-4, rtol=1e-4)
    convert(moved, base, "peft", tmp_path / "c")
    back = load_artifact(tmp_path / "c", base.spec)
    for name, tensor in artifact.tensors.items():
        torch.testing.assert_close(back.tensors[name], tensor, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("family", "variant", "to"),
    [("gpt2", "prefix", "adapterhub"), ("llama", "parallel", "adapterhub"), ("llama", "houlsby", "peft"),
     ("llama", "bitfit", "peft"), ("llama", "prompt", "adapterhub")],
)  # fmt: skip
def test_what_a_format_has_no_place_for_is_refused(family, variant, to, tmp_path):
    artifact = saved(tmp_path / "a", family, variant)
    with pytest.raises(UnsupportedMethodError):
        convert(artifact, base_of(family), to, tmp_path / "b")
    assert not (tmp_path / "b").exists()


@pytest.fixture
def base_folder(tmp_path):
    tiny_base("llama").model.save_pretrained(tmp_path / "base")
    tiny_tokenizer().save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def run(*arguments):
    return CliRunner().invoke(export, [str(argument) for argument in arguments])


def test_the_command_merges(base_folder, tmp_path):
    artifact = saved(tmp_path / "adapter", "llama", "DoRA")
    result = run(tmp_path / "adapter", "--base", base_folder, "--merge", tmp_path / "out", "--json")
    assert result.exit_code == 0, result.output
    said = json.loads(result.stdout)
    assert said["difference"] < 1e-3 and said["digest"] == artifact.digest
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32).eval()
    logits = model(LONG[None]).logits[0]
    torch.testing.assert_close(logits, answers(base_of("llama"), artifact), atol=1e-4, rtol=1e-4)


def test_the_command_sums_with_lineage(base_folder, tmp_path):
    digests = [saved(tmp_path / v, "llama", v).digest for v in ("lora", "rsLoRA")]
    plus = f"{tmp_path / 'rsLoRA'}=0.25"
    result = run(
        tmp_path / "lora", "--base", base_folder, "--plus", plus, "--weight", "2", "--to", "peft", tmp_path / "s"
    )
    assert result.exit_code == 0, result.output
    parents = json.loads((tmp_path / "s" / "graft.json").read_text())["parents"]
    assert parents == [{"digest": digests[0], "weight": 2.0}, {"digest": digests[1], "weight": 0.25}]
    load_artifact(tmp_path / "s", base_of("llama").spec)


def test_the_command_needs_one_way_out(base_folder, tmp_path):
    saved(tmp_path / "adapter", "llama", "lora")
    assert run(tmp_path / "adapter", "--base", base_folder).exit_code == 2
    both = run(tmp_path / "adapter", "--base", base_folder, "--merge", tmp_path / "a", "--to", "peft", tmp_path / "b")
    assert both.exit_code == 2


@pytest.mark.parametrize(
    "flag, value", [("--plus", "a=nan"), ("--plus", "a=inf"), ("--plus", "=1"), ("--weight", "nan")]
)
def test_a_weight_is_a_finite_number(tmp_path, flag, value):
    done = CliRunner().invoke(export, ["a", "--base", "o/b", "--to", "peft", str(tmp_path / "c"), flag, value])
    assert done.exit_code == 2 and "finite number" in done.output
