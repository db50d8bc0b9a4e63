"""What a registry answers to, whether it lies in a file (registry.py) or behind a URL (remote/client.py).

Commands, servers and trainers know only this. One suite of tests holds both to it (tests/hub/registry/test_contract.py).
"""

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

from graft.hub.base.manifest import BaseSpec
from graft.hub.registry.access.callers import Caller
from graft.hub.registry.leaderboard import Evaluation, Standing
from graft.hub.registry.queries import Revision
from graft.hub.registry.refs import Move, Ref
from graft.hub.registry.search import Page, Query
from graft.hub.registry.tasks import Task

Told = Callable[[int, int], None]
"""Told how many bytes have come, of how many."""


def tell_nobody(came: int, of: int) -> None:
    """Nobody looks on."""


class AnyRegistry(Protocol):
    """A registry of adapters.

    `user` and `who` are written down by a registry in a file; a hub knows them by the token. What a hub of another kind
    than graft's has no word for raises NotOfferedError.
    """

    @property
    def is_far(self) -> bool:
        """Whether asking takes a network."""

    @property
    def trusted_s(self) -> float:
        """How many seconds an answer about a name that may move can be kept. Raises GraftError where no hub answers."""

    def require_writer(self, names: Iterable[str]) -> None:
        """Whether publishing under `names` would be allowed, to be known before the work.

        Raises UnauthorizedError or ForbiddenError where it would not, GraftError where no hub answers.
        """

    # Others than we

    def require_users(self) -> None:
        """Raises GraftError where there are none: whoever comes is taken for the owner then, whatever they show."""

    def caller(self, token: str) -> Caller:
        """Who shows a token, as far as it is known here. Raises UnauthorizedError for one that is unknown, expired or revoked,
        GraftError where no hub answers."""

    def may_read(self, name: str, token: str, *, base: str | None = None) -> bool:
        """Whether the bearer of a token may read an adapter, named as for `resolve`. False where there is none, too.

        Raises UnauthorizedError as `caller` does, GraftError where no hub answers.
        """

    # Adapters

    def publish(
        self,
        folder: str | Path,
        name: str,
        *,
        tags: Sequence[str] = (),
        private: bool = False,
        user: str = ...,
        message: str = "",
    ) -> Revision:
        """Make `folder` the whole content of `name`'s main branch, with `tags`; the repo is made when missing.

        The same folder again changes nothing, nor do tags that point there already. Raises ConflictError for a tag that
        points elsewhere and ArtifactError and its kin for what is no sound adapter: then nothing has changed.
        """

    def warnings(self, name: str) -> tuple[str, ...]:
        """What was noted of an adapter when it was published; none where the hub keeps no such notes."""

    def resolve(self, name: str, *, base: str | None = None) -> Revision:
        """'ns/name', 'ns/name@commit|branch|tag|alias', or 'task:T' (what is in production for the task).

        `base`, a fingerprint, narrows 'task:T' to one base. Raises RepoNotFoundError or RevisionNotFoundError.
        """

    def pull(self, name: str, folder: str | Path, *, told: Told = ...) -> Revision:
        """Write an adapter's files into `folder`, every byte checked against its hash. Raises as `resolve`."""

    def lend(self, name: str) -> AbstractContextManager[Path]:
        """A folder with an adapter's files, to be read as long as the context lasts; no pull is counted.

        Where the registry lies on this disk nothing is copied, and weights are not hashed: whoever reads them compares the
        adapter's digest. Raises as `pull`.
        """

    def search(self, query: Query) -> Page:
        """A page of repos. Raises GraftError for a query that can't be answered."""

    def base_name(self, spec: BaseSpec) -> str:
        """What `Query.base` calls this base here: its fingerprint, or its id where only ids are known."""

    # Names that move

    def promote(self, ref: str, alias: str, *, who: str = ..., why: str = "") -> Revision:
        """Point `alias` at a revision that holds an adapter. Raises ArtifactError where it holds none."""

    def rollback(self, name: str, alias: str, *, who: str = ..., why: str = "") -> Revision:
        """Undo an alias's last move. Raises NotFoundError when it has moved only once."""

    def revisions(self, name: str, *, limit: int = ...) -> list[Revision]:
        """From main back towards the first, following parents."""

    def all_refs(self, name: str) -> list[Ref]:
        """Every branch, tag and alias."""

    def history(self, name: str, *, limit: int = ...) -> list[Move]:
        """The moves of every branch, tag and alias, newest first."""

    # Tasks and scores

    def add_task(
        self,
        slug: str,
        metric: str,
        data: bytes,
        description: str,
        *,
        owners: Sequence[str] | None = None,
        user: str = ...,
    ) -> Task:
        """Add a task, or give it a new evaluation set. `owners` None leaves them as they are."""

    def set_task_owners(self, slug: str, owners: Sequence[str], *, user: str = ...) -> Task:
        """Give a task to these namespaces and no others. Raises NotFoundError."""

    def task(self, slug: str) -> Task:
        """Raises NotFoundError."""

    def task_data(self, slug: str, data_hash: str | None = None) -> bytes:
        """The task's present evaluation set, or the one with a hash, as it was added. Raises NotFoundError."""

    def tasks(self) -> list[Task]: ...

    def record_evaluation(self, evaluation: Evaluation, *, user: str = ...) -> Evaluation:
        """Note a score of an adapter's revision (default: main), or of the bare base (no `repo`); returns it as it is kept.

        A hub keeps as self-reported what comes without the right to measure.
        """

    def evaluation(self, id: int) -> Evaluation:
        """One score by its number. Raises NotFoundError."""

    def evaluations(self, name: str) -> list[Evaluation]:
        """Scores of all revisions of a repo, newest first."""

    def leaderboard(self, task: str, base: str | None = None) -> list[Standing]:
        """The task's adapters and bare bases, best first; `base` is a fingerprint or id."""
