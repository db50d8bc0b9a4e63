"""The demo at several seeds: seconds of every stage, every score, and p against the bare base.

    python -m benchmarks.tables.demo [--seeds 3] [--dtype float32]

Each seed is a `graft demo` in a folder of its own, as a user runs it, after base and data are here. Writes
results/demo.json and results/demo.md after every seed; --append keeps the seeds that are there.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.lib import harness, report
from graft.hub.demo.story import WHOLE

KINDS = ("lora", "series", "parallel")  # at least one of them has to beat the bare base
WORTH = 0.05
LIMIT_S = 360


def main() -> None:
    options = arguments()
    samples = harness.earlier(options, "demo").get("seeds", [])
    have = {sample["seed"] for sample in samples}
    for seed in range(options.seeds):
        if seed in have:
            continue
        samples.append(told(options, seed))
        result = report.envelope("demo", options, samples={"seeds": samples})
        report.write(options.out, result, markdown(result))
    print((options.out / "demo.md").read_text())
    if not (within(samples) and enough(samples)):
        raise SystemExit("error: a bar is not reached: see above")


def told(options: argparse.Namespace, seed: int) -> dict[str, Any]:
    """One demo from end to end."""
    dtype = ("--dtype", options.dtype) if options.dtype else ()
    with harness.held(options.lock), tempfile.TemporaryDirectory() as folder:
        words = ("demo", "--folder", folder, "--port", str(options.port), "--seed", str(seed), *dtype)
        done = subprocess.run(
            [sys.executable, "-m", "graft.hub.cli.main", *words], stdout=sys.stderr, env=settings(options)
        )
        if done.returncode:
            raise SystemExit(f"graft {' '.join(words)} failed")
        found = json.loads((Path(folder) / "demo.json").read_text())
        trained = json.loads((Path(folder) / "adapters" / WHOLE.entries[0].name / "graft.json").read_text())
    return {key: found[key] for key in ("seed", "seconds", "seconds_per_stage", "scores", "promoted")} | {
        "dtype": trained["dtype"],
        "load": round(os.getloadavg()[2], 1),
    }


def settings(options: argparse.Namespace) -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": str(options.threads)}


def better(sample: dict[str, Any]) -> list[tuple[str, float]]:
    """The adapters of KINDS that beat the bare base of their task, and p."""
    found = []
    for board in sample["scores"].values():
        base = next(row["value"] for row in board if not row["name"])
        for row in board:
            name = row["name"] or ""
            p = row["extra"].get("p_vs_base")
            if name.rpartition("-")[2] in KINDS and row["value"] > base and p is not None and p < WORTH:
                found.append((name, p))
    return sorted(found, key=lambda pair: pair[1])


def within(seeds: list[dict[str, Any]]) -> bool:
    return all(sample["seconds"] <= LIMIT_S for sample in seeds)


def enough(seeds: list[dict[str, Any]]) -> bool:
    return all(better(sample) for sample in seeds)


def markdown(result: dict[str, Any]) -> str:
    seeds = result["samples"]["seeds"]
    stages = list(seeds[0]["seconds_per_stage"])
    times = [[stage, *(report.figure(sample["seconds_per_stage"][stage]) for sample in seeds)] for stage in stages]
    times.append(["**whole**", *(f"**{report.figure(sample['seconds'])}**" for sample in seeds)])
    names = [(task, row["name"]) for task, board in seeds[0]["scores"].items() for row in board]
    scores = [[task, name or "(bare base)", *(_score(sample, task, name) for sample in seeds)] for task, name in names]
    columns = [f"seed {sample['seed']} ({sample['dtype']})" for sample in seeds]
    return "\n".join(
        [
            report.heading(result, "The demo, from end to end"),
            f"Seconds of every stage of `graft demo`, base and data being here. Within {LIMIT_S} s at every seed: "
            f"{'yes' if within(seeds) else 'no'}. Mean load of the 15 minutes before each end: "
            f"{', '.join(str(sample['load']) for sample in seeds)}.",
            "",
            report.table(["stage", *columns], times),
            "",
            f"Scores, and p against the bare base of the task (paired). A {', '.join(KINDS[:-1])} or {KINDS[-1]} adapter "
            f"beats it at p < {WORTH} at every seed: {'yes' if enough(seeds) else 'no'}.",
            "",
            report.table(["task", "adapter", *columns], scores),
        ]
    )


def _score(sample: dict[str, Any], task: str, name: str | None) -> str:
    row = next((row for row in sample["scores"][task] if row["name"] == name), None)
    if row is None:
        return "not scored"
    p = row["extra"].get("p_vs_base")
    return f"{row['value']:.3f}" + ("" if p is None else f" (p {p:.2g})")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    harness.add_arguments(parser)
    parser.add_argument("--seeds", type=int, default=3, help="so many, from 0 on")
    parser.add_argument("--port", type=int, default=18470)
    parser.add_argument("--dtype", choices=harness.DTYPES, help="(default: what the machine is fast at)")
    return harness.parsed(parser)


if __name__ == "__main__":
    main()
