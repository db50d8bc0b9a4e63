"""Pieces of work as tasks on a Ray cluster: what comes of each as it ends, and those of dead workers once more.

A piece is done by the functions that do it on one machine, on as many threads as its task has CPUs; what all pieces share
travels once a node. Workers write nothing down: they return what they found, and who asked for it keeps it. Knows nothing of
bases and adapters; Ray is imported when a cluster is joined.
"""

import logging
import os
import pickle
import platform
import signal
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from types import FrameType, ModuleType, TracebackType
from typing import Generic, TypeVar

from graft.hub.errors import GraftError
from graft.hub.machine.ray_head import no_cluster, require_head

_LOOK_S = 0.2  # between two looks whether Ctrl-C was pressed
TRIES = 3  # of a piece whose workers die
_QUIET = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}  # of a cluster that starts here

Shared = TypeVar("Shared")
What = TypeVar("What")
Found = TypeVar("Found")


@dataclass(frozen=True)
class Spread:
    """Where work is spread to. `address`: HOST:PORT of a cluster's head, `auto` or `local`; None: the one that runs here, else one
    that is started. `cpus`: of each task, which computes on so many threads."""

    address: str | None = None
    cpus: int = 1


@dataclass(frozen=True)
class Piece(Generic[What]):
    """Work for one task. `make` says what a worker is told; it is asked whenever the piece is sent, so after a death anew."""

    name: str
    make: Callable[[], What]


def require_ray() -> None:
    """Raises GraftError where Ray is not installed; quick, for it imports nothing."""
    if find_spec("ray") is None:
        raise GraftError("--ray needs Ray: pip install 'grafthub[ray]', here and on every node.")


class Cluster:
    """A cluster that this process has joined; leave it by the end of the `with`."""

    def __init__(self, spread: Spread, say: Callable[[str], None]):
        self._spread, self._say = spread, say
        self._ends = ExitStack()

    def __enter__(self) -> "Cluster":
        """Raises GraftError without Ray, or where no cluster answers."""
        self._ray = _join(self._spread.address)
        self._ends.callback(self._ray.shutdown)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._ends.close()

    def run(
        self,
        work: Callable[[Shared, What], Found],
        shared: Shared,
        queue: deque[Piece[What]],
        *,
        gpu: bool = False,
    ) -> Iterator[tuple[Piece[What], Found | GraftError]]:
        """Each piece, and what `work(shared, piece.make())` returned or why it could not; in the order in which they end.

        `work` is a module's function. `queue` is emptied, and may be filled further between two results. The first Ctrl-C waits until
        what was yielded is dealt with; then each running task is interrupted as by Ctrl-C, what those return is yielded, and
        KeyboardInterrupt is raised. Raises GraftError where no node has a task's CPUs, or its GPU.
        """
        tasks: _Tasks[What, Found] = _Tasks(self._ray, self._spread.cpus, gpu, self._say, pickle.dumps((work, shared)))
        interrupted = self._ends.enter_context(_first_interrupt())
        while (queue or tasks.under_way) and not interrupted():
            while queue and tasks.room:
                piece = queue.popleft()
                if (error := tasks.send(piece)) is not None:
                    yield piece, error
            if tasks.under_way and (ended := tasks.wait(queue)) is not None:
                yield ended
        if queue or tasks.under_way:
            yield from tasks.interrupted()
            raise KeyboardInterrupt


