"""How fast the hub is: browsing 10,000 adapters, publishing 5 MB, resolving, starting.

    python -m benchmarks.tables.hub                                           everything (some minutes)
    python -m benchmarks.tables.hub --adapters 500 --publishes 10 --out DIR   a quick look

Writes results/hub.json, results/hub.md and a plot, hub.svg.

Every number is measured over HTTP against `graft hub serve` in a process of its own; the clients share its cores. The
browsed registry is filled straight through the registry's own tables, the published ones through the protocol.
"""

import argparse
import base64
import hashlib
import http.client
import json
import os
import random
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
from safetensors.numpy import save

from benchmarks.lib import plots, report
from graft.hub.registry import search as catalog
from graft.hub.registry.access.tokens import create_token
from graft.hub.registry.maintenance.check import check
from graft.hub.registry.registry import Registry
from graft.hub.registry.storage.schema import write_transaction
from graft.hub.registry.storage.timestamps import now

VERSIONS, SCORES = 3, 5
BROWSE_TARGET, PUBLISH_TARGETS = 50, {"publish 5 MB, alone": 150, "publish 5 MB, 16 at once": 1000}  # p95, ms
METHODS = ("lora", "series", "parallel", "prompt", "prefix", "ptuning", "bitfit", "ia3")
TASKS = tuple(f"task-{number}" for number in range(40))
BASES = tuple(f"org-{number}/base-{number}" for number in range(12))
LICENSES = ("apache-2.0", "mit", "cc-by-4.0", "unknown")
WORDS = [
    "news",
    "headline",
    "review",
    "legal",
    "medical",
    "code",
    "chat",
    "french",
    "german",
    "poem",
    "law",
    "tweet",
    "email",
    "title",
    "summary",
]


def fill(registry: Registry, adapters: int) -> None:
    """Rows as commits make them: repos, revisions, artifacts, refs, listing, labels, texts, scores."""
    db, choose = registry.db, random.Random(1234)
    blob = registry.blobs.put_bytes(b"{}")
    data = registry.blobs.put_bytes(b'{"prompt": "a", "completion": "b"}\n')
    with write_transaction(db):
        for each in (blob, data):
            db.table("blobs").insert(
                {"sha256": each.sha256, "git_oid": each.git_oid, "size": each.size, "created_at": now()}
            )
        for slug in TASKS:
            row = {"slug": slug, "metric": "accuracy", "description": f"About {slug}", "data_hash": data.sha256}
            db.table("tasks").insert(row | {"examples": 1, "created_at": now(), "updated_at": now()})
    for start in range(0, adapters, 1000):
        with write_transaction(db):
            for number in range(start, min(start + 1000, adapters)):
                _fill_one(registry, number, choose, blob.sha256, data.sha256)
    db.execute("ANALYZE")


def _fill_one(registry: Registry, number: int, choose: random.Random, blob: str, data: str) -> None:
    db = registry.db
    task, base, method = choose.choice(TASKS), choose.choice(BASES), choose.choice(METHODS)
    fingerprint = hashlib.sha256(base.encode()).hexdigest()
    words = " ".join(choose.sample(WORDS, 3))
    at = f"2026-{1 + number % 12:02}-{1 + number % 28:02}T10:00:00.{number % 1000000:06}Z"
    place = {"namespace": f"user-{number % 300}", "name": f"{words.replace(' ', '-')}-{number}"}
    repo_id = (
        db.table("repos")
        .insert(place | {"created_at": at, "updated_at": at, "downloads": choose.randrange(5000)})
        .last_pk
    )
    card = {"license": choose.choice(LICENSES), "tags": [method, f"task:{task}"], "base_model": base}
    shapes = {f"layers.{i}.{p}.weight": {"dtype": "F32", "shape": [8, 576]} for i in range(30) for p in ("q", "v")}
    revision = parent = None
    for version in range(VERSIONS):
        revision = f"{number * VERSIONS + version:040x}"
        row = {"id": revision, "repo_id": repo_id, "parent": parent, "author": "user", "title": f"Version {version}"}
        db.table("revisions").insert(row | {"message": "", "created_at": at})
        db.table("files").insert(
            {"revision_id": revision, "path": "adapter_config.json", "sha256": blob, "changed_in": revision}
        )
        db.table("artifacts").insert(
            {
                "revision_id": revision, "digest": f"{int(revision, 16):064x}", "method": method, "variant": method,
                "task": task, "base_id": base, "base_fingerprint": fingerprint, "parameters": choose.randrange(10**4, 10**7),
                "bytes": 5 << 20, "max_rank": 8, "dtype": "F32", "config": "{}", "tensors": json.dumps(shapes),
                "provenance": "{}", "card": json.dumps(card), "warnings": "[]",
            }
        )  # fmt: skip
        parent = revision
    db.table("refs").insert({"repo_id": repo_id, "kind": "branch", "name": "main", "revision_id": revision})
    for score in range(SCORES):
        db.table("evaluations").insert(
            {
                "repo_id": repo_id, "revision_id": revision, "digest": f"{int(revision, 16):064x}", "task": task,
                "base_fingerprint": fingerprint, "data_hash": data if score else "0" * 64, "metric": "accuracy", "value": choose.random(), "n": 100,
                "engine": "", "source": "graft", "extra": "{}", "who": "", "created_at": at,
            }
        )  # fmt: skip
    catalog.list_repo(db, repo_id, revision, card, f"A card about {words}. " * 20)


