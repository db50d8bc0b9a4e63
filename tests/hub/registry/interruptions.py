"""Operations of a registry killed, or held, at every point where they could leave something half done.

    python -m tests.hub.registry.interruptions killed [OPERATION ...]     each killed at each of its points
    python -m tests.hub.registry.interruptions pairs [OPERATION ...]      and another one done on what is left
    python -m tests.hub.registry.interruptions together [OPERATION ...]   and another one at work at the same time
    python -m tests.hub.registry.interruptions meetings [OPERATION ...]   held at each point while another one is done
    python -m tests.hub.registry.interruptions random COUNT               loops of operations killed at random moments

Prints a JSON line for each operation: how many cases, and what was found wrong. A process of its own because it forks: the
child has everything imported, and nothing else runs in it. A point is a call of fsync, rename, link or unlink, or the
moment before or after a COMMIT or a `VACUUM INTO`; SIGKILL leaves no time for anything.
"""

import json
import os
import random
import select
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import permutations
from pathlib import Path
from typing import Any

from graft.hub.errors import GraftError
from graft.hub.registry.storage.database import Database
from tests.hub.registry.operations import OPERATIONS, Operation, observe, perform, prepare, problems, unreferred

CALLS = ("fsync", "replace", "rename", "link", "unlink")
STATEMENTS = ("COMMIT", "VACUUM INTO ?")
MEETING = ("backup", "gc", "publish", "promote", "delete", "move")
BLOCKED_S = 0.15  # after which the other operation waits for the one that is held
Reach = Callable[[str], None]


@dataclass(frozen=True)
class Outcome:
    """Of an operation in a child. `error`: what it raised; `points`: their labels, in order; `ended`: not killed."""

    ended: bool
    error: str | None = None
    refused: bool = False
    points: tuple[str, ...] = ()

    @property
    def acknowledged(self) -> bool:
        return self.ended and self.error is None


def watch(reach: Reach) -> None:
    """Let `reach` be told of every point that this process comes to."""
    for name in CALLS:
        setattr(os, name, _watched(name, getattr(os, name), reach))
    execute = Database.execute

    def watched_execute(self: Database, sql: str, *rest: Any) -> Any:
        if sql not in STATEMENTS:
            return execute(self, sql, *rest)
        reach(f"before {sql}")
        result = execute(self, sql, *rest)
        reach(f"after {sql}")
        return result

    Database.execute = watched_execute  # type: ignore[method-assign]


def _watched(name: str, call: Callable[..., Any], reach: Reach) -> Callable[..., Any]:
    def watched(*arguments: Any, **named: Any) -> Any:
        reach(name)
        return call(*arguments, **named)

    return watched


class Child:
    """An operation at work in a process of its own. `stop_at`: the number of the point at which it is killed, or held."""

    def __init__(self, folder: Path, operation: Operation, stop_at: int = -1, *, hold: bool = False):
        self.said, says = os.pipe()
        waits, self.goes = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            os.close(self.said)
            os.close(self.goes)
            _work(folder, operation, stop_at, says, waits if hold else None)
        os.close(says)
        os.close(waits)
        self._text = b""

    def has_said(self, timeout_s: float | None) -> bool:
        """Whether it is held, or at its end, within the time."""
        if not self._text and select.select([self.said], [], [], timeout_s)[0]:
            self._text = os.read(self.said, 1 << 16)
            return True
        return bool(self._text)

    def go_on(self) -> None:
        os.write(self.goes, b"!")

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)

    def outcome(self) -> Outcome:
        """Waits for the end."""
        while more := os.read(self.said, 1 << 16):
            self._text += more
        os.waitpid(self.pid, 0)
        os.close(self.said)
        os.close(self.goes)
        told = self._text.decode().removeprefix("held\n")
        if not told:
            return Outcome(ended=False)
        report = json.loads(told)
        return Outcome(True, report["error"], report["refused"], tuple(report["points"]))


def _work(folder: Path, operation: Operation, stop_at: int, says: int, waits: int | None) -> None:
    points: list[str] = []
    error: BaseException | None = None

    def reach(label: str) -> None:
        if len(points) == stop_at:
            if waits is None:
                os.kill(os.getpid(), signal.SIGKILL)
            else:
                os.write(says, b"held\n")
                os.read(waits, 1)
        points.append(label)

    watch(reach)
    try:
        perform(folder, operation)
    except BaseException as raised:
        error = raised
    report = {
        "error": f"{type(error).__name__}: {error}" if error else None,
        "refused": isinstance(error, GraftError),
        "points": points,
    }
    os.write(says, json.dumps(report).encode())
    os._exit(0)


@dataclass(frozen=True)
class Case:
    """One interruption: where, and what is wrong after it."""

    where: str
    wrong: tuple[str, ...]


