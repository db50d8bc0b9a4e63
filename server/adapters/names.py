"""From a name in a request to an adapter's folder: local folders, a registry, a hub. Torch-free.

A name may move (a folder is trained again, an alias promoted): `locate` says which version it stands for now, cheaply;
`fetch` brings that version's files. Knows nothing of loading or memory. While a hub can't be asked, names stand for what
they last did.
"""

import logging
import stat
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from graft.hub.adapters.model_card import TASK_PREFIX
from graft.hub.base.manifest import ADAPTER_CONFIG, BaseSpec
from graft.hub.errors import ConflictError, GraftError, NotFoundError, UnreachableError
from graft.hub.machine.atomic_files import STAGING
from graft.hub.registry.interface import AnyRegistry
from graft.hub.registry.naming import COMMIT_ID
from graft.hub.registry.search import SearchHit, on_base
from graft.server.errors import StorageError
from graft.server.used_last import UsedLast

Shelf = AnyRegistry  # by which the engine, which knows no registry, names what it passes on

log = logging.getLogger(__name__)

WRITING_S = 2.0  # how long a folder may be under way from one version to the next; one that was killed stays
PINNED_S = 10.0  # how long the answer about a commit is trusted, which can't move, only be taken away
ASK_AGAIN_S = 10.0  # how long after a hub could not be asked
MOST_ATTACHED = 10_000
MOST_KEPT = 10_000  # names whose last answers a hub gave are kept
MAX_NAME_CHARS = 300  # of a name on a shelf, which is a namespace, a name and a branch, or a task

_MOST_SHOWN = 20  # names in an error's message
_TRIAL = "\0"  # before a name: what it is to be given to; no name that can be given begins so


@dataclass(frozen=True)
class Location:
    """A name's present version. `version` changes whenever its content may have."""

    name: str  # one a repository, however it was asked for ("NS/Name", "ns/name@rev", "task:T")
    version: str
    folder: Path | None = None  # local folders only
    revision: str | None = None  # registries only
    digest: str | None = None  # where the registry knows it


@dataclass(frozen=True)
class _Answer:
    """What a hub said of a name, and until when (time.monotonic) that is trusted."""

    said: Location | GraftError
    until: float

    @property
    def location(self) -> Location:
        """Raises what was said in its place."""
        if isinstance(self.said, GraftError):
            raise type(self.said)(str(self.said))  # one of its own: each raise adds to what an error holds
        return self.said


