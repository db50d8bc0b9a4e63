"""What may go wrong under a registry: killed writers, full disks, broken uploads, many writers at once.

The promise each time: what was acknowledged is there, what wasn't is not half there, and `check` finds nothing.
"""

import os
import random
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

import httpx
import pytest

from graft.hub.errors import ConflictError
from graft.hub.registry.access import upload_claims
from graft.hub.registry.access.keys import secret
from graft.hub.registry.access.tokens import create_token
from graft.hub.registry.commits.changes import Put
from graft.hub.registry.maintenance.backup import backup, restore
from graft.hub.registry.maintenance.check import check
from graft.hub.registry.maintenance.garbage import collect
from graft.hub.registry.registry import Registry
from graft.hub.registry.storage.schema import write_transaction
from graft.hub.registry.storage.timestamps import FORMAT

WRITER = """
import sys
from graft.hub.registry.commits.changes import Put
from graft.hub.registry.registry import Registry
registry, who, adapter = Registry(sys.argv[1]), sys.argv[2], sys.argv[3]
registry.publish(adapter, f"{who}/news")
number = 0
while True:
    number += 1
    blob = registry.blobs.put_bytes(f"{who} {number}".encode() * 500)
    made = registry.commit(f"{who}/news", [Put("note.txt", blob)], title=f"note {number}")
    registry.promote(f"{who}/news@{made.id}", "production")
    print(made.id, flush=True)
"""


def killed_writers(registry: Registry, adapter: Path, rounds: int) -> int:
    """Let two writers at a time be killed at a random moment; returns how many commits were acknowledged."""
    choose, acknowledged = random.Random(7), []
    for number in range(rounds):
        writers = [
            subprocess.Popen(
                [sys.executable, "-c", WRITER, str(registry.path), f"w{number}x{which}", str(adapter)],
                stdout=subprocess.PIPE,
                text=True,
            )
            for which in range(2)
        ]
        for writer in writers:
            acknowledged.append((writer.args[4], writer.stdout.readline().strip()))  # it is at work
        time.sleep(choose.random() * 0.3)
        for writer in writers:
            writer.send_signal(signal.SIGKILL)
        for writer in writers:
            acknowledged += [(writer.args[4], line.strip()) for line in writer.stdout if len(line) == 41]
            writer.wait()
    for who, commit in acknowledged:
        found = registry.resolve(f"{who}/news@{commit}")
        assert registry.blobs.read(registry.tree(found.id)["note.txt"])
    for who in {who for who, _ in acknowledged}:
        line = [revision.id for revision in registry.revisions(f"{who}/news")]
        assert {commit for name, commit in acknowledged if name == who} <= set(line)
    return len(acknowledged)


def require_sound(registry: Registry) -> None:
    report = check(registry)
    assert report.problems == ()
    collect(registry, grace_s=0)
    after = check(registry)
    assert after.problems == () and after.unreferred == 0


def test_killed_writers_lose_nothing(registry: Registry, adapter: Path) -> None:
    assert killed_writers(registry, adapter, rounds=2) >= 4
    require_sound(registry)


@pytest.mark.slow
def test_killed_writers_lose_nothing_over_thousands_of_commits(registry: Registry, adapter: Path) -> None:
    assert killed_writers(registry, adapter, rounds=150) >= 1000
    require_sound(registry)


def test_a_full_disk_leaves_nothing_half_done(registry: Registry, adapter: Path, tmp_path: Path, lora_folder) -> None:
    """A limit on the size of files stands in for the disk's end: the write fails in the middle, as ENOSPC would."""
    registry.publish(adapter, "ann/news")
    before = registry.resolve("ann/news")
    big = lora_folder(tmp_path / "big", rank=16, seed=3)
    limited = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000));"
        "from graft.hub.cli.main import main; main(sys.argv[1:])"
    )
    words = ["publish", str(big), "ann/news", "--registry", str(registry.path)]
    done = subprocess.run([sys.executable, "-c", limited, *words], capture_output=True, text=True)
    assert done.returncode == 1 and "Traceback" not in done.stderr and done.stderr.startswith("error: ")
    assert registry.resolve("ann/news") == before and not list(registry.blobs.incoming.iterdir())
    require_sound(registry)


