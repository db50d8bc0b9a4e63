"""Broken and hostile artifacts: each is refused with its own clear message, and nothing but GraftError comes out."""

import json
import shutil
import subprocess
import sys
import time

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from graft.hub.adapters.artifact import load_artifact, save_artifact
from graft.hub.adapters.methods import virtual_tokens
from graft.hub.adapters.methods.target_modules import full_matches
from graft.hub.adapters.validation import inspect_artifact
from graft.hub.errors import ArtifactError, BaseMismatchError, GraftError, UnsupportedMethodError
from tests.hub.adapters.methods.cases import VARIANTS, base_of, case

WEIGHTS, CONFIG, PROVENANCE = "adapter_model.safetensors", "adapter_config.json", "graft.json"
SPEC = base_of("llama").spec


def sound(folder, variant="lora", family="llama"):
    c = case(family, variant)
    made_for = {"base": {"id": c.base.spec.id, "fingerprint": c.base.spec.fingerprint}}
    tensors = c.method.encode(c.config, c.parameters)
    save_artifact(folder, c.method, c.config, tensors, c.base.spec, provenance=made_for)
    return folder


def refused(folder, message, kind=ArtifactError):
    """By the inspection alone and by the loader, with one message."""
    for look in (lambda: inspect_artifact(folder, SPEC), lambda: load_artifact(folder, SPEC)):
        with pytest.raises(kind, match=message):
            look()


def with_tensors(folder, change):
    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    save_file(tensors, folder / WEIGHTS)
    return folder


def with_config(folder, **values):
    raw = json.loads((folder / CONFIG).read_text()) | values
    (folder / CONFIG).write_text(json.dumps(raw))
    return folder


def test_a_sound_one_passes(tmp_path):
    found = inspect_artifact(sound(tmp_path), SPEC)
    assert (found.method, found.base_fingerprint, found.max_rank) == ("lora", SPEC.fingerprint, 8)
    assert found.parameters == sum(tensor.numel() for tensor in load_file(tmp_path / WEIGHTS).values())


def test_wrong_base(tmp_path):
    other = base_of("qwen2").spec
    sound(tmp_path)
    for look in (inspect_artifact, load_artifact):
        with pytest.raises(BaseMismatchError, match=r"made for the base test/llama .*--allow-base-mismatch"):
            look(tmp_path, other)


def test_wrong_base_without_a_fingerprint_is_seen_by_its_shapes(tmp_path):
    (sound(tmp_path) / PROVENANCE).unlink()
    with pytest.raises(ArtifactError, match=r"lacks|shape|no effect"):
        load_artifact(tmp_path, base_of("phi3").spec, allow_base_mismatch=True)


def test_missing_tensor(tmp_path):
    refused(with_tensors(sound(tmp_path), lambda t: t.pop(sorted(t)[0])), "lacks .*lora_A")


def test_extra_tensor(tmp_path):
    extra = {"base_model.model.model.layers.0.self_attn.x_proj.lora_A.weight": torch.ones(2, 2)}
    refused(with_tensors(sound(tmp_path), lambda t: t.update(extra)), "x_proj.*silently have no effect")


def test_wrong_shape(tmp_path):
    def change(tensors):
        name = sorted(tensors)[0]
        tensors[name] = tensors[name][:, :-1].contiguous()

    refused(with_tensors(sound(tmp_path), change), "has the shape", BaseMismatchError)


@pytest.mark.parametrize("variant", ["lora", "houlsby", "parallel", "bitfit", "ia3"])
def test_no_op(variant, tmp_path):
    """As saved before training: known without torch and without the base."""
    c = case("llama", variant)
    start = {k: torch.zeros_like(v) if "adapter_up" in k else v for k, v in c.fresh.items()}
    save_artifact(tmp_path, c.method, c.config, start, c.base.spec)
    refused(tmp_path, "changes nothing")


