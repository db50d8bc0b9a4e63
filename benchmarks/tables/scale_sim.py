"""The table of many replicas: which rule for placing requests loads how many adapters, and lets requests wait how long.

    python -m benchmarks.tables.scale_sim                1,000 replicas, 100,000 adapters: a simulation of some minutes
    python -m benchmarks.tables.scale_sim --validate     real Ray Serve replicas, whose steps sleep, beside the simulation
    python -m benchmarks.tables.scale_sim --sweep        other bounds for graft's own rule

Costs are those of committed tables; --measure takes them on this machine instead. Each call keeps its part of
results/scale_sim.json and makes results/scale_sim.md and the summary in docs/performance.md from all.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from benchmarks.lib import harness, report
from benchmarks.lib.common import Load
from benchmarks.lib.scale import trace, work
from benchmarks.lib.scale.policies import RULES, Affinity, Placement, Rule, World
from benchmarks.lib.scale.simulator import Counts, Setting, Simulation, adapters_of
from benchmarks.lib.scale.trace import NEW, PROMPT, Failure, Scenario, Trace
from benchmarks.lib.scale.work import USUAL, Work
from graft.server.scale.placement import Bound
from graft.server.sizing.deployment import hit_rate, popularity

LIMIT, BUSY = 32, 0.6  # requests at a replica; share of what replicas could compute
WARM = 4  # requests before those that are counted, for each adapter that has room somewhere
MULTIPLEXING, AFFINITY = "Serve's multiplexing", "prefix affinity"
BOUNDS = (*(Bound(1.25, quiet) for quiet in (0.0, 0.25, 0.5, 0.75)), Bound(1.1), Bound(1.5), Bound(2.0))
VALIDATED = ("random", "graft", MULTIPLEXING)
_DRAWS = 10  # of a rule that draws at random, in the simulation beside a real run
OFF = 0.10  # how far a simulated figure may be from the real one, as a share of that


@dataclass(frozen=True)
class Size:
    """`room`: adapters of the usual rank in a replica; `seconds`: that are counted."""

    replicas: int
    adapters: int
    room: int
    seconds: float


FULL, SHORT = Size(1000, 100_000, 64, 60.0), Size(20, 2000, 64, 10.0)
SWEPT = Size(300, 30_000, 64, 60.0)
REAL, SHORT_REAL = Size(4, 400, 16, 60.0), Size(2, 40, 8, 3.0)


@dataclass(frozen=True)
class Row:
    """A rule. `most`: how many adapters a replica keeps, of what it could keep by the largest's or the mean's bytes."""

    rule: Callable[[World], Rule]
    most: str | None = None


ROWS = {
    "graft": Row(RULES["graft"]),
    "random": Row(RULES["random"]),
    "least loaded": Row(RULES["least loaded"]),
    f"{MULTIPLEXING}, sure of its memory": Row(RULES[MULTIPLEXING], "largest"),
    f"{MULTIPLEXING}, by the mean adapter": Row(RULES[MULTIPLEXING], "mean"),
    AFFINITY: Row(RULES[AFFINITY]),
    f"{AFFINITY}, two at random where loads differ by {LIMIT // 2}": Row(partial(Affinity, imbalanced=LIMIT // 2)),
}


def main() -> None:
    options = arguments()
    kept = options.out / "scale_sim.json"
    result = json.loads(kept.read_text()) if kept.exists() else {}
    costs = measured_here(options) if options.measure else work.committed()
    name = "validated" if options.validate else "swept" if options.sweep else "simulated"
    parts = {one: result[one] for one in PARTS if one in result}
    rows = [said(row) for row in PARTS[name].rows(costs, options)]
    if options.only and name in parts:
        rows = merged(parts[name]["rows"], rows)
    parts[name] = report.envelope("scale_sim", options, rows=rows, sources=costs.sources)
    result = report.envelope("scale_sim", options, **parts)
    report.write(options.out, result, markdown(result))
    report.into_docs(options.out, "scale_sim", summary(result))
    print((options.out / "scale_sim.md").read_text())
    if wrong := [row for row in parts.get("validated", {}).get("rows", ()) if off(row)]:
        raise SystemExit(f"error: simulated otherwise than real: {[(row['rule'], off(row)) for row in wrong]}")


def merged(before: list[dict[str, Any]], now: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """With those that were run again in place of what they were."""
    again = {(row["scenario"], row["rule"]): row for row in now}
    return [again.pop((row["scenario"], row["rule"]), row) for row in before] + list(again.values())


def said(row: dict[str, Any]) -> dict[str, Any]:
    harness.say(json.dumps(row))
    return row


# What is simulated


def scenarios(costs: Work, size: Size) -> list[Scenario]:
    """The same rate, put otherwise each time."""
    mean = sum(PROMPT) / 2
    rate = BUSY * size.replicas / costs.request(LIMIT, mean, NEW)
    usual = Scenario("Zipf's law", rate, size.seconds, size.adapters)
    third = size.seconds / 3
    return [
        usual,
        replace(usual, name="drifting, bursts, a sudden favourite", drift=(third / 2, 0.05), burst=(third, third / 4, 1.5), favourite=(third, 0.1)),
        replace(usual, name="5 % of the replicas end twice", failures=tuple(Failure(at * third, size.replicas // 20) for at in (1, 2))),
    ]  # fmt: skip


def simulated(costs: Work, options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    size = SHORT if options.short else FULL
    for scenario in scenarios(costs, size):
        for name, row in ROWS.items():
            if not options.only or name in options.only:
                yield {"scenario": scenario.name, "rule": name, **run(costs, size, scenario, row)}


def swept(costs: Work, options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    size = SHORT if options.short else SWEPT
    usual = scenarios(costs, size)[0]
    for bound in BOUNDS:
        row = Row(partial(Placement, bound=bound))
        yield {"c": bound.c, "quiet": bound.quiet, **run(costs, size, usual, row)}


def run(costs: Work, size: Size, scenario: Scenario, row: Row) -> dict[str, Any]:
    """One rule through a scenario, from memories that are full of what such requests leave."""
    began = time.perf_counter()
    setting = setting_of(costs, size, row.most)
    kinds = trace.kinds_of(size.adapters, [kind.share for kind in costs.kinds], seed=1)
    simulation = Simulation(setting, costs, kinds, row.rule)
    before = WARM * size.replicas * size.room
    warm = replace(scenario, seconds=before / scenario.rate, burst=None, drift=None, favourite=None)
    simulation.warm(trace.draw(warm, seed=2), under_way=round(BUSY * size.replicas * LIMIT / 2))
    counts = simulation.run(trace.draw(scenario, seed=3), scenario.failures)
    fullest = max(replica.memory.taken for replica in simulation.replicas) / setting.room
    took = time.perf_counter() - began
    return figures(counts, scenario.seconds) | {"fullest": round(fullest, 3), "took_s": round(took, 1)}


def setting_of(costs: Work, size: Size, most: str | None) -> Setting:
    usual = next(kind.size for kind in costs.kinds if kind.rank == USUAL)
    room = size.room * usual
    counted = {None: None, "largest": room // costs.largest, "mean": int(room / costs.mean)}
    return Setting(size.replicas, LIMIT, room, counted[most])


def figures(counts: Counts, seconds: float) -> dict[str, Any]:
    p50, p95, p99 = (1e3 * float(np.percentile(counts.waits, rank)) for rank in (50, 95, 99))
    return {
        "requests": len(counts.waits),
        "loads": counts.loads,
        "loads_per_s": round(counts.loads / seconds, 2),
        "hit_rate": round(counts.hits / max(1, counts.asked), 4),
        "wait_ms": {"mean": round(1e3 * float(counts.waits.mean()), 2), "p50": round(p50, 2), "p95": round(p95, 2), "p99": round(p99, 2)},
        "lost": counts.lost,
        "done": counts.done,
    }  # fmt: skip


# What is validated


def validated(costs: Work, options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Each rule on 2 and on all replicas, in real time and simulated."""
    from benchmarks.lib.scale import sleepers

    size = SHORT_REAL if options.short else REAL
    sleepers.start_ray()
    for replicas in sorted({2, size.replicas}):
        here = replace(size, replicas=replicas, seconds=size.seconds * size.replicas / replicas)  # as many requests
        played = trace.draw(scenarios(costs, here)[0], seed=3)
        for name in VALIDATED:
            yield {"replicas": replicas, "rule": name, **both(costs, here, played, name)}


