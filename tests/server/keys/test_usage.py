"""What was used, as lines and as numbers."""

import json
import os
import resource
import stat
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from graft.hub.errors import GraftError
from graft.server.keys.usage import Usage, UsageFile
from graft.server.keys.usage_counts import BASE, MOST_PAIRS, NO_KEY, UsageCounts
from graft.server.operations.top_names import OTHER, RANK_S, TopNames
from graft.server.telemetry import Metrics

ONE = Usage("id-1", "acme", "/v1/completions", "acme/a@v1", "acme/a", "d" * 64, 12, 30)


def test_each_request_is_a_line_wherever_the_file_has_gone(tmp_path: Path) -> None:
    path = tmp_path / "usage.jsonl"
    file = UsageFile(path)
    file.write(ONE)
    os.rename(path, tmp_path / "usage.1")  # as logrotate does
    file.write(Usage("id-2", "", "/v1/messages", 'odd "é\n', cut_off=True))
    path.unlink()
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(file.write, [ONE] * 200))
    file.close()
    [first] = [json.loads(line) for line in (tmp_path / "usage.1").read_text().splitlines()]
    assert first.pop("time").endswith("Z") and stat.S_IMODE((tmp_path / "usage.1").stat().st_mode) & 0o007 == 0
    assert first == {
        "request_id": "id-1",
        "key": "acme",
        "route": "/v1/completions",
        "model": "acme/a@v1",
        "adapter": "acme/a",
        "digest": "d" * 64,
        "prompt_tokens": 12,
        "completion_tokens": 30,
        "cut_off": False,
    }
    assert len([json.loads(line) for line in path.read_text().splitlines()]) == 200


def test_a_file_that_cant_be_written_is_refused_at_start_and_told_later(tmp_path: Path, caplog) -> None:
    with pytest.raises(GraftError, match="can't be written"):
        UsageFile(tmp_path)
    path = tmp_path / "gone" / "usage.jsonl"
    path.parent.mkdir()
    file = UsageFile(path)
    path.unlink()
    path.parent.rmdir()
    file.write(ONE)  # the request is not to blame
    assert "id-1" in caplog.text


def test_a_line_that_a_full_disk_cuts_off_costs_no_other(tmp_path: Path, caplog) -> None:
    path = tmp_path / "usage.jsonl"
    file = UsageFile(path)
    file.write(ONE)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 40, hard))
    try:
        file.write(replace(ONE, request_id="cut-off"))
        file.write(replace(ONE, request_id="left-out"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    file.write(replace(ONE, request_id="id-2"))
    first, torn, last = path.read_text().splitlines()
    assert json.loads(first)["request_id"] == "id-1" and json.loads(last)["request_id"] == "id-2"
    assert len(torn) == 40 and [name for name in ("cut-off", "left-out") if name in caplog.text] == [
        "cut-off",
        "left-out",
    ]


def numbers(counts: UsageCounts) -> dict[tuple[str, str, str], float]:
    """(key, adapter, end or kind) -> how many."""
    samples = [sample for family in counts.read() for sample in family.samples]
    found = {tuple(sample.labels.values()): sample.value for sample in samples}
    assert len(found) == len(samples)
    return found


def used(key: str, adapter: str | None, cut_off: bool = False) -> Usage:
    return Usage("id", key, "/", "m", adapter, None, 2, 3, cut_off)


def test_numbers_have_bounded_labels() -> None:
    counts = UsageCounts(3)
    for number in range(50):
        for _ in range(2):
            counts.add(used(f"key{number}", f"a{number}", number == 0))
    found = numbers(counts)
    assert {key for key, _, _ in found} == {"key0", "key1", "key2", OTHER}
    assert found["key0", "a0", "cut off"] == 2 and found["key2", "a2", "prompt"] == 4
    assert found[OTHER, OTHER, "whole"] == 94 and found[OTHER, OTHER, "completion"] == 282


def test_ten_thousand_keys_and_adapters_make_no_more_series_than_there_are_pairs() -> None:
    """As the engine exports them, at their real bound: nothing is lost, and what is remembered of the rest is bounded too."""
    metrics = Metrics()
    for number in range(10_000):
        metrics.usage.add(used(f"hub:user{number}", f"ns/adapter{number % 700}", number % 5 == 0))
        metrics.usage.add(used("tenant", f"tenant/a{number}"))
    told = [family for family in text_string_to_metric_families(metrics.text().decode()) if "_key_" in family.name]
    series = [sample for family in told for sample in family.samples if sample.name.endswith("_total")]
    assert len({(sample.name, *sample.labels.values()) for sample in series}) == len(series) <= 4 * (MOST_PAIRS + 1)
    pairs = {(sample.labels["key"], sample.labels["adapter"]) for sample in series}
    assert len(pairs) == MOST_PAIRS + 1 and (OTHER, OTHER) in pairs
    requests = sum(sample.value for sample in series if sample.name == "graft_key_requests_total")
    tokens = sum(sample.value for sample in series if sample.name == "graft_key_tokens_total")
    assert (requests, tokens) == (20_000, 100_000)
    assert len(metrics.usage._pairs._asked) <= 16 * MOST_PAIRS


def test_names_that_are_labels_of_ours_make_no_second_series() -> None:
    counts = UsageCounts(2)
    for key, adapter in ((OTHER, OTHER), ("a", None), ("a", BASE), ("b", "x"), (NO_KEY, "y"), ("", "y")):
        counts.add(used(key, adapter))
    found = numbers(counts)  # which are each there once
    assert found[OTHER, OTHER, "whole"] == 4 and found["a", BASE, "whole"] == 2


def test_numbers_without_a_key_or_an_adapter_have_labels_too() -> None:
    counts = UsageCounts()
    counts.add(used("", None))
    assert numbers(counts) == {
        ("none", "base", "whole"): 1,
        ("none", "base", "prompt"): 2,
        ("none", "base", "completion"): 3,
    }


def test_who_asks_most_gets_numbers_of_its_own_within_a_minute_and_nothing_is_lost() -> None:
    counts, now = UsageCounts(), [0.0]
    counts._pairs = TopNames(1, (OTHER, OTHER), lambda: now[0])
    for key, times in (("rare", 1), ("often", 30)):
        for _ in range(times):
            counts.add(used(key, "a"))
    assert numbers(counts)["rare", "a", "whole"] == 1 and numbers(counts)[OTHER, OTHER, "whole"] == 30
    now[0] += RANK_S
    numbers(counts)
    counts.add(used("often", "a"))
    found = numbers(counts)
    assert {pair[:2] for pair in found} == {("often", "a"), (OTHER, OTHER)}
    assert found["often", "a", "whole"] == 1 and found[OTHER, OTHER, "whole"] == 31
    assert found["often", "a", "prompt"] + found[OTHER, OTHER, "prompt"] == 64