def test_a_full_database_leaves_nothing_half_done(registry: Registry, adapter: Path, tmp_path: Path, lora_folder):
    registry.publish(adapter, "ann/news")
    pages = registry.db.execute("PRAGMA page_count").fetchone()[0]
    registry.db.execute(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(sqlite3.OperationalError, match="database or disk is full"):
        for number in range(50):
            registry.publish(lora_folder(tmp_path / str(number), seed=number + 5), f"ann/more-{number}")
    registry.db.execute("PRAGMA max_page_count = 1000000")
    require_sound(registry)
    assert registry.publish(lora_folder(tmp_path / "last", seed=99), "ann/last")


def test_an_upload_cut_short_commits_nothing(hub: str, registry: Registry, adapter: Path) -> None:
    registry.publish(adapter, "ann/news")
    before = registry.resolve("ann/news")
    host, port = hub.removeprefix("http://").split(":")
    body = (
        b'{"key": "header", "value": {"summary": "x"}}\n{"key": "file", "value": {"path": "a.json", "content": "e30="'
    )
    request = (
        f"POST /api/models/ann/news/commit/main HTTP/1.1\r\nHost: {host}\r\nContent-Length: {len(body) + 100}\r\n\r\n"
    ).encode()
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(request + body)
    cut = httpx.post(f"{hub}/api/models/ann/news/commit/main", content=body)
    assert cut.status_code == 400 and "Line 2" in cut.json()["error"]
    assert registry.resolve("ann/news") == before
    require_sound(registry)


def test_many_writers_on_one_branch_are_put_in_line(registry: Registry, adapter: Path) -> None:
    first = registry.publish(adapter, "ann/news")

    def write(number: int) -> str:
        blob = registry.blobs.put_bytes(f"{number}".encode())
        return registry.commit("ann/news", [Put(f"note-{number}.txt", blob)], title=f"{number}").id

    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(write, range(24)))
    line = [revision.id for revision in registry.revisions("ann/news")]
    assert set(line) == {first.id, *made} and len(line) == 25
    assert sum(path.startswith("note-") for path in registry.tree(line[0])) == 24
    require_sound(registry)


def test_two_publishers_of_one_new_name(registry: Registry, tmp_path: Path, lora_folder) -> None:
    folders = [lora_folder(tmp_path / str(number), seed=number) for number in range(4)]
    with ThreadPoolExecutor(4) as pool:
        made = list(pool.map(lambda folder: registry.publish(folder, "ann/news").id, folders))
    assert {revision.id for revision in registry.revisions("ann/news")} == set(made)
    require_sound(registry)


def test_garbage_is_collected_only_after_its_grace(registry: Registry, adapter: Path) -> None:
    registry.publish(adapter, "ann/news")
    registry.blobs.put_bytes(b"never committed")
    registry.delete_repo("ann/news")
    assert collect(registry, grace_s=3600).blobs == 0
    collected = collect(registry, grace_s=0)
    assert collected.revisions == 1 and collected.blobs == 5
    with pytest.raises(ConflictError, match="not issued twice"):
        registry.create_repo("ann/news")
    require_sound(registry)


def test_check_names_what_is_broken(registry: Registry, adapter: Path, tmp_path: Path) -> None:
    revision = registry.publish(adapter, "ann/news")
    backup(registry, tmp_path / "backup")
    tree = registry.tree(revision.id)
    damaged = registry.blobs.path(tree["README.md"])
    damaged.chmod(0o600)
    damaged.write_bytes(b"changed")
    registry.blobs.path(tree["graft.json"]).unlink()
    problems = check(registry).problems
    assert len(problems) == 2 and all("Blob" in problem for problem in problems)
    report = restore(tmp_path / "backup", tmp_path / "restored" / "registry.db")
    assert report.problems == () and Registry(tmp_path / "restored" / "registry.db").resolve("ann/news") == revision
    with pytest.raises(ConflictError, match="exists"):
        restore(tmp_path / "backup", registry.path)


def test_a_backup_in_the_middle_of_writing_is_sound(registry: Registry, adapter: Path, tmp_path: Path) -> None:
    registry.publish(adapter, "ann/news")
    stop = threading.Event()

    def write() -> None:
        number = 0
        while not stop.is_set():
            number += 1
            registry.commit("ann/news", [Put("n.txt", registry.blobs.put_bytes(str(number).encode()))], title="x")

    writer = threading.Thread(target=write)
    writer.start()
    try:
        reports = [backup(registry, tmp_path / "backup") for _ in range(3)]
    finally:
        stop.set()
        writer.join()
    assert all(report.problems == () for report in reports)


def test_a_hub_reports_storage_failures_as_such(hub: str, registry: Registry, adapter: Path, monkeypatch) -> None:
    registry.publish(adapter, "ann/news")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("graft.hub.registry.storage.blob_store.os.fsync", full)
    body = b'{"key": "file", "value": {"path": "a.json", "content": "e30=", "encoding": "base64"}}\n'
    reply = httpx.post(f"{hub}/api/models/ann/news/commit/main", content=body)
    assert reply.status_code == 507 and "No space left" in reply.json()["error"]
    monkeypatch.undo()
    require_sound(registry)


