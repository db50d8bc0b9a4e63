"""The table of `graft serve --ray`: what its ingress and routing cost, what they save, how long after each kill all is well.

    python -m benchmarks.tables.ray_overhead          a quarter of an hour; wants a quiet machine and the extra `ray`
    python -m benchmarks.tables.ray_overhead --short --rounds 1 --only overhead     whether it runs

Engines that cost nothing (benchmarks/lib/free_engine.py) behind the real ingress and Ray Serve; for the kills, `graft serve` with the
base. Writes results/ray_overhead.json and results/ray_overhead.md.
"""

import argparse
import sys
from typing import Any

from benchmarks.lib import harness, report
from benchmarks.lib.harness import System

OVERHEAD, KILLS = "overhead", "kills"
ZIPF = (
    "1.0",
    "1.5",
)  # how unevenly adapters are asked for: as churn.py has it, and as where a few are most of the traffic
REQUEST_MS, TOKEN_US, FEWER, ANSWERED_S, WHOLE_S = 5.0, 60.0, 3.0, 5.0, 60.0  # bars


def main() -> None:
    options = arguments()
    systems = [
        row(OVERHEAD, options, "overhead"),
        *(
            row(loads_row(router, s), options, "loads", "--router", router, "--zipf", s)
            for s in ZIPF
            for router in ("ours", "random")
        ),
        row(KILLS, options, "kills", "--base", options.base),
    ]
    before = harness.earlier(options, "ray_overhead")
    for samples in harness.in_turns(
        harness.chosen(systems, options.only), harness.conditions(options), options.threads, before
    ):
        result = report.envelope("ray_overhead", options, samples=samples)
        report.write(options.out, result, markdown(result))
    print((options.out / "ray_overhead.md").read_text())
    if short := missed(result["samples"]):
        raise SystemExit(f"error: not reached: {'; '.join(short)}")


def row(name: str, options: argparse.Namespace, *words: str) -> System:
    short = ("--short",) if options.short else ()
    return System(name, (sys.executable, "-m", "benchmarks.own.ray", *words, *short))


def loads_row(router: str, s: str) -> str:
    return f"loads, {router}, s={s}"


def figures(samples: harness.Samples) -> dict[str, tuple[float | None, float]]:
    """What has a bar: the median, and the bar that it must not be above."""
    taken = {name: samples.get(name, []) for name in (OVERHEAD, KILLS)}
    killed = {
        f"after the {victim} is killed, {what}, s": (harness.median_of(taken[KILLS], f"{victim}.{key}"), bar)
        for victim in ("engine", "actor")
        for key, what, bar in (("answered_s", "answers", ANSWERED_S), ("whole_s", "all replicas", WHOLE_S))
    }
    return {
        "added to a request, ms": (harness.median_of(taken[OVERHEAD], "request_ms.added"), REQUEST_MS),
        "CPU of the ingress a token, us": (harness.median_of(taken[OVERHEAD], "token.added.cpu_us"), TOKEN_US),
        f"loads beside random routing's, Zipf s={ZIPF[-1]}": (loads_share(samples, ZIPF[-1]), 1 / FEWER),
        **killed,
    }


def loads_share(samples: harness.Samples, s: str) -> float | None:
    """Ours, of random routing's."""
    rows = (samples.get(loads_row(router, s), []) for router in ("ours", "random"))
    ours, random = (harness.median_of(taken, "loads_per_request") for taken in rows)
    return None if ours is None or not random else ours / random


def missed(samples: harness.Samples) -> list[str]:
    return [
        f"{name} {value:.3g}" for name, (value, bar) in figures(samples).items() if value is not None and value > bar
    ]


def markdown(result: dict[str, Any]) -> str:
    samples = result["samples"]
    lines = [[name, report.figure(value), report.figure(bar)] for name, (value, bar) in figures(samples).items()]
    others = {
        "later each token comes, us": (OVERHEAD, "token.added.delay_us"),
        **{
            f"loads a request, {router}, Zipf s={s}": (loads_row(router, s), "loads_per_request")
            for s in ZIPF
            for router in ("ours", "random")
        },
        "after the ingress is killed, answers, s": (KILLS, "ingress.answered_s"),
        "after Serve's controller is killed, answers, s": (KILLS, "controller.answered_s"),
        "after the head is killed, answers, s": (KILLS, "head.answered_s"),
        "after the head is killed, the command ends, s": (KILLS, "head.command_ended_s"),
    }
    lines += [
        [name, report.figure(harness.median_of(samples.get(row, []), key)), ""] for name, (row, key) in others.items()
    ]
    return "\n".join(
        [
            report.heading(result, "On Ray"),
            "One replica for what is added; three with room for 32 of 200 adapters, asked for by Zipf's law, for loads; two for kills.",
            "",
            report.table(["", "median", "bar"], lines),
        ]
    )


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    harness.add_arguments(parser)
    parser.add_argument("--short", action="store_true", help="a tenth of each, to see that it runs")
    return harness.parsed(parser)


if __name__ == "__main__":
    main()
