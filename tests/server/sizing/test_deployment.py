"""Sizing: what follows from costs is what arithmetic says, and what no number of replicas bears is said."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graft.hub.errors import GraftError
from graft.server.sizing.costs import Costs, read_costs
from graft.server.sizing.deployment import Demand, hit_rate, popularity, size
from graft.server.sizing.hub_limits import HUB, HubLimits

GIB = 1 << 30
COSTS = Costs(
    base="base", adapter="lora", machine="a machine", runner="a runner", measured="2026-11-27",
    steps={1: 0.010, 2: 0.020, 32: 0.080}, prompt_token=0.001, load=0.1, load_work=0.02,
    file_bytes=10 << 20, adapter_bytes=GIB // 50, base_bytes=GIB, token_bytes=20_000,
)  # fmt: skip
DEMAND = Demand(adapters=1000, rate=100.0, prompt=100, new=100, zipf=1.0, busy=0.7, rows=32, memory=4 * GIB)


def test_steps_between_and_beyond_what_was_measured():
    assert [COSTS.step(rows) for rows in (1, 2, 17, 32)] == pytest.approx([0.010, 0.020, 0.050, 0.080])
    assert COSTS.step(62) == pytest.approx(0.140)
    assert replace(COSTS, steps={1: 0.2, 4: 0.1}).step(64) == 0.1, "what was measured unevenly makes no step free"
    assert COSTS.request(32, 100, 100) == pytest.approx(0.1 + 0.25)


def test_a_memory_for_all_needs_no_load_and_one_for_some_has_the_hits_of_those():
    shares = popularity(1000, 1.0)
    assert shares.sum() == pytest.approx(1) and hit_rate(shares, 1000) == 1.0
    assert 0.6 < hit_rate(shares, 200) < shares[:200].sum(), "an LRU memory is no better than the best choice"


@pytest.mark.parametrize("zipf", [0.0, 0.8, 1.2])
def test_the_hit_rate_is_that_of_a_memory_that_is_played(zipf):
    shares, held = popularity(500, zipf), 60
    memory: dict[int, None] = {}
    hits = 0
    for count, one in enumerate(np.random.default_rng(0).choice(500, 60_000, p=shares)):
        hits += (known := int(one) in memory) and count >= 10_000
        if known:
            del memory[int(one)]
        elif len(memory) == held:
            del memory[next(iter(memory))]
        memory[int(one)] = None
    assert hit_rate(shares, held) == pytest.approx(hits / 50_000, abs=0.01)


def test_replicas_are_as_few_as_bear_it():
    sizing = size(COSTS, DEMAND, HUB)
    assert sizing.fits == (3 * GIB - sizing.cache_bytes) // COSTS.adapter_bytes
    assert sizing.placed.replicas == 50, "35 s of steps a second at 0.7, all adapters in memory"
    assert sizing.placed.steps_busy <= DEMAND.busy
    assert sizing.placed.replicas <= sizing.anywhere.replicas and sizing.placed.hits > sizing.anywhere.hits


@settings(deadline=None, max_examples=30)
@given(st.floats(1, 5000), st.integers(1, 50_000), st.floats(0, 1.5))
def test_more_asked_for_is_never_fewer_replicas(rate, adapters, zipf):
    less = size(COSTS, replace(DEMAND, rate=rate, adapters=adapters, zipf=zipf), HUB).placed
    more = size(COSTS, replace(DEMAND, rate=2 * rate, adapters=adapters, zipf=zipf), HUB).placed
    assert more.replicas >= less.replicas and less.steps_busy <= DEMAND.busy >= less.loads_busy


def test_what_is_short_first_is_said():
    assert "steps" in size(COSTS, DEMAND, HUB).first_limit
    churning = replace(DEMAND, adapters=100_000, zipf=0.0, new=1, prompt=1)
    assert "loads" in size(replace(COSTS, file_bytes=1 << 20), churning, HUB).first_limit
    assert "hub" in size(COSTS, churning, HubLimits(1e6, "a slow line")).first_limit


def test_what_has_no_room_is_said_with_all_figures():
    with pytest.raises(GraftError, match=r"1\.10 GiB hold the base \(1\.00 GiB\).*--memory"):
        size(COSTS, replace(DEMAND, memory=11 * GIB // 10), HUB)
    with pytest.raises(GraftError, match="lower --rate"):
        size(COSTS, replace(DEMAND, rate=1e9), HUB)


def test_costs_are_kept_and_read(tmp_path):
    path = tmp_path / "costs.json"
    path.write_text(COSTS.to_json())
    assert read_costs(path) == COSTS


def with_figure(**figure) -> str:
    return json.dumps(json.loads(COSTS.to_json()) | figure)


@pytest.mark.parametrize(
    "text",
    [
        "", "[]", "{}", '{"steps": 1}', "[" * 100_000, COSTS.to_json().replace("0.08", "-1"), COSTS.to_json().replace("0.08", "0"),
        COSTS.to_json().replace('"2"', '"40"'), COSTS.to_json().replace('"2"', '"0"'), with_figure(steps={1: 0.1}), with_figure(prompt_token="abc"), with_figure(load=math.nan),
        with_figure(load=math.inf), with_figure(adapter_bytes=0), with_figure(token_bytes=None), with_figure(file_bytes=10**400),
    ],
)  # fmt: skip
def test_what_are_no_costs_is_said(tmp_path, text):
    path = tmp_path / "costs.json"
    path.write_text(text)
    with pytest.raises(GraftError, match=r"costs\.json"):
        read_costs(path)


def test_the_hub_bears_what_was_measured():
    kept = json.loads((Path(__file__).parents[3] / "benchmarks/results/hub.json").read_text())
    assert HUB.bytes_a_second == kept["figures"]["resolve_gb_s"] * 1e9
    assert kept["at"][:10] in HUB.source and kept["machine"]["cpu"] in HUB.source
