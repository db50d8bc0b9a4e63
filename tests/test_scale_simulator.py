"""The simulator of many replicas: its steps, loads and failures are those that one would reckon by hand."""

import json
import math
import os
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from benchmarks.lib.scale import trace
from benchmarks.lib.scale.memory import Memory
from benchmarks.lib.scale.policies import RULES, Affinity, Asked, Multiplexing, Placement, Random, World
from benchmarks.lib.scale.simulator import Setting, Simulation
from benchmarks.lib.scale.trace import Failure, Scenario, Trace
from benchmarks.lib.scale.work import Kind, Work, committed
from benchmarks.tables import scale_sim
from graft.server.sizing.deployment import hit_rate, popularity

ROOT = Path(__file__).resolve().parents[1]
WORK = Work({1: 1.0, 3: 3.0}, prompt_token=0.1, load_work=0.5, kinds=(Kind(16, 1.0, 10, 2.0),), sources=("hand",))
ONE = Setting(replicas=1, limit=4, room=30)


def played(*requests: tuple[float, int, int, int]) -> Trace:
    """(at, adapter, prompt, new)."""
    at, adapter, prompt, new = zip(*requests, strict=True)
    return Trace(np.array(at), np.array(adapter), np.array(prompt), np.array(new))


def simulate(setting: Setting, requests: Trace, rule=Random, failures=(), adapters: int = 9):
    simulation = Simulation(setting, WORK, np.zeros(adapters, int), rule)
    return simulation, simulation.run(requests, failures)


def test_a_request_waits_for_its_adapter_and_the_next_for_the_step_that_is_under_way():
    # load 0..2; step from 2: 1 s, 10 tokens' prompt 1 s and 0.5 s of the load: until 4.5; then the second joins, by which time
    # its adapter, which was there, is no matter
    _, counts = simulate(ONE, played((0.0, 0, 10, 9), (2.6, 0, 0, 1), (50.0, 0, 0, 1)))
    assert counts.waits.tolist() == pytest.approx([2.0, 1.9, 0.0])
    assert (counts.hits, counts.loads) == (2, 1)


def test_steps_last_as_long_as_their_rows_make_them():
    # both from 2.0: 2.5 s with the load's half, then 2 s each; one ends after three steps, the other one step of 1 s later
    simulation, counts = simulate(ONE, played((0.0, 0, 0, 3), (0.0, 0, 0, 4), (9.51, 0, 0, 1), (60.0, 0, 0, 1)))
    assert counts.waits[2] == pytest.approx(0.0) and counts.done == 3
    assert simulation.world.loads[0] == 1


def test_loads_come_one_after_another_and_the_least_recently_used_idle_one_leaves():
    requests = played((0.0, 0, 0, 1), (0.0, 1, 0, 1), (0.0, 2, 0, 1), (20.0, 0, 0, 1), (30.0, 3, 0, 1), (40.0, 0, 0, 1), (50.0, 1, 0, 1), (90.0, 0, 0, 1))  # fmt: skip
    simulation, counts = simulate(ONE, requests)
    assert counts.waits[:3].tolist() == pytest.approx([2.0, 4.0, 6.0], abs=1.5), "each waits for those before"
    assert counts.loads == 5 and counts.hits == 3, "1 made room for 3, 2 for 1"
    assert sorted(simulation.replicas[0].memory.held) == [0, 1, 3]


def test_what_is_in_use_does_not_leave_and_who_needs_room_waits():
    memory = Memory(room=20)
    assert memory.bring(0, 10) == [] == memory.bring(1, 10)
    memory.use(0)
    assert memory.bring(2, 20) is None and list(memory.held) == [0, 1]
    assert memory.bring(2, 10) == [1]
    memory.release(0)
    assert memory.bring(3, 20) == [0, 2]
    counting = Memory(room=0, most=1)
    counting.bring(0, 10)
    counting.use(0)
    assert counting.bring(1, 10) == [0], "Serve's multiplexing asks nobody"


