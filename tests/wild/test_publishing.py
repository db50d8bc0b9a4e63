"""K1: one file that is not wanted, by its name, its kind, its size or as a link, must not stop a publish or a push.

Reports: https://github.com/huggingface/transformers/issues/24578 and /33922 (trainers' output folders),
https://github.com/huggingface/huggingface_hub/issues/1240 and /2284 (links of the download cache),
https://github.com/huggingface/peft/issues/2898 (adapters larger than expected). What is right: nothing that could be
unpickled or run is stored, what is left out is named, and the adapter is there.
"""

import hashlib
import io
import json
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from huggingface_hub import HfApi

from graft.hub.cli.main import main
from graft.hub.errors import ArtifactError, TooLargeError
from graft.hub.registry.access.tokens import create_token, first_admin
from graft.hub.registry.commits.accepted_files import MAX_WEIGHTS_BYTES
from graft.hub.registry.commits.publish_folder import contents
from graft.hub.registry.registry import Registry
from graft.hub.registry.remote.client import RemoteRegistry
from graft.hub.web.app import create_app
from graft.hub.web.huggingface import git_lfs

KEPT = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "trainer_state.json", "plot.png", "LICENSE")
PICKLE = pickle.dumps({"learning_rate": 1e-4})
LEFTOVERS = {
    "training_args.bin": PICKLE,
    "optimizer.pt": PICKLE,
    "rng_state_0.pth": PICKLE,
    "scheduler.pkl": PICKLE,
    "checkpoint-20/adapter_model.safetensors": b"x" * 64,
    "checkpoint-20/trainer_state.json": b"{}",
    "checkpoint-best/optimizer.pt": PICKLE,
    "global_step20/mp_rank_00_model_states.pt": PICKLE,
    "runs/Nov24_host/events.out.tfevents.17.host.1.0": b"\x00\x18\x00",
    "wandb/run-1/files/config.yaml": b"secret: 1",
    "zero_to_fp32.py": b"print(1)",
    "run.sh": b"#!/bin/sh\n",
    "train.log": b"step 1",
    "notes.ipynb": b"{}",
    "latest": b"global_step20",
    "renamed.json": b"PK\x03\x04pickled inside",
    "weights.gguf": b"GGUF",
    "back\\slash.txt": b"x",
    "new\nline.txt": b"x",
}


@pytest.fixture
def output(adapter: Path) -> Path:
    """An adapter as a trainer leaves it."""
    for name in KEPT:
        (adapter / name).write_text("x")
    for name, data in LEFTOVERS.items():
        (adapter / name).parent.mkdir(parents=True, exist_ok=True)
        (adapter / name).write_bytes(data)
    return adapter


ADAPTER = {"adapter_config.json", "adapter_model.safetensors", "graft.json", "README.md"}


def test_a_trainers_folder_is_published_without_its_leftovers(registry: Registry, output: Path) -> None:
    revision = registry.publish(output, "ann/news")
    assert set(registry.tree(revision.id)) == ADAPTER | set(KEPT)
    assert revision.method == "lora" and revision.digest
    found = contents(output)
    assert {file.path for file in found.left_out} == set(LEFTOVERS)
    assert all(file.why for file in found.left_out)


def test_the_command_names_what_it_leaves_out(output: Path, tmp_path: Path) -> None:
    place = ["--registry", str(tmp_path / "r.db")]
    done = CliRunner().invoke(main, ["publish", str(output), "ann/news", *place])
    assert done.exit_code == 0, done.output
    for name in ("training_args.bin", "checkpoint-20/trainer_state.json", "zero_to_fp32.py"):
        assert f"left out: {name} (" in done.stderr
    told = json.loads(CliRunner().invoke(main, ["publish", str(output), "ann/news", *place, "--json"]).stdout)
    assert {file["path"] for file in told["left_out"]} == set(LEFTOVERS) and len(told["id"]) == 40