def test_no_op_that_only_the_base_can_tell(tmp_path):
    c = case("llama", "parallel per linear")
    start = {k: torch.zeros_like(v) for k, v in c.fresh.items()}
    save_artifact(tmp_path, c.method, c.config, start, c.base.spec)
    refused(tmp_path, "changes nothing")
    c = case("gpt2", "bias=all")
    save_artifact(tmp_path / "b", c.method, c.config, c.fresh, c.base.spec)
    with pytest.raises(ArtifactError, match="changes nothing"):
        load_artifact(tmp_path / "b", c.base.spec).fold(c.base)


def test_frozen_weights_of_another_base(tmp_path):
    name = "base_model.model.lm_head.base_layer.weight"
    base = base_of("llama")
    with_tensors(sound(tmp_path), lambda t: t.update({name: base.weight("lm_head").clone()}))
    load_artifact(tmp_path, SPEC).fold(base)
    with_tensors(tmp_path, lambda t: t.update({name: base.weight("lm_head") + 1}))
    with pytest.raises(BaseMismatchError, match="its own weight of lm_head"):
        load_artifact(tmp_path, SPEC).fold(base)
    with_tensors(tmp_path, lambda t: t.update({name: torch.ones(5, 5)}))
    refused(tmp_path, "lm_head.*no effect")


def test_not_finite(tmp_path):
    def change(tensors):
        tensors[sorted(tensors)[1]][0, 0] = float("nan")

    refused(with_tensors(sound(tmp_path), change), "NaN or infinite")


def test_saving_what_is_not_sound_leaves_nothing(tmp_path):
    c = case("llama", "lora")
    first = sorted(c.parameters)[0]
    for change in ({first: c.parameters[first] * float("nan")}, {first: torch.ones(1)}, {"extra": torch.ones(1)}):
        with pytest.raises(ArtifactError, match="nothing was saved"):
            save_artifact(tmp_path / "out", c.method, c.config, c.parameters | change, SPEC)
    assert not (tmp_path / "out").exists()


def test_pickle(tmp_path):
    (sound(tmp_path) / WEIGHTS).unlink()
    torch.save({"a": torch.ones(1)}, tmp_path / "adapter_model.bin")
    refused(tmp_path, "nothing is ever unpickled")


def test_pickle_under_a_safetensors_name(tmp_path):
    torch.save({"a": torch.ones(1)}, sound(tmp_path) / WEIGHTS)
    refused(tmp_path, "pickle or zip")


def test_no_weights_no_config_no_folder(tmp_path):
    (sound(tmp_path / "a") / WEIGHTS).unlink()
    refused(tmp_path / "a", "holds no weights")
    (sound(tmp_path / "b") / CONFIG).unlink()
    refused(tmp_path / "b", "not an adapter's folder")
    refused(tmp_path / "nowhere", "not an adapter's folder")


def test_truncated(tmp_path):
    whole = (sound(tmp_path) / WEIGHTS).read_bytes()
    (tmp_path / WEIGHTS).write_bytes(whole[:-40])
    refused(tmp_path, "cut off")


def test_empty(tmp_path):
    save_file({}, sound(tmp_path) / WEIGHTS)
    refused(tmp_path, "no tensor at all")


@pytest.mark.parametrize(
    ("text", "message"),
    [(b"{", "not valid JSON"), (b"[1]", "must hold a JSON object"), (b"\xff\xfe{}", "can't be read as text"),
     (b'{"peft_type":' + b"[" * 100_000, "not valid JSON"), (b" " * (5 << 20), "larger than"),
     (b'{"peft_type": "LORA", "r": NaN}', "NaN is no number"), (b'{"a": ["\\uD800"]}', "surrogates not allowed"), (b'{"r": 1' + b"0" * 5000 + b"}", "not valid JSON"),
     (b"{}", "names no method"), (b'{"peft_type": "VERA"}', "'VERA' is not served"),
     (b'{"config": {"architecture": "reft"}}', "'reft' is not served")],
)  # fmt: skip
def test_broken_configs(text, message, tmp_path):
    (sound(tmp_path) / CONFIG).write_bytes(text)
    refused(tmp_path, message)


