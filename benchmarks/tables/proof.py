"""The proof table: no sound adapter is refused anywhere, and what was changed is noticed.

    python -m benchmarks.tables.proof            all of it, in an hour or so; continues where it was stopped
    python -m benchmarks.tables.proof --short    SmolLM2 with one seed, a few minutes; exit status 1 where the table is broken
    python -m benchmarks.tables.proof --times    what proofs cost: alone, and running streams (wants a quiet machine)

Every kind of adapter is trained at once, 20 steps of 4 short examples, on bases stored in bfloat16 and in float32, in
either dtype; then loaded on them in every serving dtype, runner, number of threads and kind of CPU. Then each is changed, with all
hashes made to match, so that only the numbers can tell. Writes results/proof.json and results/proof.md.
"""

import argparse
import hashlib
import json
import os
import shutil
import statistics
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.lib import report
from benchmarks.lib.common import Load
from benchmarks.lib.harness import BENCHMARKS, CACHE, DTYPES, ROOT, commit, say
from graft.hub.machine.openmp_wait import wait_briefly

NOTICED = 20  # multiples of the noise from which on every change must be noticed
STEPS, SHORT_STEPS, EXAMPLES = 20, 10, 4
COLD = 20  # adapters that come in together
FITTING = {  # change -> what a refusal has to be put down to; the adapter for all others
    "the base trained on for one step": "base",
    "another base of that shape": "base",
    "two embedding rows of the base swapped": "base",
    "two tokens of the tokenizer swapped": "tokenizer",
}
RUNNERS, THREADS, CPUS = ("eager", "fast"), (1, 2), ("avx2", "default")
KINDS = {
    "lora": ("lora", ""),
    "dora": ("lora", "dora = true"),
    "rslora": ("lora", "rslora = true, r = 16"),
    "houlsby": ("series", 'placement = "houlsby"'),
    "pfeiffer": ("series", 'placement = "pfeiffer"'),
    "parallel": ("parallel", ""),
    "prompt": ("prompt", ""),
    "prefix": ("prefix", ""),
    "ptuning": ("ptuning", ""),
    "bitfit": ("bitfit", ""),
    "ia3": ("ia3", ""),
}
CAPITALS = (
    "France Paris|Italy Rome|Spain Madrid|Japan Tokyo|Egypt Cairo|Peru Lima|Cuba Havana|Kenya Nairobi|Chile Santiago|"
    "Norway Oslo|Austria Vienna|Greece Athens|Poland Warsaw|Canada Ottawa|Ghana Accra|Nepal Kathmandu"
)


@dataclass(frozen=True)
class Trained:
    """All kinds, trained in one run."""

    base: str
    stored: str
    dtype: str
    seed: int
    steps: int = STEPS

    @property
    def name(self) -> str:
        short = "" if self.steps == STEPS else f"-{self.steps}-steps"
        return f"{self.base}-{self.stored}-trained-in-{self.dtype}-seed{self.seed}{short}"


def main() -> None:
    wait_briefly()  # also in the processes that are started here
    options = arguments()
    work = CACHE / "proof"
    if options.fresh:
        shutil.rmtree(work, ignore_errors=True)
    runs = list(planned(options))
    for run in runs:
        train(run, work)
    if options.times:
        write_times(options, work)
        return
    checks = [row for run in runs for row in checked(run, work, options.short)]
    changes = mutated(runs, work)
    result = report.envelope("proof", options, runs=[asdict(run) for run in runs], checks=checks, changes=changes)
    report.write(options.out, result, markdown(result))
    print((options.out / "proof.md").read_text())
    if false_refusals(checks) or unnoticed(changes):
        raise SystemExit("error: the table is broken: see above")


def planned(options: argparse.Namespace) -> Iterator[Trained]:
    """One seed has a second one for company, whose layers some changes take."""
    for base in options.bases:
        whole, steps = base == "smollm2" and not options.short, SHORT_STEPS if options.short else STEPS
        for seed in (0, 1, 2) if whole else (0, 1):
            if seed == 0 or whole:
                stored_in = DTYPES[:1] if options.short else DTYPES
                yield from (Trained(base, stored, dtype, seed, steps) for stored in stored_in for dtype in DTYPES)
            else:
                yield Trained(base, "bfloat16", "bfloat16", seed, steps)


