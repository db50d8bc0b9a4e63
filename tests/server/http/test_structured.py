"""Schemas and grammars over HTTP: a live server, the real OpenAI client, adapters of every kind."""

import json
from concurrent.futures import ThreadPoolExecutor
from typing import Literal

import jsonschema_rs
import openai
import pydantic
import pytest

from tests.conftest import tiny_base
from tests.server.conftest import KINDS, write_folder
from tests.server.live import CHAT_TEMPLATE, serving

BASE = "test/llama"
MESSAGES = [{"role": "user", "content": "Who?"}]
CLOSED = {"type": "object", "required": ["b", "a"], "additionalProperties": False}
SCHEMA = {
    "properties": {"b": {"enum": ["x", "yes", None]}, "a": {"type": "integer", "minimum": 10, "maximum": 99}},
    **CLOSED,
}
STRICT = {"type": "json_schema", "json_schema": {"name": "answer", "strict": True, "schema": SCHEMA}}


@pytest.fixture(scope="module")
def live(tmp_path_factory):
    base = tiny_base("llama")
    base.tokenizer.chat_template = CHAT_TEMPLATE
    top = tmp_path_factory.mktemp("adapters")
    folders = {kind: write_folder(top / kind, kind, base, seed) for seed, kind in enumerate(KINDS)}
    with serving(base, folders) as running:
        yield running


@pytest.fixture(scope="module")
def client(live):
    return openai.OpenAI(base_url=f"{live.url}/v1", api_key="none", max_retries=0)


def chat(client, model=BASE, **wanted):
    return client.chat.completions.create(model=model, messages=MESSAGES, **{"max_tokens": 150, "seed": 3, **wanted})


def text_of(answer):
    return answer.choices[0].message.content


@pytest.mark.parametrize("model", [BASE, *KINDS])
def test_a_schema_is_kept_to_by_every_kind_of_adapter(client, model):
    answer = chat(client, model, response_format=STRICT, n=2)
    for choice in answer.choices:
        assert choice.finish_reason == "stop"
        assert list(json.loads(choice.message.content)) == ["b", "a"]
        jsonschema_rs.validate(SCHEMA, json.loads(choice.message.content))


def test_a_stream_is_the_same_text_in_pieces(client):
    whole = chat(client, "lora", response_format=STRICT)
    chunks = [chunk.choices[0] for chunk in chat(client, "lora", response_format=STRICT, stream=True)]
    assert "".join(chunk.delta.content or "" for chunk in chunks) == text_of(whole)
    assert chunks[-1].finish_reason == "stop" and len(chunks) > 5


def test_the_clients_own_classes_are_parsed(client):
    class Person(pydantic.BaseModel):
        kind: Literal["cat", "dog"]
        age: int = pydantic.Field(ge=0, le=99)
        owner: "Owner | None"

    class Owner(pydantic.BaseModel):
        initials: str = pydantic.Field(pattern="^[A-Z]{2}$")

    Person.model_rebuild()
    asked = {"model": "bitfit", "messages": MESSAGES, "max_tokens": 240, "seed": 3}
    answer = client.chat.completions.parse(response_format=Person, **asked)
    assert answer.choices[0].message.parsed.kind in ("cat", "dog")


def test_any_object(client):
    biased = chat(client, response_format={"type": "json_object"}, max_tokens=200)
    assert text_of(biased).startswith("{")
    if biased.choices[0].finish_reason == "stop":
        assert isinstance(json.loads(text_of(biased)), dict)


WAYS = {
    "json": ({"structured_outputs": {"json": SCHEMA}}, {"guided_json": json.dumps(SCHEMA)}),
    "regex": ({"structured_outputs": {"regex": "[ab]{3}[0-9]?"}}, {"guided_regex": "[ab]{3}[0-9]?"}),
    "choice": ({"structured_outputs": {"choice": ["one", "two words", "ü"]}}, {"guided_choice": ["one", "two words", "ü"]}),
    "grammar": (
        {"structured_outputs": {"grammar": 'start: "a" X\nX: /[0-9]{1,3}/'}},
        {"guided_grammar": 'root ::= "a" [0-9] [0-9]? [0-9]?'},
    ),
}  # fmt: skip
IS_RIGHT = {
    "json": lambda text: jsonschema_rs.is_valid(SCHEMA, json.loads(text)),
    "regex": lambda text: len(text) in (3, 4) and set(text[:3]) <= set("ab"),
    "choice": lambda text: text in ("one", "two words", "ü"),
    "grammar": lambda text: text[0] == "a" and text[1:].isdigit() and len(text) <= 4,
}


@pytest.mark.parametrize("kind", WAYS)
def test_vllms_names_for_it(client, kind):
    for extra in WAYS[kind]:
        for endpoint in ("chat", "completions"):
            if endpoint == "chat":
                answer = text_of(chat(client, "prefix", extra_body=extra))
            else:
                made = client.completions.create(model=BASE, prompt="Q", max_tokens=150, seed=1, extra_body=extra)
                assert made.choices[0].finish_reason == "stop"
                answer = made.choices[0].text
            assert IS_RIGHT[kind](answer), answer


def test_the_same_said_by_two_names_is_said_once(client):
    old, new = WAYS["regex"]
    assert IS_RIGHT["regex"](text_of(chat(client, "prefix", extra_body=old | new)))
    refused(client, "guided_regex", **old, guided_regex="[ab]{4}")


