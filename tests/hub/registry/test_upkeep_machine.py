"""Adapters published, promoted, deleted, collected, backed up and restored in any order, against plain dictionaries."""

import copy
import tempfile
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from graft.hub.errors import ConflictError, GraftError, NotFoundError, RevisionNotFoundError
from graft.hub.registry.maintenance.backup import backup, restore
from graft.hub.registry.maintenance.check import check
from graft.hub.registry.maintenance.garbage import collect
from graft.hub.registry.registry import Registry
from tests.hub.conftest import base_spec, lora_folder

NAMES = st.sampled_from(["ann/a", "ann/b", "bob/c"])
SEEDS = st.integers(0, 2)


@dataclass
class Model:
    """What there should be: the versions of each repo, where production stands and has been, the downloads."""

    versions: dict[str, list[str]] = field(default_factory=dict)
    production: dict[str, list[tuple[str | None, str]]] = field(default_factory=dict)  # moves, as (old, new)
    downloads: dict[str, int] = field(default_factory=dict)
    deleted: set[str] = field(default_factory=set)


class UpkeepMachine(RuleBasedStateMachine):
    """`kept`: what the last backup holds."""

    registry: Registry | None = None

    @initialize()
    def start(self) -> None:
        self.folder = tempfile.TemporaryDirectory()
        self.place = Path(self.folder.name)
        self.adapters = [lora_folder(self.place / f"{seed}", seed=seed, rank=1) for seed in range(3)]
        self.registry = Registry(self.place / "registry.db")
        self.registry.add_base(base_spec())
        self.model, self.kept, self.restored = Model(), None, 0

    @rule(name=NAMES, seed=SEEDS)
    def publish(self, name: str, seed: int) -> None:
        if name in self.model.deleted:
            with pytest.raises(ConflictError):
                self.registry.publish(self.adapters[seed], name)
            return
        made = self.registry.publish(self.adapters[seed], name)
        versions = self.model.versions.setdefault(name, [])
        self.model.downloads.setdefault(name, 0)
        if made.id not in versions[-1:]:
            versions.append(made.id)

    @rule(name=NAMES, which=st.integers(0, 3))
    def promote(self, name: str, which: int) -> None:
        versions = self.model.versions.get(name)
        if versions is None:
            with pytest.raises(NotFoundError):
                self.registry.promote(name, "production")
            return
        chosen = versions[which % len(versions)]
        self.registry.promote(f"{name}@{chosen}", "production")
        moves = self.model.production.setdefault(name, [])
        moves.append((moves[-1][1] if moves else None, chosen))

    @rule(name=NAMES)
    def rollback(self, name: str) -> None:
        moves = self.model.production.get(name, [])
        changes = [old for old, new in moves if old != new]
        if not changes or changes[-1] is None:
            with pytest.raises(NotFoundError):
                self.registry.rollback(name, "production")
            return
        self.registry.rollback(name, "production")
        moves.append((moves[-1][1], changes[-1]))

    @rule(name=NAMES)
    def delete(self, name: str) -> None:
        if name not in self.model.versions:
            return
        self.registry.delete_repo(name)
        for kept in (self.model.versions, self.model.production, self.model.downloads):
            kept.pop(name, None)
        self.model.deleted.add(name)

    @rule(name=NAMES)
    def pull(self, name: str) -> None:
        if name in self.model.versions:
            self.registry.pull(name, self.place / "pulled")
            self.model.downloads[name] += 1

    @rule()
    def collect(self) -> None:
        collect(self.registry, grace_s=0)
        assert check(self.registry).unreferred == 0

    @rule()
    def back_up(self) -> None:
        assert backup(self.registry, self.place / "backup").problems == ()
        self.kept = copy.deepcopy(self.model)

    @precondition(lambda self: self.registry is not None and self.kept is not None)
    @rule()
    def restore(self) -> None:
        self.restored += 1
        path = self.place / f"restored-{self.restored}" / "registry.db"
        restore(self.place / "backup", path)
        with closing(Registry(path)) as again:
            assert check(again).problems == ()
            self.compare(again, self.kept)
            if self.kept != self.model:
                with pytest.raises(GraftError):
                    restore(self.place / "backup", self.registry.path)

    @precondition(lambda self: self.registry is not None and self.kept is not None)
    @rule()
    def lose_everything(self) -> None:
        """The registry is gone, and goes on from its last backup."""
        self.registry.close()
        path = self.place / f"again-{self.restored}.db"
        self.restored += 1
        restore(self.place / "backup", path)
        self.registry, self.model = Registry(path), copy.deepcopy(self.kept)

    @invariant()
    def agrees(self) -> None:
        if self.registry is not None:
            self.compare(self.registry, self.model)
            assert check(self.registry).problems == ()

    def compare(self, registry: Registry, model: Model) -> None:
        promoted = {name: moves[-1][1] for name, moves in model.production.items()}
        for name, versions in model.versions.items():
            assert [revision.id for revision in registry.revisions(name)][::-1] == versions
            assert registry.repo(name).downloads == model.downloads[name]
            if name in promoted:
                assert registry.resolve(f"{name}@production").id == promoted[name]
        if promoted:
            assert registry.resolve("task:news-topic").id in promoted.values()
        else:
            with pytest.raises(RevisionNotFoundError):
                registry.resolve("task:news-topic")

    def teardown(self) -> None:
        if self.registry is not None:
            self.registry.close()
            self.folder.cleanup()


TestUpkeepMachine = UpkeepMachine.TestCase
TestUpkeepMachine.settings = settings(
    max_examples=8, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck)
)