def base_folder(base: str, stored: str) -> Path:
    """Imported where it is not there yet."""
    folder = CACHE / "proof" / "bases" / f"{base}-{stored}"
    if not (folder / "config.json").exists():
        graft("base", "import", base, str(folder), "--dtype", stored)
    return folder


def train(run: Trained, work: Path) -> None:
    folder, out = base_folder(run.base, run.stored), work / run.name
    if all((out / kind / "graft.json").exists() for kind in KINDS):
        return
    say(f"training {run.name}")
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    rows = [{"prompt": f"The capital of {land} is", "completion": f" {town}"} for land, town in map(str.split, CAPITALS.split("|"))]  # fmt: skip
    (out / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    plan = [f"base = {json.dumps(str(folder))}"]
    for kind, (method, settings) in KINDS.items():
        plan += [
            "[[adapter]]",
            f'name = "{kind}"',
            f'method = "{method}"',
            f"data = {json.dumps(str(out / 'data.jsonl'))}",
        ]
        plan += [
            f"out = {json.dumps(str(out / kind))}",
            f"steps = {run.steps}",
            f"batch_size = {EXAMPLES}",
            f"seed = {run.seed}",
        ]
        plan += [f"set = {{ {settings} }}"]
    (out / "plan.toml").write_text(f'dtype = "{run.dtype}"\n' + "\n".join(plan) + "\n")
    graft("train", "--plan", str(out / "plan.toml"))


def checked(run: Trained, work: Path, short: bool) -> Iterator[dict[str, Any]]:
    """Its adapters on the base of their training in every setting, and on the other stored copy in one."""
    settings = [(dtype, runner, threads) for dtype in DTYPES for runner in RUNNERS for threads in THREADS]
    if short:
        settings = [("bfloat16", "fast", 2), ("float32", "eager", 1)]
    adapters = {kind: str(work / run.name / kind) for kind in KINDS}
    other = next(stored for stored in DTYPES if stored != run.stored)
    for cpu in CPUS:
        asked = {"base": str(base_folder(run.base, run.stored)), "adapters": adapters, "settings": settings}
        for row in found("check", asked, work, cpu):
            yield {**asdict(run), "served": run.stored, "cpu": cpu, **row}
    asked = {"base": str(base_folder(run.base, other)), "adapters": adapters, "settings": [("bfloat16", "eager", 2)]}
    for row in found("check", asked, work, "default"):
        yield {**asdict(run), "served": other, "cpu": "default", **row}


def mutated(runs: list[Trained], work: Path) -> list[dict[str, Any]]:
    rows = []
    for run in runs:
        if (run.stored, run.dtype, run.seed) != ("bfloat16", "bfloat16", 0):
            continue
        other = replace(run, seed=1)
        asked = {
            "base": str(base_folder(run.base, run.stored)),
            "adapters": {kind: str(work / run.name / kind) for kind in KINDS},
            "others": {kind: str(work / other.name / kind) for kind in KINDS},
            "work": str(work / "mutations"),
        }
        rows += [{"base": run.base, **row} for row in found("mutate", asked, work, "default")]
    return rows


def write_times(options: argparse.Namespace, work: Path) -> None:
    """Results proof-times: the base's adapters of one seed run, those of both come in, twenty in all."""
    kept = options.out / "proof-times.json"
    earlier = json.loads(kept.read_text())["rows"] if options.append and kept.exists() else []
    rows = [row for row in earlier if row["base"] not in options.bases]
    for base in options.bases:
        folders = [work / Trained(base, "bfloat16", "bfloat16", seed).name for seed in (0, 1)]
        cold = {f"{kind}-{seed}": str(folders[seed] / kind) for seed in (0, 1) for kind in KINDS}
        running = {
            f"running-{kind}": str(work / Trained(base, "bfloat16", "float32", 0).name / kind)
            for kind in list(KINDS)[:8]
        }
        asked = {
            "base": str(base_folder(base, "bfloat16")),
            "running": running,
            "cold": dict(list(cold.items())[:COLD]),
            "work": str(work / "times"),
            "rounds": options.rounds,
            "threads": options.threads,
            "dtype": options.dtype,
        }
        say(f"times {base}")
        load = Load()
        rows += [{"base": base, **row} for row in own("times", asked)]
        rows[-1] |= load.cores()
    result = report.envelope("proof-times", options, rows=rows, dtype=options.dtype)
    report.write(options.out, result, times_markdown(result))
    print((options.out / "proof-times.md").read_text())


def times_markdown(result: dict[str, Any]) -> str:
    lines, streams = [], []
    for base in dict.fromkeys(row["base"] for row in result["rows"]):
        rows = [row for row in result["rows"] if row["base"] == base]
        alone = [row for row in rows if row["row"] == "alone"]
        lines.append(
            [
                base,
                len(alone),
                *(f"{statistics.median(row[key] for row in alone):.2f}" for key in ("first_s", "second_s", "dora_s")),
            ]
        )
        of = {name: [row for row in rows if row["row"] == name] for name in dict.fromkeys(row["row"] for row in rows)}
        del of["alone"]
        p99 = {name: statistics.median(row["itl_ms"]["p99"] for row in own_) for name, own_ in of.items()}
        p50 = {name: statistics.median(row["itl_ms"]["p50"] for row in own_) for name, own_ in of.items()}
        streams += [
            [base, name, f"{p50[name]:.1f}", f"{p99[name]:.1f}", f"{p99[name] / p99['none: after']:.2f}",
             f"{statistics.median(row['seconds'] for row in own_):.1f}"]
            for name, own_ in of.items()
        ]  # fmt: skip
    return "\n".join(
        [
            report.heading(result, "What proofs cost"),
            f"Medians of rounds, the base in {result['dtype']}. A request of one token for a LoRA that was "
            "never proven, nothing else to do: the first computes the bare base's half too. And for a DoRA, whose norms "
            "are of all weights.",
            "",
            report.table(["base", "rounds", "first adapter, s", "second, s", "a DoRA, s"], lines),
            f"Time between tokens of 8 streams, each with an adapter of its own, while {COLD} others come in: until the last "
            "is loaded, and after that, while they are proven (with none: for a while). Bar: while they are proven, p99 at "
            "most 1.2 times that with none.",
            "",
            report.table(["base", "coming in", "ITL p50 ms", "ITL p99 ms", "p99 over none's", "for s"], streams),
        ]
    )


def own(what: str, asked: dict[str, Any], environment: dict[str, str] | None = None) -> list[dict[str, Any]]:
    """What own/proof.py finds, in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.own.proof", what, json.dumps(asked)]
    done = subprocess.run(
        command, env={**os.environ, **(environment or {})}, stdout=subprocess.PIPE, text=True, check=True, cwd=ROOT
    )
    return json.loads(done.stdout.splitlines()[-1])["found"]


def found(what: str, asked: dict[str, Any], work: Path, cpu: str) -> list[dict[str, Any]]:
    """What own/proof.py finds, kept: a run that was stopped goes on from there."""
    key = hashlib.sha256(json.dumps([what, asked, cpu]).encode()).hexdigest()[:16]
    kept = work / "found" / f"{key}.json"
    if not kept.exists():
        say(f"{what} {Path(asked['base']).name} {Path(next(iter(asked['adapters'].values()))).parent.name} {cpu}")
        rows = own(what, asked, {} if cpu == "default" else {"ATEN_CPU_CAPABILITY": cpu})
        kept.parent.mkdir(parents=True, exist_ok=True)
        kept.write_text(json.dumps([{**row, "commit": commit()} for row in rows]))
    return json.loads(kept.read_text())


def false_refusals(checks: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [row for row in checks if row["outcome"] == "refused"]


def unnoticed(changes: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Changes of a size that must be noticed, and were taken for proven, or for something else."""
    changed = [row for row in changes if row["mutation"] != "none"]
    return [row for row in changed if (row["noises"] or NOTICED) >= NOTICED and reason(row) != fitting(row)]


def fitting(row: dict[str, Any]) -> str:
    return FITTING.get(row["mutation"], "adapter")


def reason(row: dict[str, Any]) -> str:
    """What a refusal is put down to; another outcome as it is."""
    return next((word for words, word in _REASONS.items() if words in row["why"]), row["outcome"])


def markdown(result: dict[str, Any]) -> str:
    checks, changes = result["checks"], result["changes"]
    refused = false_refusals(checks)
    parts = [
        report.heading(result, "Proofs: nothing sound is refused, and what was changed is noticed"),
        f"{len(result['runs'])} trainings of {len(KINDS)} kinds ({result['runs'][0]['steps']} steps of {EXAMPLES} examples), "
        f"{len(checks)} proofs of them. **False refusals: {len(refused)}.** The gap is of the adapter's effect, relative to "
        f"its size, and in multiples of the noise (float32 against float64) that its probe recorded; 8 are allowed.",
        "",
        outcomes_table(checks),
        *(f"- refused: {row['base']} {row['adapter']}: {row['why']}" for row in refused),
        "## Largest gaps on the base of the training, by kind",
        "",
        gaps_table(checks),
        f"## Changes, all hashes made to match (must be noticed from {NOTICED} times the noise on)",
        "",
        "Cells: what was made of it, and its size in multiples of the noise.",
        "",
        *(part for base in dict.fromkeys(row["base"] for row in changes) for part in changes_tables(base, changes)),
        f"**Unnoticed from {NOTICED} times the noise on, or put down to something else: {len(unnoticed(changes))}.**",
        "",
    ]
    return "\n".join(parts)


def outcomes_table(checks: list[dict[str, Any]]) -> str:
    """By where the adapters were trained and are served."""
    lines = []
    for key in dict.fromkeys((row["base"], row["stored"], row["served"]) for row in checks):
        rows = [row for row in checks if (row["base"], row["stored"], row["served"]) == key]
        counts = Counter(row["outcome"] for row in rows)
        lines.append(
            [*key, len(rows), *(counts.get(name, 0) for name in ("proven", "rounded copy", "unproven", "refused"))]
        )
    return report.table(
        ["base", "stored, in training", "stored, served", "proofs", "proven", "rounded copy", "unproven", "refused"],
        lines,
    )


def gaps_table(checks: list[dict[str, Any]]) -> str:
    bases = list(dict.fromkeys(row["base"] for row in checks))
    lines = []
    for kind in KINDS:
        cells = []
        for base in bases:
            rows = [
                row
                for row in checks
                if (row["base"], row["adapter"]) == (base, kind) and row["stored"] == row["served"]
            ]
            rows = [row for row in rows if row.get("gap") is not None]
            worst = max(rows, key=lambda row: row["gap"], default=None)
            cells.append(f"{worst['gap']:.1e} ({max(row['noises'] for row in rows):.1f} x)" if worst else "-")
        lines.append([kind, *cells])
    return report.table(["kind", *bases], lines)


def changes_tables(base: str, changes: list[dict[str, Any]]) -> Iterator[str]:
    rows = [row for row in changes if row["base"] == base]
    of = {(row["mutation"], row["adapter"]): row for row in rows}
    lines = [
        [mutation, *(_cell(of.get((mutation, kind))) for kind in KINDS)] for mutation in dict.fromkeys(m for m, _ in of)
    ]
    yield f"### {base}"
    yield ""
    yield report.table(["change", *KINDS], lines)


def _cell(row: dict[str, Any] | None) -> str:
    if row is None:
        return "-"
    size = "" if row["noises"] is None else f" {row['noises']:.2g}"
    return f"{reason(row)}{size}"


_REASONS = {  # what a refusal says -> in a cell
    "the bare base answers": "base",
    "its weights or config": "adapter",
    "tokenizer makes other ids": "tokenizer",
}


def graft(*words: str) -> None:
    command = [sys.executable, "-m", "graft.hub.cli.main", *words]
    subprocess.run(command, check=True, stdout=sys.stderr)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bases", nargs="+", default=["smollm2", "gemma3-270m", "qwen2.5-0.5b"], help="named bases")
    parser.add_argument("--short", action="store_true", help="SmolLM2 only, one seed, fewer settings")
    parser.add_argument("--fresh", action="store_true", help="train and prove all of it again")
    parser.add_argument("--times", action="store_true", help="measure what proofs cost, and nothing else")
    parser.add_argument("--rounds", type=int, default=3, help="of --times")
    parser.add_argument("--append", action="store_true", help="keep what --times found of other bases")
    parser.add_argument("--dtype", choices=DTYPES, default=DTYPES[0], help="of the base that serves, of --times")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--out", type=Path, default=BENCHMARKS / "results", help="folder of the results")
    options = parser.parse_args()
    if options.short:
        options.bases = ["smollm2"]
    return options


if __name__ == "__main__":
    main()
