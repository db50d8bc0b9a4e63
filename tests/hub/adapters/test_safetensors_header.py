"""Safetensors files nobody vouches for: each flaw has its own message, and nothing reaches the library."""

import json
import pickle
import re
import struct

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save, save_file

from graft.hub.adapters.safetensors_header import MAX_HEADER_BYTES, holds_only, read_header, require_finite
from graft.hub.errors import ArtifactError


def file_of(folder, header, data=b"", *, length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path = folder / "adapter_model.safetensors"
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)
    return path


def tensor(start, stop, dtype="F32", shape=None):
    return {"dtype": dtype, "shape": [(stop - start) // 4] if shape is None else shape, "data_offsets": [start, stop]}


def header_of(path):
    with path.open("rb") as file:
        return read_header(file)


FLAWS = [  # what the message says, and the file
    ("shorter than 8 bytes", lambda d: _bytes(d, b"abc")),
    ("header claims", lambda d: file_of(d, {}, length=MAX_HEADER_BYTES + 1)),
    ("ends within its header", lambda d: file_of(d, {}, length=500)),
    ("does not begin with {", lambda d: file_of(d, b"[1, 2]")),
    ("a key appears twice", lambda d: file_of(d, b'{"a": {}, "a": {}}')),
    ("not valid JSON", lambda d: file_of(d, b'{"a": \xff\xfe}')),
    ("not valid JSON", lambda d: file_of(d, b'{"a":' + b"[" * 200_000)),
    ("table of strings", lambda d: file_of(d, {"__metadata__": {"a": 1}})),
    ("overlaps", lambda d: file_of(d, {"a": tensor(0, 8), "b": tensor(4, 12)}, bytes(12))),
    ("leaves a gap", lambda d: file_of(d, {"a": tensor(0, 4), "b": tensor(8, 12)}, bytes(12))),
    ("cut off", lambda d: file_of(d, {"a": tensor(0, 400)}, bytes(12))),
    ("follow the last tensor", lambda d: file_of(d, {"a": tensor(0, 4)}, bytes(12))),
    ("characters other than", lambda d: file_of(d, {"../../etc/passwd": tensor(0, 4)}, bytes(4))),
    ("has the dtype", lambda d: file_of(d, {"a": tensor(0, 4, "F8_E4M3")}, bytes(4))),
    ("has the shape", lambda d: file_of(d, {"a": tensor(0, 4, shape=[-1])}, bytes(4))),
    ("has the shape [True]", lambda d: file_of(d, {"a": tensor(0, 4, shape=[True])}, bytes(4))),
    ("do not make", lambda d: file_of(d, {"a": tensor(0, 4, shape=[1 << 40])}, bytes(4))),
    ("data_offsets", lambda d: file_of(d, {"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 0]}}, bytes(4))),
    ("or has more than these", lambda d: file_of(d, {"a": tensor(0, 4) | {"extra": 1}}, bytes(4))),
    ("tensors; at most", lambda d: file_of(d, {f"{i}": 0 for i in range(20_001)})),
    ("pickle or zip", lambda d: _bytes(d, pickle.dumps({"weights": list(range(100))}, protocol=2))),
]


def _bytes(folder, content):
    path = folder / "adapter_model.safetensors"
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(("message", "flawed"), FLAWS)
def test_each_flaw_has_its_message(message, flawed, tmp_path):
    with pytest.raises(ArtifactError, match=re.escape(message)):
        header_of(flawed(tmp_path))


@pytest.mark.parametrize("zipped", [True, False])
def test_torch_save_under_a_safetensors_name(zipped, tmp_path):
    path = tmp_path / "adapter_model.safetensors"
    torch.save({"a": torch.ones(3)}, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(ArtifactError, match="Nothing is ever unpickled"):
        header_of(path)


def test_a_header_as_long_as_a_pickles_first_bytes_is_read(tmp_path):
    """640 = 0x0280: the length's bytes are those of a pickle's protocol mark."""
    text = json.dumps({"a": tensor(0, 4)}).encode().ljust(640)
    entries, _ = header_of(file_of(tmp_path, text, bytes(4)))
    assert entries["a"].shape == (1,)


def test_what_the_library_writes_is_read(tmp_path):
    tensors = {"a.b": torch.randn(3, 4), "c": torch.randn(2).bfloat16(), "empty": torch.zeros(0, 5)}
    save_file(tensors, tmp_path / "x.safetensors", metadata={"format": "pt"})
    entries, metadata = header_of(tmp_path / "x.safetensors")
    assert {name: entry.shape for name, entry in entries.items()} == {"a.b": (3, 4), "c": (2,), "empty": (0, 5)}
    assert metadata == {"format": "pt"}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_not_finite_is_refused_by_tensor(dtype, bad, tmp_path):
    values = torch.ones(7, 3, dtype=dtype)
    values[5, 1] = bad
    path = tmp_path / "x.safetensors"
    save_file({"fine": torch.ones(2), "bad.one": values}, path)
    with path.open("rb") as file, pytest.raises(ArtifactError, match=r"bad\.one holds NaN"):
        require_finite(file, read_header(file)[0])
    values[5, 1] = torch.finfo(dtype).max
    save_file({"fine": torch.ones(2), "bad.one": values}, path)
    with path.open("rb") as file:
        require_finite(file, read_header(file)[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_holds_only(dtype, tmp_path):
    ones = torch.ones(6, dtype=dtype)
    tensors = {"zero": -ones * 0, "one": ones, "nearly": torch.tensor([1, 1, 1.5], dtype=dtype)}
    save_file(tensors, tmp_path / "x.safetensors")
    with (tmp_path / "x.safetensors").open("rb") as file:
        entries, _ = read_header(file)
        told = {(name, value): holds_only(file, entries[name], value) for name in entries for value in (0, 1)}
    assert {pair for pair, same in told.items() if same} == {("zero", 0), ("one", 1)}


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_flipped_bytes_never_raise_anything_else(tmp_path_factory, data):
    whole = bytearray(save({"a.lora_A.weight": torch.ones(2, 3), "b": torch.zeros(1)}))
    for _ in range(data.draw(st.integers(1, 4))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.mktemp("flip") / "x.safetensors"
    path.write_bytes(bytes(whole[: data.draw(st.integers(0, len(whole)))]))
    try:
        with path.open("rb") as file:
            entries, _ = read_header(file)
            require_finite(file, entries)
    except ArtifactError:
        return
    assert sum(entry.stop - entry.start for entry in entries.values()) <= len(whole)
