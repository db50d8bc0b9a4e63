"""The literature's table for your own data: every method under one budget, beside the bare base.

Each method is trained alone, so that its time and memory are its own, or all in one pass, which is sooner done; on the
same examples, steps and seed. Baselines get a base of their own. Knows nothing of the terminal.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Protocol

from graft.hub.adapters.artifact import load_artifact
from graft.hub.adapters.methods import METHODS
from graft.hub.adapters.serving_forms import Form
from graft.hub.adapters.validation import WEIGHTS
from graft.hub.base.model import Base
from graft.hub.errors import GraftError
from graft.hub.evaluation.metrics import Metric, Score, get_metric, paired_p
from graft.hub.evaluation.task_data import Example, load_examples
from graft.trainer.data.sequences import sequences_of
from graft.trainer.evaluation.scoring import Scored, score_examples
from graft.trainer.learners.job import TrainingData, TrainingOutcome
from graft.trainer.plan.config import RunConfig
from graft.trainer.plan.plan import BASELINES, AdapterPlan
from graft.trainer.training.base_weights import train_baseline
from graft.trainer.training.checkpoints import drop_checkpoint
from graft.trainer.training.loop import Watcher
from graft.trainer.training.run import Load, read_data, train

BARE = "none"  # the row of the base without any training


@dataclass(frozen=True)
class Line:
    """One row of the table. `p`: two-sided, paired, against the bare base on the same examples."""

    method: str
    title: str
    parameters: int  # trained
    share: float  # of the base's parameters
    artifact_bytes: int
    peak_memory_bytes: int
    seconds: float
    tokens_per_s: float
    score: Score | None
    p: float | None
    folder: str | None
    failed: str | None = None  # why there is no score


@dataclass(frozen=True)
class Comparison:
    """A finished comparison."""

    base: str
    task: str
    data: str
    examples: int
    steps: int  # of each, where nothing stopped it earlier
    seed: int
    together: bool  # one pass for all adapters: seconds, tokens/s and peak memory are the pass's
    lines: tuple[Line, ...]

    @property
    def winner(self) -> Line | None:
        """The adapter with the best score; None where none has one."""
        return next((line for line in self.ranked if line.method in METHODS), None)

    @property
    def ranked(self) -> list[Line]:
        """The rows with a score, the best first."""
        return [line for line, _ in self.scored]

    @property
    def scored(self) -> list[tuple[Line, Score]]:
        """The same, each beside its score."""
        rows = [(line, line.score) for line in self.lines if line.score]
        return sorted(rows, key=lambda row: -row[1].value)

    @property
    def bare(self) -> Score:
        """The bare base's."""
        return next(score for line, score in self.scored if line.method == BARE)

    @property
    def failed(self) -> list[Line]:
        return [line for line in self.lines if line.failed]


@dataclass(frozen=True)
class Measured:
    """A row without its p, and what p is found from: the method's values, example by example; none where it failed."""

    line: Line
    values: list[float]


@dataclass(frozen=True)
class Setting:
    """What all rows have in common. `steps`: of each method, where nothing stops it earlier."""

    base: str
    data: str
    examples: int
    steps: int
    metric: str


@dataclass(frozen=True)
class Bare:
    """The bare base's row, and the setting."""

    measured: Measured
    setting: Setting


class Journal(Protocol):
    """Where rows are kept as soon as they are measured."""

    def bare(self) -> Bare | None:
        """The bare base's, where it is kept."""

    def method(self, name: str) -> Measured | None:
        """A method's, where it is kept."""

    def keep_bare(self, bare: Bare) -> None: ...

    def keep(self, measured: Measured) -> None: ...