class AdapterNames:
    """`local`: NAME -> folder. `shelf`: where "ns/name", "ns/name@rev" and "task:T" are looked up, if anywhere."""

    def __init__(
        self,
        fingerprint: str,
        local: Mapping[str, Path] | None = None,
        shelf: Shelf | None = None,
    ):
        self._fingerprint = fingerprint
        self._local = dict(local or {})
        self._attached: dict[str, Path | str] = {}  # names given since: folders, or names on the shelf
        self._being_given: dict[str, Path | str] = {}  # what is to get a name, and is not proven yet
        self.shelf = shelf
        self._answers: UsedLast[str, _Answer] = UsedLast(MOST_KEPT)  # a hub's
        self._away_since: float | None = None  # when the shelf could not be asked
        self._lock = threading.Lock()

    @property
    def names(self) -> list[str]:
        """Names given here, known without asking anyone."""
        return sorted({*self._local, *self._attached})

    def locate(self, name: str) -> Location:
        """What a name stands for now. Raises NotFoundError where that is nothing, or why a hub could not say."""
        located = self._locate_here(name)
        return located if isinstance(located, Location) else self._ask(located).location

    def locate_at_once(self, name: str) -> Location | None:
        """As `locate`, but None where a hub has to be asked."""
        located = self._locate_here(name)
        return located if isinstance(located, Location) else None

    def last_known(self, name: str) -> Location | None:
        """As `locate`, but no hub is asked: what a name there stood for when it was asked last; None where it was not."""
        located = self._locate_here(name)
        if isinstance(located, Location):
            return located
        with self._lock:
            answer = self._answers.get(located)
        return None if answer is None else answer.location

    def shelf_name(self, name: str) -> str | None:
        """What the shelf is asked for where this name is used; None where it is not asked."""
        target = self._target(name)
        return target if isinstance(target, str) and self.shelf is not None and _may_be_shelved(target) else None

    def is_far(self, location: Location) -> bool:
        """Whether `fetch` takes a network."""
        return location.folder is None and self._is_far

    @contextmanager
    def attaching(
        self, name: str, target: Path | str, is_taken: Callable[[], bool], *, replace: bool = False
    ) -> Iterator[str]:
        """`name` becomes a folder, or what the shelf has under another name, when the context ends; where it fails nothing has
        changed. Yields what to call it until then. Nobody else gives or takes the name meanwhile. `is_taken`: whether `name` stands
        for something, which a hub may have to be asked.

        Raises ConflictError for a name that stands for something (`replace`: that was not attached), NotFoundError for a folder
        without an adapter.
        """
        if isinstance(target, Path) and not _holds_adapter(target):
            raise NotFoundError(f"{target} holds no {ADAPTER_CONFIG}.")
        if name in self._local or (name not in self._attached and name != target and is_taken()):
            raise ConflictError(f"{name} is an adapter that this server has had from its start: take another name.")
        trial = _TRIAL + name
        with self._lock:
            self._require_free(name, replace=replace)
            self._being_given[trial] = target
        try:
            yield trial
            with self._lock:  # another name may be given, or taken back, at the same moment
                self._attached = {**self._attached, name: target}
        finally:
            del self._being_given[trial]

    def detach(self, name: str) -> bool:
        """Take an attached name back; False where it is none. Raises ConflictError while it is being given."""
        with self._lock:
            self._require_settled(name)
            rest = dict(self._attached)
            was_there = rest.pop(name, None) is not None
            self._attached = rest
        return was_there

    def _require_settled(self, name: str) -> None:
        if _TRIAL + name in self._being_given:
            raise ConflictError(f"The lora adapter '{name}' is just being loaded: wait for that.")

    def _require_free(self, name: str, *, replace: bool) -> None:
        self._require_settled(name)
        if name in self._attached and not replace:
            raise ConflictError(
                f"The lora adapter '{name}' has already been loaded. If you want to load the adapter in place, set "
                "'load_inplace' to True."
            )
        if name not in self._attached and len(self._attached) + len(self._being_given) >= MOST_ATTACHED:
            raise ConflictError(f"{MOST_ATTACHED} adapters have been given names: unload one first.")

    def locate_written(self, location: Location) -> Location:
        """A local folder's version once who writes to it is done; anything else's is what it was.

        Raises NotFoundError for a folder that has gone.
        """
        if location.folder is None:
            return location
        deadline = time.monotonic() + WRITING_S
        while (location.folder / STAGING).exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        return replace(location, version=_state_of(location.folder))

    @contextmanager
    def fetch(self, location: Location) -> Iterator[Path]:
        """The version's folder, for as long as the context lasts. Raises StorageError where what a hub has can't be written."""
        if location.folder is not None:
            yield location.folder
            return
        assert self.shelf is not None  # which has told the version
        with ExitStack() as stack:
            try:
                folder = stack.enter_context(self.shelf.lend(f"{location.name}@{location.revision}"))
            except OSError as error:
                raise StorageError(
                    f"{location.name} can't be kept on this server's disk ({error.strerror}): make room there, and ask again."
                ) from None
            yield folder

    def search_shelf(self, base: BaseSpec) -> Iterator[SearchHit]:
        """What a registry on this machine has for a base. A hub is not asked for all it has."""
        if self.shelf is not None and not self._is_far:
            yield from on_base(self.shelf.search, base)

    @property
    def _is_far(self) -> bool:
        return self.shelf is not None and self.shelf.is_far

    def _target(self, name: str) -> Path | str:
        """A folder, or the name on the shelf."""
        return self._local.get(name) or self._attached.get(name) or self._being_given.get(name, name)

    def _locate_here(self, name: str) -> Location | str:
        """As `locate`, or what a hub has to be asked for."""
        target = self._target(name)
        if isinstance(target, Path):
            return Location(name.removeprefix(_TRIAL), _state_of(target), folder=target)
        if self.shelf is None or not _may_be_shelved(target):
            raise self._unknown(target)
        answer = self._standing(target) if self._is_far else self._ask(target)
        return target if answer is None else answer.location

    def _standing(self, name: str) -> _Answer | None:
        """What holds without asking: an answer that is trusted, or, while the hub is away, the last one that was good."""
        now = time.monotonic()
        with self._lock:
            answer = self._answers.get(name)
            if answer is not None:
                self._answers.move_to_end(name)
            away = self._away_since is not None and now < self._away_since + ASK_AGAIN_S
        if answer is None or not (answer.until > now or (away and isinstance(answer.said, Location))):
            return None
        return answer

    def _ask(self, name: str) -> _Answer:
        """A new answer of the shelf, a hub's kept for as long as it is trusted; the one before where nobody can be asked."""
        shelf = self.shelf
        assert shelf is not None
        with self._lock:
            before = self._answers.get(name)
        try:
            said, trusted_s = self._ask_shelf(name, shelf), shelf.trusted_s
            self._away_since = None
        except UnreachableError as error:
            self._away_since = time.monotonic()  # other names needn't find that out anew, each for as long
            if before is None or not isinstance(before.said, Location):
                raise
            log.warning("%s stands for what it last did: %s", name, error)
            said, trusted_s = before.said, ASK_AGAIN_S
        if COMMIT_ID.fullmatch(name.partition("@")[2]):
            trusted_s = max(trusted_s, PINNED_S)
        answer = _Answer(said, time.monotonic() + trusted_s)
        if self._is_far:
            self._keep(name, answer)
        return answer

    def _keep(self, name: str, answer: _Answer) -> None:
        with self._lock:
            self._answers[name] = answer

    def _ask_shelf(self, name: str, shelf: Shelf) -> Location | GraftError:
        try:
            revision = shelf.resolve(name, base=self._fingerprint)
        except NotFoundError as error:
            return type(error)(str(error))  # without the frames that it was raised in
        return Location(revision.repo, revision.id, revision=revision.id, digest=revision.digest)

    def _unknown(self, name: str) -> NotFoundError:
        """Of what no shelf is asked for."""
        named = self.names
        shown = ", ".join(named[:_MOST_SHOWN]) + (" ..." if len(named) > _MOST_SHOWN else "")
        places = f"Served here are {shown or 'no adapters'} besides the base"
        hint = "" if self.shelf else "; start the server with --registry or --hub for more"
        return NotFoundError(f"There is no model {name[:MAX_NAME_CHARS]!r}. {places}{hint}.")