def test_tokens_are_not_stored(registry: Registry) -> None:
    token = create_token(registry.db, "ann", "write")
    registry.db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    assert token.encode() not in registry.path.read_bytes()


@pytest.mark.parametrize(
    "bad", [b"[]", b"{}", b'{"key": 1, "value": {}}', b'{"key": "x", "value": {}}', b"\xff", b"[" * 99999]
)
def test_broken_commit_lines_are_refused(hub: str, registry: Registry, adapter: Path, bad: bytes) -> None:
    registry.publish(adapter, "ann/news")
    reply = httpx.post(f"{hub}/api/models/ann/news/commit/main", content=bad)
    assert reply.status_code == 400 and reply.json()["error"]


def test_files_go_only_after_their_rows(registry: Registry, adapter: Path, monkeypatch) -> None:
    """A crash between the two leaves garbage, never a row whose bytes are gone."""
    registry.publish(adapter, "ann/news")
    registry.delete_repo("ann/news")

    def crash(*_: object) -> None:
        raise RuntimeError("killed")

    monkeypatch.setattr("graft.hub.registry.storage.blob_store.BlobStore.remove", crash)
    with pytest.raises(RuntimeError):
        collect(registry, grace_s=0)
    monkeypatch.undo()
    assert registry.db.execute("SELECT count(*) FROM blobs").fetchone()[0] == 0
    require_sound(registry)


def test_a_commit_that_fails_leaves_no_transaction_open(registry: Registry) -> None:
    """What is deferred to the commit fails there: an open transaction would lock every other writer out."""
    registry.db.execute("CREATE TABLE one (id INTEGER PRIMARY KEY)")
    registry.db.execute("CREATE TABLE two (id INTEGER REFERENCES one(id) DEFERRABLE INITIALLY DEFERRED)")
    with pytest.raises(sqlite3.IntegrityError), write_transaction(registry.db):
        registry.db.execute("INSERT INTO two VALUES (1)")
    assert not registry.db.conn.in_transaction
    registry.create_repo("ann/news")


def test_reading_a_secret_takes_no_lock(registry: Registry) -> None:
    made = secret(registry.db, "lfs")
    other = sqlite3.connect(registry.path, timeout=0)
    other.execute("BEGIN IMMEDIATE")
    registry.db.execute("PRAGMA busy_timeout = 0")
    assert secret(registry.db, "lfs") == made
    other.rollback()


def test_laying_out_a_blob_that_is_stored_again_meanwhile(registry: Registry, tmp_path: Path) -> None:
    """Renaming an equal file over a blob makes link() fail at that moment: no reader may notice."""
    data = b"the same bytes"
    blob = registry.blobs.put_bytes(data)
    copy = tmp_path / "copy"
    ended = threading.Event()

    def store_again() -> None:
        target = registry.blobs.path(blob.sha256)
        while not ended.is_set():
            copy.write_bytes(data)
            copy.replace(target)

    writer = threading.Thread(target=store_again)
    writer.start()
    try:
        for _ in range(600):
            with registry.blobs.lay_out({"a.txt": blob.sha256}) as folder:
                assert (folder / "a.txt").exists()
    finally:
        ended.set()
        writer.join()


def test_an_evaluation_set_collected_before_its_task_is_recorded(registry: Registry, monkeypatch) -> None:
    """As for a commit: the bytes are stored, gc takes them, and no row may then refer to them."""
    put = registry.blobs.put_bytes

    def put_and_lose(data: bytes) -> object:
        blob = put(data)
        collect(registry, grace_s=0)
        return blob

    monkeypatch.setattr(registry.blobs, "put_bytes", put_and_lose)
    with pytest.raises(ConflictError, match="upload the file again"):
        registry.add_task("t", "accuracy", b'{"prompt": "a", "completion": "b"}\n', "")
    monkeypatch.undo()
    assert registry.tasks() == []
    require_sound(registry)


def test_a_slow_uploader_keeps_what_came_first(registry: Registry, adapter: Path) -> None:
    """Hours may lie between the first file of a commit and the commit."""
    blob = registry.blobs.put_bytes(b"the first of many")
    upload_claims.note_upload(registry.db, blob.sha256, blob.size, "ann")
    hours_ago = time.time() - 6 * 3600
    os.utime(registry.blobs.path(blob.sha256), (hours_ago, hours_ago))
    registry.db.execute("UPDATE uploads SET created_at = ?", [datetime.fromtimestamp(hours_ago, UTC).strftime(FORMAT)])
    assert collect(registry).blobs == 0
    assert registry.db.execute("SELECT count(*) FROM uploads").fetchone()[0] == 1
