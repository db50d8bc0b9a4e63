"""Reading an adapter's folder while somebody writes it: one moment's config and weights, and none of them changes later."""

import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from graft.hub.adapters import artifact
from graft.hub.adapters.artifact import load_artifact
from graft.hub.adapters.validation import CONFIG, WEIGHTS, check_against, inspect_artifact
from graft.hub.errors import ArtifactError
from graft.hub.machine.atomic_files import write_folder_whole
from tests.hub.adapters.test_validation import SPEC, sound, with_config

NAME = WEIGHTS[0]


def other(folder):
    """Another training's adapter: other weights, another alpha."""
    tensors = {name: tensor * 2 for name, tensor in load_file(sound(folder) / NAME).items()}
    save_file(tensors, folder / NAME)
    return with_config(folder, lora_alpha=99)


def retrain(folder, newer):
    with write_folder_whole(folder, last=WEIGHTS) as staging:
        shutil.copytree(newer, staging, dirs_exist_ok=True)


@pytest.fixture
def between(monkeypatch):
    """Calls what is appended whenever a folder's config and header have been read and its tensors have not."""
    todo = []

    def check(*given, **options):
        check_against(*given, **options)
        for act in todo:
            act()

    monkeypatch.setattr(artifact, "check_against", check)
    return todo


def test_a_training_that_lands_meanwhile_is_what_is_read(tmp_path, between):
    newer = other(tmp_path / "newer")
    folder = sound(tmp_path / "served")

    def once():
        between.clear()
        retrain(folder, newer)

    between.append(once)
    loaded = load_artifact(folder, SPEC)
    assert loaded.digest == inspect_artifact(newer, SPEC).digest
    assert loaded.config.alpha == 99
    stored = load_file(newer / NAME)
    assert all(any(torch.equal(tensor, one) for one in stored.values()) for tensor in loaded.tensors.values())


def test_a_folder_that_is_always_being_written_says_so(tmp_path, between):
    folder = sound(tmp_path / "served")
    between.append(lambda: retrain(folder, sound(tmp_path / "newer")))
    with pytest.raises(ArtifactError, match="is being written"):
        load_artifact(folder, SPEC)


def test_what_is_loaded_stays_what_it_was(tmp_path):
    """PEFT writes over the old file in place; tensors that were views of it changed, or ended the process."""
    folder = sound(tmp_path)
    loaded = load_artifact(folder, SPEC)
    before = {name: tensor.clone() for name, tensor in loaded.tensors.items()}
    (folder / NAME).write_bytes(b"\x7f" * (folder / NAME).stat().st_size)
    assert all(torch.equal(tensor, before[name]) for name, tensor in loaded.tensors.items())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_tensors_are_the_librarys(tmp_path, dtype):
    folder = sound(tmp_path)
    stored = {name: tensor.to(dtype) for name, tensor in load_file(folder / NAME).items()}
    save_file(stored, folder / NAME)
    loaded = load_artifact(folder, SPEC)
    assert len(loaded.tensors) == len(stored)
    for tensor in loaded.tensors.values():
        assert tensor.dtype == dtype and any(torch.equal(tensor, one) for one in stored.values())
    assert loaded.digest == inspect_artifact(folder, SPEC).digest


def test_two_files_of_weights_are_not_published_and_the_first_is_served(tmp_path):
    folder = sound(tmp_path)
    first = load_artifact(folder, SPEC).digest
    shutil.copy(folder / NAME, folder / WEIGHTS[1])
    with pytest.raises(ArtifactError, match="remove the one that is not this adapter's"):
        inspect_artifact(folder, SPEC)
    assert load_artifact(folder, SPEC).digest == first
    (folder / CONFIG).unlink()
    with pytest.raises(ArtifactError, match="not an adapter's folder"):
        load_artifact(folder, SPEC)