def test_a_trainers_folder_is_pushed_without_its_leftovers(hub: str, registry: Registry, output: Path, caplog) -> None:
    """The unmodified client: the hub's answer to its preupload says which files it should ignore."""
    (output / "back\\slash.txt").unlink()  # the client takes no such name
    (output / "new\nline.txt").unlink()
    api = HfApi(endpoint=hub, token=False)
    api.create_repo("ann/pushed")
    api.upload_folder(repo_id="ann/pushed", folder_path=output)
    revision = registry.resolve("ann/pushed")
    assert set(registry.tree(revision.id)) == ADAPTER | set(KEPT) and revision.digest
    assert "Left out, as no part of an adapter" in caplog.text and "training_args.bin" in caplog.text


def test_graft_publishes_to_a_hub_without_the_leftovers(hub: str, registry: Registry, output: Path) -> None:
    revision = RemoteRegistry(hub, token=first_admin(registry.db, "ann")).publish(output, "ann/sent")
    assert set(registry.tree(revision.id)) == ADAPTER | set(KEPT)


def test_the_browser_leaves_out_the_same_and_says_so(registry: Registry, output: Path) -> None:
    client = create_app(registry).test_client()

    def sent(path: str, *names: str):
        files = [(io.BytesIO((output / name).read_bytes()), f"out/{name}") for name in names]
        return client.post(path, data={"name": "ann/dropped", "files": files}, follow_redirects=True)

    files = (*sorted(ADAPTER), "training_args.bin", "wandb/run-1/files/config.yaml")
    assert "training_args.bin" in "".join(sent("/publish/check", *files).json["warnings"])
    page = sent("/publish", *files)
    assert page.status_code == 200 and "training_args.bin" in page.text
    assert set(registry.tree(registry.resolve("ann/dropped").id)) == ADAPTER
    (output / "adapter_model.bin").write_bytes(PICKLE)
    refused = sent("/publish", "adapter_config.json", "adapter_model.bin")
    assert refused.status_code == 422 and "as a pickle only" in refused.text


def test_what_slips_past_the_preupload_is_refused_still(hub: str, registry: Registry) -> None:
    client = create_app(registry).test_client()
    client.post("/api/repos/create", json={"name": "ann/forced"})
    line = {"key": "file", "value": {"path": "training_args.bin", "content": "eA==", "encoding": "base64"}}
    assert client.post("/api/models/ann/forced/commit/main", data=json.dumps(line)).status_code == 422


@pytest.mark.parametrize("name", ["adapter_model.bin", "pytorch_adapter.bin", "adapter_model.pt"])
def test_weights_that_are_a_pickle_only_are_never_just_left_out(
    hub: str, registry: Registry, adapter: Path, name: str
) -> None:
    """https://github.com/vllm-project/vllm/issues/9275: then nothing would be left of the adapter."""
    (adapter / "adapter_model.safetensors").unlink()
    (adapter / name).write_bytes(PICKLE)
    with pytest.raises(ArtifactError, match="as a pickle only"):
        registry.publish(adapter, "ann/news")
    client = create_app(registry).test_client()
    client.post("/api/repos/create", json={"name": "ann/news"})
    files = [{"path": path, "size": 9, "sample": ""} for path in ("adapter_config.json", name)]
    refused = client.post("/api/models/ann/news/preupload/main", json={"files": files})
    assert refused.status_code == 422 and "safetensors" in refused.json["error"]


# Links


def as_snapshot(folder: Path, cache: Path) -> Path:
    """The files of `folder` as a client's download cache keeps them."""
    (cache / "blobs").mkdir(parents=True)
    snapshot = cache / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    for path in folder.iterdir():
        blob = cache / "blobs" / hashlib.sha256(path.read_bytes()).hexdigest()
        shutil.copy(path, blob)
        (snapshot / path.name).symlink_to(Path("../../blobs") / blob.name)
    return snapshot


