"""Reading safetensors files that nobody vouches for: our own strict header parser, torch-free.

Every function takes the open file, so that all they say is of the same bytes, whatever its path means by now.

The library accepts duplicate keys, path-like names, NaN and 100,000 tensors; here they are refused before
the library or torch sees the file. Layout: 8 bytes little-endian header length, a JSON object of
`name -> {dtype, shape, data_offsets}`, then the data without gaps or overlaps.
"""

import json
import math
import os
import re
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path

import numpy as np

from graft.hub.errors import ArtifactError

MAX_HEADER_BYTES = 1 << 20
MAX_TENSORS = 20_000
MAX_DIMENSIONS = 8
_NAME = re.compile(r"[\w.\-]+")
_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}
_FLOATING = ("F64", "F32", "F16", "BF16")
_NUMPY = {"F64": "<f8", "F32": "<f4", "F16": "<f2"}
_PICKLES = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")  # torch.save, old and new
LFS_POINTER = b"version "  # how the note begins that a clone without LFS has in place of a file
_PIECE_BYTES = 1 << 22  # a multiple of every value's size


@dataclass(frozen=True)
class TensorEntry:
    """Where one tensor lies. `start` and `stop` are byte offsets in the file."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int

    @property
    def numel(self) -> int:
        return math.prod(self.shape)


def read_header(file: BufferedReader) -> tuple[dict[str, TensorEntry], dict[str, str]]:
    """The tensors and the metadata of a safetensors file.

    Raises ArtifactError naming the file and what is wrong with it.
    """
    size = os.fstat(file.fileno()).st_size
    file.seek(0)
    start = file.read(8)
    if len(start) < 8:
        raise _damage(file, "it is shorter than 8 bytes; it was cut off")
    if start == LFS_POINTER:
        raise _damage(file, "it is Git LFS's note of where the weights are; fetch them with `git lfs pull`")
    (length,) = struct.unpack("<Q", start)
    if length > MAX_HEADER_BYTES and start.startswith(_PICKLES):  # a length below may begin with such bytes
        raise ArtifactError(
            f"{_name(file)} is a pickle or zip file under a safetensors name. Nothing is ever unpickled "
            f"here: save the adapter with safe_serialization=True."
        )
    if length > MAX_HEADER_BYTES:
        raise _damage(file, f"its header claims {length} bytes; at most {MAX_HEADER_BYTES} are taken")
    text = file.read(length)
    if len(text) < length:
        raise _damage(file, "it ends within its header; it was cut off")
    if not text.startswith(b"{"):
        raise _damage(file, "its header does not begin with {")
    try:
        header = json.loads(text.decode("utf-8"), object_pairs_hook=_no_duplicates)
    except (UnicodeDecodeError, RecursionError, ValueError) as error:
        raise _damage(file, f"its header is not valid JSON ({error})") from None
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise _damage(file, "its __metadata__ is not a table of strings")
    if len(header) > MAX_TENSORS:
        raise _damage(file, f"it holds {len(header)} tensors; at most {MAX_TENSORS} are taken")
    entries = {name: _entry(file, name, raw, 8 + length) for name, raw in header.items()}
    _require_gapless(file, entries, 8 + length, size)
    return entries, metadata


def require_finite(
    file: BufferedReader, entries: Mapping[str, TensorEntry], held: Mapping[str, bytearray] | None = None
) -> None:
    """Raise ArtifactError naming the first tensor that holds a NaN or an infinity. `held`: the bytes, where they are in memory."""
    for name, entry in entries.items():
        if entry.dtype not in _FLOATING:
            continue
        data = pieces(file, entry) if held is None else [held[name]]
        if not all(_finite(_numbers(entry, piece)) for piece in data):
            raise ArtifactError(
                f"{_name(file)}: tensor {name} holds NaN or infinite values, so the adapter would answer "
                f"nonsense. Its training diverged or the file is damaged; train it again."
            )


def holds_only(file: BufferedReader, entry: TensorEntry, value: float) -> bool:
    """Whether every element of a floating-point tensor is `value`."""
    if entry.dtype == "BF16":  # the upper half of a float32
        wanted, sign = np.float32(value).view(np.uint32) >> 16, 0x7FFF if value == 0 else 0xFFFF
        return all(bool(((piece & sign) == wanted).all()) for piece in _values(file, entry))
    return entry.dtype in _NUMPY and all(bool((piece == value).all()) for piece in _values(file, entry))


def pieces(file: BufferedReader, entry: TensorEntry) -> Iterator[bytes]:
    """A tensor's bytes, little-endian, a few MiB at a time: an adapter may be larger than memory."""
    for start in range(entry.start, entry.stop, _PIECE_BYTES):
        file.seek(start)
        yield file.read(min(_PIECE_BYTES, entry.stop - start))


