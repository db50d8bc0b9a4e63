"""`graft serve` under load: what HTTP costs, a crowd, more than it can take, restarts.

    python -m benchmarks.tables.over_http                                    50 minutes; wants a quiet machine
    python -m benchmarks.tables.over_http --only crowd --seconds 60          one row, for a shorter time

What takes ten minutes is measured in the first round alone. Writes results/over_http.json and results/over_http.md (over_http-float32.* in float32).
"""

import argparse
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from benchmarks.lib import adapters, harness, report
from benchmarks.lib.common import Workload
from benchmarks.lib.harness import Ratio, Samples, System
from benchmarks.peers import systems

RATIOS = [Ratio(f"32 streams over HTTP, {way}, vs offline", f"HTTP, {way}", f"offline, {way}", 0.97, 1.0)
          for way in ("greedy", "sampled")]  # fmt: skip
# Row -> its figures: key -> (what it is, bar, goal); the least is best.
BARS: dict[str, dict[str, tuple[str, float, float]]] = {
    "crowd": {
        "errors": ("requests that were not answered whole", 0, 0),
        "refused": ("requests that were refused", 0, 0),
        "lost_processes": ("processes that ended", 0, 0),
        "growth": ("growth of a process's resident memory, the last tenth of the time over the first", 0.03, 0.01),
    },
    "overload": {
        "errors": ("neither answered whole nor refused with 429 and Retry-After", 0, 0),
        "ratio": ("latency of what is accepted over that of requests one after another, p95", 3, 1.5),
    },
    "restarts": {
        "lost": ("requests lost", 0, 0),
        "bad_exits": ("servers that ended with another status than 0", 0, 0),
    },
}
ADAPTERS = {"crowd": 64, "overload": 8, "restarts": 8}


def main() -> None:
    options = arguments()
    name = harness.named("over_http", options.dtype)
    rows = harness.chosen(all_rows(options), options.only)
    given, samples = harness.conditions(options), harness.earlier(options, name)
    for place, number in enumerate(harness.rounds_to_come(given, samples)):
        turn = [row for row in rows if not place or row.name not in BARS]
        for _ in harness.in_round(turn, given, options.threads, samples, number):
            result = report.envelope(name, options, seconds=options.seconds, samples=samples)
            report.write(options.out, result, markdown(result))
            report.into_docs(options.out, name, summary(result))
    print((options.out / f"{name}.md").read_text())
    if short := missed(samples):
        raise SystemExit(f"error: not reached: {'; '.join(short)}")


def all_rows(options: argparse.Namespace) -> list[System]:
    greedy = Workload(dtype=options.dtype)
    ways = {"greedy": greedy, "sampled": replace(greedy, temperature=1.0, top_p=0.95, seeded=True)}
    rows = []
    for way, work in ways.items():
        repeats = ("--repeats", str(options.repeats))
        rows.append(systems.graft(f"offline, {way}", options.base, work, (), *repeats))
        rows.append(
            own(f"HTTP, {way}", "over_http", options, "--what", "streams", "--workload", work.to_json(), *repeats)
        )
    sizes = ("--streams", str(options.streams), "--kv-bytes", options.kv_bytes)
    most = ("--max-requests", str(options.max_requests))
    return [
        *rows,
        own("crowd", "over_http", options, "--what", "crowd", *timed(options), *sizes),
        own("overload", "over_http", options, "--what", "overload", *timed(options), *most),
        own("restarts", "rolling", options, *timed(options)),
    ]


def timed(options: argparse.Namespace) -> tuple[str, str]:
    return "--seconds", str(options.seconds)


def own(row: str, script: str, options: argparse.Namespace, *more: str) -> System:
    """On adapters of all kinds, where the row has some."""
    command = [sys.executable, "-m", f"benchmarks.own.{script}", "--base", options.base, "--dtype", options.dtype]
    command += ["--threads", str(options.threads), "--http-processes", str(options.http_processes), *more]
    if row in ADAPTERS:
        made = adapters.make(list(adapters.RECIPES), ADAPTERS[row], Path(options.base), harness.CACHE)
        command += ["--adapters", *map(str, made)]
    return System(row, tuple(command))


def summary(result: dict[str, Any]) -> str:
    """What docs/performance.md shows."""
    samples = result["samples"]
    bars = [bars_table(samples, row) for row in BARS if row in samples]
    return "\n".join([report.ratio_table(samples, RATIOS), *bars])


def missed(samples: Samples) -> list[str]:
    """What is beyond its bar or was not found out, of the rows that were measured."""
    found = {
        (row, key): (harness.median_of(samples[row], key), bar)
        for row, figures in BARS.items()
        if row in samples
        for key, (_, bar, _) in figures.items()
    }
    return report.missed(samples, RATIOS) + [
        f"{row}: {key} {value}" for (row, key), (value, bar) in found.items() if value is None or value > bar
    ]


