"""Writes results: JSON with everything needed to judge the figures, and Markdown made from that JSON alone."""

import importlib.metadata
import json
import platform
import shlex
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.lib.harness import BENCHMARKS, ROOT, Ratio, Samples, commit, median_of, paired

RESULTS = BENCHMARKS / "results"
DOCS = ROOT / "docs" / "performance.md"
PACKAGES = ("torch", "transformers", "peft", "numpy", "safetensors")
_FLAGS = ("avx2", "avx512f", "avx512_bf16", "avx512_vnni", "amx_bf16", "sve", "bf16")
_MB = 1e6


def envelope(name: str, options: Any, **content: Any) -> dict[str, Any]:
    """A result with its circumstances: when, where, which versions and commit, which command."""
    return {
        "name": name,
        "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "command": shlex.join(["python", "-m", f"benchmarks.tables.{Path(sys.argv[0]).stem}", *sys.argv[1:]]),
        "machine": machine(options.threads),
        "versions": versions(),
        "commit": commit(),
        **content,
    }


def machine(threads: int) -> dict[str, Any]:
    info = Path("/proc/cpuinfo").read_text()
    fields = dict(line.split(":", 1) for line in info.split("\n\n")[0].splitlines() if ":" in line)
    cpu = {key.strip(): value.strip() for key, value in fields.items()}
    flags = cpu.get("flags", cpu.get("Features", "")).split()
    l3 = Path("/sys/devices/system/cpu/cpu0/cache/index3/size")
    memory = Path("/proc/meminfo").read_text().split()[1]
    return {
        "cpu": cpu.get("model name", platform.processor()),
        "family_model": f"{cpu.get('cpu family', '?')}/{cpu.get('model', '?')}",
        "cores": info.count("processor\t"),
        "threads": threads,
        "flags": [flag for flag in _FLAGS if flag in flags],
        "l3": l3.read_text().strip() if l3.exists() else "?",
        "memory_gb": round(int(memory) / 1e6, 1),
        "system": platform.platform(),
    }


def versions() -> dict[str, str]:
    found = {distribution.metadata["Name"]: distribution.version for distribution in importlib.metadata.distributions()}
    return {"python": platform.python_version()} | {name: found[name] for name in PACKAGES if name in found}


def write(out: Path, result: dict[str, Any], markdown: str) -> None:
    """NAME.json and NAME.md."""
    out.mkdir(parents=True, exist_ok=True)
    (out / f"{result['name']}.json").write_text(json.dumps(result, indent=1) + "\n")
    (out / f"{result['name']}.md").write_text(markdown)


def into_docs(out: Path, name: str, text: str) -> None:
    """Put a result's summary between its markers in docs/performance.md; only what is kept in `results` goes there."""
    if out.resolve() != RESULTS or not DOCS.exists():
        return
    script = name.partition("-")[0]
    begin, end = f"<!-- {name}: written by benchmarks/tables/{script}.py -->\n", f"<!-- end of {name} -->\n"
    before, found, rest = DOCS.read_text().partition(begin)
    if found:
        DOCS.write_text(before + begin + "\n" + text + "\n" + end + rest.partition(end)[2])


def heading(result: dict[str, Any], title: str) -> str:
    where, packages = result["machine"], result["versions"]
    return "\n".join(
        [
            f"# {title}",
            "",
            f"Measured {result['at']} at commit `{result['commit']}` with `{result['command']}`.",
            "",
            f"Machine: {where['cores']} cores of {where['cpu']} (family/model {where['family_model']}; "
            f"{' '.join(where['flags'])}; L3 {where['l3']}), {where['memory_gb']} GB, {where['threads']} threads, "
            f"{where['system']}. Versions: {', '.join(f'{name} {version}' for name, version in packages.items())}.",
            "",
        ]
    )


def serving_table(samples: Samples) -> str:
    """One line a row: throughput with its spread over rounds, latencies, memory, what else was running."""
    header = ["row", "setting", "tokens/s", "min to max", "TTFT p50 ms", "ITL p50 / p99 ms", "peak MB", "other cores"]
    lines = []
    for name, taken in samples.items():
        good = [sample for sample in taken if "tokens_per_s" in sample]
        if not good:
            lines.append([name, taken[-1].get("error", "no figure") if taken else "not measured", *[""] * 6])
            continue
        speeds = [sample["tokens_per_s"] for sample in good]
        lines.append(
            [
                name,
                good[-1].get("setting") or good[-1].get("runner", ""),
                f"**{figure(median_of(good, 'tokens_per_s'))}**",
                f"{figure(min(speeds))} to {figure(max(speeds))} (n={len(good)})",
                figure(median_of(good, "ttft_ms.p50")),
                f"{figure(median_of(good, 'itl_ms.p50'))} / {figure(median_of(good, 'itl_ms.p99'))}",
                figure(_scaled(median_of(good, "peak_bytes"), _MB)),
                f"{max(sample.get('other_cores', 0.0) for sample in good):.2f}",
            ]
        )
    return table(header, lines)


def ratio_table(samples: Samples, ratios: Sequence[Ratio], key: str = "tokens_per_s") -> str:
    """Ratios of rows of the same round: median and spread, against bar and goal."""
    lines = []
    for ratio in ratios:
        values = paired(samples, ratio, key)
        if values:
            middle, *against = judged(samples, ratio, key)
            spread = f"{min(values):.2f} to {max(values):.2f} (n={len(values)})"
            lines.append([ratio.title, middle, spread, *against])
    return table(["ratio", "measured", "min to max", "bar", "goal", "reached"], lines)


def missed(samples: Samples, ratios: Sequence[Ratio], key: str = "tokens_per_s") -> list[str]:
    """The ratios that were measured and don't reach their bar."""
    medians = {ratio: statistics.median(values) for ratio in ratios if (values := paired(samples, ratio, key))}
    return [ratio.title for ratio, middle in medians.items() if ratio.bar is not None and middle < ratio.bar]


def judged(samples: Samples, ratio: Ratio, key: str = "tokens_per_s") -> list[str]:
    """A ratio's median over rounds, bar, goal, and which of them is reached."""
    values = paired(samples, ratio, key)
    if not values:
        return ["-"] * 4
    middle = statistics.median(values)
    return [f"**{middle:.2f}**", *_targets(ratio, middle)]


def _targets(ratio: Ratio, value: float) -> list[str]:
    """Bar, goal, and which of them is reached."""
    if ratio.bar is None:
        return ["-", "-", "-"]
    steps = (("goal", ratio.goal), ("bar", ratio.bar))
    reached = next((step for step, least in steps if least is not None and value >= least), "no")
    return [f"{ratio.bar:.3g}", "-" if ratio.goal is None else f"{ratio.goal:.3g}", reached]


def table(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    rows = [header, ["---"] * len(header), *lines]
    return "\n".join("| " + " | ".join(str(cell) for cell in row) + " |" for row in rows) + "\n"


def figure(value: float | None) -> str:
    """Three digits or so, as people read them."""
    if value is None:
        return "-"
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _scaled(value: float | None, unit: float) -> float | None:
    return None if value is None else value / unit
