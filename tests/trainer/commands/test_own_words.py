"""The trainer writes an adapter's own words, and a base without a chat template is trained by a file's."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from graft.hub.adapters.validation import inspect_artifact
from graft.hub.base.manifest import recorded_spec
from graft.hub.base.model import load_base
from graft.hub.chat.words import TEMPLATE, GenerationDefaults, read_words
from graft.hub.cli.main import main
from graft.hub.errors import GraftError
from graft.trainer.plan.plan import check_plan, read_plan
from tests.conftest import tiny_base

OWN = "{% for m in messages %}<{{ m.content }}>{% endfor %}"
CHAT = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
TEXT = {"prompt": "a", "completion": "b"}


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    one = tiny_base("llama")
    one.model.save_pretrained(folder)
    one.tokenizer.save_pretrained(folder)
    return folder


def trained(base: Path, folder: Path, row: dict, *more: object):
    data = folder / "data.jsonl"
    data.write_text(json.dumps(row) + "\n")
    asked = [
        "train",
        "--base",
        base,
        "--method",
        "lora",
        "--set",
        "r=1",
        "--data",
        data,
        "--steps",
        "1",
        "--out",
        folder / "out",
    ]
    return CliRunner().invoke(main, [str(word) for word in (*asked, *more)])


def test_messages_bring_their_template_and_all_bring_the_end(base, tmp_path) -> None:
    (tmp_path / "own.jinja").write_text(OWN)
    assert trained(base, tmp_path, CHAT).exit_code != 0  # this base has none
    done = trained(base, tmp_path, CHAT, "--chat-template", tmp_path / "own.jinja")
    assert done.exit_code == 0, done.output + str(done.exception)
    words = read_words(tmp_path / "out")
    assert words.template == OWN and words.stop_ids == (1,) and not words.left_aside
    spec = recorded_spec(str(base)) or load_base(base).spec
    digest = inspect_artifact(tmp_path / "out", spec).digest
    (tmp_path / "out" / TEMPLATE).unlink()
    assert inspect_artifact(tmp_path / "out", spec).digest == digest  # words are no part of it


def test_texts_bring_none(base, tmp_path) -> None:
    assert trained(base, tmp_path, TEXT).exit_code == 0
    assert read_words(tmp_path / "out").template is None and read_words(tmp_path / "out").stop_ids == (1,)


def test_a_template_that_can_not_be_read_is_told(base, tmp_path) -> None:
    (tmp_path / "bad.jinja").write_bytes(b"\xff")
    for path in (tmp_path / "none.jinja", tmp_path / "bad.jinja"):
        done = trained(base, tmp_path, CHAT, "--chat-template", path)
        assert done.exit_code != 0 and "can't be read" in done.output + str(done.exception)


def test_generation_defaults_are_written_and_checked_first(base, tmp_path) -> None:
    done = trained(base, tmp_path, TEXT, "--generation", "temperature=0.2", "--generation", "max_new_tokens=9")
    assert done.exit_code == 0, done.output + str(done.exception)
    words = read_words(tmp_path / "out")
    assert words.defaults == GenerationDefaults(temperature=0.2, max_new_tokens=9) and words.stop_ids == (1,)
    for wrong, said in [
        ("temperature=hot", "temperature is no number from 0 to 100"),
        ("top_k=1.5", "top_k is no number"),
        ("beams=4", "'beams' is no generation default. Known: temperature"),
        ("temperature", "--generation takes KEY=VALUE"),
    ]:
        done = trained(base, tmp_path / "out", TEXT, "--generation", wrong)
        assert done.exit_code != 0 and said in done.output + str(done.exception)


def test_a_plan_gives_each_adapter_its_own_generation_defaults(base, tmp_path) -> None:
    plan = tmp_path / "plan.toml"
    start = f'base = "{base}"\n[defaults]\nmethod = "lora"\ndata = "d"\nout = "o"\ngeneration = {{ top_k = 5 }}\n[[adapter]]\n'
    plan.write_text(f"{start}[[adapter]]\nout = 'p'\ngeneration = {{ temperature = 0.5 }}\n")
    first, second = (adapter.generation for adapter in read_plan(plan).adapters)
    assert (first, second) == (GenerationDefaults(top_k=5), GenerationDefaults(temperature=0.5))
    for value, said in [("{ top_p = 2 }", "top_p is no number from 0 to 1"), ("3", "must be a table")]:
        plan.write_text(f"{start}generation = {value}\n")
        with pytest.raises(GraftError, match=r"plan\.toml: the adapter o: .*" + said):
            read_plan(plan)
    plan.write_text(start.replace('"lora"', '"full"'))
    with pytest.raises(GraftError, match="leaves a base"):
        check_plan(read_plan(plan))
