"""Random adapters of every kind for the server's tests, as forms and as folders."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from graft.hub.adapters.artifact import save_artifact
from graft.hub.adapters.methods import get_method
from graft.hub.base.model import Base

# name -> (method, options): every kind and several shapes of the common ones
KINDS = {
    "lora": ("lora", {"r": "4"}),
    "lora-wide": ("lora", {"r": "9", "alpha": "5", "rslora": "true"}),
    "dora": ("lora", {"r": "2", "dora": "true"}),
    "houlsby": ("series", {"placement": "houlsby"}),
    "pfeiffer": ("series", {"placement": "pfeiffer"}),
    "parallel": ("parallel", {}),
    "bitfit": ("bitfit", {}),
    "ia3": ("ia3", {}),
    "prompt": ("prompt", {"tokens": "5"}),
    "prefix": ("prefix", {"tokens": "18"}),
    "ptuning": ("ptuning", {"tokens": "16"}),
}


def random_tensors(kind: str, base: Base, seed: int):
    method_name, options = KINDS[kind]
    method = get_method(method_name)
    config = method.from_options(options, base.spec)
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, shape in method.shapes(config, base.spec).items():
        value = torch.randn(shape, generator=generator) * (0.3 if len(shape) > 1 else 0.1)
        if name.endswith("lora_magnitude_vector") or method_name == "ia3":
            value = value.abs() + 1
        tensors[name] = value
    return method, config, tensors


def write_folder(folder: Path, kind: str, base: Base, seed: int = 0) -> Path:
    """A random adapter's folder."""
    method, config, tensors = random_tensors(kind, base, seed)
    provenance = {"format": 1, "base": {"id": base.spec.id, "fingerprint": base.spec.fingerprint}}
    save_artifact(folder, method, config, tensors, base.spec, provenance=provenance)
    return folder


@contextmanager
def no_threads(beginning: str) -> Iterator[None]:
    """No thread can be started whose name begins so, as where the system allows no more of them."""
    start = threading.Thread.start

    def refused(thread: threading.Thread) -> None:
        if thread.name.startswith(beginning):
            raise RuntimeError("can't start new thread")
        start(thread)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(threading.Thread, "start", refused)
        yield


@pytest.fixture
def make_forms():
    """make_forms(kind, base, seed=0) -> the serving forms of a random adapter."""

    def make(kind: str, base: Base, seed: int = 0):
        method, config, tensors = random_tensors(kind, base, seed)
        return method.fold(config, tensors, base)

    return make


@pytest.fixture
def make_folder(tmp_path):
    """make_folder(kind, base, seed=0, name=None) -> the folder of a random adapter."""

    def make(kind: str, base: Base, seed: int = 0, name: str | None = None) -> Path:
        return write_folder(tmp_path / (name or f"{kind}-{seed}"), kind, base, seed)

    return make
