"""What safety costs a registry: publishing against the disk's own floor, many publishers, checking, restoring, browsing.

    python -m benchmarks.tables.registry                                                     everything (about an hour)
    python -m benchmarks.tables.registry --publishes 8 --publishers 4 --megabytes 64 --adapters 300 --out DIR   a quick look

Writes results/registry.json and results/registry.md.

The floor of publishing 5 MB is what any store must do that keeps it over a power cut: write 5 MB, hash them (SHA-256), fsync,
rename, fsync of the folder, and one commit of SQLite with `synchronous = FULL`. Floor and publish take turns on the same
disk, so that whatever else the disk does meets both. Publishing is `Registry.publish` of a folder, in one process and, many
at once, in threads of one. Browsing is over HTTP, as in benchmarks/tables/hub.py, whose questions it asks.
"""

import argparse
import hashlib
import os
import sqlite3
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.lib import report
from benchmarks.tables.hub import adapter_bytes, browsing, fill, serving, spread, timed
from graft.hub.machine.atomic_files import flush
from graft.hub.registry.maintenance.backup import backup, restore
from graft.hub.registry.maintenance.check import check
from graft.hub.registry.registry import Registry
from graft.hub.registry.search import Query
from graft.hub.registry.storage.blob_rows import record_blob

MEGABYTES, BLOB_MEGABYTES = 5.0, 16
MOST_OF_FLOOR = 2.0  # publish p95 over floor p95
BROWSE_TARGET_MS = 50
CONFIG = (
    '{"peft_type": "LORA", "base_model_name_or_path": "acme/base", "r": %d, "lora_alpha": 8, "target_modules": ["q_proj"], '
    '"bias": "none", "task_type": "CAUSAL_LM"}'
)
CARD = "---\ntags: [task:task-1]\nbase_model: acme/base\n---\n# A card\n"


def adapter_folder(folder: Path, seed: int) -> Path:
    """An adapter of 5 MB with its config and card."""
    folder.mkdir(parents=True)
    rows = int(MEGABYTES * 2**20 / 4 / 576 / 2)
    (folder / "adapter_config.json").write_text(CONFIG % rows)
    (folder / "adapter_model.safetensors").write_bytes(adapter_bytes(seed, MEGABYTES))
    (folder / "README.md").write_text(CARD)
    return folder


class Floor:
    """The least that keeps 5 MB for good, on the disk that `folder` is on."""

    def __init__(self, folder: Path):
        self.folder = folder
        folder.mkdir()
        self.db = sqlite3.connect(folder / "floor.db", isolation_level=None)
        self.db.execute("PRAGMA journal_mode = WAL")
        self.db.execute("PRAGMA synchronous = FULL")
        self.db.execute("CREATE TABLE kept (sha256 TEXT)")

    def keep(self, data: bytes) -> None:
        arriving = self.folder / "arriving"
        with arriving.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        name = hashlib.sha256(data).hexdigest()
        arriving.rename(self.folder / name)
        flush(self.folder)
        self.db.execute("INSERT INTO kept VALUES (?)", [name])


def publishing(place: Path, count: int) -> dict[str, dict[str, float]]:
    """Milliseconds of floor and publish, in turns."""
    registry, floor = Registry(place / "one" / "registry.db"), Floor(place / "floor")
    adapters = [adapter_folder(place / "adapters" / f"{seed}", seed) for seed in range(min(count, 16))]
    registry.publish(adapter_folder(place / "warm", 1000), "bench/warm")
    times: dict[str, list[float]] = {"floor": [], "publish": []}
    for number in range(count):
        folder = adapters[number % len(adapters)]
        data = np.random.default_rng(number).bytes(int(MEGABYTES * 2**20))
        times["floor"].append(timed(lambda data=data: floor.keep(data)))
        # The same bytes under another name are written, flushed and hashed again: nothing is spared.
        times["publish"].append(
            timed(lambda folder=folder, number=number: registry.publish(folder, f"bench/n{number}"))
        )
    return {name: spread(taken, 0.0) for name, taken in times.items()}


def crowding(place: Path, publishers: int) -> dict[str, Any]:
    """All at once, each an adapter of its own under a name of its own."""
    registry = Registry(place / "many" / "registry.db")
    adapters = [adapter_folder(place / "crowd" / f"{seed}", 5000 + seed) for seed in range(publishers)]

    def publish(number: int) -> float:
        return timed(lambda: registry.publish(adapters[number], f"bench/n{number}"))

    with ThreadPoolExecutor(publishers) as pool:
        times = list(pool.map(publish, range(publishers)))
    kept = registry.search(Query(author="bench", limit=1000)).total
    return spread(times, 0.0) | {"lost": publishers - kept, "problems": len(check(registry).problems)}