def test_a_downloaded_snapshot_is_published(registry: Registry, adapter: Path, tmp_path: Path, hub: str) -> None:
    snapshot = as_snapshot(adapter, tmp_path / "models--ann--news")
    revision = registry.publish(snapshot, "ann/again")
    assert registry.tree(revision.id) == registry.tree(registry.publish(adapter, "ann/plain").id)
    assert (
        RemoteRegistry(hub, token=first_admin(registry.db, "ann")).publish(snapshot, "ann/sent").digest
        == revision.digest
    )


def test_an_adapter_in_a_subfolder_of_a_snapshot_too(registry: Registry, adapter: Path, tmp_path: Path) -> None:
    snapshot = as_snapshot(adapter, tmp_path / "models--ann--news")
    inner = snapshot / "second"
    inner.mkdir()
    for path in list(snapshot.iterdir()):
        if path.is_symlink():
            (inner / path.name).symlink_to(Path("../../../blobs") / path.resolve().name)
    assert registry.publish(inner, "ann/inner").digest


def test_links_within_the_folder_are_followed_and_others_left_out(
    registry: Registry, adapter: Path, tmp_path: Path
) -> None:
    (tmp_path / "secret.txt").write_text("mine")
    (adapter / "away.txt").symlink_to(tmp_path / "secret.txt")
    (adapter / "system.txt").symlink_to("/etc/hostname")
    (adapter / "nowhere.txt").symlink_to("missing")
    (adapter / "folder").symlink_to(tmp_path)
    (adapter / "sub").mkdir()
    (adapter / "sub/card.md").symlink_to("../README.md")
    os.mkfifo(adapter / "pipe.txt")
    tree = registry.tree(registry.publish(adapter, "ann/news").id)
    assert tree.keys() == ADAPTER | {"sub/card.md"} and tree["sub/card.md"] == tree["README.md"]
    left = {file.path for file in contents(adapter).left_out}
    assert left == {"away.txt", "system.txt", "nowhere.txt", "folder", "pipe.txt"}


@pytest.mark.parametrize("name", sorted(ADAPTER))
def test_a_link_in_place_of_the_adapter_itself_is_an_error(
    registry: Registry, adapter: Path, tmp_path: Path, name: str
) -> None:
    (adapter / name).rename(tmp_path / name)
    (adapter / name).symlink_to(tmp_path / name)
    with pytest.raises(ArtifactError, match="put the file itself there"):
        registry.publish(adapter, "ann/news")


def test_blobs_that_lead_out_of_the_cache_are_not_followed(registry: Registry, adapter: Path, tmp_path: Path) -> None:
    snapshot = as_snapshot(adapter, tmp_path / "models--ann--news")
    (tmp_path / "models--ann--news/blobs/evil").symlink_to("/etc/hostname")
    (snapshot / "notes.txt").symlink_to("../../blobs/evil")
    assert "notes.txt" not in registry.tree(registry.publish(snapshot, "ann/news").id)


# Sizes


def test_weights_may_be_large_and_the_limit_is_the_registrys(adapter: Path, tmp_path: Path, spec) -> None:
    assert MAX_WEIGHTS_BYTES == 8 << 30
    small = Registry(tmp_path / "r.db", max_weights_bytes=1000)
    with pytest.raises(TooLargeError, match="--max-weights-bytes"):
        small.publish(adapter, "ann/news")
    (adapter / "extra.safetensors").write_bytes(b"x" * 6000)
    size = (adapter / "adapter_model.safetensors").stat().st_size
    done = CliRunner().invoke(
        main,
        ["publish", str(adapter), "ann/x", "--registry", str(tmp_path / "x.db"), "--max-weights-bytes", str(size)],
    )
    assert done.exit_code == 0 and "left out: extra.safetensors (too large: 6,000 bytes)" in done.stderr


