"""The numbers: bounded however many names come and go, complete, and in the words that routers and dashboards look for."""

import json
import re
from collections import Counter
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from graft.server.engine.client import EngineClient
from graft.server.engine.engine import Engine
from graft.server.engine.request import Request
from graft.server.operations.throughput import Load, describe
from graft.server.operations.top_names import OTHER, RANK_S, TopNames
from graft.server.served_version import UNPLACED, Served
from graft.server.telemetry import BASE, Metrics
from tests.conftest import tiny_base
from tests.server.conftest import write_folder

DASHBOARD = Path(__file__).parents[2] / "deploy" / "grafana.json"


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def samples(text: bytes) -> dict[str, list]:
    """Name -> samples."""
    found: dict[str, list] = {}
    for family in text_string_to_metric_families(text.decode()):
        for sample in family.samples:
            found.setdefault(sample.name, []).append(sample)
    return found


def by_adapter(text: bytes, name: str) -> dict[str, float]:
    totals: Counter[str] = Counter()
    for sample in samples(text)[name]:
        totals[sample.labels["adapter"]] += sample.value
    return dict(totals)


def test_names_that_come_and_go_make_no_more_series():
    metrics = Metrics(most_named=10)
    for number in range(10_000):
        served = Served(f"tenant-{number}", "d")
        metrics.token(served, 0.02, 0.0)
        metrics.token(served, None, 0.004)
        metrics.loaded(f"tenant-{number}", 0.1)
        metrics.finished(served, "stop", 5, 1)
    metrics.failed(UNPLACED, "model_not_found")
    metrics.finished(Served(), "length", 3, 0)
    text = metrics.text()
    tokens = by_adapter(text, "graft_generated_tokens_total")
    assert len(tokens) == 13 and tokens[OTHER] == 19_980 and tokens["tenant-3"] == 2 and tokens[BASE] == 0
    assert sum(by_adapter(text, "graft_requests_total").values()) == 10_002
    assert by_adapter(text, "graft_time_to_first_token_seconds_count")[OTHER] == 9_990
    assert len(text) < 60_000


def test_buckets_are_cumulative_and_bounds_belong_to_theirs():
    metrics = Metrics()
    for seconds in (0.001, 0.0011, 3.0, 100.0):
        metrics.loaded("a", seconds)
    found = samples(metrics.text())
    counts = {one.labels["le"]: one.value for one in found["graft_adapter_load_seconds_bucket"]}
    assert (counts["0.001"], counts["0.0025"], counts["2.5"], counts["5.0"], counts["60.0"], counts["+Inf"]) == (
        1,
        2,
        2,
        3,
        3,
        4,
    )
    assert found["graft_adapter_load_seconds_sum"][0].value == pytest.approx(103.0021)
    assert found["graft_adapter_load_seconds_count"][0].value == 4


def test_who_is_asked_for_most_gets_a_label_within_a_minute_and_nothing_is_lost():
    metrics, clock = Metrics(most_named=2), Clock()
    metrics._names = TopNames(2, OTHER, clock)
    for name, times in (("rare", 1), ("old", 30), ("new", 100), ("newer", 3)):
        for _ in range(times):
            metrics.token(Served(name, "d"), 0.1, 0.0)
            metrics.finished(Served(name, "d"), "stop", 1, 0)
    assert by_adapter(metrics.text(), "graft_requests_total") == {"rare": 1, "old": 30, OTHER: 103}
    clock.now += RANK_S
    metrics.finished(Served("new", "d"), "stop", 1, 0)
    metrics.text()
    metrics.finished(Served("new", "d"), "stop", 1, 0)
    found = by_adapter(metrics.text(), "graft_requests_total")
    assert found == {"old": 30, OTHER: 105, "new": 1} and sum(found.values()) == 136


def test_what_is_asked_for_often_is_found_among_thousands_asked_for_once():
    clock = Clock()
    names = TopNames(4, OTHER, clock)
    for number in range(20_000):
        name = f"once-{number}" if number % 3 else f"often-{number % 12}"
        names.label(name), names.count(name)
    clock.now += RANK_S
    names.rank()
    assert {name for name in map("often-{}".format, (0, 3, 6, 9)) if names.label(name) == name} == {
        "often-0", "often-3", "often-6", "often-9",
    }  # fmt: skip
    assert names.rank() == []


@pytest.fixture(scope="module")
def exported(tmp_path_factory) -> dict[str, list]:
    """What an engine exports that serves an adapter."""
    base = tiny_base("llama")
    top = tmp_path_factory.mktemp("adapters")
    folders = {name: write_folder(top / name, kind, base) for name, kind in (("mine", "lora"), ("soft", "prefix"))}
    with Engine(base, folders) as engine:
        client = EngineClient(engine)
        client.pin("soft", True)
        stream = client.submit(Request((5, 6), "mine", max_tokens=100, ignore_eos=True))
        client.count_answer("/v1/completions", 200)
        events = iter(stream)
        next(events), next(events)
        text = client.metrics()
        stream.cancel()
        for _ in events:
            pass
        assert client.load_now().tokens > 0
    return samples(text)


def test_routers_find_the_names_that_they_look_for(exported):
    (info,) = exported["vllm:lora_requests_info"]
    assert info.labels["running_lora_adapters"] == "mine" and info.labels["waiting_lora_adapters"] == ""
    assert int(info.labels["max_lora"]) >= 2 and info.value > 1e9
    loaded = {one.labels["adapter_name"]: one.labels for one in exported["vllm:lora_adapter_loaded"]}
    assert loaded["mine"] == {"adapter_name": "mine", "level": "gpu", "pinned": "false", "rank": "4"}
    assert loaded["soft"]["pinned"] == "true" and loaded["soft"]["rank"] == "0"
    for name in ("num_requests_running", "num_requests_waiting", "kv_cache_usage_perc"):
        (one,) = exported[f"vllm:{name}"]
        assert one.labels == {"model_name": "test/llama"}
    assert exported["vllm:num_requests_running"][0].value == 1 and 0 < exported["vllm:kv_cache_usage_perc"][0].value < 1


def test_the_dashboard_asks_for_nothing_that_is_not_exported(exported):
    board = json.loads(DASHBOARD.read_text())
    asked = [target["expr"] for panel in board["panels"] for target in panel.get("targets", ())]
    names = {name for expression in asked for name in re.findall(r"\b(?:graft_|vllm:)\w+", expression)}
    assert len(asked) >= 12 and names and names <= exported.keys(), names - exported.keys()
    labels = {label for expression in asked for label in re.findall(r"(?:by|without) \(([\w, ]+)\)", expression)}
    known = {key for found in exported.values() for one in found for key in one.labels} | {"instance"}
    assert {one.strip() for label in labels for one in label.split(",")} <= known
    ids = [panel["id"] for panel in board["panels"]]
    assert len(ids) == len(set(ids)) and all(panel["title"] for panel in board["panels"])


def test_the_line_of_throughput():
    line = describe(Load(100, 1000, 0, 0, 0.0, 0), Load(300, 3000, 8, 3, 0.345, 12), 10.0)
    assert line == "200.0 tokens/s, 20.0 of prompts; 8 running, 3 waiting; KV cache 34%; 12 adapters on the device"