def test_nobody_gets_more_than_its_limit_and_the_router_tries_again():
    _, counts = simulate(replace(ONE, limit=1), played((0.0, 0, 0, 3), (0.1, 0, 0, 1), (30.0, 0, 0, 1)))
    assert 5.5 - 0.1 <= counts.waits[1] <= 5.5 - 0.1 + 0.5, "after three steps and the load, within the longest pause"


def test_who_ends_loses_what_it_computes_and_the_rest_goes_elsewhere():
    setting = Setting(replicas=2, limit=4, room=30, restart=10.0)
    requests = played(
        (0.0, 0, 0, 50), (0.0, 1, 0, 50), *[(3.0 + step / 100, 2, 0, 1) for step in range(4)], (99.0, 0, 0, 1)
    )
    simulation, counts = simulate(setting, requests, RULES["least loaded"], failures=(Failure(3.5, 1),))
    assert counts.lost == 1 and counts.asked >= 7
    assert not np.isnan(counts.waits).any() and sorted(simulation.world.alive) == [0, 1]


def test_a_memory_of_one_replica_hits_as_often_as_the_approximation_says():
    work = replace(committed(), kinds=(Kind(16, 1.0, 10, 0.01),), load_work=0.0)
    scenario = Scenario("one", rate=2.0, seconds=9000.0, adapters=200)
    simulation = Simulation(Setting(1, 64, 400), work, np.zeros(200, int), Random)
    counts = simulation.run(trace.draw(scenario, seed=1))
    assert counts.hits / counts.asked == pytest.approx(hit_rate(popularity(200, 1.0), 40), abs=0.02)


@pytest.mark.parametrize("name", [*RULES, "affinity with a limit"])
def test_every_rule_serves_what_comes_and_is_the_same_each_time(name):
    size = scale_sim.SHORT
    rule = RULES.get(name) or partial(Affinity, imbalanced=8)
    most = "mean" if name == scale_sim.MULTIPLEXING else None
    [usual, drifting, failing] = scale_sim.scenarios(committed(), size)
    for scenario in (usual, drifting, failing):
        found = [scale_sim.run(committed(), size, scenario, scale_sim.Row(rule, most)) for _ in range(2)]
        assert {**found[0], "took_s": 0} == {**found[1], "took_s": 0}
        assert found[0]["done"] > 0.5 * found[0]["requests"] and 0 < found[0]["hit_rate"] <= 1
        assert (found[0]["lost"] > 0) == (scenario is failing)


def test_placing_by_digest_loads_less_than_chance():
    usual = scale_sim.scenarios(committed(), scale_sim.SHORT)[0]
    loads = {
        name: scale_sim.run(committed(), scale_sim.SHORT, usual, scale_sim.ROWS[name])["loads"]
        for name in ("graft", "random")
    }
    assert 2 * loads["graft"] < loads["random"]


def world(replicas: int = 4) -> World:
    import random

    return World(8, [100] * replicas, np.full(9, 10), random.Random(0))


def test_multiplexing_goes_to_holders_then_to_the_fewest_then_anywhere():
    here = world()
    rule = Multiplexing(here)
    for replica in (0, 1, 2):
        rule.told(replica, 5, True)
    asked = Asked(0, 5, 0.0, 0, 0)
    assert set(rule.choose(asked, 0.0)) <= {0, 1, 2}
    assert list(rule.choose(asked, 0.1)) == [3], "holders had no place: the one with the fewest models"
    assert list(rule.choose(asked, 9.0)) == [3] and len(list(rule.choose(asked, 9.1))) == 2
    unknown = Asked(1, 6, 0.0, 0, 0)
    assert list(rule.choose(unknown, 0.0)) == [3]
    assert list(rule.choose(Asked(2, 6, 0.0, 0, 0), 0.0)) == [], "somebody else has fallen back already: once more"


