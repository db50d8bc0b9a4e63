"""What vLLM is given for a name: logic without vLLM (test_vllm.py has the real one)."""

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from graft.hub.errors import BaseMismatchError, GraftError, RevisionNotFoundError, UnsupportedMethodError
from graft.hub.integrations.vllm_adapters import VllmAdapters
from graft.hub.integrations.vllm_plugin import Resolver
from graft.hub.registry.registry import Registry
from graft.hub.registry.remote.client import RemoteRegistry
from tests.hub.conftest import base_spec, lora_folder

BASE = "acme/tiny-llama"


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture(params=["file", "hub"])
def adapters(request, registry: Registry, hub: str, cache: Path) -> VllmAdapters:
    return VllmAdapters(lambda: RemoteRegistry(hub, token="none") if request.param == "hub" else registry, cache)


def published(registry: Registry, tmp_path: Path, name: str = "ann/news", seed: int = 0, **options):
    return registry.publish(lora_folder(tmp_path / f"{name.replace('/', '-')}-{seed}", seed=seed, **options), name)


def same_files(folder: Path, other: Path) -> bool:
    names = ("adapter_config.json", "adapter_model.safetensors")
    return all((folder / name).read_bytes() == (other / name).read_bytes() for name in names)


def test_an_alias_leads_to_another_name_and_another_folder_once_it_has_moved(adapters, registry, tmp_path, cache):
    old, new = (published(registry, tmp_path, seed=seed) for seed in (0, 1))
    registry.promote(f"ann/news@{old.id}", "production")
    first = adapters.find(BASE, "ann/news@production")
    assert first.folder == cache / old.digest and old.digest in first.name
    assert same_files(first.folder, tmp_path / "ann-news-0")
    registry.promote(f"ann/news@{new.id}", "production")
    second = adapters.find(BASE, "ann/news@production")
    assert second.folder == cache / new.digest and new.digest in second.name
    assert same_files(second.folder, tmp_path / "ann-news-1")
    assert same_files(first.folder, tmp_path / "ann-news-0")  # whoever runs on it goes on reading it
    assert sorted(path.name for path in cache.iterdir()) == sorted([old.digest, new.digest])


def test_no_two_answers_have_one_name_and_one_digest_has_one_folder(adapters, registry, tmp_path, monkeypatch):
    """vLLM numbers each answer, and drops one of two requests in a batch whose adapters' names are equal."""
    made = published(registry, tmp_path)
    registry.promote(f"ann/news@{made.id}", "production")
    names = ["ann/news", "ann/news@production", f"ann/news@{made.id}", "ANN/News", "ann/news"]
    first = adapters.find(BASE, names[0])

    def pull(*_):
        raise AssertionError("it is there")

    for owner in (Registry, RemoteRegistry):
        monkeypatch.setattr(owner, "pull", pull)
    found = [first, *(adapters.find(BASE, name) for name in names[1:])]
    assert len({one.name for one in found}) == len(names)
    assert {one.folder for one in found} == {first.folder}


def test_a_task_is_narrowed_to_the_base_that_is_served(adapters, registry, tmp_path):
    served = tmp_path / "served"
    served.mkdir()
    (served / "graft-base.json").write_text(base_spec().to_json())
    registry.add_task("news-topic", "accuracy", b'{"prompt": "a", "completion": "b"}\n', "Topics")
    registry.promote(f"ann/news@{published(registry, tmp_path).id}", "production")
    found = adapters.find(str(served), "task:news-topic")
    assert same_files(found.folder, tmp_path / "ann-news-0")


def test_names_of_others_are_left_to_them(adapters, registry, tmp_path):
    published(registry, tmp_path)
    for name in ("news", "bob/news", "/data/adapters/news", "a/b/c", "..", "ann/../news", "ann/news/x", ""):
        assert adapters.find(BASE, name) is None


def test_a_version_that_is_not_there_is_told(adapters, registry, tmp_path):
    published(registry, tmp_path)
    with pytest.raises(RevisionNotFoundError, match="staging"):
        adapters.find(BASE, "ann/news@staging")


def test_another_base_is_refused(adapters, registry, tmp_path):
    published(registry, tmp_path)
    with pytest.raises(BaseMismatchError, match="trained on acme/tiny-llama, and vLLM serves acme/other"):
        adapters.find("acme/other", "ann/news")
    served = tmp_path / "served"
    served.mkdir()
    with pytest.raises(BaseMismatchError, match="graft base import"):
        adapters.find(str(served), "ann/news")
    for spec, fits in ((base_spec(id="acme/same-weights"), True), (base_spec(fingerprint="a" * 64), False)):
        (served / "graft-base.json").write_text(spec.to_json())
        if fits:
            assert adapters.find(str(served), "ann/news") is not None
        else:
            with pytest.raises(BaseMismatchError, match="another base"):
                adapters.find(str(served), "ann/news")
    snapshot = tmp_path / "models--acme--tiny-llama" / "snapshots" / "abc"
    assert adapters.find(str(snapshot), "ann/news") is not None


