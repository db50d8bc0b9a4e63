"""A base run in plain arithmetic over its weights as they are stored, a piece at a time: slow, and the same everywhere.

The weights stay where they are, in the mapped safetensors files (or in the loaded model, where a base has none): each
piece is widened to the arithmetic's dtype when it is multiplied, so no second copy of the base is ever made. Between two
pieces `pause` is called, so that others can go on.
"""

import copy
import hashlib
import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import torch
import torch.nn.functional as F
from accelerate import init_empty_weights
from huggingface_hub import try_to_load_from_cache
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

from graft.hub.base.manifest import is_hub_id
from graft.hub.base.model import Base
from graft.hub.errors import BaseModelError
from graft.hub.machine.kept_values import recall_or_find

PIECE_S = 0.0005  # what a piece of a product should take
_LEAST_WORK = 1 << 22  # multiplications of a piece, also before anything is known of the machine's speed
_PIECE_ALONE = 1 << 22  # weights of a piece where nobody waits, which bounds memory only
_IN_FILES = {"lm_head.weight": "embed_out.weight"}  # GPT-NeoX: files go by the name of before transformers 5
_HASHED_AT_ONCE = 1 << 24  # bytes


def no_pause() -> None:
    """Nobody waits."""


@dataclass
class Arithmetic:
    """In which dtype is computed, and whether over the weights of another copy of the base (`rounded`).

    `pause` is called between two pieces, whose size follows from how long the last one took. Where there is nobody to
    pause for it does not: beside other load threads wait for each other, which would make pieces ever smaller.
    """

    dtype: torch.dtype = torch.float32
    rounded: bool = False
    pause: Callable[[], None] = no_pause
    _work: float = field(default=float(_LEAST_WORK), init=False)  # multiplications of a piece

    def widen(self, stored: Tensor) -> Tensor:
        return (_round(stored) if self.rounded else stored).to(self.dtype)

    def multiply(self, x: Tensor, stored: Tensor, bias: Tensor | None) -> Tensor:
        """x [..., in] times stored [out, in], plus bias [out] -> [..., out]."""
        rows, (width, depth) = max(1, x.numel() // x.shape[-1]), stored.shape
        made = x.new_empty(*x.shape[:-1], width)
        start = 0
        while start < width:
            self.pause()
            stop = min(width, start + max(1, self._weights(rows) // depth))
            began = time.perf_counter()
            own = None if bias is None else bias[start:stop]
            made[..., start:stop] = F.linear(x, self.widen(stored[start:stop]), own)
            self._adapt((stop - start) * depth * rows, time.perf_counter() - began)
            start = stop
        return made

    def _weights(self, rows: int) -> int:
        """Of a piece that is multiplied with so many rows."""
        return _PIECE_ALONE if self.pause is no_pause else int(self._work / rows)

    def _adapt(self, work: float, seconds: float) -> None:
        wanted = work * PIECE_S / max(seconds, 1e-9)
        # one odd measurement changes little, and what takes long though it is small had to wait, which smaller ones would too
        self._work = max(_LEAST_WORK, min(max(wanted, self._work / 2), self._work * 2))


class StoredLinear(nn.Module):
    """A linear whose weight stays where it is stored, as [out, in]."""

    def __init__(self, stored: Tensor, bias: Tensor | None, arithmetic: Arithmetic):
        super().__init__()
        self._stored, self._arithmetic = stored, arithmetic
        self.bias = None if bias is None else _freeze(arithmetic.widen(bias))

    @property
    def weight(self) -> Tensor:
        """[out, in], widened whole."""
        return self._arithmetic.widen(self._stored)

    def forward(self, x: Tensor) -> Tensor:
        return self._arithmetic.multiply(x, self._stored, self.bias)


class StoredEmbedding(nn.Module):
    """A family's own embedding over those rows of the stored table that are asked for."""

    def __init__(self, own: nn.Embedding, stored: Tensor, arithmetic: Arithmetic):
        super().__init__()
        self._stored, self._arithmetic = stored, arithmetic
        self._own = own
        own.padding_idx = None  # an index into the whole table; it matters to gradients only
        own.weight = _freeze(arithmetic.widen(stored[:0]))

    def forward(self, ids: Tensor) -> Tensor:
        used, places = ids.unique(return_inverse=True)
        self._own.weight = _freeze(self._arithmetic.widen(self._stored[used]))
        return self._own(places)


@dataclass(frozen=True)
class StoredWeights:
    """A base's weights by the model's own names, as they are stored, on the CPU."""

    tensors: Mapping[str, Tensor]
    files: tuple[Path, ...]  # where they are mapped from; none: they are the loaded model's
    places: Mapping[str, tuple[Path, str]] = field(default_factory=dict)  # file and name there, where there are files

    def reader(self, name: str, dtype: torch.dtype) -> Callable[[], Tensor]:
        """Reads one tensor in a dtype, as often as it is asked, and keeps nothing mapped meanwhile. It raises BaseModelError
        where the file has changed since."""
        path, key = self.places[name]
        state = _states([path])

        def read() -> Tensor:
            if _states([path]) != state:
                raise BaseModelError(
                    f"{path} has changed since the base was loaded, and some of its weights are needed again: "
                    "start anew to serve what lies there now."
                )
            with safe_open(path, framework="pt") as file:
                stored: Tensor = file.get_tensor(key)
            return stored.to(dtype)

        return read

    @property
    def dtype(self) -> str:
        """Of most of the weights."""
        sizes: dict[str, int] = {}
        for tensor in self.tensors.values():
            name = str(tensor.dtype).removeprefix("torch.")
            sizes[name] = sizes.get(name, 0) + tensor.numel()
        return max(sizes, key=sizes.__getitem__)

    @cached_property
    def content(self) -> str:
        """sha256 hex over names, shapes, dtypes and all bytes: once per state of the files, then remembered."""
        if not self.files:
            return _content(self.tensors)
        return recall_or_find("base-content", json.dumps(_states(self.files)), lambda: _content(self.tensors))


def stored_weights(base: Base) -> StoredWeights:
    """The weights of `base` where they are stored; the loaded ones where its files have other names or there are none.

    A base that is loaded in fewer bits is taken from its files all the same.
    """
    names = _names(base.model)
    files = tuple(_files(base.source))
    if files:
        try:
            places = _places(files, names, base.model.base_model_prefix)
            tensors = _map_tensors(places) if places else {}
        except (OSError, SafetensorError):
            places = None
        if places and _fit(tensors, names):
            return StoredWeights(tensors, files, places)
    live = dict(base.model.named_parameters())
    if any(tensor.is_meta for tensor in live.values()):
        raise BaseModelError(f"The files of the base in {base.source} are no longer there, or no longer whole.")
    return StoredWeights({name: tensor.detach().cpu() for name, tensor in live.items()}, ())


def stored_base(base: Base, weights: StoredWeights, arithmetic: Arithmetic) -> Base:
    """`base` once more, on the CPU, over its stored weights in the given arithmetic. Takes next to no memory."""
    model_class, config = type(base.model), copy.deepcopy(base.model.config)
    with init_empty_weights(include_buffers=False):  # rotary tables are computed, not stored
        model = model_class(config)
    tied = model.get_input_embeddings(), model.get_output_embeddings()
    tensors = dict(weights.tensors)
    names = {module: name for name, module in model.named_modules()}
    embed, head = (names[module] for module in tied)
    tensors.setdefault(f"{head}.weight", tensors[f"{embed}.weight"])
    for name, module in list(model.named_modules()):
        _place(model, name, module, tensors, arithmetic)
    assert isinstance(tied[0], nn.Embedding)
    model.set_input_embeddings(StoredEmbedding(tied[0], tensors[f"{embed}.weight"], arithmetic))
    return Base(model, base.tokenizer, spec=base.spec)


def _place(
    model: PreTrainedModel, name: str, module: nn.Module, tensors: Mapping[str, Tensor], how: Arithmetic
) -> None:
    """Give one module of the empty model its weights."""
    if isinstance(module, (nn.Linear, Conv1D)):
        stored = tensors[f"{name}.weight"]
        bias = tensors[f"{name}.bias"] if module.bias is not None else None
        model.set_submodule(name, StoredLinear(stored.T if isinstance(module, Conv1D) else stored, bias, how))
    elif module is not model.get_input_embeddings():
        for own, _ in list(module.named_parameters(recurse=False)):
            setattr(module, own, _freeze(how.widen(tensors[f"{name}.{own}"])))


def _freeze(tensor: Tensor) -> nn.Parameter:
    return nn.Parameter(tensor, requires_grad=False)


def _names(model: nn.Module) -> dict[str, tuple[int, ...]]:
    """Parameter -> shape as a file should hold it; quantised ones have lost theirs (an empty shape)."""
    quantised = getattr(model, "is_quantized", False)
    return {name: () if quantised else tuple(p.shape) for name, p in model.named_parameters()}


def _files(source: str | None) -> Iterator[Path]:
    """The safetensors files of a folder, or of a hub id in the hub's cache; none where neither is there any more."""
    if source is None or not (Path(source).is_dir() or is_hub_id(source)):
        return
    for name in (SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME):
        there = Path(source) / name if Path(source).is_dir() else try_to_load_from_cache(source, name)
        if not isinstance(there, (str, Path)) or not Path(there).is_file():
            continue
        if name == SAFE_WEIGHTS_NAME:
            yield Path(there)
        else:
            yield from sorted({Path(there).parent / file for file in _index(Path(there))})
        return


def _states(files: Sequence[Path]) -> list[tuple[str, int, int]]:
    """What changes when a file does. Raises BaseModelError where one is no longer there."""
    try:
        return [(str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    except OSError as error:
        raise BaseModelError(f"A file of the base can't be read any more: {error}.") from error


def _index(path: Path) -> list[str]:
    return list(json.loads(path.read_text("utf-8"))["weight_map"].values())


def _places(files: Sequence[Path], names: Iterable[str], prefix: str) -> dict[str, tuple[Path, str]] | None:
    """The file of every named tensor and its name there; None where one is missing."""
    there: dict[str, Path] = {}
    for path in files:
        with safe_open(path, framework="pt") as file:
            there |= dict.fromkeys(file.keys(), path)
    places = {}
    for name in names:
        # files without the model's prefix, or with it though the model has none
        spellings = (name, name.removeprefix(f"{prefix}."), f"{prefix}.{name}", _IN_FILES.get(name, name))
        key = next((spelling for spelling in spellings if spelling in there), None)
        if key is None:
            return None
        places[name] = there[key], key
    return places


def _map_tensors(places: Mapping[str, tuple[Path, str]]) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for path in sorted({path for path, _ in places.values()}):
        with safe_open(path, framework="pt") as file:
            tensors |= {name: file.get_tensor(key) for name, (at, key) in places.items() if at == path}
    return tensors


def _fit(tensors: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]]) -> bool:
    """Whether all have the shapes that are known."""
    return all(not shape or tuple(tensors[name].shape) == shape for name, shape in shapes.items())


def _content(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"\n{name} {tuple(tensor.shape)} {tensor.dtype} ".encode())
        flat = tensor.detach().contiguous().reshape(-1).view(torch.uint8)
        for piece in flat.split(_HASHED_AT_ONCE):
            digest.update(piece.numpy())
    return digest.hexdigest()


def _round(stored: Tensor) -> Tensor:
    """The weights as another copy may hold them: rounded to bfloat16, or, where they are that, from before the rounding.

    What was rounded away is unknown, so anything within half of bfloat16's last place is taken, by the weight's own bits.
    """
    if stored.dtype != torch.bfloat16:
        return stored.to(torch.bfloat16)
    bits = stored.contiguous().view(torch.int16).to(torch.int32) * 40503 & 0xFFFF
    return stored.to(torch.float32) * (1 + (bits.to(torch.float32) / 32768 - 1) * 2**-9)
