"""A comparison as JSON, as a table, and as a plot."""

import json
from dataclasses import asdict
from pathlib import Path

from graft.hub.machine.bytes_text import bytes_text
from graft.trainer.reports.comparison import Comparison


def as_json(comparison: Comparison) -> str:
    return json.dumps(asdict(comparison), indent=2)


def as_markdown(comparison: Comparison) -> str:
    """The table, best score first, those that failed last."""
    head = "| method | trained | of the base | artifact | peak memory | seconds | tok/s | score (95 % interval) | p |"
    lines = [
        f"# {comparison.task} on {comparison.base}",
        "",
        f"{comparison.examples} training examples, {comparison.steps} steps each, seed {comparison.seed}; {comparison.bare.metric} "
        f"on {comparison.bare.n} held-out examples; p against the bare base, paired. Trained are the parameters "
        f"in training, which for P-tuning and projected prefixes include an encoder that the artifact leaves behind."
        + (
            " The adapters were trained in one pass: their memory, seconds and tok/s are the pass's."
            * comparison.together
        ),
        "",
        head,
        "|---" + "|--:" * 8 + "|",
    ]
    for line in [*comparison.ranked, *comparison.failed]:
        score = line.score
        cells = [line.title, f"{line.parameters:,}", f"{line.share:.3%}", bytes_text(line.artifact_bytes)]
        cells += [bytes_text(line.peak_memory_bytes), f"{line.seconds:.1f}", f"{line.tokens_per_s:,.0f}"]
        if score:
            shown = f"{score.value:.3f} [{score.low:.3f}, {score.high:.3f}]"
        else:
            shown = f"failed: {line.failed}".replace("|", "\\|").replace("\n", " ")
        cells += [shown, "" if line.p is None else f"{line.p:.2g}"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def plot(comparison: Comparison, path: Path) -> None:
    """Score against trained parameters, as a picture; none where matplotlib is not installed."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    for line, score in [row for row in comparison.scored if row[0].parameters]:
        spread = [[score.value - score.low], [score.high - score.value]]
        axes.errorbar(line.parameters, score.value, yerr=spread, fmt="o", capsize=3, label=line.title)
    axes.axhline(comparison.bare.value, linestyle="--", linewidth=1, label="bare base")
    axes.set(xscale="log", xlabel="trained parameters", ylabel=comparison.bare.metric, title=comparison.task)
    figure.legend(loc="outside right center", frameon=False)
    figure.savefig(path)
