"""The kills' table: `kill -9` of a front end, of the engine's process, of both, 200 times under load.

    python -m benchmarks.tables.kills               ten minutes

Runs the test that looks for what a kill may leave (tests/server/commands/test_kills.py) and writes what it counted to
results/kills.json and results/kills.md.
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

TEST = "tests/server/commands/test_kills.py"
BARS = {
    "hung": "clients that waited 20 s for a byte",
    "wrong": "answers with other words than undisturbed",
    "unused": "answers received whole that are not in the usage file",
}  # each has to be 0


def main() -> None:
    options = arguments()
    counted = run(options.kills)
    result = report.envelope("kills", options, **counted)
    report.write(options.out, result, markdown(result))
    print((options.out / "kills.md").read_text())
    if short := [what for name, what in BARS.items() if counted[name]]:
        raise SystemExit(f"error: not reached: {'; '.join(short)}")


def run(kills: int) -> dict[str, Any]:
    """What the test has counted. It ends, uncounted, where a kill leaves something held, or a start answers otherwise."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "kills.json"
        settings = os.environ | {"GRAFT_KILLS": str(kills), "GRAFT_KILLS_FILE": str(file)}
        command = [sys.executable, "-m", "pytest", "-q", "-m", "slow", TEST]
        subprocess.run(command, env=settings)
        if not file.exists():
            raise SystemExit("error: the test ended before it had counted: see above")
        counted: dict[str, Any] = json.loads(file.read_text())
    return counted


def markdown(result: dict[str, Any]) -> str:
    rows = [[what, f"**{result[name]}**", 0] for name, what in BARS.items()]
    shown = ", ".join(f"{count:,} {outcome}" for outcome, count in sorted(result["outcomes"].items()))
    rows += [
        ["times that nothing was held any more, and all was answered as at first", f"{result['checks']}, always", ""],
        ["kills; seconds", f"{result['kills']}; {result['seconds']:.0f}", ""],
        ["how requests ended", shown, ""],
        ["longest until all were told, of a kill of the engine's process, s", f"{result['told_s']:.2f}", ""],
    ]
    return "\n".join(
        [
            report.heading(result, "kill -9 under load"),
            "Twelve clients on seven models, greedy and sampled, streams and whole answers, of `graft serve --http-processes 2` on a tiny",
            "base. Of eight kills six are of a front end, one of the engine's process, one of both.",
            "",
            report.table(["what", "measured", "bar"], rows),
        ]
    )


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--out", type=Path, default=harness.BENCHMARKS / "results", help="folder of the results")
    return parser.parse_args()


if __name__ == "__main__":
    main()
