"""K3: what a model card may say, and what of it goes on into SQL and JSON.

YAML 1.2's core schema (https://yaml.org/spec/1.2.2/#103-core-schema) has `no`, `on`, dates and `12:30` as strings; RFC 8259
has no NaN. https://github.com/huggingface/transformers/issues/7208 is where cards' front matter comes from: people write it
by hand. What is right: every sound card is published, and whoever reads it back gets strict JSON.
"""

import json
import sqlite3
from pathlib import Path

import pytest
from click.testing import CliRunner

from graft.hub.adapters.model_card import labels, reported_scores, split_card
from graft.hub.cli.main import main
from graft.hub.errors import ArtifactError, GraftError
from graft.hub.registry.leaderboard import Evaluation
from graft.hub.registry.registry import Registry
from graft.hub.web.app import create_app


def strict(text: str):
    def refuse(name):
        raise AssertionError(f"{name} is no JSON")

    return json.loads(text, parse_constant=refuse)


def front(text: str) -> dict:
    return split_card(f"---\n{text}\n---\n# Card\n")[0]


@pytest.mark.parametrize(
    ("yaml", "value"),
    [
        ("no", "no"), ("No", "No"), ("NO", "NO"), ("yes", "yes"), ("on", "on"), ("off", "off"), ("y", "y"), ("n", "n"),
        ("true", True), ("False", False), ("null", None), ("~", None), ("", None), ("nil", "nil"),
        ("2024-05-01", "2024-05-01"), ("2024-05-01 10:00:00", "2024-05-01 10:00:00"),
        ("!!timestamp 2024-05-01", "2024-05-01"), ("12:30", "12:30"), ("190:20:30", "190:20:30"),
        ("010", 10), ("08", 8), ("0x1F", 31), ("0o17", 15), ("1_000", "1_000"), ("+5", 5), ("1e3", 1000.0),
        ("0b11", "0b11"), ("=", "="), ("<<", "<<"), (".5", 0.5), ("1.", 1.0),
        (".nan", None), (".NaN", None), (".inf", None), ("-.inf", None), ("1e999", None), ("-1e999", None),
        ("99999999999999999999", 1e20), ("0x" + "f" * 300, None), ("!!binary aGk=", None), ("!!set {x}", ["x"]),
        ('"\\ud800 half"', "? half"), ("!!omap [{a: 1}]", [["a", 1]]),
    ],
)  # fmt: skip
def test_values_are_yaml_12s_and_json(yaml: str, value: object) -> None:
    found = front(f"key: {yaml}")
    assert found == {"key": value} and type(found["key"]) is type(value)
    strict(json.dumps(found))
    json.dumps(found, allow_nan=False).encode()


def test_keys_become_texts() -> None:
    card = front("2024-05-01: a\n7: b\n1.5: c\n.nan: d\nno: e\ntrue: g")
    assert list(card) == ["2024-05-01", "7", "1.5", "null", "no", "true"]


@pytest.mark.parametrize(
    "yaml", ["a: !!python/object/apply:os.system [ls]", "a: !mine x", "? [a]\n: b", "a: &x 1\nb: *x"]
)
def test_what_is_more_than_data_is_refused(yaml: str) -> None:
    with pytest.raises(ArtifactError, match="not valid YAML"):
        front(yaml)


@pytest.mark.parametrize("code", ["no", "on", "yes", "off", "y"])
def test_languages_whose_code_is_a_word_of_yaml_11(code: str) -> None:
    assert code in labels(front(f"language: {code}")) and code in labels(front(f"language:\n- en\n- {code}"))


CLAIMS = """tags: [task:topics]
model-index:
- name: a
  results:
  - task: {{type: text-generation, name: topics}}
    dataset: {{type: d, name: d}}
    metrics:
    - {{type: accuracy, value: {value}}}
    - {{type: f1, value: 0.5}}
"""


@pytest.mark.parametrize("value", [".nan", ".inf", "-.INF", "1e999", "9" * 400, "~"])
def test_a_metric_that_is_no_number_is_no_score(registry: Registry, lora_folder, tmp_path: Path, value: str) -> None:
    card = f"---\n{CLAIMS.format(value=value)}---\n"
    revision = registry.publish(lora_folder(tmp_path / "a", card=card), "ann/news")
    assert [(score.metric, score.value) for score in registry.evaluations("ann/news")] == [("f1", 0.5)]
    assert any("accuracy without a finite number" in text for text in registry.found(revision.id).warnings)


@pytest.mark.parametrize("value", ["'0.9'", "true", "[1]", "{a: 1}", "no"])
def test_a_metric_of_another_kind_is_skipped(value: str) -> None:
    assert [row["metric"] for row in reported_scores(front(CLAIMS.format(value=value)))] == ["f1"]


def test_every_answer_about_an_odd_card_is_strict_json(registry: Registry, lora_folder, tmp_path: Path) -> None:
    client = create_app(registry).test_client()
    odd = {
        "date": "date: 2024-05-01\n2024: x",
        "nan": CLAIMS.format(value=".nan") + "eval_loss: .nan\nother: [.inf, {deep: -.inf}]",
        "norsk": "language: no\nlicense: on",
    }
    for name, head in odd.items():
        registry.publish(lora_folder(tmp_path / name, card=f"---\n{head}\n---\n"), f"ann/{name}")
        for path in (f"/api/models/ann/{name}", "/api/models?full=true", f"/api/adapters/ann/{name}/evaluations"):
            reply = client.get(path)
            assert reply.status_code == 200, (name, path, reply.text)
            strict(reply.text)
        for path in (f"/ann/{name}", "/", "/tasks", f"/compare?repo=ann/{name}"):
            assert client.get(path).status_code == 200, (name, path)
        done = CliRunner().invoke(main, ["search", "--registry", str(registry.path), "--json"])
        strict(done.stdout)
    assert "no" in client.get("/api/models/ann/norsk").json["tags"]
    assert "license:on" in client.get("/api/models/ann/norsk").json["tags"]


def test_a_registry_that_kept_a_cards_nan_answers_in_json_all_the_same(
    registry: Registry, adapter: Path, tmp_path: Path
) -> None:
    registry.publish(adapter, "ann/news")
    with sqlite3.connect(registry.path) as old:
        old.execute("""UPDATE artifacts SET card = '{"eval_loss": NaN, "tags": ["task:news-topic"]}'""")
    strict(create_app(registry).test_client().get("/api/models/ann/news").text)


# The same door, for what is JSON


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_numbers_that_are_none_are_refused_in_json_files(registry: Registry, adapter: Path, number: str) -> None:
    text = (adapter / "graft.json").read_text()
    (adapter / "graft.json").write_text(text.replace('"seed": 0', f'"loss": {number}'))
    with pytest.raises(ArtifactError, match="is no number of JSON"):
        registry.publish(adapter, "ann/news")


@pytest.mark.parametrize("number", ["NaN", "Infinity", "1e999"])
def test_and_in_what_is_posted(registry: Registry, adapter: Path, number: str) -> None:
    registry.publish(adapter, "ann/news")
    body = '{"task": "t", "data_hash": "0", "metric": "f1", "value": 1, "n": 1, "repo": "ann/news", "extra": {"p": %s}}'
    reply = create_app(registry).test_client().post("/api/evaluations", data=body % number)
    assert reply.status_code == 400 and "JSON" in reply.json["error"]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_and_in_what_is_recorded(registry: Registry, adapter: Path, value: float) -> None:
    registry.publish(adapter, "ann/news")
    with pytest.raises(GraftError, match="not finite"):
        registry.record_evaluation(Evaluation("t", "0", "f1", value, 1, repo="ann/news"))