def markdown(result: dict[str, Any]) -> str:
    samples = result["samples"]
    return "\n".join(
        [
            report.heading(result, "Serving under load, over HTTP"),
            "`graft serve` and its client on the same cores; the client is the same in all tables that speak HTTP, and its own CPU is beside "
            f"the figures. What takes its time is measured for {result['seconds']:g} seconds.",
            "",
            *streams_section(samples),
            *(
                f"## {title}\n\n{text}\n\n{bars_table(samples, row, SHOWN[row])}"
                for row, (title, text) in SECTIONS.items()
                if row in samples
            ),
        ]
    )


def streams_section(samples: Samples) -> list[str]:
    streams = {row: taken for row, taken in samples.items() if row not in BARS}
    if not streams:
        return []
    title = "## 32 streams at once on the bare base, beside the same offline\n"
    return [title, report.serving_table(streams), report.ratio_table(samples, RATIOS)]


SECTIONS = {
    "crowd": (
        "A crowd",
        "256 streams at any time, each on one of 64 adapters of fourteen sorts, prompts and answers of 16 to 128 tokens, half of them "
        "greedy and half at temperature 1 with top-p 0.95; counted after the whole cache was written once, and a minute.",
    ),
    "overload": (
        "Four times more than it can take",
        "Poisson arrivals at four times what it answers with all its places taken (`--max-requests`), for the same requests on 8 adapters. "
        "Latency is from sending a request to its last token.",
    ),
    "restarts": (
        "Restarts under load",
        "Two servers, restarted by SIGTERM one after the other all the time, and 8 streams that ask both in turn: where one says 503 with "
        "Retry-After, or nobody listens, the other.",
    ),
}
# Row -> more of its figures: what they are -> how they read.
SHOWN: dict[str, dict[str, Callable[[dict[str, Any]], str]]] = {
    "crowd": {
        "requests; tokens/s": lambda one: f"{one['requests']:,}; {one['tokens_per_s']:,}",
        "first token, ms: p50, p95, p99": lambda one: ranks(one["ttft_ms"]),
        "between tokens, ms: p50, p95, p99": lambda one: ranks(one["itl_ms"]),
        "resident MB of each process, first and last": lambda one: "; ".join(
            f"{process['name']} {process['first'] / 1e6:,.0f}, {process['last'] / 1e6:,.0f}"
            for process in one["processes"]
        ),
        "client's cores": lambda one: str(one["client_cores"]),
    },
    "overload": {
        "places; answers a second with all taken; requests a second": lambda one: (
            f"{one['max_requests']}; {one['capacity']:.2f}; {one['rate']:.2f}"
        ),
        "requests; refused": lambda one: f"{one['requests']:,}; {one['refused']:,}",
        "one after another, latency ms: p50, p95, p99": lambda one: ranks(one["alone"]["latency_ms"]),
        "all places taken, latency ms: p50, p95, p99": lambda one: ranks(one["full"]["latency_ms"]),
        "accepted, latency ms: p50, p95, p99": lambda one: ranks(one["latency_ms"]),
        "accepted, first token ms: p50, p95, p99": lambda one: ranks(one["ttft_ms"]),
        "tokens/s: one after another, all places taken, overloaded": lambda one: (
            f"{one['alone']['tokens_per_s']:,}, {one['full']['tokens_per_s']:,}, {one['tokens_per_s']:,}"
        ),
        "client's cores": lambda one: str(one["client_cores"]),
    },
    "restarts": {
        "requests; restarts": lambda one: f"{one['requests']:,}; {one['restarts']}",
        "tries that the other server was asked after": lambda one: f"{one['moved']:,}",
        "longest end of a server, s": lambda one: str(one["drain_s"]),
        "latency, ms: p50, p99, most": lambda one: ranks(one["latency_ms"]),
    },
}


def bars_table(
    samples: Samples, row: str, shown: Mapping[str, Callable[[dict[str, Any]], str]] = MappingProxyType({})
) -> str:
    """A row's figures against their bars, and what is to be `shown` beside them."""
    taken = [sample for sample in samples[row] if "error" not in sample]
    if not taken:
        return f"No figure: {samples[row][-1]['error']}\n"
    lines = [
        [what, f"**{harness.median_of(taken, key):g}**", f"{bar:g}", f"{goal:g}"]
        for key, (what, bar, goal) in BARS[row].items()
    ]
    lines += [[what, read(sample), "", ""] for sample in taken for what, read in shown.items()]
    lines.append(["other cores", f"{max(sample['other_cores'] for sample in taken)}", "", ""])
    return report.table([row, "measured", "bar", "goal"], lines)


def ranks(found: dict[str, float]) -> str:
    return ", ".join(map(report.figure, found.values()))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    harness.add_arguments(parser)
    harness.add_dtype(parser)
    parser.add_argument("--seconds", type=float, default=600.0, help="of the rows that last so long")
    parser.add_argument("--streams", type=int, default=256, help="of the crowd")
    parser.add_argument("--max-requests", type=int, default=4, help="places of the server that is overloaded")
    parser.add_argument("--repeats", type=int, default=5, help="runs of 32 streams in each row")
    parser.add_argument("--kv-bytes", default="2G", help="of the crowd's cache, which is written whole first")
    parser.add_argument("--http-processes", type=int, default=0, help="of graft serve")
    return harness.parsed(parser)


if __name__ == "__main__":
    main()