def both(costs: Work, size: Size, played: Trace, name: str) -> dict[str, Any]:
    from benchmarks.lib.scale import sleepers

    setting = setting_of(costs, size, "mean" if name == MULTIPLEXING else None)
    kinds = trace.kinds_of(size.adapters, [kind.share for kind in costs.kinds], seed=1)
    adapters = sleepers.Adapters(*adapters_of(costs, kinds))
    load = Load()
    real = sleepers.play(name, costs, adapters, setting, played)
    cores = load.cores()
    setting = replace(setting, hop=real.hop)
    # Serve draws at random, and nobody can have it draw the same again; the other rules draw here what they drew there.
    seeds = range(_DRAWS) if name == MULTIPLEXING else (0,)
    runs = [Simulation(setting, costs, kinds, RULES[name], seed).run(played) for seed in seeds]
    return {
        "real": figures(real.counts, size.seconds),
        "simulated": averaged([figures(counts, size.seconds) for counts in runs]),
        "hop_ms": round(1e3 * real.hop, 2),
        **cores,
    }


def averaged(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """The mean of each figure."""
    first = runs[0]
    return {
        key: averaged([one[key] for one in runs])
        if isinstance(first[key], dict)
        else round(statistics.fmean(one[key] for one in runs), 4)
        for key in first
    }


def off(row: dict[str, Any]) -> list[str]:
    """Which figures of a simulated run are too far from the real one's."""
    return [what for what, real, simulated in compared(row) if not near(real, simulated)]


def compared(row: dict[str, Any]) -> list[tuple[str, float, float]]:
    """(figure, real, simulated)."""
    keys = ("loads", "hit_rate", "wait_ms.p50", "wait_ms.p95")
    return [(key, harness.dig(row["real"], key), harness.dig(row["simulated"], key)) for key in keys]


def near(real: float, simulated: float) -> bool:
    return abs(simulated - real) <= OFF * real


# What is written


def summary(result: dict[str, Any]) -> str:
    """What docs/performance.md shows, once there are simulated rows."""
    shown = ("simulated", "validated") if "simulated" in result else ()
    return "\n".join(PARTS[name].table(result[name]["rows"]) for name in shown if name in result)


def markdown(result: dict[str, Any]) -> str:
    lines = [report.heading(result, "Many replicas: where requests go")]
    for name, part in PARTS.items():
        if name in result:
            lines += [f"## {part.title}", "", *about(result[name]), part.note, ""]
            lines += [best_hit_rate(), ""] * (name == "simulated")
            lines += [part.table(result[name]["rows"]), ""]
    return "\n".join(lines)


def about(part: dict[str, Any]) -> list[str]:
    costs = [f"Costs: {one}." for one in part["sources"]]
    return [f"{part['at']}, commit `{part['commit']}`, `{part['command']}`.", *costs, ""]


def best_hit_rate() -> str:
    costs = work.committed()
    setting = setting_of(costs, FULL, None)
    held = int(FULL.replicas * setting.room / costs.mean)
    together, alone = (hit_rate(popularity(FULL.adapters, 1.0), count) for count in (held, held // FULL.replicas))
    return (
        f"By Che's approximation an LRU memory of all replicas together would find {together:.3f} of the requests' adapters, one of a "
        f"single replica's size {alone:.3f}: `graft plan` reckons so, and the simulation is held against it."
    )  # fmt: skip


def simulated_table(rows: list[dict[str, Any]]) -> str:
    header = ["scenario", "rule", "loads/s", "hit rate", "waiting p50 / p95 / p99 ms", "lost", "fullest"]
    return report.table(
        header,
        [
            [row["scenario"], row["rule"], *looked_up(row), waited(row, "p50", "p95", "p99"), f"{row['lost']:,}", report.figure(row.get("fullest"))]
            for row in rows
        ],
    )  # fmt: skip


def swept_table(rows: list[dict[str, Any]]) -> str:
    lines = [[row["c"], row["quiet"], *looked_up(row), waited(row, "p50", "p95")] for row in rows]
    return report.table(["c", "quiet", "loads/s", "hit rate", "waiting p50 / p95 ms"], lines)


def looked_up(row: dict[str, Any]) -> tuple[str, str]:
    return report.figure(row["loads_per_s"]), f"{row['hit_rate']:.3f}"


def waited(row: dict[str, Any], *ranks: str) -> str:
    return " / ".join(f"{row['wait_ms'][rank]:,.0f}" for rank in ranks)


def validated_table(rows: list[dict[str, Any]]) -> str:
    header = [
        "rule",
        "replicas",
        "loads, real / simulated",
        "hit rate",
        "waiting p50 ms",
        "waiting p95 ms",
        "near enough",
    ]
    lines = []
    for row in rows:
        cells = [f"{report.figure(real)} / {report.figure(simulated)}" for _, real, simulated in compared(row)]
        cells[1] = f"{row['real']['hit_rate']:.3f} / {row['simulated']['hit_rate']:.3f}"
        lines.append([row["rule"], row["replicas"], *cells, "no: " + ", ".join(off(row)) if off(row) else "yes"])
    return report.table(header, lines)


@dataclass(frozen=True)
class Part:
    """Of the table: what makes its rows, and how they are shown."""

    title: str
    rows: Callable[[Work, argparse.Namespace], Iterator[dict[str, Any]]]
    table: Callable[[list[dict[str, Any]]], str]
    note: str


PARTS = {
    "simulated": Part(
        "Rules side by side", simulated, simulated_table,
        f"{FULL.replicas:,} replicas, {LIMIT} requests at once in each, room for {FULL.room} LoRAs of rank {USUAL}; {FULL.adapters:,} LoRAs of ranks "
        f"{', '.join(f'{rank} ({share:.0%})' for rank, share in work.RANKS.items())}; prompts of {PROMPT[0]} to {PROMPT[1]} tokens, answers of {NEW} on average, "
        f"at {BUSY:.0%} of what the replicas compute with all rows in use; {FULL.seconds:.0f} s, after {WARM} requests for each place in memory. Waiting: from a request's "
        "arrival at the router to its first step; a hit finds its adapter ready. Fullest: of the replicas at the end, in shares of the room that there is for adapters. Adapters lie on the replicas' disks, and were proven before.",
    ),
    "swept": Part(
        "graft's bound", swept, swept_table,
        f"The first scenario with {SWEPT.replicas} replicas and {SWEPT.adapters:,} adapters, where graft's replicas may have C times an even load, and in any case such a share of their limit (server/scale/placement.py).",
    ),
    "validated": Part(
        "Real Ray Serve replicas beside it", validated, validated_table,
        f"The same trace played in real time to Ray Serve replicas whose steps and loads sleep what they cost, from empty memories: {REAL.adapters} adapters, room for {REAL.room}; "
        f"multiplexing is Serve's own code, and counts by the mean adapter. Bar: {OFF:.0%}. Where Serve draws at random, the simulated figures are means of {_DRAWS} runs. What is not the simulator's: the time "
        "from an idle router to a replica, measured before each run.",
    ),
}  # fmt: skip


def measured_here(options: argparse.Namespace) -> Work:
    from graft.server.commands.costs_here import Measured, measure_here

    kinds = {rank: {"r": str(rank), "alpha": str(2 * rank)} for rank in work.RANKS}
    asked = {rank: Measured(options.base, "lora", kind, LIMIT, None, "cpu") for rank, kind in kinds.items()}
    return work.measured({rank: measure_here(one, harness.say) for rank, one in asked.items()})


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    harness.add_arguments(parser)
    parser.add_argument(
        "--validate", action="store_true", help="play a trace to real Ray Serve replicas, and simulate it"
    )
    parser.add_argument("--sweep", action="store_true", help="other bounds of graft's own rule")
    parser.add_argument(
        "--measure", action="store_true", help="measure costs here instead of taking those of committed tables"
    )
    parser.add_argument("--short", action="store_true", help="a small fleet for seconds, to see that it runs")
    options = parser.parse_args()
    return harness.parsed(parser) if options.measure else options


if __name__ == "__main__":
    main()