@contextmanager
def serving(registry: Registry, *options: str) -> Iterator[tuple[str, psutil.Process, float]]:
    """A hub in its own process: its address, the process, and the milliseconds until it answered."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    words = ["hub", "serve", "--registry", str(registry.path), "--port", str(port), *options]
    started = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-m", "graft.hub.cli.main", *words], stderr=subprocess.DEVNULL)
    try:
        while True:
            try:
                httpx.get(f"http://127.0.0.1:{port}/health")
                break
            except httpx.TransportError:
                time.sleep(0.005)
        yield f"http://127.0.0.1:{port}", psutil.Process(process.pid), (time.perf_counter() - started) * 1000
    finally:
        process.terminate()
        process.wait()


def timed(call: Callable[[], object]) -> float:
    """Milliseconds."""
    started = time.perf_counter()
    call()
    return (time.perf_counter() - started) * 1000


def spread(times: list[float], cpu_s: float) -> dict[str, float]:
    """`cpu_ms`: the hub's own processor time a request, which other work on the machine hardly touches."""
    ordered = sorted(times)
    return {
        "p50_ms": round(statistics.median(ordered), 1),
        "p95_ms": round(ordered[min(len(ordered) - 1, int(len(ordered) * 0.95))], 1),
        "cpu_ms": round(cpu_s * 1000 / len(ordered), 1),
        "n": len(ordered),
    }


def cpu_s(process: psutil.Process) -> float:
    spent = process.cpu_times()
    return spent.user + spent.system


def browsing(url: str, process: psutil.Process, repeats: int) -> dict[str, dict[str, float]]:
    """Page and API times by kind of question, arguments varied so that no answer is asked for twice in a row."""
    choose = random.Random(99)
    kinds: dict[str, Callable[[], str]] = {
        "front page": lambda: "/",
        "facets: task + base": lambda: f"/?task={choose.choice(TASKS)}&base={choose.choice(BASES)}",
        "facets: task + method, by score": lambda: (
            f"/?task={choose.choice(TASKS)}&method={choose.choice(METHODS)}&sort=score"
        ),
        "text": lambda: f"/?q={choose.choice(WORDS)}+{choose.choice(WORDS)}",
        "text + task, by downloads": lambda: f"/?q={choose.choice(WORDS)}&task={choose.choice(TASKS)}&sort=downloads",
        "page 100": lambda: f"/?offset=2500&sort={choose.choice(('updated', 'created', 'downloads'))}",
        "API search": lambda: f"/api/adapters?task={choose.choice(TASKS)}&q={choose.choice(WORDS)}",
        "list_models, 2 filters": lambda: (
            f"/api/models?filter=task:{choose.choice(TASKS)}&filter={choose.choice(METHODS)}&limit=50"
        ),
        "leaderboard": lambda: f"/tasks/{choose.choice(TASKS)}",
    }
    found = {}
    with httpx.Client(base_url=url, timeout=60) as client:
        for kind, path in kinds.items():
            client.get(path())
            before = cpu_s(process)
            times = [timed(partial(client.get, path())) for _ in range(repeats)]
            found[kind] = spread(times, cpu_s(process) - before)
    return found


def adapter_bytes(seed: int, megabytes: float) -> bytes:
    rows = int(megabytes * 2**20 / 4 / 576 / 2)
    values = np.random.default_rng(seed).standard_normal((rows * 2, 576), dtype=np.float32)
    prefix = "base_model.model.model.layers.0.self_attn.q_proj"
    return save({f"{prefix}.lora_A.weight": values[:rows], f"{prefix}.lora_B.weight": values[rows:].T.copy()})


def commit_body(seed: int, megabytes: float) -> bytes:
    rows = int(megabytes * 2**20 / 4 / 576 / 2)
    config = {"peft_type": "LORA", "base_model_name_or_path": "acme/base", "r": rows, "lora_alpha": 8}
    config |= {"target_modules": ["q_proj"], "bias": "none", "task_type": "CAUSAL_LM"}
    files = {
        "adapter_config.json": json.dumps(config).encode(),
        "adapter_model.safetensors": adapter_bytes(seed, megabytes),
        "README.md": b"---\ntags: [task:task-1]\nbase_model: acme/base\n---\n# A card\n",
    }
    lines = [{"key": "header", "value": {"summary": f"Publish {seed}"}}]
    for path, content in files.items():
        value = {"path": path, "content": base64.b64encode(content).decode(), "encoding": "base64"}
        lines.append({"key": "file", "value": value})
    return b"\n".join(json.dumps(line).encode() for line in lines)


