"""The traces' table: times to first tokens and between tokens over HTTP, of one recorded trace, beside the peers' servers.

    python -m benchmarks.tables.traces                                      three traces, two and a half hours
    python -m benchmarks.tables.traces --requests 40 --rounds 1             to try it

Each round is a trace of its own. First every server's throughput is measured, then the trace is replayed at 70 % of the slowest
one's, and at 70 % of graft's. graft answers with 64 LoRAs, the peers with the bare base. Writes results/traces.json and
results/traces.md (traces-float32.* in float32).
"""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.lib import adapters, harness, report
from benchmarks.lib.harness import Ratio, Samples, System
from benchmarks.lib.recorded_trace import TRACE

SYSTEMS = {"graft": "graft, LoRAs", "vllm": "vLLM, base only", "llama": "llama.cpp's server, base only"}
SHARE = 0.7  # of a throughput
LOADS = {"slower": "70 % of the slowest server's throughput", "graft": "70 % of graft's"}
TIMES = {"ttft_ms": "first token", "itl_ms": "between tokens"}
RANKS = ("p50", "p95")
RATIOS = [Ratio(f"{SYSTEMS[peer]}, over graft", peer, "graft", 1.0, 2.0) for peer in SYSTEMS if peer != "graft"]


def main() -> None:
    options = arguments()
    name, given = harness.named("traces", options.dtype), harness.conditions(options)
    folders = adapters.make(["lora-r16"], options.adapters, Path(options.base), harness.CACHE)
    samples = harness.earlier(options, name)
    for number in harness.rounds_to_come(given, samples):
        rows = rows_of(options, folders, samples, number)
        for _ in harness.in_round(rows, given, options.threads, samples, number):
            result = report.envelope(
                name, options, requests=options.requests, adapters=options.adapters, samples=samples
            )
            report.write(options.out, result, markdown(result))
            report.into_docs(options.out, name, times_table(samples))
    print((options.out / f"{name}.md").read_text())
    if short := missed(samples):
        raise SystemExit(f"error: not reached: {'; '.join(short)}")


def rows_of(options: argparse.Namespace, folders: list[Path], samples: Samples, number: int) -> Iterator[System]:
    """Throughputs, and then the trace at the rates that follow from them."""
    for system in options.systems:
        yield row(options, folders, system, number, throughput_row(system))
    rates = rates_of(samples, number)
    for system in options.systems:
        if rates and throughput_of(samples, system, number):
            given = [f"--rate={load}={rate}" for load, rate in rates.items()]
            yield row(options, folders, system, number, system, *given)


def row(options: argparse.Namespace, folders: list[Path], system: str, number: int, name: str, *more: str) -> System:
    command = [sys.executable, "-m", "benchmarks.own.replay", "--system", system, "--base", options.base]
    command += ["--trace", str(number), "--requests", str(options.requests), "--dtype", options.dtype]
    command += ["--throughput-requests", str(options.throughput_requests), "--running", str(options.running)]
    command += ["--threads", str(options.threads), *more]
    command += ["--adapters", *map(str, folders)] if system == "graft" else []
    return System(name, tuple(command))


def throughput_row(system: str) -> str:
    return f"{system} throughput"


def throughput_of(samples: Samples, system: str, number: int) -> float | None:
    """Requests a second, of a round."""
    taken = [sample for sample in samples.get(throughput_row(system), []) if sample["round"] == number]
    return harness.median_of(taken, "requests_per_s")


def rates_of(samples: Samples, number: int) -> dict[str, float]:
    """{load: requests a second}; {} where graft's throughput could not be measured."""
    found = {system: throughput_of(samples, system, number) for system in SYSTEMS}
    known = {system: rate for system, rate in found.items() if rate}
    if "graft" not in known:
        return {}
    return {"slower": SHARE * min(known.values()), "graft": SHARE * known["graft"]}


def keys() -> dict[str, str]:
    """Where a sample has a figure -> what it is."""
    return {
        f"{load}.{time}.{rank}": f"{LOADS[load]}: {TIMES[time]}, {rank}"
        for load in LOADS
        for time in TIMES
        for rank in RANKS
    }