def test_a_rule_forgets_those_that_have_gone():
    for kind in (Multiplexing, Affinity, Placement):
        here = world(2)
        rule = kind(here)
        rule.told(0, 5, True)
        rule.routed(Asked(0, 5, 0.0, 10, 0), 0)
        here.loads[0] = math.inf
        here.alive.remove(0)
        rule.changed()
        assert 0 not in list(rule.choose(Asked(1, 5, 0.0, 0, 0), 0.0))


def test_bursts_drift_and_a_favourite_are_in_the_trace():
    scenario = Scenario("all", rate=100.0, seconds=100.0, adapters=50, burst=(20.0, 5.0, 3.0), drift=(10.0, 0.5), favourite=(50.0, 0.3))  # fmt: skip
    drawn = trace.draw(scenario, seed=0)
    burst = drawn.at % 20 < 5
    assert burst.sum() / 25 == pytest.approx(3 * (~burst).sum() / 75, rel=0.1)
    early, late = (np.bincount(drawn.adapter[now], minlength=50) for now in (drawn.at < 10, drawn.at > 90))
    assert late.max() > 0.25 * late.sum() and early.argmax() != late.argmax()
    assert (trace.draw(scenario, seed=0).adapter == drawn.adapter).all()


def test_what_is_near_enough():
    waits = {"p50": 20.0, "p95": 200.0}
    real = {"loads": 100, "hit_rate": 0.5, "wait_ms": waits}
    assert scale_sim.off({"real": real, "simulated": {**real, "loads": 109}}) == []
    wrong = {"loads": 89, "hit_rate": 0.56, "wait_ms": {**waits, "p50": 22.1}}
    assert scale_sim.off({"real": real, "simulated": wrong}) == ["loads", "hit_rate", "wait_ms.p50"]


def test_rows_that_are_run_again_replace_what_they_were():
    before = [{"scenario": "a", "rule": rule, "loads": 1} for rule in ("x", "y")]
    now = [{"scenario": "a", "rule": rule, "loads": 2} for rule in ("y", "z")]
    assert [(row["rule"], row["loads"]) for row in scale_sim.merged(before, now)] == [("x", 1), ("y", 2), ("z", 2)]


def test_what_is_committed_can_be_shown_beside_what_is_run_next():
    kept = json.loads((ROOT / "benchmarks/results/scale_sim.json").read_text())
    shown = scale_sim.markdown(kept)
    rules = [row["rule"] for part in ("simulated", "validated") for row in kept[part]["rows"]]
    assert len(rules) > 20 and all(rule in shown for rule in rules)
    assert all(f"| {row['c']} | {row['quiet']} |" in shown for row in kept["swept"]["rows"])


def test_the_table_is_written_and_says_what_it_was_made_of(tmp_path):
    command = [sys.executable, "-m", "benchmarks.tables.scale_sim", "--short", "--only", "graft", "--only", "random"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*command, "--out", tmp_path], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "scale_sim.json").read_text())["simulated"]["rows"]
    assert [row["rule"] for row in rows] == ["graft", "random"] * 3
    assert "Costs: steps, prompts, loads and sizes: scaling.json" in (tmp_path / "scale_sim.md").read_text()


@pytest.mark.slow
def test_sleeping_replicas_of_ray_serve_do_what_is_simulated():
    pytest.importorskip("ray.serve", reason="Ray is in the extra `ray`")
    from benchmarks.lib.scale import sleepers

    sleepers.start_ray()
    drawn = trace.draw(scale_sim.scenarios(committed(), scale_sim.SHORT_REAL)[0], seed=3)
    for name in scale_sim.VALIDATED:
        found = scale_sim.both(committed(), scale_sim.SHORT_REAL, drawn, name)
        real = found["real"]
        assert real["done"] == real["requests"] == len(drawn)
        assert len(np.unique(drawn.adapter)) <= real["loads"] < len(drawn)
        assert real["loads"] == pytest.approx(found["simulated"]["loads"], rel=0.5)
