"""The base's weights in memory once: what the kernels have packed is given back to the system, and what packing takes is known
before it begins.

A weight that lies in the base's files as it was loaded can be read again when somebody needs it: an adapter that is folded
over it, or the eager path. All others stay.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from graft.hub.base.model import Base
from graft.hub.base.stored_weights import StoredWeights, stored_weights

_PANEL = 64  # columns at most that a packed linear is filled up to (csrc/gemm.h)


def extra_bytes(base: Base) -> int:
    """What the packed weights take beside those that are loaded.

    Weights in the dtype of their file are mapped, not loaded, by transformers: giving them back frees nothing.
    """
    stored = stored_weights(base)
    extra = 0
    for name in linears(base):
        weight = base.weight(name)
        extra += (weight.shape[0] + _PANEL) * weight.shape[1] * weight.itemsize
        if _is_stored(base, name, stored) and stored.tensors[f"{name}.weight"].dtype != weight.dtype:
            extra -= weight.nbytes
    return max(0, extra)


def releaser(base: Base) -> Callable[[str], None]:
    """Gives back the memory of one linear's weight, where the files hold the same."""
    stored = stored_weights(base)

    def release(name: str) -> None:
        if not _is_stored(base, name, stored):
            return
        read = stored.reader(f"{name}.weight", base.dtype)
        if torch.equal(read(), base.weight(name)):  # somebody may have changed the loaded model
            base.release(name, read)

    return release


def linears(base: Base) -> list[str]:
    return [name for name, module in base.spec.modules.items() if module.kind == "linear"]


def _is_stored(base: Base, name: str, stored: StoredWeights) -> bool:
    """Whether a weight can be read from the base's files. One that is the embedding's too stays for the embedding."""
    return bool(stored.files) and f"{name}.weight" in stored.tensors and not _is_tied(base, base.weight(name))


def _is_tied(base: Base, weight: Tensor) -> bool:
    embedding = base.model.get_input_embeddings().weight
    return isinstance(embedding, Tensor) and embedding.data_ptr() == weight.data_ptr()