def upkeep(place: Path, megabytes: int) -> dict[str, float]:
    """Seconds per GB of check, backup (the first one) and restore, over blobs of 16 MB."""
    registry = Registry(place / "large" / "registry.db")
    count = max(1, megabytes // BLOB_MEGABYTES)
    for number in range(count):
        blob = registry.blobs.put_bytes(np.random.default_rng(number).bytes(BLOB_MEGABYTES << 20))
        record_blob(registry.db, registry.blobs, blob, "bench", "2026-01-01T00:00:00.000000Z")
    gigabytes = count * BLOB_MEGABYTES / 1024
    found = {"gigabytes": gigabytes}
    for name, act in (
        ("check", lambda: check(registry)),
        ("first backup", lambda: backup(registry, place / "backup")),
        ("repeated backup", lambda: backup(registry, place / "backup")),
        ("restore", lambda: restore(place / "backup", place / "restored" / "registry.db")),
    ):
        started = time.perf_counter()
        act()
        found[name] = round((time.perf_counter() - started) / gigabytes, 2)
    return found


def browsed(place: Path, adapters: int, repeats: int) -> dict[str, dict[str, float]]:
    """p95 of every question of benchmarks/tables/hub.py."""
    registry = Registry(place / "browsed" / "registry.db")
    fill(registry, adapters)
    with serving(registry) as (url, process, _):
        return browsing(url, process, repeats)


def measured(options: argparse.Namespace) -> dict[str, Any]:
    found: dict[str, Any] = {"adapters": options.adapters, "load_average_before": os.getloadavg()[0]}
    with tempfile.TemporaryDirectory(dir=options.disk) as folder:
        place = Path(folder)
        found["publishing"] = publishing(place, options.publishes)
        found["publishers"] = options.publishers
        found["crowding"] = crowding(place, options.publishers)
        found["upkeep"] = upkeep(place, options.megabytes)
        found["browsing"] = browsed(place, options.adapters, options.repeats)
    alone, floor = found["publishing"]["publish"]["p95_ms"], found["publishing"]["floor"]["p95_ms"]
    found["of_floor"] = round(alone / floor, 2)
    found["of_alone"] = round(found["crowding"]["p95_ms"] / alone, 1)
    return found


def summary(result: dict[str, Any]) -> str:
    """What docs/performance.md shows."""
    found = result["figures"]
    rows = [
        ["floor of 5 MB", *_spread(found["publishing"]["floor"]), ""],
        ["publish 5 MB", *_spread(found["publishing"]["publish"]), f"{MOST_OF_FLOOR} x the floor"],
        [f"publish 5 MB, {found['publishers']} at once", *_spread(found["crowding"]), f"{found['publishers']} x alone"],
        *([kind, *_spread(figures), f"{BROWSE_TARGET_MS}"] for kind, figures in found["browsing"].items()),
    ]
    costs = found["upkeep"]
    return "\n".join(
        [
            report.table(["", "p50 ms", "p95 ms", "n", "bar for p95"], rows),
            f"Publishing 5 MB takes {found['of_floor']} times its floor at the 95th percentile; {found['publishers']} at once "
            f"take {found['of_alone']} times one alone, {found['crowding']['lost']} of them lost, "
            f"{found['crowding']['problems']} problems found. Seconds per GB, of {costs['gigabytes']} GB: check "
            f"{costs['check']}, first backup {costs['first backup']}, repeated {costs['repeated backup']}, restore "
            f"{costs['restore']}. Browsed are {found['adapters']:,} adapters x 3 versions, over HTTP.",
            "",
        ]
    )


def _spread(figures: dict[str, float]) -> tuple[float, str, float]:
    return figures["p50_ms"], f"**{figures['p95_ms']}**", figures["n"]


def markdown(result: dict[str, Any]) -> str:
    return report.heading(result, "The registry: publishing, upkeep, 100,000 adapters") + "\n" + summary(result)


def main() -> None:
    options = arguments()
    result = report.envelope("registry", options, figures=measured(options))
    report.write(options.out, result, markdown(result))
    report.into_docs(options.out, result["name"], summary(result))
    print((options.out / "registry.md").read_text())


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--publishes", type=int, default=100)
    parser.add_argument("--publishers", type=int, default=64, help="at once")
    parser.add_argument("--megabytes", type=int, default=2048, help="that are checked, backed up and restored")
    parser.add_argument("--adapters", type=int, default=100_000)
    parser.add_argument("--repeats", type=int, default=40, help="of each browsing question")
    parser.add_argument("--disk", type=Path, help="where to measure (default: the folder for temporary files)")
    parser.add_argument("--out", type=Path, default=report.RESULTS, help="folder of the results")
    parser.set_defaults(threads=os.cpu_count())
    return parser.parse_args()


if __name__ == "__main__":
    main()