def missed(samples: Samples) -> list[str]:
    """The ratios below their bars, systems with errors, and those without figures."""
    slower = [f"{short}: {title}" for key, title in keys().items() for short in report.missed(samples, RATIOS, key)]
    broken = [f"{system}: {count} errors" for system in SYSTEMS if (count := errors(samples, system))]
    begun = [system for system in SYSTEMS if throughput_row(system) in samples]
    return (
        slower
        + broken
        + [f"{system}: no figure" for system in begun if not harness.median_of(samples.get(system, []), "graft.rate")]
    )


def errors(samples: Samples, system: str) -> int:
    return sum(harness.dig(sample, f"{load}.errors") or 0 for sample in samples.get(system, []) for load in LOADS)


def markdown(result: dict[str, Any]) -> str:
    samples = result["samples"]
    return "\n".join(
        [
            report.heading(result, "A recorded trace over HTTP"),
            f"{result['requests']} requests a trace, a trace a round: Poisson arrivals, prompts of {TRACE.prompt[0]} to {TRACE.prompt[1]:,} "
            f"random tokens and greedy answers of {TRACE.answer[0]} to {TRACE.answer[1]} (log-uniform), streamed, each on one of {result['adapters']} LoRAs "
            "where it is graft's, on the bare base where it is a peer's. One client for all, on the same cores. A first token is "
            "counted from when the request was sent; between tokens is between two events with text. Medians of the rounds; ratios are "
            "of runs in the same round.",
            "",
            "## Throughput",
            "",
            rows_table(samples, {throughput_row(system): (title, "") for system, title in SYSTEMS.items()}),
            "## Times, ms",
            "",
            times_table(samples),
            "## The runs",
            "",
            *(
                f"{title}:\n\n{rows_table(samples, {system: (SYSTEMS[system], f'{load}.') for system in SYSTEMS})}"
                for load, title in LOADS.items()
            ),
        ]
    )


def rows_table(samples: Samples, rows: dict[str, tuple[str, str]]) -> str:
    """`rows`: row -> its title, and what its figures' keys begin with."""
    figures = {
        "requests/s": "requests_per_s",
        "tokens/s": "tokens_per_s",
        "tokens an event": "tokens_an_event",
        "a request's mean ms a token, p50": "token_ms.p50",
        "errors": "errors",
        "server's cores": "server_cores",
        "client's cores": "client_cores",
        "client's us a token": "client_us_a_token",
        "other cores": "other_cores",
    }
    lines = []
    for row, (title, prefix) in rows.items():
        values = [harness.median_of(samples.get(row, []), prefix + key) for key in figures.values()]
        lines.append([title, *map(report.figure, values)])
    return report.table(["", *figures], lines)


def times_table(samples: Samples) -> str:
    """A figure's medians, then the peers' over graft's against bar and goal."""
    header = ["at", *SYSTEMS.values(), *(part for ratio in RATIOS for part in (ratio.title, "bar", "goal", "reached"))]
    lines = []
    for key, title in keys().items():
        medians = [report.figure(harness.median_of(samples.get(system, []), key)) for system in SYSTEMS]
        lines.append([title, *medians, *(part for ratio in RATIOS for part in report.judged(samples, ratio, key))])
    return report.table(header, lines)


def systems_of(text: str) -> list[str]:
    """graft, and the peers that are named. Raises SystemExit for an unknown one."""
    named = [name for name in text.split(",") if name]
    if unknown := set(named) - set(SYSTEMS):
        raise SystemExit(f"error: no peer {sorted(unknown)}; peers: {', '.join(SYSTEMS)}")
    return [system for system in SYSTEMS if system in {"graft", *named}]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    harness.add_arguments(parser)
    harness.add_dtype(parser)
    parser.add_argument("--requests", type=int, default=500, help="of a trace")
    parser.add_argument("--throughput-requests", type=int, default=256)
    parser.add_argument("--adapters", type=int, default=64)
    parser.add_argument("--running", type=int, default=64, help="sequences in a step, of every server")
    parser.add_argument("--peers", dest="systems", type=systems_of, default=list(SYSTEMS), help="vllm,llama")
    return harness.parsed(parser)


if __name__ == "__main__":
    main()
