"""The literature's table on three real tasks: `graft compare` of every method, full fine-tuning and last layers too.

    python -m benchmarks.tables.compare                 all three tasks (half an hour on two cores)
    python -m benchmarks.tables.compare --only headline

Writes results/compare-TASK.json, .md and .svg, and the tables into docs/performance.md.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.lib import harness, report
from benchmarks.lib.standard_base import standard_tasks

METHODS = "lora,series,parallel,prompt,prefix,ptuning,bitfit,ia3,last-layers,full"
STEPS = {"news-topic": 45, "headline": 45, "sentiment": 60}
EVALUATED = {"headline": 40}  # its answers are generated, which takes longer than scoring labels


def main() -> None:
    options = arguments()
    tasks = options.only or list(STEPS)
    data = standard_tasks()
    for task in tasks:
        with tempfile.TemporaryDirectory() as folder, harness.held(options.lock):
            found = compared(options.base, task, data, Path(folder))
            write(options, f"compare-{task}", found, Path(folder))


def compared(base: str, task: str, data: Path, out: Path) -> dict[str, Any]:
    """What `graft compare` writes as JSON."""
    files = ["--data", str(data / f"{task}.train.jsonl"), "--eval-data", str(data / f"{task}.test.jsonl")]
    command = [str(Path(sys.executable).parent / "graft"), "compare", "--base", base, "--task", task, *files]
    command += ["--methods", METHODS, "--steps", str(STEPS[task]), "--out", str(out)]
    command += ["--eval-limit", str(EVALUATED[task])] if task in EVALUATED else []
    subprocess.run(command, check=True, stdout=sys.stderr)
    return json.loads((out / "compare.json").read_text())


def write(options: argparse.Namespace, name: str, found: dict[str, Any], folder: Path) -> None:
    for line in found["lines"]:
        line["folder"] = None  # gone with this run
    title, _, table = (folder / "compare.md").read_text().partition("\n")
    result = report.envelope(name, options, figures=found)
    report.write(options.out, result, report.heading(result, title.removeprefix("# ")) + table)
    shown = table.strip()
    report.into_docs(options.out, name, f"![{name}](../benchmarks/results/{name}.svg)\n\n{shown}\n")
    shutil.copy(folder / "compare.svg", options.out / f"{name}.svg")
    print(table)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    lock = os.environ.get("GRAFT_BENCH_LOCK")
    parser.add_argument("--base", help="folder of the base, safetensors (default: the demo's, fetched once)")
    parser.add_argument("--only", action="append", choices=list(STEPS), help="a task; repeatable (default: all)")
    parser.add_argument("--lock", type=Path, default=Path(lock) if lock else None, help="flock this file per task")
    parser.add_argument("--out", type=Path, default=report.RESULTS, help="folder of the results")
    parser.set_defaults(threads=os.cpu_count())
    return harness.parsed(parser)


if __name__ == "__main__":
    main()