def test_free_text_with_a_structure_in_it(client):
    tag = {"begin": "<f>", "schema": SCHEMA, "end": "</f>"}
    form = {"type": "structural_tag", "structures": [tag], "triggers": ["<f"]}
    for extra in ({"response_format": form}, {"structured_outputs": {"structural_tag": json.dumps(form)}}):
        text = text_of(chat(client, max_tokens=40, extra_body=extra))
        assert text and not text.startswith("{")
    refused(client, "response_format.triggers", response_format={**form, "triggers": ["<g"]})


def refused(client, param, **wanted):
    with pytest.raises(openai.BadRequestError) as caught:
        chat(client, extra_body=wanted)
    error = caught.value.body
    assert error["param"] is not None and error["param"].startswith(param.split(".")[0]), error
    return error["message"]


UNSUPPORTED = {
    "not": {"not": {"type": "string"}},
    "uniqueItems": {"type": "array", "uniqueItems": True},
    "contains": {"type": "array", "contains": {"const": 1}},
    "if": {"if": {"type": "string"}, "then": {"minLength": 2}},
    "propertyNames": {"type": "object", "propertyNames": {"pattern": "^x"}},
    "dependentRequired": {"type": "object", "dependentRequired": {"a": ["b"]}},
    "unevaluatedProperties": {"type": "object", "unevaluatedProperties": False},
    "format 'colour'": {"type": "string", "format": "colour"},
    "$dynamicRef": {"$dynamicRef": "#a"},
}


@pytest.mark.parametrize(("name", "schema"), UNSUPPORTED.items())
def test_a_keyword_that_is_not_honoured_is_refused_by_name(client, name, schema):
    for within in (schema, {"type": "object", "properties": {"a": {"anyOf": [{"type": "null"}, schema]}}}):
        asked = {"type": "json_schema", "json_schema": {"name": "a", "schema": within}}
        assert name.split("'")[-2 if "'" in name else 0] in refused(client, "response_format", response_format=asked)
        assert name.split("'")[-2 if "'" in name else 0] in refused(client, "guided_json", guided_json=within)


def test_a_property_may_be_called_as_a_keyword_is(client):
    schema = {
        "type": "object",
        "properties": {"not": {"type": "null"}},
        "required": ["not"],
        "additionalProperties": False,
    }
    assert json.loads(text_of(chat(client, extra_body={"guided_json": schema}))) == {"not": None}


MISTAKES = [
    ("response_format", {"response_format": {"type": "xml"}}),
    ("response_format", {"response_format": {"type": "json_schema"}}),
    ("response_format", {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": 5}}}),
    (
        "response_format",
        {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": 5}}}},
    ),
    ("guided_json", {"guided_json": "{"}),
    ("guided_json", {"guided_json": False}),
    ("guided_regex", {"guided_regex": "("}),
    ("guided_regex", {"guided_regex": "(?=a)b"}),
    ("guided_grammar", {"guided_grammar": "root ::= ("}),
    ("guided_grammar", {"guided_grammar": "start: nothing"}),
    ("structured_outputs", {"structured_outputs": {"choice": []}}),
    ("structured_outputs", {"structured_outputs": {"xml": "a"}}),
    ("structured_outputs", {"structured_outputs": {"regex": "a", "json": {}}}),
    ("structured_outputs", {"structured_outputs": {"json": {}, "disable_any_whitespace": True}}),
    ("guided_regex", {"guided_regex": "a", "response_format": {"type": "json_object"}}),
]


@pytest.mark.parametrize(("param", "wanted"), MISTAKES)
def test_a_mistake_names_its_field(client, param, wanted):
    assert refused(client, param, **wanted)


def test_what_asks_for_nothing_changes_nothing(client):
    plain = text_of(chat(client, max_tokens=12))
    for extra in (
        {"response_format": {"type": "text"}},
        {"structured_outputs": {}},
        {"guided_choice": []},
        {"guided_regex": ""},
    ):
        assert text_of(chat(client, max_tokens=12, extra_body=extra)) == plain


def test_others_go_on_while_schemas_explode(client):
    """Each is refused, before or where it grows too hard to follow, within seconds; requests beside it have their own text."""
    word = {"type": "string", "pattern": "^((a{1000}){1000}){1000}$"}
    nested = {"type": "integer"}
    for _ in range(200):
        nested = {"type": "array", "items": nested}
    any_of = {
        "allOf": [{"anyOf": [{"properties": {f"p{i}{j}": {"type": "string"}}} for j in range(4)]} for i in range(10)]
    }
    hard = [
        *(
            word,
            nested,
            any_of,
            {"enum": [f"value {i}" for i in range(30_000)]},
            {"type": "integer", "multipleOf": 1_000_003},
        ),
        {"type": "object", "properties": {f"p{i}": {"type": "string"} for i in range(10_000)}},
        {"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"},
        {"type": "string", "pattern": "^(a|" + "b" * 300_000 + ")$"},
    ]
    plain = text_of(chat(client, max_tokens=30))

    def explode(schema):
        try:
            return refused(client.with_options(timeout=10), "guided_json", guided_json=schema)
        except openai.UnprocessableEntityError as error:
            assert error.code == "constraint_failed"
            return error.message

    with ThreadPoolExecutor(8) as pool:
        asked = [pool.submit(explode, schema) for schema in hard]
        while not all(one.done() for one in asked):
            assert text_of(chat(client.with_options(timeout=10), max_tokens=30)) == plain
        assert all(one.result() for one in asked)
