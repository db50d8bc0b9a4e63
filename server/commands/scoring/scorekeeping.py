"""What a registry knows of a task's adapters before an evaluation, and what it is told of each score. Torch-free."""

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import TYPE_CHECKING, TypedDict

from graft.hub.base.manifest import BaseSpec
from graft.hub.errors import ForbiddenError, GraftError
from graft.hub.evaluation.metrics import hash_predictions
from graft.hub.registry.interface import AnyRegistry
from graft.hub.registry.leaderboard import FIELDS, MEASURED, REPORTED, Evaluation
from graft.hub.registry.search import MAX_PAGE, Query, on_base
from graft.server.commands.scoring.contest import Entrant

if TYPE_CHECKING:
    from graft.server.evaluation.evaluate import Evaluated

BARE = "(bare base)"


def find_entrants(registry: AnyRegistry, names: str, base: BaseSpec | None) -> list[Entrant]:
    """The adapters in a list separated by commas. Raises GraftError naming each that is not there."""
    entrants, missing = [], []
    for name in filter(None, (part.strip() for part in names.split(","))):
        try:
            revision = registry.resolve(name, base=base.fingerprint if base else None)
            entrants.append(Entrant(revision.repo, revision.id, revision.digest))
        except GraftError as error:
            missing.append(str(error))
    if missing:
        raise GraftError(" ".join(missing))
    if not entrants:
        raise GraftError("--adapters names none: give NS/NAME[@REV],... or 'all'.")
    return entrants


def of_task(registry: AnyRegistry, slug: str, spec: BaseSpec, say: Callable[[str], None]) -> list[Entrant]:
    """Every adapter of the task on this base; `say` is told those on other bases."""
    entries = list(on_base(registry.search, spec, slug))
    names = {entry.name for entry in entries}
    others = [entry for entry in registry.search(Query(task=slug, limit=MAX_PAGE)).entries if entry.name not in names]
    for entry in others:
        say(f"left out: {entry.name}, for the base {entry.base or 'that it does not name'}")
    return [Entrant(entry.name, entry.revision_id, entry.digest) for entry in entries]


class Scoring(TypedDict):
    """What all scores of a run have in common, as fields of an `Evaluation`."""

    task: str
    data_hash: str
    metric: str
    base_fingerprint: str
    engine: str


class Scorekeeper:
    """The scores of one task, on one set of examples, by one engine.

    `measured` false: on examples that the registry hasn't got, so that nobody could measure them again there; such scores
    are kept as self-reported, and none of them is trusted to be a known one. `again`: nothing counts as known.
    """

    def __init__(
        self, registry: AnyRegistry, scoring: Scoring, user: str, *, measured: bool = True, again: bool = False
    ):
        self.registry, self.scoring, self.user = registry, scoring, user
        self.measured, self._again = measured, again
        self.refused: dict[str, GraftError] = {}  # why a score could not be recorded, by repo
        self.reported: set[str] = set()  # of which adapters the registry keeps the score as self-reported

    def known_scores(self, entrants: Iterable[Entrant]) -> dict[Entrant, Evaluation]:
        """The scores that are there already, of the same weights on the same examples by the same engine."""
        found = ((entrant, self._known_score(entrant.repo, entrant.revision, entrant.digest)) for entrant in entrants)
        return {entrant: row for entrant, row in found if row}

    def known_base_score(self) -> Evaluation | None:
        """The bare base's score, where it is on the leaderboard."""
        if self._again:
            return None
        standings = self.registry.leaderboard(self.scoring["task"], self.scoring["base_fingerprint"])
        rows = (standing.evaluation for standing in standings if standing.evaluation.repo is None)
        return next((row for row in rows if self._is_ours(row)), None)

    def record(self, system: "Evaluated", systems: int) -> Evaluation:
        """Write a score to the registry as soon as it is there; returns it as it is kept. What is known, for the bare base is
        scored anew for others to be paired with it, and somebody may score the same at the same time, is not written again; what
        the registry refuses is noted in `refused`."""
        row = Evaluation(
            **self.scoring,
            value=system.score.value,
            low=system.score.low,
            high=system.score.high,
            n=system.score.n,
            repo=system.model.partition("@")[0] if system.model else None,
            revision=system.served.revision,
            digest=system.served.digest,
            seconds=system.seconds,
            predictions_hash=hash_predictions(system.predictions),
            source=MEASURED if self.measured else REPORTED,
            extra={"systems": systems, **({} if system.p is None else {"p_vs_base": system.p})},
        )
        try:
            if (known := self._known_as(row)) is not None:
                return known
            kept = self.registry.record_evaluation(row, user=self.user)
        except GraftError as error:
            self.refused[row.repo or BARE] = error
            return row
        if kept.source == REPORTED:
            self.reported.add(kept.repo or BARE)
        return kept

    def unrecorded_scores(self, *, shelf: bool, say: Callable[[str], None]) -> dict[str, str]:
        """Which scores could not be recorded, and why. Whoever scores a whole `shelf` may not write to all of it.

        Nor may all write the bare base's on a hub, which takes an admin's token: both are said, and are no failures.
        """
        if self.reported:
            because = (
                "only a token of scope evaluator, or an admin's, records what graft measured"
                if self.measured
                else "these are not all the examples of the task's evaluation set"
            )
            say(f"note: kept as self-reported, and not ranked: {', '.join(sorted(self.reported))} ({because})")
        forbidden = {repo for repo, why in self.refused.items() if isinstance(why, ForbiddenError)}
        excused = forbidden if shelf else forbidden & {BARE}
        if excused:
            why = self.refused[min(excused)]
            say(f"note: measured and shown, but not recorded: {', '.join(sorted(excused))} ({why})")
        return {repo: str(why) for repo, why in self.refused.items() if repo not in excused}

    def _known_as(self, row: Evaluation) -> Evaluation | None:
        """The recorded score that came of the same answers."""
        known = self._known_score(row.repo, row.revision, row.digest) if row.repo else self.known_base_score()
        return known if known and known.predictions_hash == row.predictions_hash else None

    def _known_score(self, repo: str, revision: str | None, digest: str | None) -> Evaluation | None:
        if self._again or not self.measured:
            return None
        for row in self.registry.evaluations(repo):
            same = row.digest == digest if digest else row.revision == revision
            if same and self._is_ours(row):
                return replace(row, repo=repo, revision=revision)
        return None

    def _is_ours(self, row: Evaluation) -> bool:
        told = replace(row, base_fingerprint=row.base_fingerprint or self.scoring["base_fingerprint"])
        return row.source == MEASURED and replace(told, **self.scoring) == told


def fields_of(evaluation: Evaluation) -> dict[str, object]:
    """What a hub takes of it, by name."""
    return {key: getattr(evaluation, key) for key in FIELDS}