class Laboratory:
    """A prepared registry, copies of it, and what one looks like after operations that nobody interrupted."""

    def __init__(self, place: Path):
        self.place = place
        self.template = place / "template"
        self.template.mkdir()
        prepare(self.template)
        self._states: dict[tuple[str, ...], dict[str, Any] | None] = {}
        self._points: dict[str, tuple[str, ...]] = {}

    @contextmanager
    def copy(self) -> Iterator[Path]:
        folder = Path(tempfile.mkdtemp(dir=self.place))
        shutil.copytree(self.template, folder, dirs_exist_ok=True)
        try:
            yield folder
        finally:
            shutil.rmtree(folder)

    def points(self, operation: Operation) -> tuple[str, ...]:
        """The labels of the points that an operation passes."""
        if operation.name not in self._points:
            with self.copy() as folder:
                done = Child(folder, operation).outcome()
                assert done.acknowledged, done.error
                self._points[operation.name] = done.points
        return self._points[operation.name]

    def after(self, *names: str) -> dict[str, Any] | None:
        """What there is to see after these operations in this order; None where one of them can't be done then."""
        if names not in self._states:
            with self.copy() as folder:
                try:
                    for name in names:
                        perform(folder, OPERATIONS[name])
                    self._states[names] = observe(folder)
                except GraftError:
                    self._states[names] = None
        return self._states[names]

    def killed(self, operation: Operation, point: int) -> Case:
        with self.copy() as folder:
            outcome = Child(folder, operation, point).outcome()
            wrong = [] if not outcome.ended else [f"it was not killed: {outcome.error}"]
            wrong += problems(folder)
            if not same(observe(folder), self.after(operation.name)):
                if not same(observe(folder), self.after()):
                    wrong.append(f"half-done: {difference(observe(folder), self.after())}")
                perform(folder, operation)
                if not same(observe(folder), self.after(operation.name), whole=True):
                    wrong.append(f"done again: {difference(observe(folder), self.after(operation.name))}")
            return Case(self._where(operation, point), (*wrong, *_after_gc(folder)))

    def pair(self, operation: Operation, point: int, other: Operation) -> Case:
        """`other` is done on what a killed `operation` left; then that is tried again."""
        with self.copy() as folder:
            Child(folder, operation, point).outcome()
            second = Child(folder, other).outcome()
            wrong = [] if second.acknowledged or second.refused else [f"{other.name}: {second.error}"]
            done = (other.name,) if second.acknowledged else ()
            states = (self.after(*done), self.after(operation.name, *done))
            wrong += self._compare(folder, states)
            again = Child(folder, operation).outcome()
            wrong += [] if again.acknowledged or again.refused else [f"again: {again.error}"]
            return Case(
                f"{self._where(operation, point)}, then {other.name}", (*wrong, *problems(folder), *_after_gc(folder))
            )

    def together(self, operation: Operation, point: int, other: Operation) -> Case:
        """Both at once; `operation` is killed."""
        with self.copy() as folder:
            children = Child(folder, operation, point), Child(folder, other)
            first, second = (child.outcome() for child in children)
            wrong = self._compare(folder, self._possible((operation.name, first), (other.name, second)))
            return Case(f"{self._where(operation, point)}, beside {other.name}", (*wrong, *_after_gc(folder)))

    def meeting(self, operation: Operation, point: int, other: Operation) -> Case:
        """`operation` is held at a point until `other` is done, or waits for it."""
        with self.copy() as folder:
            first = Child(folder, operation, point, hold=True)
            first.has_said(None)
            second = Child(folder, other)
            second.has_said(BLOCKED_S)
            first.go_on()
            outcomes = (operation.name, first.outcome()), (other.name, second.outcome())
            wrong = [f"{name}: {done.error}" for name, done in outcomes if not done.acknowledged and not done.refused]
            wrong += self._compare(folder, self._possible(*outcomes))
            return Case(f"{self._where(operation, point)} held, {other.name} meanwhile", (*wrong, *_after_gc(folder)))

    def _possible(self, *outcomes: tuple[str, Outcome]) -> list[dict[str, Any] | None]:
        """What there may be to see: all that was acknowledged, nothing that was refused, in any order."""
        sure = [name for name, done in outcomes if done.acknowledged]
        maybe = [name for name, done in outcomes if not done.ended]
        chosen = (sure + list(some) for count in range(len(maybe) + 1) for some in permutations(maybe, count))
        return [self.after(*order) for names in chosen for order in permutations(names)]

    def _compare(self, folder: Path, states: Any) -> list[str]:
        seen = observe(folder)
        wrong = problems(folder)
        if not any(same(seen, state) for state in states):
            wrong.append(f"none of the possible states: {difference(seen, next(filter(None, states), {}))}")
        return wrong

    def _where(self, operation: Operation, point: int) -> str:
        return f"{operation.name} at {point} ({self.points(operation)[point]})"