class _Tasks(Generic[What, Found]):
    """The tasks that are under way, and whose pieces they are."""

    def __init__(self, ray: ModuleType, cpus: int, gpu: bool, say: Callable[[str], None], common: bytes):
        self._ray, self._cpus, self._say = ray, cpus, say
        needs = {"CPU": float(cpus), **({"GPU": 1.0} if gpu else {})}
        self._at_once = _places(ray, needs)
        self._common = ray.put(common)
        self._do = ray.remote(num_cpus=cpus, num_gpus=needs.get("GPU", 0), max_retries=0)(_do)
        self._lost = tuple(
            getattr(ray.exceptions, name)
            for name in ("WorkerCrashedError", "NodeDiedError", "OutOfMemoryError", "ObjectLostError")
        )
        self._deaths: Counter[str] = Counter()  # since a piece last came back
        self.under_way: dict[object, Piece[What]] = {}

    @property
    def room(self) -> bool:
        """Half of what is sent waits on the cluster: who has finished goes on at once, and what scales a cluster sees a demand."""
        return len(self.under_way) < 2 * self._at_once

    def send(self, piece: Piece[What]) -> GraftError | None:
        """None, or why there is nothing to send."""
        try:
            told = pickle.dumps(piece.make())
        except GraftError as error:
            return error
        self.under_way[self._do.remote(version("grafthub"), self._cpus, self._common, told)] = piece
        return None

    def wait(self, queue: deque[Piece[What]]) -> tuple[Piece[What], Found | GraftError] | None:
        """The next piece to end, and what came of it; None where none has for a moment, or its worker has died and it goes into the
        queue again."""
        ended, _ = self._ray.wait([*self.under_way], num_returns=1, timeout=_LOOK_S)
        if not ended:
            return None
        piece = self.under_way.pop(ended[0])
        try:
            found = self._ray.get(ended[0])
        except self._lost as error:
            return self._died(piece, error, queue)
        except self._ray.exceptions.RayError as error:
            return piece, GraftError(f"{piece.name} failed on its worker: {_last_line(error)}")
        self._deaths.pop(piece.name, None)
        return piece, found

    def _died(
        self, piece: Piece[What], error: Exception, queue: deque[Piece[What]]
    ) -> tuple[Piece[What], GraftError] | None:
        self._deaths[piece.name] += 1
        why = f"the worker of {piece.name} died ({_first_line(error).partition('. ')[0].removesuffix('.')})"
        if (deaths := self._deaths[piece.name]) >= TRIES:
            return piece, GraftError(
                f"{why}, {deaths} times in all. If its node lacks memory, raise --ray-cpus: fewer tasks run there at once."
            )
        self._say(f"{why}: once more")
        queue.appendleft(piece)
        return None

    def interrupted(self) -> Iterator[tuple[Piece[What], Found | GraftError]]:
        """Interrupt all, and yield what they still return."""
        self._say("Interrupted: waiting for what the workers save. Ctrl-C again ends at once, without it.")
        for ref in self.under_way:
            self._ray.cancel(ref)
        for ref, piece in self.under_way.items():
            try:
                yield piece, self._ray.get(ref)
            except self._ray.exceptions.RayError:
                continue


def _do(graft: str, cpus: int, common: bytes, told: bytes) -> object:
    """One piece, on a worker. A GraftError is returned, for who asked is to read it."""
    if graft != version("grafthub"):
        return GraftError(
            f"{platform.node()} has graft {version('grafthub')}, and here is {graft}: install the same on every node."
        )
    import torch

    torch.set_num_threads(cpus)
    work, shared = pickle.loads(common)
    try:
        return work(shared, pickle.loads(told))
    except GraftError as error:
        return error


@contextmanager
def _first_interrupt() -> Iterator[Callable[[], bool]]:
    """Tells whether Ctrl-C was pressed; a second one raises KeyboardInterrupt. Only the main thread hears it."""
    asked: list[int] = []

    def hear(number: int, frame: FrameType | None) -> None:
        if asked:
            raise KeyboardInterrupt
        asked.append(number)

    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    before = signal.signal(signal.SIGINT, hear)
    try:
        yield lambda: bool(asked)
    finally:
        signal.signal(signal.SIGINT, before)


def _join(address: str | None) -> ModuleType:
    """Ray, connected. Raises GraftError without it, and where no cluster answers or takes us."""
    require_ray()
    if address in (None, "auto"):
        address = os.environ.get("RAY_ADDRESS") or address  # as Ray has it
    require_head(address)
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    import ray

    try:
        ray.init(address, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        raise GraftError(no_cluster(address, " ".join(str(error).split()))) from None
    return ray


def _places(ray: ModuleType, needs: dict[str, float]) -> int:
    """How many tasks run at once. Raises GraftError where not even one does."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    places = sum(min(int(has.get(kind, 0) // need) for kind, need in needs.items()) for has in nodes)
    if not places:
        most = max(int(has.get("CPU", 0)) for has in nodes)
        wanted = " and ".join(f"{need:.0f} {kind}{'s' * (need > 1)}" for kind, need in needs.items())
        raise GraftError(
            f"No node of the cluster has {wanted}, which a task takes; the largest has {most} CPUs. Lower --ray-cpus, or take "
            "--device cpu."
        )
    return places


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def _last_line(error: BaseException) -> str:
    return next(reversed(str(error).strip().splitlines()), type(error).__name__)