def compare(
    load: Callable[[], Base],
    methods: Sequence[str],
    template: AdapterPlan,
    run: RunConfig,
    *,
    together: bool = False,
    watchers: Sequence[Watcher] = (),
    journal: Callable[[Base], Journal] | None = None,
) -> Comparison:
    """Train and score `methods` (METHODS and baselines) as `template` says, into folders below its `out`.

    `together`: all adapters in one pass over one base, instead of one after the other. `journal`, of a base, keeps each row as
    soon as it is there; what it has already is not measured again.

    `load` gives a fresh base: baselines change theirs. Raises GraftError for an unknown method or data without an
    evaluation set; a method that fails in training gets a row that says why.
    """
    check_comparison(methods, template)
    base = load()
    kept = journal(base) if journal else _Nothing()
    if (bare := kept.bare()) is None:
        kept.keep_bare(bare := measure_bare(base, template))
    known = {name: row for name in methods if (row := kept.method(name)) is not None}
    left = [name for name in methods if name not in known]
    for measured in measure(load, base, left, template, run, together=together, watchers=watchers):
        kept.keep(measured)
        known[measured.line.method] = measured
    return tabulate(bare, [known[name] for name in methods_in_order(methods)], template, together=together)


def check_comparison(methods: Sequence[str], template: AdapterPlan) -> None:
    """Raises GraftError for an unknown method, and where there is nothing held out."""
    known = [*METHODS, *BASELINES]
    if unknown := [method for method in methods if method not in known]:
        raise GraftError(f"Unknown method {unknown[0]!r}. Known: {', '.join(known)}.")
    if template.eval_data is None:
        raise GraftError("A comparison needs held-out data: give --eval-data.")


def methods_in_order(methods: Sequence[str]) -> list[str]:
    """Adapters first: baselines change their base."""
    return sorted(methods, key=lambda method: method in BASELINES)


def measure_bare(base: Base, template: AdapterPlan, load: Load = load_examples) -> Bare:
    """The row of the base without any training. Raises GraftError for data that no method could train on."""
    data, limit, held_out = _read(base, template, load)
    sequences = sequences_of(data.train, base.tokenizer, limit, base.spec.max_positions)
    steps = template.recipe.steps_over(len(sequences))
    scored = held_out.score(base, (), limit)
    line = Line(BARE, "bare base", 0, 0.0, 0, 0, 0.0, 0.0, scored.score, None, None)
    setting = Setting(base.spec.id or "base", data.hash, len(data.train), steps, held_out.metric.name)
    return Bare(Measured(line, scored.values), setting)


def measure(
    fresh: Callable[[], Base],
    base: Base,
    methods: Sequence[str],
    template: AdapterPlan,
    run: RunConfig,
    *,
    together: bool = False,
    watchers: Sequence[Watcher] = (),
    load: Load = load_examples,
) -> Iterator[Measured]:
    """Train and score each, adapters first. `fresh` gives a base for a baseline to change, `load` a file's examples."""
    _, _, held_out = _read(base, template, load)
    plans = [replace(template, method=method, out=template.out / method, name=method) for method in methods]
    for outcome, score in _train_plans(fresh, base, plans, run, held_out, together, watchers, load):
        if isinstance(outcome, FailedMethod):
            yield Measured(failed_line(outcome.method, outcome.reason), [])
        elif outcome.folder is None:
            assert outcome.stopped is not None  # says why there is no folder
            yield Measured(failed_line(outcome.method, outcome.stopped, outcome, of=base.spec.parameters), [])
        else:
            scored = score(outcome.folder, outcome.limit)
            yield Measured(_line(base, outcome, outcome.folder, scored), scored.values)


def tabulate(bare: Bare, measured: Sequence[Measured], template: AdapterPlan, *, together: bool) -> Comparison:
    """The table of what was measured, each row against the bare base's."""
    setting, metric = bare.setting, get_metric(bare.setting.metric)
    lines = [
        replace(row.line, p=paired_p(metric, row.values, bare.measured.values)) if row.line.score else row.line
        for row in measured
    ]
    told = (setting.base, template.task, setting.data, setting.examples, setting.steps, template.recipe.seed)
    return Comparison(*told, together, (bare.measured.line, *lines))


class _Nothing:
    """The journal of a comparison that nobody goes on with."""

    def bare(self) -> None:
        return None

    def method(self, name: str) -> None:
        return None

    def keep_bare(self, bare: Bare) -> None: ...

    def keep(self, measured: Measured) -> None: ...


