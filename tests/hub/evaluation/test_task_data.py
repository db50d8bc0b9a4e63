"""Rows become examples, bad rows are named by file and line, and text becomes ids in one way."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from graft.hub.chat.conversation import BaseTemplate
from graft.hub.errors import DataError
from graft.hub.evaluation.eval_prompts import reference_of, text_prompts
from graft.hub.evaluation.task_data import Example, data_hash, labels_of, load_examples, parse_examples, source_name
from graft.hub.evaluation.tokenization import cut_left, encode, encode_prompt
from graft.server.chat.prompts import ChatPrompts
from graft.server.http.schemas import ChatBody

CHAT = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}</s>{% endfor %}{% if add_generation_prompt %}<a>{% endif %}"
)


def written(tmp_path, *rows):
    path = tmp_path / "data.jsonl"
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows))
    return path


def test_both_schemas_mean_the_same_conversation(tmp_path):
    user, assistant = {"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}
    path = written(
        tmp_path,
        {"messages": [user, assistant]},
        "",
        {"prompt": [user], "completion": [assistant], "id": 7},
        {"prompt": "a", "completion": "b", "labels": ["b", "c"]},
    )
    first, second, third = load_examples(path)
    assert first == second
    assert third == Example("a", "b", ("b", "c"))
    assert data_hash([first, third]) == data_hash([second, third]) != data_hash([third, first])
    assert labels_of([third]) == ("b", "c") and labels_of([first, third]) == ()


@pytest.mark.parametrize(
    "row, words",
    [
        ("{", "not a line of JSON"),
        ("[1]", "a JSON object is needed"),
        ({"text": "x"}, 'no "prompt"'),
        ({"prompt": "x"}, 'no "completion"'),
        ({"prompt": "", "completion": "y"}, "prompt is empty"),
        ({"prompt": "x", "completion": ""}, "completion is empty"),
        ({"prompt": 3, "completion": "y"}, "must be text or a list of messages"),
        ({"prompt": "x", "completion": [{"role": "assistant", "content": "y"}]}, "must be text too"),
        ({"messages": [{"role": "user", "content": "x"}]}, 'role "assistant"'),
        ({"messages": [{"role": "robot", "content": "x"}]}, "a message is"),
        ({"messages": [], "labels": None}, "must be text or a list of messages"),
        ({"messages": [], "prompt": "x"}, "not both"),
        ({"prompt": "x", "completion": "y", "labels": ["a", "b"]}, "not among the labels"),
        ({"prompt": "x", "completion": "y", "labels": "y"}, "must be a list of texts"),
        ({"prompt": "x", "completion": "y", "labels": ["y"]}, "at least two choices"),
    ],
)
def test_a_bad_row_is_named_by_file_and_line(tmp_path, row, words):
    path = written(tmp_path, {"prompt": "x", "completion": "y"}, row)
    with pytest.raises(DataError, match=r"data\.jsonl, line 2: .*" + words.replace("(", r"\(")):
        load_examples(path)


def test_missing_and_empty_files(tmp_path):
    with pytest.raises(DataError, match="can't be read"):
        load_examples(tmp_path / "none.jsonl")
    with pytest.raises(DataError, match="holds no example"):
        load_examples(written(tmp_path, "", ""))


def test_plain_text_stands_as_it_is_and_messages_take_the_template(llama):
    tokenizer = llama.tokenizer
    prompt, completion = encode(Example("ab", " c"), tokenizer)
    assert tokenizer.decode(prompt + completion) == "ab c"
    assert tokenizer.eos_token_id not in prompt + completion
    chat = load_rows({"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]})
    with pytest.raises(DataError, match="no chat template"):
        encode(chat, tokenizer)
    tokenizer.chat_template = CHAT
    prompt, completion = encode(chat, tokenizer)
    assert tokenizer.decode(prompt) == "<user>hi</s><a>" and tokenizer.decode(completion) == "ho"
    assert encode_prompt(chat.prompt, tokenizer) == prompt


def load_rows(row):
    from graft.hub.evaluation.task_data import parse_row

    return parse_row(row, "here")


def test_a_long_prompt_loses_its_beginning():
    assert cut_left([1, 2, 3, 4], 2) == [3, 4]
    assert cut_left([1, 2], 5) == [1, 2]
    assert cut_left([1, 2], 0) == []


def test_examples_and_metrics_need_no_torch():
    code = "import sys, graft.hub.evaluation.task_data, graft.hub.evaluation.metrics; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_csv_says_the_same_as_jsonl(tmp_path):
    jsonl = written(tmp_path, {"prompt": 'say "a,b"', "completion": " x", "labels": [" x", " y"]})
    path = tmp_path / "data.csv"
    path.write_text('prompt,completion,labels\n"say ""a,b"""," x"," x| y"\n')
    assert load_examples(path) == load_examples(jsonl)
    path.write_text("prompt,completion\na,b\nc\n")
    with pytest.raises(DataError, match=r"data\.csv, line 3: it has more or fewer cells"):
        load_examples(path)
    path.write_text("text,label\na,b\n")
    with pytest.raises(DataError, match=r'data\.csv, line 2: there is no "prompt"'):
        load_examples(path)
    path.write_text("prompt,completion\n")
    with pytest.raises(DataError, match="holds no example"):
        load_examples(path)