def _may_be_shelved(name: str) -> bool:
    return len(name) <= MAX_NAME_CHARS and ("/" in name or name.startswith(TASK_PREFIX))


def _holds_adapter(folder: Path) -> bool:
    """Whether there is one, as far as a look from outside tells. A path that can't be followed leads to none."""
    try:
        return (folder / ADAPTER_CONFIG).is_file()
    except OSError:  # too long a name, no right to look
        return False


def _state_of(folder: Path) -> str:
    """What `ls` would show of a folder: changes when a file is replaced. Raises NotFoundError without a folder that may be read."""
    try:
        return " ".join(filter(None, map(_file_state, sorted(folder.iterdir()))))
    except PermissionError:
        raise NotFoundError(f"The adapter's folder {folder} may not be read.") from None
    except (FileNotFoundError, NotADirectoryError):
        raise NotFoundError(f"The adapter's folder {folder} is gone.") from None
    except OSError as error:  # a link in a circle
        raise NotFoundError(f"The adapter's folder {folder} can't be looked at: {error.strerror}.") from None


def _file_state(path: Path) -> str:
    """Of one file; "" for a folder, for what is moved away while it is looked at, and for a link that leads nowhere."""
    try:
        state = path.stat()
    except PermissionError:
        raise
    except OSError:
        return ""
    return f"{path.name}:{state.st_size}:{state.st_mtime_ns}" if stat.S_ISREG(state.st_mode) else ""
