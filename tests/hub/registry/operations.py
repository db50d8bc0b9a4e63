"""What can be done to a registry, each operation on the same prepared one, and what there is to see of it afterwards.

For tests that interrupt operations, or let them meet: `observe` says the same of two registries whenever nobody could tell
them apart, so that what is left after an interruption can be compared with the state before and the state after.
"""

import hashlib
import shutil
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from graft.hub.adapters.validation import CONFIG, WEIGHTS
from graft.hub.registry.access.tokens import create_token
from graft.hub.registry.commits.changes import Put
from graft.hub.registry.leaderboard import Evaluation
from graft.hub.registry.maintenance.backup import backup, restore
from graft.hub.registry.maintenance.check import check, check_rows, find_broken
from graft.hub.registry.maintenance.garbage import collect
from graft.hub.registry.maintenance.row_checks import DAMAGE
from graft.hub.registry.registry import Registry
from graft.hub.registry.search import Query
from graft.hub.registry.storage.blob_store import BlobStore
from graft.hub.registry.storage.ownership import ID_SETTING, OWNER_FILE
from graft.hub.registry.storage.read_only import connect_read_only
from tests.hub.conftest import base_spec, lora_folder

DATABASE = "registry.db"
DATA = b'{"prompt": "a", "completion": "b"}\n'


@dataclass(frozen=True)
class Operation:
    """`run` gets the registry and the folder that `prepare` filled."""

    name: str
    run: Callable[[Registry, Path], object]


def _score(registry: Registry) -> None:
    task = registry.task("news-topic")
    registry.record_evaluation(
        Evaluation(
            task=task.slug, data_hash=task.data_hash, metric=task.metric, value=0.5, n=task.examples, repo="ann/news"
        )
    )


def _commit(registry: Registry) -> None:
    registry.commit("ann/news", [Put("note.txt", registry.blobs.put_bytes(b"A note"))], title="A note")


OPERATIONS = {
    operation.name: operation
    for operation in (
        Operation("publish", lambda registry, folder: registry.publish(folder / "new", "ann/new", tags=["v1"])),
        Operation("commit", lambda registry, folder: _commit(registry)),
        Operation("promote", lambda registry, folder: registry.promote("ann/news@v1", "production")),
        Operation("rollback", lambda registry, folder: registry.rollback("ann/news", "production")),
        Operation("delete", lambda registry, folder: registry.delete_repo("ann/old")),
        Operation("move", lambda registry, folder: registry.move_repo("ann/old", "ann/older")),
        Operation("tag", lambda registry, folder: registry.create_ref("ann/news", "tag", "v3", "v1")),
        Operation("gc", lambda registry, folder: collect(registry, grace_s=0)),
        Operation("backup", lambda registry, folder: backup(registry, folder / "backup")),
        Operation("restore", lambda registry, folder: restore(folder / "kept", folder / "restored.db")),
        Operation("create", lambda registry, folder: Registry(folder / "fresh.db").close()),
        Operation("adopt", lambda registry, folder: Registry(folder / "before.db").close()),
        Operation("pull", lambda registry, folder: registry.pull("ann/news@v2", folder / "pulled")),
        Operation("evaluation", lambda registry, folder: _score(registry)),
        Operation("add_task", lambda registry, folder: registry.add_task("mood", "accuracy", DATA + DATA, "")),
        Operation("token", lambda registry, folder: create_token(registry.db, "bob", "write")),
    )
}


def prepare(folder: Path) -> None:
    """A registry with something for every operation to do."""
    registry = Registry(folder / DATABASE)
    registry.add_base(base_spec())
    registry.add_task("news-topic", "accuracy", DATA, "")
    registry.publish(lora_folder(folder / "first", rank=1), "ann/news", tags=["v1"])
    backup(registry, folder / "backup")
    registry.publish(lora_folder(folder / "second", rank=1, seed=1), "ann/news", tags=["v2"])
    registry.publish(lora_folder(folder / "old", rank=1, seed=2), "ann/old")
    registry.publish(lora_folder(folder / "gone", rank=1, seed=3), "bob/gone")
    registry.delete_repo("bob/gone")
    registry.blobs.put_bytes(b"never committed")
    for tag in ("v1", "v2"):
        registry.promote(f"ann/news@{tag}", "production")
    registry.pull("ann/news@v1", folder / "pulled")
    backup(registry, folder / "kept")
    registry.close()
    lora_folder(folder / "new", rank=1, seed=4)
    _make_old_registry(folder)
    for name in ("first", "second", "old", "gone"):
        shutil.rmtree(folder / name)


