"""Other clients than the installed one: older huggingface_hub versions, the `hf` command, PEFT, and raw LFS.

Old versions are installed once, each into an environment of its own under build/clients.
"""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from graft.hub.registry.access.tokens import create_token, first_admin
from graft.hub.registry.registry import Registry
from graft.hub.web.huggingface import git_lfs

CALLS = Path(__file__).with_name("client_calls.py")
CLIENTS = Path(__file__).parents[3] / "build" / "clients"


def environment(hub: str, token: str, home: Path) -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    return kept | {"HF_ENDPOINT": hub, "HF_TOKEN": token, "HF_HOME": str(home), "HF_HUB_DISABLE_TELEMETRY": "1"}


def run(python: str, hub: str, token: str, adapter: Path, home: Path) -> None:
    done = subprocess.run(
        [python, str(CALLS), str(adapter)], env=environment(hub, token, home), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]


def test_the_installed_client(hub: str, registry: Registry, adapter: Path, tmp_path: Path) -> None:
    run(sys.executable, hub, first_admin(registry.db, "ann"), adapter, tmp_path / "home")


@pytest.mark.slow
@pytest.mark.parametrize("version", ["1.2.0", "0.36.0"])
def test_an_older_client(version: str, hub: str, registry: Registry, adapter: Path, tmp_path: Path) -> None:
    python = CLIENTS / version / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", CLIENTS / version], check=True)
        subprocess.run([python, "-m", "pip", "install", "-q", f"huggingface_hub=={version}"], check=True)
    run(str(python), hub, first_admin(registry.db, "ann"), adapter, tmp_path / "home")


@pytest.mark.slow
def test_our_own_remote_runs_on_the_oldest_client_that_we_allow(hub: str, adapter: Path, tmp_path: Path) -> None:
    """1.x has another HTTP library than 2.x, and its exceptions are other classes."""
    library = CLIENTS / "1.5.0-library"
    if not library.exists():
        words = ["-q", "--no-deps", "--target", str(library), "huggingface_hub==1.5.0"]
        subprocess.run([sys.executable, "-m", "pip", "install", *words], check=True)
    code = (
        "import sys, huggingface_hub\nfrom graft.hub.registry.search import Query\nfrom graft.hub.errors import GraftError\n"
        "from graft.hub.registry.remote.client import RemoteRegistry\n"
        "assert huggingface_hub.__version__ == '1.5.0'\nurl, adapter, out = sys.argv[1:]\n"
        "remote = RemoteRegistry(url)\nmade = remote.publish(adapter, 'ann/news')\n"
        "assert remote.pull('ann/news', out) == remote.resolve(f'ann/news@{made.id}')\n"
        "assert len(remote.search(Query(task='news-topic', sort='score')).entries) == 1\n"
        "try:\n    RemoteRegistry('http://127.0.0.1:9').resolve('ann/news')\n"
        "except GraftError as error:\n    assert 'No hub answers' in str(error)\nelse:\n    raise AssertionError\n"
    )
    env = environment(hub, "hf_unused", tmp_path / "home") | {"PYTHONPATH": str(library)}
    words = [sys.executable, "-c", code, hub, str(adapter), str(tmp_path / "out")]
    done = subprocess.run(words, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]


