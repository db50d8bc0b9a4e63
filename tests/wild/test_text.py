"""K8, K8a, K14: from data and prompts to token ids, and the errors on the way.

Reports: https://github.com/abetlen/llama-cpp-python/issues/1501 and https://github.com/huggingface/open-r1/issues/462 (two
BOS), https://github.com/unslothai/unsloth/issues/334, https://github.com/huggingface/alignment-handbook/issues/93 (templates
that refuse), https://github.com/huggingface/smol-course/issues/260 (content in parts),
https://github.com/EleutherAI/lm-evaluation-harness/issues/546 (spaces at the join),
https://github.com/oobabooga/textgen/issues/2500 (one JSON array), https://github.com/unslothai/unsloth/issues/321 (tensors of
shape [0]). What is right: one BOS, the template's own words with the line, the same messages in data as in requests.
"""

import json
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file
from tokenizers.processors import TemplateProcessing

from graft.hub.adapters.artifact import save_artifact
from graft.hub.adapters.validation import inspect_artifact
from graft.hub.base.importer import import_base
from graft.hub.base.model import load_base
from graft.hub.chat.turns import ChatTurn
from graft.hub.cli.main import main
from graft.hub.errors import ArtifactError, BaseModelError, DataError
from graft.hub.evaluation.eval_prompts import label_groups, text_prompts
from graft.hub.evaluation.task_data import Example, data_hash, load_examples, parse_examples
from graft.hub.evaluation.tokenization import TemplateRefusalError, encode, encode_prompt, prompt_of, spaces_at_the_join
from graft.server.engine.client import EngineClient
from graft.server.engine.engine import Engine
from graft.server.http.app import create_app
from graft.trainer.data.sequences import sequences_of
from tests.conftest import tiny_base, tiny_tokenizer
from tests.hub.adapters.methods.cases import case
from tests.server.live import OPTIONS

STRICT = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('no place for a system turn') }}{% endif %}"
    "{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('user and assistant must speak in turn') }}{% endif %}"
    "<{{ m['role'] }}>{{ m['content'] | trim }}{% endfor %}"
)


def with_bos(template: str | None = None):
    """A tokenizer that begins every text with BOS, as Llama's and Gemma's do."""
    tokenizer = tiny_tokenizer()
    start = ("<s>", tokenizer.bos_token_id)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[start])
    tokenizer.chat_template = template
    return tokenizer


# BOS


@pytest.mark.parametrize("text", ["Hello", "", " <s>", "a<s>b"])
def test_a_text_begins_with_one_bos(text: str) -> None:
    tokenizer = with_bos()
    ids = encode_prompt(text, tokenizer)
    assert ids[0] == 0 and ids[1:2] != [0]
    assert encode_prompt(f"<s>{text}", tokenizer) == ids  # already there
    assert encode_prompt(f"<s><s>{text}", tokenizer) == [0, *ids]  # as it stands, then


def test_a_tokenizer_without_bos_leaves_texts_alone() -> None:
    tokenizer = tiny_tokenizer()
    assert encode_prompt("<s><s>a", tokenizer) == tokenizer.encode("<s><s>a")
    assert 0 not in encode_prompt("a", tokenizer)


def test_training_scoring_and_serving_have_the_same_one() -> None:
    tokenizer = with_bos()
    plain, marked = (Example(f"{start}ab: ", "x", ("x", "y")) for start in ("", "<s>"))
    assert encode(plain, tokenizer) == encode(marked, tokenizer)
    assert sequences_of([plain], tokenizer, 64) == sequences_of([marked], tokenizer, 64)
    assert label_groups(plain, tokenizer, 64, "here") == label_groups(marked, tokenizer, 64, "here")
    assert text_prompts([plain], tokenizer, 64) == text_prompts([marked], tokenizer, 64)
    base = tiny_base("llama")
    base.tokenizer = tokenizer
    with Engine(base, {}, None, OPTIONS) as engine:
        client = create_app(EngineClient(engine)).test_client()
        asked = {"model": "test/llama", "max_tokens": 3, "temperature": 0}
        replies = [client.post("/v1/completions", json=asked | {"prompt": p}).json for p in ("ab: ", "<s>ab: ")]
    assert [reply["usage"]["prompt_tokens"] for reply in replies] == [5, 5]
    assert replies[0]["choices"][0]["text"] == replies[1]["choices"][0]["text"]


def test_a_template_that_writes_bos_gets_no_second() -> None:
    turns = (ChatTurn("user", "Hi"),)
    assert encode_prompt(turns, with_bos(STRICT)).count(0) == 1


# Templates