KINDS = {
    "dora": "DoRA", "houlsby": "eries", "pfeiffer": "eries", "parallel": "arallel", "bitfit": "BitFit", "ia3": "IA3",
    "prompt": "rompt", "prefix": "refix", "ptuning": "P-tuning",
}  # fmt: skip


def test_kinds_that_vllm_has_not_are_refused_in_words(registry, tmp_path, cache):
    from tests.conftest import tiny_base
    from tests.server.conftest import write_folder

    base = tiny_base("qwen2")
    registry.add_base(base.spec)
    adapters = VllmAdapters(lambda: registry, cache)
    for kind in ("lora", "lora-wide", *KINDS):
        registry.publish(write_folder(tmp_path / kind, kind, base), f"ann/{kind}")
    for kind, word in KINDS.items():
        with pytest.raises(UnsupportedMethodError, match=rf"ann/{kind} is .*{word}.*plain LoRA alone.*graft serve"):
            adapters.find("test/qwen2", f"ann/{kind}")
    for kind in ("lora", "lora-wide"):
        assert json.loads((adapters.find("test/qwen2", f"ann/{kind}").folder / "adapter_config.json").read_text())["r"]


@pytest.mark.parametrize(
    ("option", "word"), [({"lora_bias": True}, "biases of its own"), ({"bias": "lora_only"}, "biases")]
)
def test_loras_that_vllm_has_not_are_refused_by_their_config(option, word, registry, tmp_path, cache):
    import torch

    from graft.hub.adapters.artifact import save_artifact
    from graft.hub.adapters.methods import get_method
    from tests.conftest import tiny_base

    base = tiny_base("qwen2")
    registry.add_base(base.spec)
    lora = get_method("lora")
    config = lora.from_options({key: str(value).lower() for key, value in option.items()}, base.spec)
    tensors = {name: torch.ones(shape) for name, shape in lora.shapes(config, base.spec).items()}
    save_artifact(tmp_path / "odd", lora, config, tensors, base.spec)
    registry.publish(tmp_path / "odd", "ann/odd")
    with pytest.raises(UnsupportedMethodError, match=word):
        VllmAdapters(lambda: registry, cache).find("test/qwen2", "ann/odd")


def test_a_pull_that_breaks_off_leaves_nothing(adapters, registry, tmp_path, cache, monkeypatch):
    made = published(registry, tmp_path)

    def break_off(self, name, folder):
        Path(folder).mkdir()
        (Path(folder) / "adapter_config.json").write_text("{}")
        raise GraftError("the line went dead")

    with monkeypatch.context() as patched:
        for owner in (Registry, RemoteRegistry):
            patched.setattr(owner, "pull", break_off)
        with pytest.raises(GraftError, match="dead"):
            adapters.find(BASE, "ann/news")
    assert not [*cache.iterdir()]
    assert adapters.find(BASE, "ann/news").folder == cache / made.digest


def test_a_hub_that_is_away_is_told_and_asked_again(registry, tmp_path, cache, hub):
    urls = iter(["http://127.0.0.1:9", hub])
    published(registry, tmp_path)

    def open_registry():
        remote = RemoteRegistry(next(urls), token="none")
        remote.require_there()
        return remote

    adapters = VllmAdapters(open_registry, cache)
    with pytest.raises(GraftError, match="No hub answers"):
        adapters.find(BASE, "ann/news")
    assert adapters.find(BASE, "ann/news") is not None


class Told(Exception):
    """Stands for the exception by which vLLM's clients are told."""


def test_the_resolver_hands_on_what_was_found_and_what_was_refused(registry, tmp_path, cache):
    made = published(registry, tmp_path)
    resolver = Resolver(VllmAdapters(lambda: registry, cache), lambda *parts: parts, lambda error: Told(str(error)))
    name, number, path = asyncio.run(resolver.resolve_lora(BASE, "ann/news"))
    assert made.digest in name and number >= 1 and path == str(cache / made.digest)
    assert asyncio.run(resolver.resolve_lora(BASE, "somebody/else")) is None
    with pytest.raises(Told, match="acme/other"):
        asyncio.run(resolver.resolve_lora("acme/other", "ann/news"))


@pytest.mark.parametrize(
    ("settings", "code", "words"),
    [
        ({}, 0, ""),
        ({"GRAFT_HUB": "http://127.0.0.1:9", "GRAFT_REGISTRY": "registry.db"}, 1, "both set"),
        ({"GRAFT_REGISTRY": "/nowhere/registry.db"}, 1, "no such file"),
    ],
)
def test_settings_are_looked_at_before_anything_is_imported(settings, code, words):
    program = (
        "import sys\nfrom importlib.metadata import entry_points\n"
        "[point] = entry_points(group='vllm.general_plugins', name='graft')\npoint.load()()\n"
        "assert not {'torch', 'vllm', 'huggingface_hub', 'flask'} & sys.modules.keys()"
    )
    clean = {key: value for key, value in os.environ.items() if not key.startswith("GRAFT_")}
    done = subprocess.run([sys.executable, "-c", program], env=clean | settings, capture_output=True, text=True)
    assert done.returncode == code and words in done.stderr and "Traceback" not in done.stderr, done.stderr
