"""The very base that somebody else wants: found on another machine, and refused where it is another one there."""

import platform
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from graft.hub.base.dtype_choice import TimedWork, chosen_dtype
from graft.hub.base.manifest import BaseSpec, recorded_spec
from graft.hub.base.model import Base, default_dtype, dtype_text, load_base, usable_device
from graft.hub.errors import BaseMismatchError, BaseModelError, GraftError


@dataclass(frozen=True)
class WantedBase:
    """A base as it is loaded where it is asked for. `chat_template`: instead of its own."""

    source: str  # an absolute folder, or a name or id that each machine knows
    fingerprint: str
    dtype: str
    device: str  # cpu or cuda
    quantize: str | None = None
    chat_template: str | None = None

    def load(self) -> Base:
        """A fresh one. Raises BaseModelError where it is not on this machine, BaseMismatchError where it is another one here."""
        here = platform.node()
        try:
            base = load_base(self.source, dtype=self.dtype, device=self.device, quantize=self.quantize)
        except GraftError as error:
            raise BaseModelError(
                f"{here} can't load the base: {error} Every node needs it: on a disk that all see, or imported on each."
            ) from None
        found = (base.spec.fingerprint, base.dtype_name, base.device.type)
        if found != (self.fingerprint, self.dtype, self.device):
            raise BaseMismatchError(
                f"{here} would give other numbers: {self.source} is {', '.join(found)} there, and "
                f"{self.fingerprint}, {self.dtype}, {self.device} is wanted. Import the same base on every node."
            )
        if self.chat_template is not None and base.tokenizer is not None:
            base.tokenizer.chat_template = self.chat_template
        return base


@lru_cache(maxsize=1)
def kept_base(wanted: WantedBase) -> Base:
    """The base, loaded once a process for as long as the same is wanted. Nobody may change it."""
    return wanted.load()


def wanted_base(
    source: str,
    dtype: str | None,
    device: str | None,
    work: TimedWork,
    say: Callable[[str], None],
    *,
    quantize: str | None = None,
    chat_template: str | None = None,
) -> tuple[WantedBase, BaseSpec]:
    """What would be loaded here for `work`, and its manifest. A base without one is loaded to find out.

    Raises BaseModelError, as `load_base`, and GraftError for one GPU of several, by its number.
    """
    if device is not None and ":" in device:
        raise GraftError(f"With --ray the cluster chooses the GPU of each task: say --device cuda, not {device}.")
    kind = "cuda" if device == "cuda" else usable_device(device)  # this machine needs no GPU of its own
    if dtype is None and kind == "cuda":
        dtype = dtype_text(default_dtype(kind, None))
    elif dtype is None and quantize is None:
        dtype = chosen_dtype(source, kind, work, say)
    spec = recorded_spec(source)
    if spec is None or dtype is None:
        base = load_base(source, dtype=dtype, device="cpu", quantize=quantize)
        spec, dtype = base.spec, base.dtype_name
    where = str(Path(source).resolve()) if Path(source).exists() else source
    return WantedBase(where, spec.fingerprint, dtype, kind, quantize, chat_template), spec