def test_the_hf_command(hub: str, registry: Registry, adapter: Path, tmp_path: Path) -> None:
    env = environment(hub, first_admin(registry.db, "ann"), tmp_path / "home")
    hf = Path(sys.executable).with_name("hf")
    for words in (
        ["auth", "whoami"],
        ["upload", "ann/news", str(adapter)],
        ["download", "ann/news", "--local-dir", str(tmp_path / "out")],
    ):
        done = subprocess.run([hf, *words], env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    weights = "adapter_model.safetensors"
    assert (tmp_path / "out" / weights).read_bytes() == (adapter / weights).read_bytes()


@pytest.mark.slow
def test_peft_pushes_and_loads(hub: str, registry: Registry, tmp_path: Path) -> None:
    """In a process of its own, since PEFT reads the endpoint when it is imported."""
    code = (
        "import torch\nfrom peft import LoraConfig, PeftModel, get_peft_model\n"
        "from transformers import LlamaConfig, LlamaForCausalLM\n"
        "shape = LlamaConfig(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,\n"
        "                    num_key_value_heads=2, vocab_size=100)\n"
        "model = LlamaForCausalLM(shape)\nmodel.config._name_or_path = 'acme/other'\n"
        "tuned = get_peft_model(model, LoraConfig(target_modules=['q_proj'], init_lora_weights=False))\n"
        "ids = torch.arange(9)[None]\nwanted = tuned(ids).logits\ntuned.push_to_hub('ann/peft')\n"
        "plain = tuned.unload()\nloaded = PeftModel.from_pretrained(plain, 'ann/peft')\n"
        "assert torch.allclose(loaded(ids).logits, wanted, atol=1e-5)\n"
    )
    env = environment(hub, first_admin(registry.db, "ann"), tmp_path / "home")
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert registry.resolve("ann/peft").method == "lora"


def test_lfs_is_there_for_those_who_insist(hub: str, registry: Registry, adapter: Path, monkeypatch) -> None:
    token = first_admin(registry.db, "ann")
    client = httpx.Client(base_url=hub, headers={"Authorization": f"Bearer {token}"})
    client.post("/api/repos/create", json={"name": "news"}).raise_for_status()
    weights = (adapter / "adapter_model.safetensors").read_bytes()
    oid = hashlib.sha256(weights).hexdigest()
    asked = {
        "operation": "upload",
        "transfers": ["basic", "multipart"],
        "objects": [{"oid": oid, "size": len(weights)}],
    }
    [item] = client.post("/ann/news.git/info/lfs/objects/batch", json=asked).json()["objects"]
    upload, verify = item["actions"]["upload"]["href"], item["actions"]["verify"]["href"]
    middle = len(upload) - 80
    other = "A" if upload[middle] != "A" else "B"
    assert httpx.put(upload[:middle] + other + upload[middle + 1 :], content=weights).status_code == 403
    assert httpx.put(upload.replace("/lfs/upload", "/lfs/part"), content=weights).status_code == 403
    assert httpx.put(upload.partition("?")[0], content=weights).status_code == 403
    monkeypatch.setattr(git_lfs, "LINK_LIFE_S", -1)
    late = httpx.put(upload, content=weights)
    assert late.status_code == 403 and "has expired" in late.json()["error"]
    monkeypatch.undo()
    assert httpx.put(upload, content=weights[:-1]).status_code == 409
    assert httpx.put(upload, content=b"x" * len(weights)).status_code == 409
    assert client.post(verify, json={"oid": oid, "size": len(weights)}).status_code == 422
    assert httpx.put(upload, content=weights).status_code == 200
    assert client.post(verify, json={"oid": oid, "size": len(weights)}).status_code == 200
    assert "actions" not in client.post("/ann/news.git/info/lfs/objects/batch", json=asked).json()["objects"][0]
    lines = [
        {"key": "header", "value": {"summary": "By LFS"}},
        {"key": "lfsFile", "value": {"path": "adapter_model.safetensors", "algo": "sha256", "oid": oid}},
    ]
    body = "\n".join(map(json.dumps, lines))
    client.post("/api/models/ann/news/commit/main", content=body).raise_for_status()
    assert client.get("/ann/news/resolve/main/adapter_model.safetensors").content == weights


def test_the_client_uploads_in_parts(hub: str, registry: Registry, adapter: Path, monkeypatch) -> None:
    """The unmodified client's multipart transfer: a file of several parts, one of them lost on the way at first."""
    from huggingface_hub import CommitOperationAdd
    from huggingface_hub.lfs import lfs_upload

    weights = (adapter / "adapter_model.safetensors").read_bytes()
    monkeypatch.setattr(git_lfs, "PART_BYTES", len(weights) // 3)
    token = first_admin(registry.db, "ann")
    client = httpx.Client(base_url=hub, headers={"Authorization": f"Bearer {token}"})
    client.post("/api/repos/create", json={"name": "news"}).raise_for_status()
    oid = hashlib.sha256(weights).hexdigest()
    objects = [{"oid": oid, "size": len(weights)}]
    asked = {"operation": "upload", "transfers": ["basic", "multipart"], "objects": objects}
    answer = client.post("/ann/news.git/info/lfs/objects/batch", json=asked).json()
    [item] = answer["objects"]
    upload = item["actions"]["upload"]
    parts = [link for name, link in upload["header"].items() if name.isdigit()]
    assert answer["transfer"] == "multipart" and len(parts) == -(-len(weights) // (len(weights) // 3))
    assert httpx.post(upload["href"], json={}).status_code == 409  # no part yet
    assert httpx.put(parts[0], content=b"too short").status_code == 409
    assert httpx.put(parts[0].replace("/lfs/part", "/lfs/upload"), content=weights).status_code == 403
    assert httpx.put(parts[0], content=b"x" * (len(weights) // 3)).status_code == 200  # wrong bytes, mended below
    assert httpx.post(upload["href"], json={}).status_code == 409
    operation = CommitOperationAdd("adapter_model.safetensors", weights)
    lfs_upload(operation, item, token=token, endpoint=hub)
    lfs_upload(operation, item, token=token, endpoint=hub)  # a retry of all of it
    line = {"key": "lfsFile", "value": {"path": "adapter_model.safetensors", "algo": "sha256", "oid": oid}}
    client.post("/api/models/ann/news/commit/main", content=json.dumps(line)).raise_for_status()
    assert client.get("/ann/news/resolve/main/adapter_model.safetensors").content == weights
    assert not list(registry.blobs.incoming.iterdir())
    asked["transfers"] = ["basic"]
    objects[0]["oid"] = "1" * 64
    assert (
        "chunk_size"
        not in client.post("/ann/news.git/info/lfs/objects/batch", json=asked).json()["objects"][0]["actions"][
            "upload"
        ]["header"]
    )


def test_a_hash_is_no_key_to_others_files(hub: str, registry: Registry, adapter: Path) -> None:
    """Whoever learns the sha256 of a private file can neither commit it, nor learn by LFS that it is here."""
    registry.publish(adapter, "ann/secret", private=True)
    weights = (adapter / "adapter_model.safetensors").read_bytes()
    oid = hashlib.sha256(weights).hexdigest()
    clients = {
        user: httpx.Client(
            base_url=hub, headers={"Authorization": f"Bearer {create_token(registry.db, user, 'write')}"}
        )
        for user in ("ann", "bob")
    }
    file = {"key": "lfsFile", "value": {"path": "adapter_model.safetensors", "algo": "sha256", "oid": oid}}
    asked = {"operation": "upload", "objects": [{"oid": oid, "size": len(weights)}]}

    def commit(user: str) -> int:
        return clients[user].post(f"/api/models/{user}/copy/commit/main", content=json.dumps(file)).status_code

    def batch(user: str) -> dict:
        return clients[user].post(f"/{user}/copy.git/info/lfs/objects/batch", json=asked).json()["objects"][0]

    for client in clients.values():
        client.post("/api/repos/create", json={"name": "copy", "private": True}).raise_for_status()
    verify = {"oid": oid, "size": len(weights)}
    assert commit("bob") == 422 and clients["bob"].post("/bob/copy.git/info/lfs/verify", json=verify).status_code == 422
    assert commit("ann") == 200 and "actions" not in batch("ann")
    upload = batch("bob")["actions"]["upload"]["href"]
    assert httpx.put(upload, content=weights).status_code == 200
    assert commit("bob") == 200