def read_tensor(file: BufferedReader, entry: TensorEntry) -> bytearray:
    """A tensor's bytes. Raises ArtifactError for a file that has become shorter."""
    data = bytearray(entry.stop - entry.start)
    file.seek(entry.start)
    if file.readinto(data) != len(data):
        raise _damage(file, "it was cut off while it was read")
    return data


def _values(file: BufferedReader, entry: TensorEntry) -> Iterator[np.ndarray]:
    """A floating-point tensor's values in pieces."""
    return (_numbers(entry, piece) for piece in pieces(file, entry))


def _numbers(entry: TensorEntry, data: bytes | bytearray) -> np.ndarray:
    """Of bf16, which numpy doesn't have, the bits."""
    return np.frombuffer(data, _NUMPY.get(entry.dtype, "<u2"))


def _finite(values: np.ndarray) -> bool:
    if values.dtype.kind == "u":  # bf16: all exponent bits set means infinite or NaN
        return not ((values & 0x7F80) == 0x7F80).any()
    return bool(np.isfinite(values).all())


def _entry(file: BufferedReader, name: str, raw: object, data_start: int) -> TensorEntry:
    if not _NAME.fullmatch(name):
        raise _damage(file, f"tensor name {name[:80]!r} has characters other than letters, digits, . _ -")
    if not isinstance(raw, dict) or set(raw) != {"dtype", "shape", "data_offsets"}:
        raise _damage(file, f"tensor {name} lacks dtype, shape or data_offsets, or has more than these")
    dtype, shape, offsets = raw["dtype"], raw["shape"], raw["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _BYTES:
        raise _damage(file, f"tensor {name} has the dtype {dtype!r}; taken are {', '.join(_BYTES)}")
    if not _naturals(shape) or len(shape) > MAX_DIMENSIONS:
        raise _damage(file, f"tensor {name} has the shape {shape!r}")
    if not _naturals(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise _damage(file, f"tensor {name} has the data_offsets {offsets!r}")
    if offsets[1] - offsets[0] != math.prod(shape) * _BYTES[dtype]:
        raise _damage(file, f"tensor {name}: {offsets[1] - offsets[0]} bytes do not make {dtype} {shape}")
    return TensorEntry(dtype, tuple(shape), data_start + offsets[0], data_start + offsets[1])


def _require_gapless(file: BufferedReader, entries: dict[str, TensorEntry], start: int, size: int) -> None:
    position = start
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].start, item[1].stop)):
        if entry.start != position:
            raise _damage(file, f"tensor {name} overlaps another or leaves a gap before it")
        position = entry.stop
    if position > size:
        raise _damage(file, f"it has {size} bytes where its header promises {position}; it was cut off")
    if position < size:
        raise _damage(file, f"{size - position} bytes follow the last tensor")


def _naturals(value: object) -> bool:
    return isinstance(value, list) and all(type(n) is int and 0 <= n < 1 << 53 for n in value)


def _no_duplicates(pairs: list[tuple[str, object]]) -> dict[str, object]:
    table = dict(pairs)
    if len(table) != len(pairs):
        raise ValueError("a key appears twice")
    return table


def _name(file: BufferedReader) -> str:
    return Path(file.name).name


def _damage(file: BufferedReader, why: str) -> ArtifactError:
    return ArtifactError(f"{_name(file)} is not a sound safetensors file: {why}.")