@pytest.mark.parametrize(
    "option",
    [{"modules_to_save": ["lm_head"]}, {"init_lora_weights": "pissa_niter_16"}, {"trainable_token_indices": [3]},
     {"target_parameters": ["x"]}, {"use_qalora": True}, {"layer_replication": [[0, 1]]}, {"corda_config": {"a": 1}},
     {"some_future_option": 1, "peft_version": "99.0"}, {"use_mora": True}],
)  # fmt: skip
def test_options_not_served_are_refused_by_name(option, tmp_path):
    refused(with_config(sound(tmp_path), **option), next(iter(option)), UnsupportedMethodError)


@pytest.mark.parametrize(
    "wrong",
    [{"r": "8"}, {"r": True}, {"r": 0}, {"r": 10**300}, {"lora_alpha": "x"}, {"lora_alpha": -1}, {"use_dora": "false"},
     {"target_modules": 3}, {"target_modules": [1]}, {"rank_pattern": {"q_proj": "2"}}, {"rank_pattern": [1]},
     {"alpha_pattern": {"q_proj": -2}}, {"layers_to_transform": ["0"]}, {"bias": "some"}, {"lora_dropout": 2}],
)  # fmt: skip
def test_values_of_the_wrong_kind(wrong, tmp_path):
    with pytest.raises(GraftError) as caught:
        inspect_artifact(with_config(sound(tmp_path), **wrong), SPEC)
    (name, value), *_ = wrong.items()
    own_names = {
        "lora_alpha": "alpha",
        "lora_dropout": "dropout",
        "rank_pattern": "q_proj" if isinstance(value, dict) else name,
    }
    assert own_names.get(name, name) in str(caught.value) and len(str(caught.value)) < 500


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=5,
)
FUZZED = ["lora", "houlsby", "series per linear", "parallel", "prompt", "ptuning mlp", "prefix",
          "prefix beside the text", "bitfit", "ia3"]  # fmt: skip


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    return {variant: sound(tmp_path_factory.mktemp("source"), variant) for variant in FUZZED}


