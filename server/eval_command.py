"""`graft eval`: a task's whole shelf through an engine in this process.

Torch and the base are imported when a command runs, so that `--help` is quick.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from graft.hub.catalog import MAX_PAGE, Query, on_base
from graft.hub.commands.shared import local_user, opened, placed, print_json, print_table
from graft.hub.errors import ForbiddenError, GraftError

if TYPE_CHECKING:
    from graft.hub.metrics import Metric
    from graft.server.evaluate import Evaluation

_EVAL_STEP_ROWS = 2048  # nobody waits for a next token: large steps are quickest
_EVAL_RUNNING = 256


@click.command("eval")
@click.option("--task", "slug", required=True, help="The task whose adapters are scored.")
@click.option("--base", "folder", required=True, help="The base: a folder, or a hub id.")
@click.option("--adapters", default="all", show_default=True, help="'all' of the task, or NS/NAME[@REV],...")
@click.option("--data", type=click.Path(path_type=Path), help="Other examples (JSONL) than the task's evaluation set.")
@click.option("--limit", type=click.IntRange(1), help="Only the first examples (kept apart on the leaderboard).")
@click.option("--device", help="cpu, cuda (default: cuda where there is one).")
@click.option("--dtype", help="float32, bfloat16, float16 (default: what the machine is fast at).")
@placed
def evaluate(
    slug: str,
    folder: str,
    adapters: str,
    data: Path | None,
    limit: int | None,
    device: str | None,
    dtype: str | None,
    registry_path: Path,
    hub_url: str | None,
    as_json: bool,
) -> None:
    """Score every stored adapter of a task, and the bare base, in one mixed run; print the leaderboard.

    Results go to the registry with digest, data hash and interval. Exits 1 where an adapter could not be served.
    """
    from graft.hub.base import load_base
    from graft.hub.examples import data_hash, parse_examples
    from graft.hub.metrics import get_metric
    from graft.server.engine import Engine
    from graft.server.evaluate import evaluate as run
    from graft.server.options import Options

    registry = opened(registry_path, hub_url)
    task = registry.task(slug)
    metric = get_metric(task.metric)
    raw = data.read_bytes() if data else registry.task_data(slug)
    examples = parse_examples(raw, str(data or f"the evaluation set of {slug}"))
    whole = len(examples)
    examples = examples[:limit]
    digest = hashlib.sha256(raw).hexdigest() if len(examples) == whole else data_hash(examples)
    base = load_base(folder, device=device, dtype=dtype)
    models = _of_task(registry, slug, base.spec) if adapters == "all" else adapters.split(",")
    options = Options(step_rows=_EVAL_STEP_ROWS, max_running=_EVAL_RUNNING)
    with Engine(base, shelf=registry, options=options) as engine, _progress(f"Scoring {len(models)} adapters") as seen:
        found = run(engine, models, examples, metric, progress=seen)
    scores = _scores(found, task.slug, digest, metric, base)
    if as_json:
        print_json([score | {"name": score["repo"]} for score in scores])
    else:
        _print_board(scores, task, found)
    failed = [*found.failed.items(), *_recorded(registry, scores)]
    if failed:
        raise GraftError("; ".join(f"{name}: {why}" for name, why in failed))


def _of_task(registry: Any, slug: str, spec: Any) -> list[str]:
    """Every adapter of the task on this base, pinned to its present revision. Those on other bases are named."""
    found = list(on_base(registry.search, spec, slug))
    names = {entry.name for entry in found}
    others = [entry for entry in registry.search(Query(task=slug, limit=MAX_PAGE)).entries if entry.name not in names]
    for entry in others:
        click.echo(f"left out: {entry.name}, for the base {entry.base or 'that it does not name'}", err=True)
    return [f"{entry.name}@{entry.revision_id}" for entry in found]


def _scores(found: Evaluation, task: str, digest: str, metric: Metric, base: Any) -> list[dict[str, Any]]:
    """What the registry records of each system, best first; `repo` None is the bare base."""
    from importlib.metadata import version

    scores = []
    engine = f"graft {version('grafthub')} {base.device.type} {str(base.dtype).removeprefix('torch.')}"
    for system in found.systems:
        score = {
            "task": task,
            "data_hash": digest,
            "metric": metric.name,
            "value": system.score.value,
            "low": system.score.low,
            "high": system.score.high,
            "n": system.score.n,
            "repo": system.model.partition("@")[0] if system.model else None,
            "revision": system.served.revision,
            "digest": system.served.digest,
            "base_fingerprint": base.spec.fingerprint,
            "seconds": found.seconds,
            "engine": engine,
            "extra": {"systems": len(found.systems), **({} if system.p is None else {"p_vs_base": system.p})},
        }
        scores.append(score)
    return sorted(scores, key=lambda row: row["value"] if metric.lower_is_better else -row["value"])


def _recorded(registry: Any, scores: list[dict[str, Any]]) -> list[tuple[str, GraftError]]:
    """Write every score to the registry; returns what it refused, and why. One refusal costs no other score.

    On a hub the bare base's row takes an admin's token: without one it is left out with a note, which is no failure.
    """
    refused = []
    for score in scores:
        try:
            registry.record_evaluation(user=local_user(), **score)
        except GraftError as error:
            if isinstance(error, ForbiddenError) and score["repo"] is None:
                click.echo(f"note: the bare base's score was not recorded: {error}", err=True)
            else:
                refused.append((score["repo"] or "(bare base)", error))
    return refused


def _print_board(scores: list[dict[str, Any]], task: Any, found: Evaluation) -> None:
    rows = []
    rank = 0
    for row in scores:
        rank += row["repo"] is not None
        p = row["extra"].get("p_vs_base")
        interval = f"{row['low']:.3f} .. {row['high']:.3f}"
        against = "" if p is None else f"{p:.2g}"
        rows.append(
            (rank if row["repo"] else "", row["repo"] or "(bare base)", f"{row['value']:.3f}", interval, against)
        )
    n = scores[0]["n"]
    title = f"{task.slug}: {task.metric} on {n} examples, one mixed run of {found.seconds:.0f} s"
    print_table(title, ("rank:", "adapter", f"{task.metric}:", "95 % interval", "p vs base:"), rows)


@contextmanager
def _progress(text: str) -> Iterator[Any]:
    """A bar on stderr; yields a function of (done, total)."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        shown = bar.add_task(text, total=None)
        yield lambda done, total: bar.update(shown, completed=done, total=total)