def publishing(
    url: str, process: psutil.Process, token: str, count: int, workers: int
) -> tuple[dict[str, float], list[str]]:
    """Commit times of `count` 5 MB adapters by `workers` at once, bodies made beforehand; and the names acknowledged."""
    bodies = [commit_body(workers * 1000 + seed, 5.0) for seed in range(min(count, 24))]
    headers = {"Authorization": f"Bearer {token}"}
    acknowledged, times, lock = [], [], threading.Lock()

    def publish(number: int) -> None:
        name = f"bench/w{workers}-{number}"
        with httpx.Client(base_url=url, headers=headers, timeout=120) as client:
            client.post("/api/repos/create", json={"name": name}).raise_for_status()
            body = bodies[number % len(bodies)]
            took = timed(lambda: client.post(f"/api/models/{name}/commit/main", content=body).raise_for_status())
        with lock:
            times.append(took)
            acknowledged.append(name)

    before = cpu_s(process)
    with ThreadPoolExecutor(workers) as pool:
        list(pool.map(publish, range(count)))
    return spread(times, cpu_s(process) - before), acknowledged


def resolving(url: str, name: str) -> float:
    """GB/s of reading a 5 MB file again and again over one connection, by a client that only reads."""
    connection = http.client.HTTPConnection(url.removeprefix("http://"))
    buffer, total, started = memoryview(bytearray(1 << 20)), 0, time.perf_counter()
    for _ in range(100):
        connection.request("GET", f"/{name}/resolve/main/adapter_model.safetensors")
        reply = connection.getresponse()
        while count := reply.readinto(buffer):
            total += count
    return total / (time.perf_counter() - started) / 1e9


def measured(options: argparse.Namespace) -> dict[str, Any]:
    found: dict[str, Any] = {"adapters": options.adapters, "load_average_before": os.getloadavg()[0]}
    with tempfile.TemporaryDirectory() as folder:
        registry = Registry(Path(folder) / "registry.db")
        fill(registry, options.adapters)
        token = create_token(registry.db, "bench", "write")
        with serving(registry) as (url, process, start_ms):
            found["start_ms"] = round(start_ms)
            found["start_mb"] = round(process.memory_info().rss / 1e6)
            found["requests"] = browsing(url, process, options.repeats)
            alone = publishing(url, process, token, options.publishes, 1)
            many = publishing(url, process, token, options.publishes, 16)
            found["requests"] |= {"publish 5 MB, alone": alone[0], "publish 5 MB, 16 at once": many[0]}
            found["resolve_gb_s"] = round(resolving(url, alone[1][0]), 2)
            found["busy_mb"] = round(process.memory_info().rss / 1e6)
        acknowledged = {*alone[1], *many[1]}
        kept = {entry.name for entry in registry.search(catalog.Query(author="bench", limit=1000)).entries}
        found["acknowledged"], found["lost"] = len(acknowledged), len(acknowledged - kept)
        found["problems"] = len(check(registry).problems)
    return found


def summary(result: dict[str, Any]) -> str:
    """What docs/performance.md shows."""
    found = result["figures"]
    header = ["request", "p50 ms", "p95 ms", "the hub's own CPU ms", "target p95 ms", "n"]
    lines = [
        [kind, figures["p50_ms"], f"**{figures['p95_ms']}**", figures["cpu_ms"], target(kind), figures["n"]]
        for kind, figures in found["requests"].items()
    ]
    return "\n".join(
        [
            report.table(header, lines),
            f"{found['adapters']:,} adapters x {VERSIONS} versions x {SCORES} scores. Started in {found['start_ms']} ms "
            f"(target 1,000) with {found['start_mb']} MB (target 120), {found['busy_mb']} MB at the end; resolve "
            f"{found['resolve_gb_s']} GB/s (target 0.5); of {found['acknowledged']} acknowledged publishes "
            f"{found['lost']} lost, `registry check` found {found['problems']} problems.",
            "",
        ]
    )


def target(kind: str) -> int:
    return PUBLISH_TARGETS.get(kind, BROWSE_TARGET)


def markdown(result: dict[str, Any]) -> str:
    return report.heading(result, "The hub: browsing, publishing, resolving") + "\n" + summary(result)


def main() -> None:
    options = arguments()
    result = report.envelope("hub", options, figures=measured(options))
    report.write(options.out, result, markdown(result))
    report.into_docs(options.out, result["name"], summary(result))
    spreads = {kind: (row["p50_ms"], row["p95_ms"]) for kind, row in result["figures"]["requests"].items()}
    plots.spreads(spreads, options.out / "hub.svg", label="milliseconds: p50, and p95 in light")
    print((options.out / "hub.md").read_text())


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--adapters", type=int, default=10_000)
    parser.add_argument("--repeats", type=int, default=40, help="of each browsing question")
    parser.add_argument("--publishes", type=int, default=64)
    parser.add_argument("--out", type=Path, default=report.RESULTS, help="folder of the results")
    parser.set_defaults(threads=os.cpu_count())
    return parser.parse_args()


if __name__ == "__main__":
    main()