def same(seen: dict[str, Any], state: dict[str, Any] | None, *, whole: bool = False) -> bool:
    """A folder that was being pulled into may hold no adapter (unless it must be `whole`), but never another one."""
    if state is None:
        return False
    if not whole and seen["pulled"] is None:
        state = state | {"pulled": None}
    return seen == state


def difference(seen: dict[str, Any], state: dict[str, Any] | None) -> str:
    state = state or {}
    return ", ".join(f"{key}: {seen[key]} and not {state.get(key)}" for key in seen if seen[key] != state.get(key))


def _after_gc(folder: Path) -> list[str]:
    left = unreferred(folder)
    return problems(folder) + ([f"{left} blobs that gc does not take"] if left else [])


def random_kills(laboratory: Laboratory, count: int) -> list[Case]:
    """Loops of operations in two processes on one registry, both killed at a random moment, `count` times in all."""
    choose, cases, done = random.Random(11), [], 0
    while len(cases) < count:
        with laboratory.copy() as folder:
            for number in range(10):
                said = [_Writer(folder, f"{number}-{which}") for which in range(2)]
                time.sleep(0.02 + choose.random() * 0.15)
                for writer in said:
                    writer.kill()
                told = [writer.told() for writer in said]
                done += sum(map(len, told))
                wrong = [*_lost(folder, told), *problems(folder)]
                cases += [Case(f"round {len(cases)}", tuple(wrong)), Case(f"round {len(cases)}", ())]
            cases[-1] = Case(cases[-1].where, tuple(_after_gc(folder)))
    if done < count:  # on a machine that is too busy nothing would be tried
        cases.append(Case("all rounds", (f"only {done} operations were acknowledged",)))
    return cases


def _lost(folder: Path, told: list[list[str]]) -> list[str]:
    """What was acknowledged and is not there."""
    there = {f"{action} {subject}" for action, subject in observe(folder)["audit"]}
    return [f"{line} was acknowledged and is lost" for lines in told for line in lines if line not in there]


class _Writer:
    """A process that publishes, promotes, scores, moves and deletes, and says what it has done."""

    def __init__(self, folder: Path, who: str):
        self.said, says = os.pipe()
        self.who = who
        self.pid = os.fork()
        if self.pid == 0:
            self._write(folder, says)
        os.close(says)

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)

    def told(self) -> list[str]:
        """What it had done before it was killed."""
        with os.fdopen(self.said) as stream:
            return [line.strip() for line in stream if line.endswith("\n")]

    def _write(self, folder: Path, says: int) -> None:
        from graft.hub.registry.maintenance.garbage import collect
        from graft.hub.registry.registry import Registry

        registry, number = Registry(folder / "registry.db"), 0
        while True:
            number += 1
            name = f"w{self.who}/n{number}"
            registry.publish(folder / "new", name)
            os.write(says, f"commit {name}\n".encode())
            registry.promote(name, "production")
            os.write(says, f"promote {name}@production\n".encode())
            registry.move_repo(name, f"{name}-moved")
            os.write(says, f"repo.move {name}\n".encode())
            if number % 2:
                registry.delete_repo(f"{name}-moved")
                os.write(says, f"repo.delete {name}-moved\n".encode())
            collect(registry, grace_s=3600) if number % 3 == 0 and self.who.endswith("0") else None


def _run(kind: str, names: list[str], laboratory: Laboratory) -> Iterator[tuple[str, list[Case]]]:
    if kind == "random":
        yield "random", random_kills(laboratory, int(names[0]))
        return
    others = [OPERATIONS[name] for name in (MEETING if kind == "meetings" else OPERATIONS)]
    for operation in (OPERATIONS[name] for name in (names or OPERATIONS)):
        points = range(len(laboratory.points(operation)))
        if kind == "killed":
            yield operation.name, [laboratory.killed(operation, point) for point in points]
        else:
            act = {"pairs": laboratory.pair, "together": laboratory.together, "meetings": laboratory.meeting}[kind]
            yield operation.name, [act(operation, point, other) for other in others for point in points]


def main() -> None:
    kind, *names = sys.argv[1:]
    memory = "/dev/shm"  # who is killed loses nothing that was not flushed, so no time goes into flushing
    with tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None) as place:
        for name, cases in _run(kind, names, Laboratory(Path(place))):
            wrong = {case.where: case.wrong for case in cases if case.wrong}
            print(json.dumps({"operation": name, "cases": len(cases), "wrong": wrong}), flush=True)


if __name__ == "__main__":
    main()
