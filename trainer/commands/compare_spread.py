"""A comparison's methods measured as tasks of a Ray cluster, one a task; the bare base is one of them. What they return is
written here."""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from graft.hub.errors import GraftError
from graft.hub.machine.folder_files import Files, read_files
from graft.hub.machine.ray_tasks import Cluster, Piece, Spread
from graft.trainer.commands.train_spread import write_trained
from graft.trainer.plan.plan import AdapterPlan
from graft.trainer.reports.comparison import (
    BARE,
    Bare,
    Comparison,
    Journal,
    Measured,
    check_comparison,
    failed_line,
    measure,
    measure_bare,
    methods_in_order,
    tabulate,
)
from graft.trainer.training.sent import SentRun, base_for


@dataclass(frozen=True)
class _Contest:
    """What all methods share."""

    run: SentRun
    template: AdapterPlan


@dataclass(frozen=True)
class _Row:
    """A method's row, and the files of its folder."""

    measured: Measured
    files: Files


def compare_spread(
    run: SentRun,
    methods: Sequence[str],
    template: AdapterPlan,
    journal: Journal,
    spread: Spread,
    say: Callable[[str], None],
) -> Comparison:
    """As `compare`, every method on a worker; what `journal` has is not measured again.

    Raises GraftError where no cluster can be joined, or the bare base can't be scored; KeyboardInterrupt at Ctrl-C.
    """
    check_comparison(methods, template)
    rows = {name: row for name in methods if (row := journal.method(name)) is not None}
    bare = journal.bare()
    left = [*([] if bare else [BARE]), *(name for name in methods_in_order(methods) if name not in rows)]
    queue = deque(Piece(name, partial(str, name)) for name in left)
    with Cluster(spread, say) as cluster:
        results = cluster.run(_measure, _Contest(run, template), queue, gpu=run.base.device == "cuda")
        for done, (piece, found) in enumerate(results, start=1):
            if isinstance(found, Bare):
                journal.keep_bare(bare := found)
            elif piece.name == BARE and isinstance(found, GraftError):
                raise found
            else:
                rows[piece.name] = _keep(template, piece.name, found)
                journal.keep(rows[piece.name])
            say(f"{done}/{len(left)}  {'bare base' if piece.name == BARE else piece.name}")
    assert bare is not None  # its error was raised
    return tabulate(bare, [rows[name] for name in methods_in_order(methods)], template, together=False)


def _keep(template: AdapterPlan, method: str, found: _Row | GraftError) -> Measured:
    """Write a method's folder; its row, which says why where there is none."""
    if isinstance(found, GraftError):
        return Measured(failed_line(method, str(found)), [])
    line, folder = found.measured.line, template.out / method
    if line.folder is None:
        return found.measured
    try:
        write_trained(replace(template, method=method, out=folder), found.files)
    except (GraftError, OSError) as error:
        return Measured(failed_line(method, f"could not be saved: {error}"), [])
    return replace(found.measured, line=replace(line, folder=str(folder)))


def _measure(contest: _Contest, method: str) -> _Row | Bare:
    """On a worker. Raises GraftError for a base that is not the one that is wanted, and for bad data."""
    base = base_for(contest.run.base, method)
    if method == BARE:
        return measure_bare(base, contest.template, contest.run.load)
    with TemporaryDirectory(prefix="graft-compare-") as work:
        template = replace(contest.template, out=Path(work))
        (measured,) = measure(lambda: base, base, [method], template, contest.run.run, load=contest.run.load)
        return _Row(measured, read_files(template.out / method))
