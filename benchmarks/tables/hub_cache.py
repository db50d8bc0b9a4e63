"""The hub behind a cache: nginx as in examples/graft-hub.nginx.conf, and a fleet of servers that fetch the same adapters.

    python -m benchmarks.tables.hub_cache            a minute; needs nginx (Debian's nginx-light)

Writes results/hub_cache.json and results/hub_cache.md. What is asked for by its commit id comes from the cache after the first
time; ranges are cut from the cached file; what is old is compared by its ETag and does not travel again; a private repo's files
are never kept.
"""

import argparse
import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from benchmarks.lib import report
from benchmarks.lib.harness import ROOT
from benchmarks.tables.hub import adapter_bytes, commit_body, serving
from graft.hub.registry.access.tokens import create_token
from graft.hub.registry.registry import Registry

CONF = ROOT / "examples" / "graft-hub.nginx.conf"
FILES = ("adapter_config.json", "adapter_model.safetensors", "README.md")
WEIGHTS = FILES[1]
MEGABYTES, OLD_S = 5.0, 2
MOST_UPSTREAM = 1.0  # times that a file is fetched from the hub, however many ask at once


@contextmanager
def cached(hub: str, folder: Path, *, valid_s: int | None = None) -> Iterator[str]:
    """nginx with the example's configuration in front of `hub`. `valid_s`: how long files stay fresh, instead of what the hub says."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    text = CONF.read_text().replace("127.0.0.1:8080", address).replace("127.0.0.1:7860", hub.removeprefix("http://"))
    if valid_s is not None:
        short = f"proxy_ignore_headers Cache-Control; proxy_cache_valid 200 {valid_s}s;"
        text = text.replace("proxy_cache adapters;", f"proxy_cache adapters; {short}")
    folder.mkdir()
    (folder / "graft-hub.conf").write_text(text)
    nginx = shutil.which("nginx") or "/usr/sbin/nginx"
    settings = "daemon off;" + (" user root;" if os.geteuid() == 0 else "")  # its workers need the folder
    process = subprocess.Popen([nginx, "-p", str(folder), "-c", "graft-hub.conf", "-g", settings])
    try:
        while True:
            try:
                httpx.get(f"http://{address}/health")
                break
            except httpx.TransportError:
                if process.poll() is not None:
                    raise SystemExit("error: nginx ended: see above") from None
                time.sleep(0.02)
        yield f"http://{address}"
    finally:
        process.terminate()
        process.wait()


def publish(url: str, token: str, name: str, seed: int, *, private: bool = False) -> str:
    """The commit of a new adapter of 5 MB."""
    with httpx.Client(base_url=url, headers={"Authorization": f"Bearer {token}"}, timeout=120) as client:
        client.post("/api/repos/create", json={"name": name, "private": private}).raise_for_status()
        made = client.post(f"/api/models/{name}/commit/main", content=commit_body(seed, MEGABYTES))
        return str(made.raise_for_status().json()["commitOid"])


def fetched(url: str, names: dict[str, str], clients: int) -> dict[str, Any]:
    """Every client fetches every file of every adapter, all at once."""

    def fetch_all(_: int) -> list[tuple[str, str, int]]:
        with httpx.Client(base_url=url, timeout=120) as client:
            replies = [
                client.get(f"/{name}/resolve/{commit}/{file}") for name, commit in names.items() for file in FILES
            ]
        return [(str(reply.url), reply.raise_for_status().headers["X-Cache"], len(reply.content)) for reply in replies]

    started = time.perf_counter()
    with ThreadPoolExecutor(clients) as pool:
        rows = [row for rows in pool.map(fetch_all, range(clients)) for row in rows]
    seconds = time.perf_counter() - started
    missed = Counter(where for where, status, _ in rows if status != "HIT")
    return {
        "clients": clients,
        "adapters": len(names),
        "requests": len(rows),
        "hit_rate": round(1 - missed.total() / len(rows), 4),
        "most_fetches_of_a_file": max(missed.values()),
        "gb_s": round(sum(size for _, _, size in rows) / seconds / 1e9, 2),
    }


def checked(url: str, name: str, commit: str, seed: int) -> dict[str, str]:
    """What else a cache has to get right, each with what came."""
    where, weights = f"/{name}/resolve/{commit}/{WEIGHTS}", adapter_bytes(seed, MEGABYTES)
    with httpx.Client(base_url=url, timeout=60) as client:
        whole = client.get(where)
        part = client.get(where, headers={"Range": "bytes=1000000-1000999"})
        same = client.get(where, headers={"If-None-Match": whole.headers["ETag"]})
        moving = [client.get(f"/{name}/resolve/main/{WEIGHTS}").headers.get("X-Cache", "") for _ in range(2)]
    return {
        "Cache-Control of a file at a commit": whole.headers["Cache-Control"],
        "the file is what was published": str(whole.content == weights),
        "a range from the cache": f"{part.status_code} {part.headers['X-Cache']}, right: {part.content == weights[1000000:1001000]}",
        "If-None-Match": f"{same.status_code} {same.headers['X-Cache']}",
        "the same file by `main`, twice": " then ".join(moving),
    }  # fmt: skip


def private(url: str, token: str, name: str, commit: str) -> dict[str, str]:
    where, headers = f"{url}/{name}/resolve/{commit}/{WEIGHTS}", {"Authorization": f"Bearer {token}"}
    mine = [httpx.get(where, headers=headers) for _ in range(2)]
    other = httpx.get(where)
    seen = " then ".join(f"{reply.status_code} {reply.headers['X-Cache']}" for reply in mine)
    return {"a private file, twice by its owner": seen, "and by a stranger": f"{other.status_code}"}


def revalidated(url: str, name: str, commit: str) -> dict[str, str]:
    """Where files grow old after two seconds."""
    where = f"{url}/{name}/resolve/{commit}/{WEIGHTS}"
    statuses = []
    for _ in range(2):
        statuses.append(httpx.get(where).headers["X-Cache"])
        time.sleep(OLD_S + 1)
    return {"an old file, asked for again": " then ".join(statuses)}


def measured(options: argparse.Namespace) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        registry = Registry(folder / "registry.db")
        token = create_token(registry.db, "bench", "write")
        with serving(registry, "--behind-proxy") as (hub, _, _):
            commits = {
                f"bench/a{seed}": publish(hub, token, f"bench/a{seed}", seed) for seed in range(options.adapters)
            }
            hidden = publish(hub, token, "bench/hidden", 99, private=True)
            name = next(iter(commits))
            with cached(hub, folder / "nginx") as url:
                fleet = fetched(url, commits, options.clients)
                checks = checked(url, name, commits[name], 0) | private(url, token, "bench/hidden", hidden)
            with cached(hub, folder / "short", valid_s=OLD_S) as url:
                checks |= revalidated(url, name, commits[name])
    return {"fleet": fleet, "checks": checks, "nginx": nginx_version()}


def nginx_version() -> str:
    said = subprocess.run(
        [shutil.which("nginx") or "/usr/sbin/nginx", "-v"], capture_output=True, text=True, check=True
    )
    return said.stderr.strip().rpartition("/")[2]


def markdown(result: dict[str, Any]) -> str:
    found = result["figures"]
    fleet = found["fleet"]
    rows = [[what, seen] for what, seen in found["checks"].items()]
    return "\n".join(
        [
            report.heading(result, "The hub behind a cache"),
            f"nginx {found['nginx']} with examples/graft-hub.nginx.conf in front of `graft hub serve --behind-proxy`. "
            f"{fleet['clients']} clients fetch {fleet['adapters']} adapters of {MEGABYTES:g} MB at once: "
            f"{fleet['requests']} requests, **hit rate {fleet['hit_rate']:.1%}**, no file fetched from the hub more than "
            f"{fleet['most_fetches_of_a_file']} times, {fleet['gb_s']} GB/s.",
            "",
            report.table(["asked", "answered"], rows),
        ]
    )


def main() -> None:
    options = arguments()
    result = report.envelope("hub_cache", options, figures=measured(options))
    report.write(options.out, result, markdown(result))
    print((options.out / "hub_cache.md").read_text())
    if result["figures"]["fleet"]["most_fetches_of_a_file"] > MOST_UPSTREAM:
        raise SystemExit("error: not reached: a file was fetched from the hub more than once")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--adapters", type=int, default=10)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--out", type=Path, default=report.RESULTS, help="folder of the results")
    parser.set_defaults(threads=os.cpu_count())
    return parser.parse_args()


if __name__ == "__main__":
    main()
