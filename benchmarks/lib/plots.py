"""Pictures of results, made from their JSON: SVG, no styling beyond what helps to read them."""

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib import pyplot, rcParams

from benchmarks.lib.harness import median_of

rcParams["svg.hashsalt"] = "graft"  # the same figures give the same file
_COLOURS = {"graft": "#1b7f5c", "transformers": "#b08d2f", "peft": "#b5502e", "vllm": "#4660a8", "llama": "#7a4fa0"}
_METADATA = {"Date": None}


def bars(
    result: Mapping[str, Any],
    path: Path,
    key: str = "tokens_per_s",
    label: str = "output tokens / s",
    unit: float = 1.0,
) -> None:
    """One horizontal bar a row: its median, in `unit`s."""
    values = {row: median_of(samples, key) for row, samples in result["samples"].items()}
    rows = {row: value / unit for row, value in values.items() if value is not None}
    figure, axes = pyplot.subplots(figsize=(8, 0.34 * len(rows) + 1.0))
    drawn = axes.barh(list(rows), list(rows.values()), color=[_colour(row) for row in rows])
    axes.bar_label(drawn, fmt="%.0f", padding=3)
    axes.invert_yaxis()
    axes.set_xlabel(label)
    _finish(figure, axes, path)


def spreads(rows: Mapping[str, tuple[float, float]], path: Path, label: str) -> None:
    """Two horizontal bars a row, the smaller before the larger, on a logarithmic scale."""
    figure, axes = pyplot.subplots(figsize=(8, 0.34 * len(rows) + 1.0))
    for column, colour, height in ((1, "#9cc9b0", 0.8), (0, _COLOURS["graft"], 0.5)):
        drawn = axes.barh(list(rows), [pair[column] for pair in rows.values()], color=colour, height=height)
        if column:
            axes.bar_label(drawn, fmt="%.0f", padding=3)
    axes.set_xscale("log")
    axes.invert_yaxis()
    axes.set_xlabel(label)
    _finish(figure, axes, path)


def spans(rows: Mapping[str, Sequence[float]], path: Path, label: str) -> None:
    """One line a row: a point for each value, a stroke from the least to the greatest, a tick at the mean."""
    figure, axes = pyplot.subplots(figsize=(8, 0.34 * len(rows) + 1.0))
    for place, (row, values) in enumerate(rows.items()):
        colour = _colour(row)
        axes.plot([min(values), max(values)], [place, place], color=colour, linewidth=2)
        axes.plot(values, [place] * len(values), "o", color=colour, markersize=4, alpha=0.6)
        axes.plot(statistics.fmean(values), place, "|", color=colour, markersize=14, markeredgewidth=2)
    axes.set_yticks(range(len(rows)), list(rows))
    axes.invert_yaxis()
    axes.grid(axis="x", alpha=0.3)
    axes.set_xlabel(label)
    _finish(figure, axes, path)


def curves(
    lines: Mapping[str, Sequence[tuple[float, float]]], path: Path, *, x: str, y: str, logarithmic: bool = True
) -> None:
    """One line a name, [(x, y), ...]."""
    figure, axes = pyplot.subplots(figsize=(7, 4))
    for name, points in lines.items():
        axes.plot(*zip(*points, strict=True), marker="o", label=name, color=_COLOURS.get(name.split()[0]))
    if logarithmic:
        axes.set_xscale("log", base=2)
        axes.set_xticks(sorted({point[0] for points in lines.values() for point in points}))
        axes.xaxis.set_major_formatter("{x:.0f}")
    axes.set_ylim(bottom=0)
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.legend(frameon=False)
    _finish(figure, axes, path)


def _colour(row: str) -> str:
    return _COLOURS.get(row.split()[0], "#555555")


def _finish(figure: Any, axes: Any, path: Path) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(path, metadata=_METADATA)
    pyplot.close(figure)