SYSTEM = {
    "messages": [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b"},
    ]
}
TWICE = {
    "messages": [
        {"role": "user", "content": "a"},
        {"role": "user", "content": "b"},
        {"role": "assistant", "content": "c"},
    ]
}
FINE = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "c"}]}
BROKEN = {
    "undefined": "{{ messages[0].content.nothing.here }}",
    "type": "{{ messages[0].content + 1 }}",
    "key": "{{ {'a': 1}[messages[0].content].x }}",
    "syntax": "{% for m in messages %}",
    "filter": "{{ messages[0].content | no_such_filter }}",
}


@pytest.fixture(scope="module")
def strict_base(tmp_path_factory) -> Path:
    """A base's folder whose template refuses."""
    folder = tmp_path_factory.mktemp("strict")
    base = tiny_base("llama")
    base.model.save_pretrained(folder)
    base.tokenizer.chat_template = STRICT
    base.tokenizer.save_pretrained(folder)
    return folder


def lines(path: Path, *rows: dict) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize(("row", "words"), [(SYSTEM, "no place for a system turn"), (TWICE, "must speak in turn")])
@pytest.mark.parametrize("command", ["train", "estimate", "compare"])
def test_every_command_gives_the_templates_words_and_the_line(strict_base, tmp_path, command, row, words) -> None:
    data, held = lines(tmp_path / "data.jsonl", FINE, row), lines(tmp_path / "held.jsonl", FINE)
    asked = [command, "--base", strict_base, "--data", data]
    asked += {
        "train": ["--method", "bitfit", "--out", tmp_path / "out", "--steps", "1"],
        "estimate": ["--method", "bitfit", "--steps", "1"],
        "compare": [
            "--task",
            "t",
            "--methods",
            "bitfit",
            "--out",
            tmp_path / "out",
            "--steps",
            "1",
            "--eval-data",
            held,
        ],
    }[command]
    done = CliRunner().invoke(main, [str(word) for word in asked])
    said = done.output + str(done.exception)
    assert done.exit_code != 0 and words in said and "line 2" in said
    assert done.exception is None or isinstance(done.exception, (DataError, SystemExit))


def test_eval_too(strict_base, tmp_path) -> None:
    rows = [{"prompt": row["messages"][:-1], "completion": "b", "labels": ["b", "c"]} for row in (FINE, SYSTEM)]
    place = ["--registry", str(tmp_path / "r.db")]
    data = lines(tmp_path / "data.jsonl", *rows)
    added = CliRunner().invoke(main, ["task", "add", "t", "--metric", "accuracy", "--data", str(data), *place])
    assert added.exit_code == 0, added.output
    done = CliRunner().invoke(main, ["eval", "--task", "t", "--base", str(strict_base), *place])
    said = done.output + str(done.exception)
    assert "no place for a system turn" in said and "line 2" in said
    assert isinstance(done.exception, (DataError, SystemExit))


@pytest.mark.parametrize("template", BROKEN.values(), ids=BROKEN)
def test_a_template_that_is_broken_is_an_error_with_words(template: str) -> None:
    tokenizer = with_bos(template)
    example = Example((ChatTurn("user", "Hi"),), "x", where="data.jsonl, line 7")
    with pytest.raises(TemplateRefusalError, match=r"data\.jsonl, line 7: The base's chat template refuses"):
        encode(example, tokenizer)
    with pytest.raises(TemplateRefusalError, match="Evaluation example 3"):
        prompt_of(Example(example.prompt, "x"), tokenizer, "Evaluation example 3")
    base = tiny_base("llama")
    base.tokenizer = tokenizer
    with Engine(base, {}, None, OPTIONS) as engine:
        asked = {"model": "test/llama", "messages": [{"role": "user", "content": "Hi"}]}
        reply = create_app(EngineClient(engine)).test_client().post("/v1/chat/completions", json=asked)
    assert reply.status_code == 400 and reply.json["error"]["param"] == "messages"


# Content in parts, and files as they come


def part(text: object) -> dict:
    return {"type": "text", "text": text}


def test_content_in_parts_is_the_same_text() -> None:
    parts = {
        "messages": [{"role": "user", "content": [part("a"), part("b")]}, {"role": "assistant", "content": [part("c")]}]
    }
    whole = {"messages": [{"role": "user", "content": "ab"}, {"role": "assistant", "content": "c"}]}
    read = [parse_examples(json.dumps(row).encode(), "x") for row in (parts, whole)]
    assert read[0] == read[1] and data_hash(read[0]) == data_hash(read[1])


@pytest.mark.parametrize(
    "content",
    [[], [{"type": "image_url", "image_url": {"url": "x"}}], [part(1)], [part(None)], [part("a"), "b"], {"a": 1}, None],
)
def test_content_that_is_no_text_is_named(content) -> None:
    row = {"messages": [{"role": "user", "content": content}, {"role": "assistant", "content": "c"}]}
    with pytest.raises(DataError, match="line 1: a message is"):
        parse_examples(json.dumps(row).encode(), "x")