def test_the_wire_has_the_same_limit(adapter: Path, tmp_path: Path) -> None:
    client = create_app(Registry(tmp_path / "r.db", max_weights_bytes=1000)).test_client()
    client.post("/api/repos/create", json={"name": "ann/news"})
    offered = [{"path": "adapter_model.safetensors", "size": 1001, "sample": ""}]
    assert client.post("/api/models/ann/news/preupload/main", json={"files": offered}).status_code == 413
    asked = {"operation": "upload", "objects": [{"oid": "0" * 64, "size": 1001}]}
    [found] = client.post("/ann/news.git/info/lfs/objects/batch", json=asked).json["objects"]
    assert found["error"]["code"] == 413


LARGE = """
import json, resource, sys
from pathlib import Path
import numpy as np
from graft.hub.registry.registry import Registry

folder, rank, width = Path(sys.argv[1]), 1024, 24576
config = json.loads((folder / "adapter_config.json").read_text())
(folder / "adapter_config.json").write_text(json.dumps(config | {"r": rank, "target_modules": ["q_proj"]}))
shapes = {"base_model.model.layers.0.q_proj.lora_A.weight": (rank, width), "base_model.model.layers.0.q_proj.lora_B.weight": (8, rank)}
header, at = {}, 0
for name, shape in shapes.items():
    size = shape[0] * shape[1] * 4
    header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [at, at + size]}
    at += size
text = json.dumps(header).encode()
with (folder / "adapter_model.safetensors").open("wb") as out:
    out.write(len(text).to_bytes(8, "little") + text)
    row = np.arange(width, dtype=np.float32).tobytes()
    for _ in range(rank):
        out.write(row)
    out.write(row[: 8 * rank * 4].ljust(8 * rank * 4, b"1"))
used = int(Path("/proc/self/statm").read_text().split()[5]) * resource.getpagesize()  # data and stack
resource.setrlimit(resource.RLIMIT_DATA, (used + (56 << 20),) * 2)
registry = Registry(sys.argv[2])
revision = registry.publish(folder, "ann/large")
assert revision.bytes > 100_000_000, revision
registry.pull("ann/large", sys.argv[3])
"""


def test_large_weights_go_to_a_hub_in_parts(hub: str, registry: Registry, adapter: Path, monkeypatch) -> None:
    """graft's own client takes the way that holds no whole file in memory; others' are asked for what they can do."""
    monkeypatch.setattr(git_lfs, "PART_BYTES", 1500)
    revision = RemoteRegistry(hub, token=first_admin(registry.db, "ann")).publish(adapter, "ann/parts")
    assert registry.db.execute("SELECT count(*) FROM uploads WHERE who = 'ann'").fetchone()[0] == 1
    assert registry.tree(revision.id) == registry.tree(registry.publish(adapter, "ann/whole").id)
    asked = {"files": [{"path": "adapter_model.safetensors", "size": 9999, "sample": ""}]}
    client, token = create_app(registry).test_client(), create_token(registry.db, "ann", "write")
    bearer = {"Authorization": f"Bearer {token}"}
    [answer] = client.post("/api/models/ann/parts/preupload/main", json=asked, headers=bearer).json["files"]
    assert answer["uploadMode"] == "regular"


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits a process's memory as Linux does")
def test_100_megabytes_go_through_little_memory(lora_folder, tmp_path: Path) -> None:
    """A 7B base's LoRA of rank 64 has 670 MB; a publisher with little memory must manage."""
    folder = lora_folder(tmp_path / "large", fingerprint=None)
    words = [sys.executable, "-c", LARGE, folder, tmp_path / "r.db", tmp_path / "out"]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


def test_a_clone_without_git_lfs_says_so(registry: Registry, adapter: Path) -> None:
    note = b"version https://git-git_lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 5000\n"
    (adapter / "adapter_model.safetensors").write_bytes(note)
    with pytest.raises(ArtifactError, match="git lfs pull"):
        registry.publish(adapter, "ann/news")
