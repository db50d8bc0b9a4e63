"""Runs systems side by side: each measurement is a process of its own, the systems take turns round after round.

Knows how to wait for a quiet machine, to repeat what was disturbed, and to pair figures of one round into ratios.
"""

import argparse
import fcntl
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.lib.common import CACHE as CACHE
from benchmarks.lib.common import Load

BENCHMARKS = Path(__file__).resolve().parents[1]
ROOT = BENCHMARKS.parent  # where `python -m benchmarks...` is run
Samples = dict[str, list[dict[str, Any]]]  # row -> one sample a round
DTYPES = ("bfloat16", "float32")


@dataclass(frozen=True)
class System:
    """One row of a table: a command whose last line of stdout is a JSON object."""

    name: str
    command: tuple[str, ...]
    environment: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Ratio:
    """A quotient of two rows, of the same round; `bar` must be reached, `goal` is hoped for."""

    title: str
    over: str
    under: str
    bar: float | None = None
    goal: float | None = None


@dataclass(frozen=True)
class Conditions:
    """How quiet the machine has to be. `lock`: a file whose flock keeps two measurements apart."""

    rounds: int = 3
    max_other_cores: float = 0.15
    attempts: int = 3
    patience_s: float = 120.0
    lock: Path | None = None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options every table has."""
    lock = os.environ.get("GRAFT_BENCH_LOCK")
    parser.add_argument("--base", help="folder of the base, safetensors (default: the demo's, fetched once)")
    parser.add_argument("--rounds", type=int, default=3, help="times that every row is measured, in turns")
    parser.add_argument("--append", action="store_true", help="add rounds to the results that are there")
    parser.add_argument("--only", action="append", metavar="ROW", help="a row to measure; repeatable (default: all)")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--max-other-cores", type=float, default=0.15, help="other load above which a run is repeated")
    parser.add_argument("--attempts", type=int, default=3, help="times that a disturbed run is tried")
    parser.add_argument("--patience", type=float, default=120.0, help="seconds to wait for a quiet machine")
    parser.add_argument("--lock", type=Path, default=Path(lock) if lock else None, help="flock this file per run")
    parser.add_argument("--out", type=Path, default=BENCHMARKS / "results", help="folder of the results")


def add_dtype(parser: argparse.ArgumentParser) -> None:
    """The option of tables that can be measured in both."""
    parser.add_argument("--dtype", choices=DTYPES, default=DTYPES[0], help="float32 where bf16 has no instructions")


def named(table: str, dtype: str) -> str:
    """The name of a table's results in that dtype: another table in another dtype."""
    return table if dtype == DTYPES[0] else f"{table}-{dtype}"


