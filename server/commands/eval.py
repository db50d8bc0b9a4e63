"""`graft eval`: a task's whole shelf through an engine in this process.

Torch and the base are imported when a command runs, so that `--help` is quick.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from graft.hub.base.manifest import recorded_spec
from graft.hub.errors import GraftError
from graft.hub.terminal.base_argument import BASE
from graft.hub.terminal.options import local_user, open_registry, registry_options
from graft.hub.terminal.ray_options import ray_options
from graft.hub.terminal.strangers_words import visible_text
from graft.hub.terminal.tables import print_json, print_table
from graft.server.commands.scoring import scorekeeping
from graft.server.commands.scoring.contest import BaseAsked, Contest, Scorer
from graft.server.commands.scoring.scorekeeping import Scorekeeper, Scoring, fields_of
from graft.server.commands.scoring.verification import engine_name, first_examples, read_data, verify

if TYPE_CHECKING:
    from graft.hub.base.manifest import BaseSpec
    from graft.hub.evaluation.metrics import Metric
    from graft.hub.machine.ray_tasks import Spread
    from graft.hub.registry.leaderboard import Evaluation
    from graft.server.evaluation.evaluate import Evaluated


@click.command("eval")
@click.option("--task", "slug", help="The task whose adapters are scored.")
@click.option("--verify", "number", type=click.IntRange(1), help="Run a recorded evaluation again, by its id.")
@click.option(
    "--base", "folder", required=True, type=BASE, help="A folder, an imported base's name or id, or a hub id."
)
@click.option("--adapters", default="all", show_default=True, help="'all' of the task, or NS/NAME[@REV],...")
@click.option("--data", type=click.Path(path_type=Path), help="Other examples (JSONL) than the task's evaluation set.")
@click.option("--limit", type=click.IntRange(1), help="Only the first examples (kept apart on the leaderboard).")
@click.option("--again", is_flag=True, help="Score also what has a score on the same data by the same engine.")
@click.option("--device", help="cpu, cuda (default: cuda where there is one).")
@click.option("--dtype", help="float32, bfloat16, float16 (default: as measured here).")
@ray_options
@registry_options
def evaluate(
    slug: str | None,
    number: int | None,
    folder: str,
    adapters: str,
    data: Path | None,
    limit: int | None,
    again: bool,
    device: str | None,
    dtype: str | None,
    registry_path: Path,
    hub_url: str | None,
    as_json: bool,
    spread: Spread | None,
) -> None:
    """Score every stored adapter of a task, and the bare base, in one run; print the leaderboard.

    Each score goes to the registry as soon as it is there, with digest, data hash and interval: Ctrl-C keeps what is
    finished, and the same command goes on with the rest. Exits 1 where an adapter could not be served.

    With --ray the adapters are scored as tasks of a Ray cluster, one a task; scores are recorded from here.

    With --verify ID one recorded evaluation is run again, on the data and the weights of then; exits 1 where it differs.
    """
    if (slug is None) == (number is None):
        raise click.UsageError("Give --task T to score its adapters, or --verify ID to run one evaluation again.")
    if number is not None and spread is not None:
        raise click.UsageError("--verify runs one evaluation, which --ray can't spread: leave one of them out.")
    registry, asked = open_registry(registry_path, hub_url), BaseAsked(folder, device, dtype)
    if number is not None:
        verify(registry, registry.evaluation(number), asked, data, limit, _say, as_json=as_json)
        return
    assert slug is not None
    task = registry.task(slug)
    named = None if adapters == "all" else scorekeeping.find_entrants(registry, adapters, recorded_spec(folder))
    raw = read_data(data) if data else registry.task_data(slug)

    _say(f"Loading {folder} ...")  # torch takes its seconds, too

    from graft.hub.evaluation.metrics import get_metric
    from graft.hub.evaluation.tokenization import spaces_at_the_join

    metric = get_metric(task.metric)
    examples, digest = first_examples(raw, str(data or f"the evaluation set of {slug}"), limit)
    scorer = _scorer(asked, spread)
    scoring = _scoring(slug, digest, metric, scorer.spec, engine_name(scorer.device, scorer.dtype))
    run = _Run(Scorekeeper(registry, scoring, local_user(), measured=digest == task.data_hash, again=again))
    if note := spaces_at_the_join(examples):
        run.say(f"note: {note}")
    chosen = scorekeeping.of_task(registry, slug, scorer.spec, run.say) if named is None else named
    rows = run.score(scorer, Contest(registry, chosen, examples, metric))
    rows.sort(key=lambda row: (row.value if metric.lower_is_better else -row.value, row.repo or ""))
    if as_json:
        print_json([fields_of(row) | {"name": row.repo, "id": row.id} for row in rows])
    elif rows:
        _print_board(rows)
    run.require_all(shelf=named is None)


def _say(text: str) -> None:
    click.echo(visible_text(text), err=True)


def _scorer(asked: BaseAsked, spread: Spread | None) -> Scorer:
    if spread is None:
        from graft.server.commands.scoring.here import ScorerHere

        return ScorerHere(asked, _say)
    from graft.server.commands.scoring.spread import ScorerSpread

    return ScorerSpread(asked, spread, _say)


def _scoring(slug: str, digest: str, metric: Metric, spec: BaseSpec, engine: str) -> Scoring:
    """What all scores of a run have in common."""
    return {
        "task": slug,
        "data_hash": digest,
        "metric": metric.name,
        "base_fingerprint": spec.fingerprint,
        "engine": engine,
    }


class _Run:
    """Scores adapters; as the run's listener it shows a bar, says a line a system, and has each score recorded."""

    def __init__(self, keeper: Scorekeeper):
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self._rows: list[Evaluation] = []
        self._failed: dict[str, str] = {}
        self._interrupted = False
        self._keeper, self._console, self._systems = keeper, Console(stderr=True), 1
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self._bar = Progress(*columns, console=self._console)

    def say(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def score(self, scorer: Scorer, contest: Contest) -> list[Evaluation]:
        """Scores of the adapters and the bare base: what the registry knows, and the others until Ctrl-C."""
        known = self._keeper.known_scores(contest.entrants)
        missing = [entrant for entrant in contest.entrants if entrant not in known]
        bare = None if missing else self._keeper.known_base_score()  # else it is scored anew: p is paired with it
        if known:
            many = f"{len(known)} of {len(contest.entrants)} adapters are"
            self.say(f"{many} scored on this data already: --again scores them again.")
        if bare is None:
            self._shown = self._bar.add_task("Scoring", total=None)
            try:
                with self._bar:
                    scorer.score(replace(contest, entrants=missing), self)
            except KeyboardInterrupt:
                self._interrupted = True
        return [*known.values(), *self._rows, *([bare] if bare else [])]

    def require_all(self, *, shelf: bool) -> None:
        """Raises GraftError where something was not scored, or not recorded. `shelf`: all adapters of a task were wanted."""
        if self._interrupted:
            raise GraftError("Interrupted. What is scored is kept: the same command goes on with the rest.")
        if failed := self._failed | self._keeper.unrecorded_scores(shelf=shelf, say=self.say):
            raise GraftError("; ".join(f"{name}: {why}" for name, why in failed.items()))

    def loaded(self, systems: int) -> None:
        self._systems = systems

    def refused(self, model: str, why: str) -> None:
        self._failed[model] = why
        self.say(f"refused: {model}: {why}")

    def scored(self, system: Evaluated) -> None:
        row = self._keeper.record(system, self._systems)
        self._rows.append(row)
        where = f"{len(self._rows)}/{self._systems}"
        self.say(f"{where}  {row.repo or '(bare base)'}: {row.metric} {row.value:.3f} in {system.seconds:.1f} s")

    def answered(self, done: int, total: int) -> None:
        self._bar.update(self._shown, completed=done, total=total)


def _print_board(scores: list[Evaluation]) -> None:
    rows = []
    rank = 0
    for row in scores:
        rank += row.repo is not None
        p = row.extra.get("p_vs_base")
        interval = "" if row.low is None or row.high is None else f"{row.low:.3f} .. {row.high:.3f}"
        against = "" if p is None else f"{p:.2g}"
        name = row.repo or "(bare base)"
        rows.append((rank if row.repo else "", name, f"{row.value:.3f}", interval, against, row.id or "not kept"))
    first = scores[0]
    columns = ("rank:", "adapter", f"{first.metric}:", "95 % interval", "p vs base:", "id:")
    print_table(f"{first.task}: {first.metric} on {first.n} examples", columns, rows)
