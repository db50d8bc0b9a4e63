"""What `graft estimate` says of memory beside what `graft train` then takes, for every method: each a process of its own.

    python -m benchmarks.tables.estimates

Writes results/estimates.json and results/estimates.md. Memory hardly minds other load, so none is waited for.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.lib import harness, report
from benchmarks.tables.training import BATCH, LENGTH, SHARES, examples
from graft.hub.adapters.methods import METHODS
from graft.trainer.plan.plan import BASELINES

STEPS = 4
WITHIN = 0.15  # of the measured peak
GRAFT = (sys.executable, "-m", "graft.hub.cli.main")
# row: method, further flags
ROWS = {name: (name, ()) for name in (*METHODS, *BASELINES)} | {
    "lora/layers recomputed": ("lora", ("--checkpoint-layers",)),
    "lora/32 sequences in passes": ("lora", ("--batch-size", "32")),
}


def main() -> None:
    options = arguments()
    rows = options.only or list(ROWS)
    data = examples(Path(options.base), SHARES["text"])
    before = {sample["row"]: sample for sample in harness.earlier(options, "estimates").get("rows", [])}
    for row in rows:
        before[row] = {"row": row, **measured(options, data, *ROWS[row])}
        harness.say(f"{row:32} {before[row]}")
        samples = {"rows": [before[name] for name in ROWS if name in before]}
        result = report.envelope("estimates", options, samples=samples)
        report.write(options.out, result, markdown(result))
    print((options.out / "estimates.md").read_text())


def measured(options: argparse.Namespace, data: Path, method: str, flags: tuple[str, ...]) -> dict[str, Any]:
    """Peak bytes and seconds a step: foretold and found."""
    common = ("--base", options.base, "--method", method, "--data", str(data), "--steps", str(STEPS), "--json")
    common += ("--device", "cpu", "--dtype", options.dtype, *flags)
    with harness.held(options.lock), tempfile.TemporaryDirectory() as folder:
        told = run("estimate", *common)["costs"][0]
        (found,) = run("train", *common, "--out", str(Path(folder) / "out"))
    return {
        "estimated_bytes": told["peak_bytes"],
        "measured_bytes": found["peak_memory_bytes"],
        "estimated_seconds": told["seconds"],
        "measured_seconds": found["seconds"],
        "trained_parameters": found["parameters"],
    }


def run(*arguments: str) -> Any:
    done = subprocess.run([*GRAFT, *arguments], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"graft {' '.join(arguments)} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout)


def off(sample: dict[str, Any], what: str = "bytes") -> float:
    """How far the estimate lies above (below: negative) what was found, as a fraction."""
    return sample[f"estimated_{what}"] / sample[f"measured_{what}"] - 1


def markdown(result: dict[str, Any]) -> str:
    lines = []
    for sample in result["samples"]["rows"]:
        sizes = [report.figure(sample[f"{which}_bytes"] / 1e6) for which in ("estimated", "measured")]
        cells = [sample["row"], f"{sample['trained_parameters']:,}", *sizes, f"{off(sample):+.1%}"]
        lines.append([*cells, "yes" if abs(off(sample)) <= WITHIN else "no", f"{off(sample, 'seconds'):+.0%}"])
    columns = ["row", "trained", "estimated MB", "measured MB", "off by", f"within {WITHIN:.0%}", "time off by"]
    return "\n".join(
        [
            report.heading(result, "Training memory: estimated and measured"),
            f"Peak resident memory of `graft estimate` (foretold from a few small steps) and of `graft train` ({STEPS} "
            f"steps of {BATCH} sequences of {LENGTH} tokens), bases in bf16. Times were taken beside other work.",
            "",
            report.table(columns, lines),
        ]
    )


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    harness.add_arguments(parser)
    parser.add_argument("--dtype", default="bfloat16")
    return harness.parsed(parser)


if __name__ == "__main__":
    main()