@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("start", [b"", b"\xef\xbb\xbf", b"\n  "])
def test_one_json_array_is_read(tmp_path: Path, indent, start: bytes) -> None:
    rows = [{"prompt": "Say hi.", "completion": " Hi"}, {"prompt": "Say no.", "completion": " No"}]
    (tmp_path / "train.json").write_bytes(start + json.dumps(rows, indent=indent).encode())
    found = load_examples(tmp_path / "train.json")
    assert [example.completion for example in found] == [" Hi", " No"] and found[1].where.endswith("item 2")
    assert data_hash(found) == data_hash(parse_examples("\n".join(map(json.dumps, rows)).encode(), "x"))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b'[{"prompt": "a", "completion": "b"},\n', "one object a line"),
        (b'[{"prompt": "a"}]', 'item 1: there is no "completion"'),
        (b"[]", "holds no example"),
        (b"[1]", "item 1: a JSON object is needed"),
        (b'{\n  "prompt": "a",\n  "completion": "b"\n}\n', "stands on one line"),
    ],
)
def test_what_is_no_data_says_the_form(text: bytes, words: str) -> None:
    with pytest.raises(DataError, match=words):
        parse_examples(text, "train.json")


# Spaces at the join


def test_a_space_at_the_join_is_told(tmp_path: Path) -> None:
    spaced = {"prompt": "Colour: ", "completion": "red", "labels": ["red", "blue"]}
    moved = {"prompt": "Colour:", "completion": " red", "labels": [" red", " blue"]}
    line = {"prompt": "Colour:\n", "completion": "red", "labels": ["red", "blue"]}
    read = {
        name: parse_examples(json.dumps(row).encode(), "x") for name, row in (("s", spaced), ("m", moved), ("l", line))
    }
    assert spaces_at_the_join(read["m"]) is None and spaces_at_the_join(read["l"]) is None
    tokenizer = tiny_tokenizer()
    assert encode(read["s"][0], tokenizer) == encode(read["m"][0], tokenizer)  # case 83: as lm-eval reads it
    spaced_groups, moved_groups = (label_groups(read[name][0], tokenizer, 64, "here") for name in ("s", "m"))
    assert [(group.prompt, group.before, [*group.last.values()]) for group in spaced_groups] == [
        (group.prompt, group.before, [*group.last.values()]) for group in moved_groups
    ]
    assert text_prompts(read["s"], tokenizer, 64) == text_prompts(read["m"], tokenizer, 64)
    alone = parse_examples(json.dumps({"prompt": "  ", "completion": "x"}).encode(), "x")[0]
    assert encode(alone, tokenizer) == (tokenizer.encode("  "), tokenizer.encode("x"))  # nothing before the spaces
    assert spaces_at_the_join([*read["s"], *read["m"]]).startswith("1 of 2 prompts end in a space")
    words = ["task", "add", "t", "--metric", "accuracy", "--data", lines(tmp_path / "d.jsonl", spaced), "--registry"]
    done = CliRunner().invoke(main, [*map(str, words), str(tmp_path / "r.db")])
    assert done.exit_code == 0 and "1 of 1 prompts end in a space" in done.stderr


# A folder that is not what it is given as


def test_a_base_folder_with_an_adapter_in_it_is_refused_by_name(tmp_path: Path) -> None:
    """https://github.com/unslothai/unsloth/issues/1061: transformers would attach the adapter, unasked."""
    folder = tmp_path / "both"
    base = tiny_base("llama")
    base.model.save_pretrained(folder)
    base.tokenizer.save_pretrained(folder)
    load_base(folder)
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    for use in (load_base, lambda folder: import_base(folder, tmp_path / "out", "a/b")):
        with pytest.raises(BaseModelError, match=r"adapter_config\.json\) beside a base"):
            use(folder)
    alone = tmp_path / "alone"
    alone.mkdir()
    (alone / "adapter_config.json").write_text("{}")
    with pytest.raises(BaseModelError, match="--adapter NAME=DIR"):
        load_base(alone)


def test_tensors_without_a_number_say_how_they_were_saved(tmp_path: Path) -> None:
    c = case("llama", "lora")
    save_artifact(tmp_path, c.method, c.config, c.parameters, c.base.spec)
    path = tmp_path / "adapter_model.safetensors"
    save_file({name: torch.empty(0) for name in load_file(path)}, path)
    with pytest.raises(ArtifactError, match=r"shape \[0\].*ZeRO-3"):
        inspect_artifact(tmp_path, c.base.spec)