def _read(base: Base, template: AdapterPlan, load: Load) -> tuple[TrainingData, int, "HeldOut"]:
    """The data, the tokens of a text on the bare base, and what decides."""
    data = read_data(base, template, load)
    assert data.metric is not None  # there are held-out data
    return data, template.recipe.text_limit(base.spec.max_positions), HeldOut(data.held_out, data.metric)


@dataclass(frozen=True)
class HeldOut:
    """What decides: examples that nobody was trained on, and what is measured on them."""

    examples: list[Example]
    metric: Metric

    def score(self, base: Base, forms: tuple[Form, ...], limit: int) -> Scored:
        return score_examples(base, forms, self.examples, self.metric, limit)


@dataclass(frozen=True)
class FailedMethod:
    """A method whose training ended in an error."""

    method: str
    reason: str


def _train_plans(
    load: Callable[[], Base],
    base: Base,
    plans: Sequence[AdapterPlan],
    run: RunConfig,
    held_out: HeldOut,
    together: bool,
    watchers: Sequence[Watcher],
    read: Load,
) -> Iterator[tuple[TrainingOutcome | FailedMethod, Callable[[Path, int], Scored]]]:
    """Each outcome, adapters first, with what scores it by its folder and the tokens of a text."""
    adapters = [plan for plan in plans if plan.method not in BASELINES]
    for group in [adapters] if together and adapters else [[plan] for plan in adapters]:
        for outcome in _attempt(group, partial(train, base, group, run, watchers=watchers, load=read)):
            yield outcome, partial(_score_as_served, base, held_out)
    for plan in plans:
        if plan.method in BASELINES:
            own = load()
            training = partial(train_baseline, own, plan, run, watchers=watchers, load=read)
            (outcome,) = _attempt([plan], lambda: [training()])  # noqa: B023
            yield outcome, partial(_score_itself, own, held_out)


def _attempt(
    group: list[AdapterPlan], training: Callable[[], list[TrainingOutcome]]
) -> list[TrainingOutcome] | list[FailedMethod]:
    """The outcomes of a group, or why it has none: the other groups are trained all the same."""
    try:
        return training()
    except GraftError as error:
        return [FailedMethod(plan.method, str(error)) for plan in group]
    except KeyboardInterrupt:
        for plan in group:
            drop_checkpoint(plan.out)  # nothing continues it
        raise


def _score_itself(base: Base, held_out: HeldOut, folder: Path, limit: int) -> Scored:
    return held_out.score(base, (), limit)


def _score_as_served(base: Base, held_out: HeldOut, folder: Path, limit: int) -> Scored:
    return held_out.score(base, load_artifact(folder, base.spec).fold(base), limit)


def _line(base: Base, outcome: TrainingOutcome, folder: Path, scored: Scored) -> Line:
    weights = folder / WEIGHTS[0]
    kept = outcome.parameters * base.model.dtype.itemsize  # of a baseline: apart from the base
    size = kept if outcome.method in BASELINES else weights.stat().st_size
    return Line(
        method=outcome.method,
        title=_title(outcome.method),
        parameters=outcome.parameters,
        share=outcome.parameters / base.spec.parameters,
        artifact_bytes=size,
        peak_memory_bytes=outcome.peak_memory_bytes,
        seconds=outcome.seconds,
        tokens_per_s=outcome.tokens / outcome.seconds,
        score=scored.score,
        p=None,
        folder=str(folder),
    )


def failed_line(method: str, reason: str, outcome: TrainingOutcome | None = None, *, of: int = 1) -> Line:
    """The row of a method without an artifact. `outcome`: of one that was trained, on a base of so many parameters."""
    trained = outcome.parameters if outcome else 0
    peak, seconds, tokens = (outcome.peak_memory_bytes, outcome.seconds, outcome.tokens) if outcome else (0, 0.0, 0)
    return Line(
        method=method,
        title=_title(method),
        parameters=trained,
        share=trained / of,
        artifact_bytes=0,
        peak_memory_bytes=peak,
        seconds=seconds,
        tokens_per_s=tokens / seconds if seconds else 0.0,
        score=None,
        p=None,
        folder=None,
        failed=reason.removesuffix("."),
    )


def _title(method: str) -> str:
    return method.replace("-", " ") if method in BASELINES else METHODS[method].title