def _make_old_registry(folder: Path) -> None:
    """As graft before 0.1 left it: neither the database nor the folder of blobs has an owner."""
    old = Registry(folder / "before.db")
    old.publish(folder / "new", "ann/before")
    old.db.execute("DELETE FROM settings WHERE key = ?", [ID_SETTING])
    old.close()
    (old.blobs.folder / OWNER_FILE).unlink()


def perform(folder: Path, operation: Operation) -> None:
    with closing(Registry(folder / DATABASE, create=False)) as registry:
        operation.run(registry, folder)


def observe(folder: Path) -> dict[str, Any]:
    """What anybody can see of the registry and of what was made from it."""
    with closing(Registry(folder / DATABASE, create=False)) as registry:
        seen = _observe(registry)
    seen["backup"] = _entries(folder / "backup" / DATABASE)
    seen["restored"] = None
    if (folder / "restored.db").exists():
        with closing(Registry(folder / "restored.db", create=False)) as restored:
            seen["restored"] = _observe(restored)
    seen["pulled"] = _adapter_in(folder / "pulled")
    return seen


def problems(folder: Path) -> list[str]:
    """Of the registry, its backup, and what else may have become a registry."""
    found = []
    for path in (folder / name for name in (DATABASE, "restored.db", "fresh.db", "before.db")):
        if path.exists():
            with closing(Registry(path, create=False)) as registry:
                found += check(registry).problems
    with closing(connect_read_only(folder / "backup" / DATABASE)) as db:
        rows = check_rows(db, DAMAGE)
        blobs = BlobStore(folder / "backup" / "registry.blobs", read_only=True)
        found += [*rows.problems, *(problem for _, problem in find_broken(blobs, rows.blobs))]
    return found


def unreferred(folder: Path) -> int:
    """How many blobs nobody refers to after garbage was collected."""
    with closing(Registry(folder / DATABASE, create=False)) as registry:
        collect(registry, grace_s=0)
        return check(registry).unreferred


def _observe(registry: Registry) -> dict[str, Any]:
    db = registry.db
    names = {row["id"]: _revision(registry, row) for row in db.execute("SELECT id, title FROM revisions").fetchall()}
    listed = registry.search(Query(limit=100, sort="name")).entries
    return {
        "repos": {
            entry.name: {
                "main": names.get(entry.revision_id),
                "refs": [(ref.kind, ref.name, names[ref.revision]) for ref in registry.all_refs(entry.name)],
                "history": [
                    (move.kind, move.name, names.get(move.old or ""), names.get(move.new or ""))
                    for move in registry.history(entry.name)
                ],
                "scores": [(score.value, names[score.revision or ""]) for score in registry.evaluations(entry.name)],
            }
            for entry in listed
        },
        "names": [
            tuple(row) for row in db.execute("SELECT namespace, name, deleted_at IS NULL FROM repos ORDER BY 1, 2")
        ],
        "tasks": [(task.slug, task.data_hash) for task in registry.tasks()],
        "tokens": [tuple(row) for row in db.execute("SELECT user_id, scope FROM tokens ORDER BY id")],
        "audit": [tuple(row) for row in db.execute("SELECT action, subject FROM audit ORDER BY id")],
    }


def _revision(registry: Registry, row: Any) -> str:
    """A revision by its content: its id is of the moment it was made."""
    tree = sorted(registry.tree(row["id"]).items())
    return f"{row['title']} {hashlib.sha256(repr(tree).encode()).hexdigest()[:8]}"


def _entries(path: Path) -> int:
    """How much of the registry's history a backup holds."""
    with closing(connect_read_only(path)) as db:
        return db.execute("SELECT count(*) FROM audit").fetchone()[0]


def _adapter_in(folder: Path) -> dict[str, str] | None:
    """What the files of a folder hash to; None where it is no adapter."""
    files = {path.name: path for path in folder.iterdir() if path.is_file()}
    if CONFIG not in files or not any(name in files for name in WEIGHTS):
        return None
    return {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in sorted(files.items())}