@settings(max_examples=600, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(variant=st.sampled_from(FUZZED), data=st.data())
def test_every_field_fuzzed(variant, data, sources, tmp_path_factory):
    """Any JSON in any field, of the config or of graft.json: a GraftError, or an artifact that folds."""
    folder = tmp_path_factory.getbasetemp() / "fuzzed"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(sources[variant], folder)
    raw = json.loads((folder / CONFIG).read_text())
    for _ in range(data.draw(st.integers(1, 2))):
        place = raw["config"] if isinstance(raw.get("config"), dict) and data.draw(st.booleans()) else raw
        key = data.draw(st.sampled_from([*sorted(place), "graft", "config", "peft_type"]))
        place[key] = data.draw(JSON)
    (folder / CONFIG).write_text(json.dumps(raw))
    if data.draw(st.booleans()):
        (folder / PROVENANCE).write_text(json.dumps({"base": data.draw(JSON), "probe": data.draw(JSON)}))
    try:
        inspect_artifact(folder, SPEC)
        load_artifact(folder, SPEC).fold(base_of("llama"))
    except GraftError as error:
        assert len(str(error)) < 1500


@pytest.mark.parametrize(
    "pattern",
    ["(.|.)" * 30 + "proj", ".?" * 200 + "[a-z]", ".*" * 12 + "[a-z]", "((.*)*)*[a-z]", "(.+)+q", "(((a{1000}){1000}){1000})",
     "(?:.{0,50}){0,50}[a-z]", "(a|aa)+$", "(?:(?:(?:.?){90}){90}){90}", r"(.*)(.*)(.*)\1\2\3[a-z]"],
)  # fmt: skip
def test_patterns_run_in_bounded_time(pattern):
    start = time.process_time()
    try:
        full_matches(pattern, SPEC.modules)
    except ArtifactError as error:
        assert "too complex" in str(error)
    assert time.process_time() - start < 6


def test_a_pattern_that_takes_too_long_is_stopped(monkeypatch):
    monkeypatch.setattr("graft.hub.adapters.methods.target_modules._SECONDS", 0.2)
    start = time.process_time()
    with pytest.raises(ArtifactError, match="too complex"):
        full_matches(r"(?:(a|a|aa|aaa)+c?)+[bc]d", ["a" * 400 + "bb"])
    assert time.process_time() - start < 3


def test_broken_patterns(tmp_path):
    for pattern in ("(", "[", "*", "(?P<x", "\\"):
        refused(with_config(sound(tmp_path), target_modules=pattern), "no regular expression")


def test_honest_patterns_run():
    qv = {f"model.layers.{i}.self_attn.{p}_proj" for i in (0, 1) for p in "qv"}
    assert full_matches(r".*\.layers\.\d+\.self_attn\.(q|v)_proj", SPEC.modules) == qv
    mixed = r"^(?:.*?(?:language|text).*?(?:self_attn|mlp).*?(?:q_proj).*?)|(?:\bmodel\.layers\.[\d]{1,}\.(?:self_attn|mlp)\.(?:(?:q_proj|v_proj)))$"
    assert full_matches(mixed, SPEC.modules) == qv


def test_methods_and_inspection_need_no_torch(tmp_path):
    folders = [str(sound(tmp_path / str(i), variant)) for i, variant in enumerate(VARIANTS)]
    (tmp_path / "spec.json").write_text(SPEC.to_json())
    code = (
        "import sys; from pathlib import Path; from graft.hub.adapters.validation import inspect_artifact;"
        "from graft.hub.base.manifest import BaseSpec; spec = BaseSpec.from_json(Path(sys.argv[1]).read_text());"
        "print(*(inspect_artifact(Path(folder), spec).digest for folder in sys.argv[2:]));"
        "assert 'torch' not in sys.modules and 'transformers' not in sys.modules"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "spec.json"), *folders],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [load_artifact(folder, SPEC).digest for folder in folders]


def test_the_digest_is_of_what_is_served(tmp_path):
    first = inspect_artifact(sound(tmp_path), SPEC).digest
    for same in ({"lora_dropout": 0.3}, {"peft_version": "9"}, {"base_model_name_or_path": "elsewhere"}):
        assert inspect_artifact(with_config(tmp_path, **same), SPEC).digest == first
    targets = json.loads((tmp_path / CONFIG).read_text())["target_modules"]
    assert inspect_artifact(with_config(tmp_path, target_modules=targets[::-1]), SPEC).digest == first
    assert inspect_artifact(with_config(tmp_path, lora_alpha=17), SPEC).digest != first


def test_the_order_of_patterns_counts_and_is_kept(tmp_path):
    alphas = {"v_proj": 3, "proj": 5, "a.*": 7}
    first = with_config(sound(tmp_path), alpha_pattern=alphas)
    artifact = load_artifact(first, SPEC)
    save_artifact(tmp_path / "again", artifact.method, artifact.config, artifact.tensors, SPEC)
    assert list(json.loads((tmp_path / "again" / CONFIG).read_text())["alpha_pattern"]) == list(alphas)
    assert load_artifact(tmp_path / "again", SPEC).digest == artifact.digest
    turned = with_config(first, alpha_pattern=dict(reversed(alphas.items())))
    assert load_artifact(turned, SPEC).digest != artifact.digest


@pytest.mark.parametrize(("tokens", "said"), [(4, "has 5 rows"), (0, "whole number above 0"), (True, "whole number")])
def test_a_prompt_has_as_many_rows_as_it_says(tokens, said):
    with pytest.raises(ArtifactError, match=said):
        virtual_tokens.tokens_of({"num_virtual_tokens": tokens}, {virtual_tokens.KEY: (5, 8)})
    assert virtual_tokens.tokens_of({"num_virtual_tokens": 5}, {virtual_tokens.KEY: (5, 8)}) == 5
