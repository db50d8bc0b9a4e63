"""An adapter of 2 GB up and down: how long, and how much memory the hub takes for it.

    python -m benchmarks.tables.large_adapter                       some minutes; 10 GB of disk
    python -m benchmarks.tables.large_adapter --megabytes 64        a quick look

Writes results/large_adapter.json and results/large_adapter.md. Up by huggingface_hub's own upload (Git LFS), down by
`graft pull`, which compares every byte's hash, and by plain HTTP; the hub is `graft hub serve` in a process of its own. Memory
is the highest resident size that the kernel has seen of it (VmHWM).
"""

import argparse
import json
import os
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from huggingface_hub import HfApi

from benchmarks.lib import report
from benchmarks.tables.hub import serving
from graft.hub.registry.registry import Registry

NAME, HIDDEN, CHUNK = "bench/large", 4096, 16 << 20
MOST_GROWTH_MB = 256  # of the hub's memory, whatever the size of the adapter
CONFIG = {
    "peft_type": "LORA",
    "task_type": "CAUSAL_LM",
    "base_model_name_or_path": "acme/base",
    "lora_alpha": 8,
    "bias": "none",
}


def adapter(folder: Path, megabytes: int) -> Path:
    """A sound LoRA of one module whose rank makes it so large, written piece by piece."""
    rank = (megabytes << 20) // 4 // HIDDEN // 2
    size = rank * HIDDEN * 4
    prefix = "base_model.model.model.layers.0.self_attn.q_proj"
    header = json.dumps(
        {
            f"{prefix}.lora_A.weight": {"dtype": "F32", "shape": [rank, HIDDEN], "data_offsets": [0, size]},
            f"{prefix}.lora_B.weight": {"dtype": "F32", "shape": [HIDDEN, rank], "data_offsets": [size, 2 * size]},
        }
    ).encode()
    folder.mkdir()
    draw = np.random.default_rng(0)
    with (folder / "adapter_model.safetensors").open("wb") as out:
        out.write(struct.pack("<Q", len(header)) + header)
        for start in range(0, 2 * size, CHUNK):
            out.write(draw.standard_normal(min(CHUNK, 2 * size - start) // 4, dtype=np.float32).tobytes())
    (folder / "adapter_config.json").write_text(json.dumps(CONFIG | {"r": rank, "target_modules": ["q_proj"]}))
    (folder / "README.md").write_text("---\nbase_model: acme/base\n---\n# Large\n")
    return folder


def highest_mb(pid: int) -> int:
    """Of the resident size, so far."""
    fields = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return int(fields["VmHWM"].split()[0]) >> 10


def measured(options: argparse.Namespace) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(dir=options.folder) as place:
        folder = Path(place)
        source = adapter(folder / "large", options.megabytes)
        size = (source / "adapter_model.safetensors").stat().st_size
        os.environ["HF_HOME"], os.environ["HF_HUB_DISABLE_XET"] = str(folder / "hf"), "1"
        with serving(Registry(folder / "registry.db")) as (url, process, _):
            rows = {"started": {"seconds": None, "gb_s": None, "hub_mb": highest_mb(process.pid)}}

            def row(what: str, act: Callable[[], object]) -> None:
                started = time.perf_counter()
                act()
                seconds = time.perf_counter() - started
                rows[what] = {
                    "seconds": round(seconds, 1),
                    "gb_s": round(size / seconds / 1e9, 3),
                    "hub_mb": highest_mb(process.pid),
                }

            row("huggingface_hub uploads it", lambda: upload(url, source))
            row("plain HTTP", lambda: download(url, folder / "down"))
            row("graft pull", lambda: pull(url, folder / "pulled"))
            same = (folder / "down").read_bytes()[-CHUNK:] == (source / "adapter_model.safetensors").read_bytes()[
                -CHUNK:
            ]
    return {"bytes": size, "rows": rows, "same": same}


def upload(url: str, source: Path) -> None:
    api = HfApi(endpoint=url, token="unused")
    api.create_repo(NAME)
    api.upload_folder(repo_id=NAME, folder_path=source)


def download(url: str, target: Path) -> None:
    with (
        httpx.stream("GET", f"{url}/{NAME}/resolve/main/adapter_model.safetensors", timeout=600) as reply,
        target.open("wb") as out,
    ):
        for piece in reply.raise_for_status().iter_bytes(CHUNK):
            out.write(piece)


def pull(url: str, target: Path) -> None:
    subprocess.run(
        [sys.executable, "-m", "graft.hub.cli.main", "pull", NAME, "--hub", url, "--out", str(target)], check=True
    )


def growth_mb(result: dict[str, Any]) -> int:
    sizes = [row["hub_mb"] for row in result["figures"]["rows"].values()]
    return sizes[-1] - sizes[0]


def markdown(result: dict[str, Any]) -> str:
    found = result["figures"]
    rows = [[what, row["seconds"] or "", row["gb_s"] or "", row["hub_mb"]] for what, row in found["rows"].items()]
    return "\n".join(
        [
            report.heading(result, "A large adapter, up and down"),
            f"{found['bytes']:,} bytes of weights; the hub's memory grows by **{growth_mb(result)} MB** (bar {MOST_GROWTH_MB}).",
            "",
            report.table(["step", "seconds", "GB/s", "the hub's highest memory so far, MB"], rows),
        ]
    )


def main() -> None:
    options = arguments()
    result = report.envelope("large_adapter", options, figures=measured(options))
    report.write(options.out, result, markdown(result))
    print((options.out / "large_adapter.md").read_text())
    if growth_mb(result) > MOST_GROWTH_MB or not result["figures"]["same"]:
        raise SystemExit("error: not reached: see above")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=2048)
    parser.add_argument("--folder", type=Path, help="where there is room (default: where temporary files go)")
    parser.add_argument("--out", type=Path, default=report.RESULTS, help="folder of the results")
    parser.set_defaults(threads=os.cpu_count())
    return parser.parse_args()


if __name__ == "__main__":
    main()