def parsed(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """The options, the standard base in place of none."""
    options = parser.parse_args()
    if options.base is None:
        from benchmarks.lib.standard_base import standard_base  # needs graft, which peers' environments lack

        options.base = str(standard_base())
    return options


def conditions(options: argparse.Namespace) -> Conditions:
    return Conditions(options.rounds, options.max_other_cores, options.attempts, options.patience, options.lock)


def chosen(systems: Sequence[System], only: Sequence[str] | None) -> list[System]:
    """Raises SystemExit for a name that is none of the rows'."""
    names = only or [system.name for system in systems]
    unknown = set(names) - {system.name for system in systems}
    if unknown:
        raise SystemExit(f"error: no row {sorted(unknown)}; rows: {[system.name for system in systems]}")
    return [system for system in systems if system.name in names]


def in_turns(
    systems: Sequence[System], given: Conditions, threads: int, samples: Samples | None = None
) -> Iterator[Samples]:
    """Measure every system once a round. Yields all samples so far, {row: [one a round]}, after each of them.

    `samples` of an earlier run are kept and added to.
    """
    samples = samples or {}
    for number in rounds_to_come(given, samples):
        yield from in_round(systems, given, threads, samples, number)


def in_round(
    systems: Iterable[System], given: Conditions, threads: int, samples: Samples, number: int
) -> Iterator[Samples]:
    """One round. `systems` may depend on what was measured before them: each is asked for when it is its turn."""
    for system in systems:
        sample = undisturbed(system, given, threads) | {"round": number}
        samples.setdefault(system.name, []).append(sample)
        say(f"round {number}  {system.name:34} {_summary(sample)}")
        yield samples


def rounds_to_come(given: Conditions, samples: Samples) -> range:
    """Their numbers, after those that were measured."""
    before = max((sample["round"] for taken in samples.values() for sample in taken), default=0)
    return range(before + 1, before + given.rounds + 1)


def earlier(options: argparse.Namespace, name: str) -> Samples:
    """The samples of the result file, where `--append` asks to add to them."""
    path = options.out / f"{name}.json"
    return json.loads(path.read_text())["samples"] if options.append and path.exists() else {}


def undisturbed(system: System, given: Conditions, threads: int) -> dict[str, Any]:
    """A sample taken while little else ran; of several disturbed ones, the least disturbed."""
    tries: list[dict[str, Any]] = []
    while len(tries) < given.attempts:
        wait_until_quiet(given.max_other_cores, given.patience_s)
        with held(given.lock):
            tries.append(run(system, threads))
        if tries[-1].get("error") or tries[-1].get("other_cores", 0.0) <= given.max_other_cores:
            return tries[-1]
        say(f"disturbed by {tries[-1]['other_cores']} cores of other load: {system.name}")
    return min(tries, key=lambda sample: sample["other_cores"])


def run(system: System, threads: int) -> dict[str, Any]:
    """One process, one sample. A failing system yields {"error": its last words}."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "false"}
    started = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    done = subprocess.run(
        system.command, env=environment | system.environment, cwd=ROOT, capture_output=True, text=True
    )
    sample = _last_object(done.stdout) if done.returncode == 0 else None
    if sample is None:
        say(f"FAILED ({done.returncode}) {system.command}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
        sample = {"error": (done.stderr.strip() or "no JSON on stdout").splitlines()[-1][:300]}
    return sample | {"started": started, "commit": commit()}


def wait_until_quiet(max_other_cores: float, patience_s: float) -> None:
    """Return as soon as everything else uses at most that many cores over two seconds, or patience is at its end."""
    deadline = time.monotonic() + patience_s
    while time.monotonic() < deadline:
        load = Load()
        time.sleep(2.0)
        if load.cores()["other_cores"] <= max_other_cores:
            return


@contextmanager
def held(lock: Path | None) -> Iterator[None]:
    """Hold an exclusive flock on a file, if one is given."""
    if lock is None:
        yield
        return
    with lock.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def median_of(samples: Sequence[dict[str, Any]], key: str) -> float | None:
    """Median over rounds of a figure; dots go down: "itl_ms.p99". None where no sample has it."""
    values = [value for value in (dig(sample, key) for sample in samples) if value is not None]
    return statistics.median(values) if values else None


def paired(samples: Samples, ratio: Ratio, key: str = "tokens_per_s") -> list[float]:
    """The ratio in every round that has both."""
    figures = [(dig(a, key), dig(b, key)) for a, b in paired_samples(samples, ratio.over, ratio.under)]
    return [over / under for over, under in figures if over and under]


def paired_samples(samples: Samples, one: str, other: str) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """The samples of two rows in every round that has both."""
    ours, theirs = ({sample["round"]: sample for sample in samples.get(row, [])} for row in (one, other))
    return [(ours[number], theirs[number]) for number in ours if number in theirs]


def dig(sample: dict[str, Any], key: str) -> Any:
    found: Any = sample
    for part in key.split("."):
        found = found.get(part) if isinstance(found, dict) else None
    return found


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def commit() -> str:
    """The commit, with "+changes" where product code differs from it."""
    product = ("hub", "server", "trainer", "benchmarks/**/*.py")
    head = _git("rev-parse", "--short=12", "HEAD")
    return head + ("+changes" if _git("status", "--porcelain", "--untracked-files=no", "--", *product) else "")


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True)
    return done.stdout.strip()


def _last_object(text: str) -> dict[str, Any] | None:
    """The JSON object on stdout: the whole of it, or the last line that is one."""
    for candidate in (text, *reversed(text.splitlines())):
        try:
            found = json.loads(candidate)
        except json.JSONDecodeError:
            continue
        if isinstance(found, dict):
            return found
    return None


def _summary(sample: dict[str, Any]) -> str:
    if "error" in sample:
        return f"FAILED: {sample['error']}"
    keys = ("tokens_per_s", "other_cores")
    return "  ".join(f"{key}={sample[key]}" for key in keys if key in sample)
