"""The front ends' table: microseconds of CPU a streamed token, of HTTP, JSON and text alone, in the ways that were tried.

    python -m benchmarks.tables.front_ends          five minutes; wants a quiet machine

256 streams over HTTP, a token an event, of an engine whose runner draws tokens for nothing. The row of gunicorn and gevent wants
both on PYTHONPATH (benchmarks/lib/gevent_front_end.py). Writes results/front_ends.json and results/front_ends.md.
"""

import argparse
import sys
from typing import Any

from benchmarks.lib import harness, report
from benchmarks.lib.harness import System

# Row -> (what it is, processes for HTTP, way)
ROWS = {
    "one, threads": ("all in one process, a thread writes each stream", 0, "threads"),
    "one, pump": ("all in one process, one thread writes all streams", 0, "pump"),
    "apart, threads": ("a front end, a thread writes each stream", 1, "threads"),
    "apart, gevent": ("a front end by gunicorn and gevent", 1, "gevent"),
    "apart, asyncio": ("a front end, an event loop's tasks write the streams", 1, "asyncio"),
    "apart, pump": ("a front end, one thread writes all streams", 1, "pump"),
}
ENCODINGS = "encodings"
BARS = {"front": 40.0, "engine": 25.0}  # microseconds a token, of the last row


def main() -> None:
    options = arguments()
    systems = [row(options, name) for name in ROWS] + [encodings(options)]
    before = harness.earlier(options, "front_ends")
    for samples in harness.in_turns(
        harness.chosen(systems, options.only), harness.conditions(options), options.threads, before
    ):
        result = report.envelope("front_ends", options, samples=samples)
        report.write(options.out, result, markdown(result))
    print((options.out / "front_ends.md").read_text())
    if short := missed(result["samples"]):
        raise SystemExit(f"error: not reached: {'; '.join(short)}")


def row(options: argparse.Namespace, name: str) -> System:
    _, processes, way = ROWS[name]
    command = [sys.executable, "-m", "benchmarks.own.streams", "--base", options.base, "--way", way]
    return System(name, (*command, "--processes", str(processes)))


def encodings(options: argparse.Namespace) -> System:
    return System(ENCODINGS, (sys.executable, "-m", "benchmarks.own.streams", "--base", options.base, "--encodings"))


def missed(samples: harness.Samples) -> list[str]:
    """What is above its bar, of the way that is graft's."""
    found = {name: harness.median_of(samples.get("apart, pump", []), f"paced.cpu_us.{name}") for name in BARS}
    return [f"{name} {us} us" for name, us in found.items() if us is not None and us > BARS[name]]


def markdown(result: dict[str, Any]) -> str:
    samples = result["samples"]
    return "\n".join(
        [
            report.heading(result, "Front ends"),
            "Microseconds of CPU for each streamed token: 256 streams over HTTP, a token an event, eight steps a second, and an engine",
            "whose runner draws tokens for nothing. Medians of the rounds. The client's own CPU is beside it.",
            "",
            table(
                samples, "paced", {"front": "front end, us", "engine": "engine's process, us", "client": "client, us"}
            ),
            "",
            "The same without a pause between steps, where what comes together is sent together:",
            "",
            table(
                samples, "fast", {"front": "front end, us", "engine": "engine's process, us", "client": "client, us"}
            ),
            "",
            "What a step's 256 tokens cost on their way from process to process, by encoding:",
            "",
            encodings_table(samples),
        ]
    )


def table(samples: harness.Samples, which: str, parts: dict[str, str]) -> str:
    lines = []
    for name, (title, _, _) in ROWS.items():
        taken = [sample for sample in samples.get(name, []) if which in sample]
        if not taken:
            lines.append([title, "no figure"])
            continue
        median = {key: harness.median_of(taken, f"{which}.{key}") for key in
                  ("tokens_per_s", "events_per_token", "gap_ms.p50", "gap_ms.p99")}  # fmt: skip
        lines.append(
            [
                title,
                *(report.figure(harness.median_of(taken, f"{which}.cpu_us.{part}")) for part in parts),
                report.figure(median["tokens_per_s"]),
                report.figure(median["events_per_token"]),
                f"{report.figure(median['gap_ms.p50'])} / {report.figure(median['gap_ms.p99'])}",
            ]
        )
    return report.table(["", *parts.values(), "tokens/s", "events a token", "gap p50 / p99, ms"], lines)


def encodings_table(samples: harness.Samples) -> str:
    taken = samples.get(ENCODINGS, [])
    if not taken:
        return "no figure"
    lines = [
        [name, *(str(taken[-1]["encodings"][name][key]) for key in ("write_ns", "read_ns", "bytes"))]
        for name in taken[-1]["encodings"]
    ]
    return report.table(["", "to write, ns a token", "to read, ns a token", "bytes a token"], lines)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    harness.add_arguments(parser)
    return harness.parsed(parser)


if __name__ == "__main__":
    main()