def test_parquet_says_the_same_as_jsonl(tmp_path):
    arrow = pytest.importorskip("pyarrow")
    import pyarrow.parquet as parquet

    rows = [{"prompt": "a", "completion": " x", "labels": [" x", " y"]}]
    parquet.write_table(arrow.Table.from_pylist(rows), tmp_path / "data.parquet")
    assert load_examples(tmp_path / "data.parquet") == load_examples(written(tmp_path, *rows))


def test_parquet_without_its_library_is_explained(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    (tmp_path / "data.parquet").write_bytes(b"PAR1")
    with pytest.raises(DataError, match="needs pyarrow"):
        load_examples(tmp_path / "data.parquet")


@pytest.fixture
def data_set(tmp_path, monkeypatch):
    """A data set in a folder, as `datasets` finds one; its cache is the test's own."""
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    rows = [{"prompt": f"p{i}", "completion": " x", "labels": [" x", " y"]} for i in range(5)]
    for folder, some in (("a", rows[:3]), ("b", rows[3:])):
        (tmp_path / "set" / folder).mkdir(parents=True)
        written(tmp_path / "set" / folder, *some)
    (tmp_path / "set" / "README.md").write_text(
        "---\nconfigs:\n- config_name: one\n  default: true\n  data_files:\n  - split: train\n    path: a/*.jsonl\n"
        "- config_name: two\n  data_files:\n  - split: test\n    path: b/*.jsonl\n---\n"
    )
    return tmp_path / "set"


def test_a_data_set_is_named_with_config_and_split(data_set):
    assert [example.prompt for example in load_examples(f"hf:{data_set}")] == ["p0", "p1", "p2"]
    assert [example.prompt for example in load_examples(Path(f"hf:{data_set}:train[1:]"))] == ["p1", "p2"]
    (first, _) = load_examples(f"hf:{data_set}:two:test")
    assert first == Example("p3", " x", (" x", " y"))


@pytest.mark.parametrize(
    "ending, words",
    [(":nope", "can't be loaded: .*nope"), (":three:train", "can't be loaded"), (":a:b:c", "is no data set")],
)
def test_a_data_set_that_is_not_there_is_named(data_set, ending, words):
    with pytest.raises(DataError, match=words):
        load_examples(f"hf:{data_set}{ending}")
    with pytest.raises(DataError, match="can't be loaded"):
        load_examples(f"hf:{data_set}-elsewhere")


def test_a_data_set_of_other_columns_is_named_with_its_row(data_set):
    (data_set / "a" / "data.jsonl").write_text('{"text": "a", "label": 1}\n')
    with pytest.raises(DataError, match=r'row 1: there is no "prompt".*its keys are label, text'):
        load_examples(f"hf:{data_set}")


def test_a_data_set_without_the_package_is_explained(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(DataError, match="needs the package datasets"):
        load_examples("hf:org/name")


def test_provenance_calls_a_file_and_a_data_set_by_name():
    assert source_name("/some/where/train.jsonl") == "train.jsonl"
    assert source_name(Path("hf:org/name:train")) == "hf:org/name:train"


@pytest.mark.parametrize(
    "row, words",
    [
        (r'{"prompt": "\ud800", "completion": "x"}', 'd.jsonl, line 1: "prompt" holds .* half of a surrogate pair'),
        (r'{"prompt": "a", "completion": "x\udc00"}', 'line 1: "completion" holds'),
        (r'{"prompt": [{"role": "user", "content": "\ud83d"}], "completion": "x"}', 'line 1: "prompt" holds'),
        (r'{"prompt": "a", "completion": "x", "labels": ["x", "\ud800"]}', 'line 1: "labels" holds'),
        ('{"prompt": "a", "completion": null}', "completion must be text too, not None"),
        ('{"prompt": "a", "completion": 7}', "completion must be text too, not 7"),
    ],
)
def test_what_is_no_text_is_named(row, words):
    with pytest.raises(DataError, match=words):
        parse_examples(row.encode(), "d.jsonl")


def test_a_whole_surrogate_pair_is_text_and_a_line_is_no_part_of_an_example():
    (found,) = parse_examples(rb'{"prompt": "\ud83d\ude00", "completion": "x"}', "d.jsonl")
    assert found == Example("\U0001f600", "x") and found.where == "d.jsonl, line 1"


# Tools

ADD = {"type": "function", "function": {"name": "add", "description": "Adds.", "parameters": {"type": "object"}}}
SUM = {"id": "abcdefgh1", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}
ASKS = [{"role": "user", "content": "sum"}, {"role": "assistant", "content": None, "tool_calls": [SUM]}]
TOLD = [
    *ASKS,
    {"role": "tool", "content": "3", "tool_call_id": "abcdefgh1"},
    {"role": "assistant", "content": "It is 3."},
]
TOOL_CHAT = (
    "{% for t in xml_tools or [] %}{{ t | tojson }}{% endfor %}{% for m in messages %}<{{ m.role }}>{{ m.content }}"
    "{% for c in m.tool_calls or [] %}<tool_call>{{ c.function | tojson }}</tool_call>{% endfor %}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def with_template(base, template):
    base.tokenizer.chat_template = template
    return base.tokenizer


def test_tools_and_calls_are_learned_as_a_server_renders_them(llama):
    """The same rows as a request: the prompt is to the letter what serving makes of it, the answer what follows it."""
    tokenizer = with_template(llama, TOOL_CHAT)
    row = load_rows({"messages": TOLD, "tools": [ADD]})
    prompt, completion = encode(row, tokenizer)
    body = ChatBody.model_validate({"model": "m", "messages": TOLD[:-1], "tools": [ADD]})
    served = ChatPrompts(None, bool).prompt(body.as_request(None), BaseTemplate(tokenizer))
    assert tokenizer.decode(prompt, skip_special_tokens=False) == served.text
    assert '"arguments": {"a": 1}' in served.text and "Adds." in served.text
    assert tokenizer.decode(completion) == "It is 3."
    prompt, completion = encode(load_rows({"messages": ASKS, "tools": json.dumps([ADD])}), tokenizer)
    assert tokenizer.decode(completion) == '<tool_call>{"name": "add", "arguments": {"a": 1}}</tool_call>'
    assert tokenizer.eos_token_id not in completion  # training adds it
    words = [{**ASKS[1], "content": "Hm. "}]
    _, completion = encode(load_rows({"prompt": ASKS[:1], "completion": words, "tools": [ADD]}), tokenizer)
    assert tokenizer.decode(completion).startswith("Hm. <tool_call>")


def test_rows_with_tools_are_written_and_read_back():
    for turns in (ASKS, TOLD):
        row = load_rows({"messages": turns, "tools": [ADD | {"strict": True}]})
        assert load_rows(json.loads(json.dumps(row.to_row()))) == row
        hash(row.prompt)
    plain = load_rows({"messages": [ASKS[0], TOLD[-1]], "tools": None})
    assert set(plain.to_row()) == {"prompt", "completion"} and not plain.tools
    assert data_hash([plain]) != data_hash([load_rows({"messages": [ASKS[0], TOLD[-1]], "tools": [ADD]})])


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"messages": TOLD, "tools": {"add": 1}}, '"tools" must be a list'),
        ({"messages": TOLD, "tools": "[{"}, '"tools" is a text that is no JSON'),
        ({"messages": TOLD, "tools": [{"function": {"name": 3}}]}, "a tool is"),
        ({"messages": TOLD, "tools": [{"name": "add"}]}, "a tool is"),
        ({"prompt": "a", "completion": "b", "tools": [ADD]}, "this prompt is a text"),
        ({"messages": [{**ASKS[0], "tool_calls": [SUM]}, TOLD[-1]]}, '"tool_calls" are an assistant\'s'),
        ({"messages": [ASKS[0], {**ASKS[1], "tool_calls": {"name": "add"}}]}, '"tool_calls" must be a list'),
        ({"messages": [ASKS[0], {**ASKS[1], "tool_calls": [{"function": {"name": "add"}}]}]}, "a call is"),
        ({"messages": [ASKS[0], {**ASKS[1], "tool_calls": []}]}, "a message is"),
        ({"messages": TOLD, "tools": [{"function": {"name": "a", "description": "\ud800"}}]}, '"tools" holds'),
    ],
)
def test_tools_that_can_not_be_used_are_refused_by_name(row, words):
    with pytest.raises(DataError, match="here: .*" + words):
        load_rows(row)


def test_a_template_that_would_drop_tools_or_calls_is_told(llama):
    row = load_rows({"messages": TOLD, "tools": [ADD]})
    with pytest.raises(DataError, match=r"here: .*leaves the tool add out"):
        encode(row, with_template(llama, CHAT))
    with pytest.raises(DataError, match=r"here: the base's chat template does not write this answer's calls"):
        encode(load_rows({"messages": ASKS}), with_template(llama, CHAT))
    thinks = TOOL_CHAT.replace("{% endif %}", "<think>{% endif %}")
    with pytest.raises(DataError, match="does not write this answer's calls"):
        encode(load_rows({"messages": ASKS}), with_template(llama, thinks))


def test_an_answer_with_calls_is_scored_by_what_the_template_writes(llama):
    tokenizer = with_template(llama, TOOL_CHAT)
    row = load_rows({"messages": ASKS, "tools": [ADD]})
    written = '<tool_call>{"name": "add", "arguments": {"a": 1}}</tool_call>'
    assert reference_of(row, tokenizer) == written
    (_,), room = text_prompts([row], tokenizer, 10_000)
    assert room > len(tokenizer.encode(written, add_special_tokens=False))
    assert reference_of(Example("a", " b "), tokenizer) == " b "
