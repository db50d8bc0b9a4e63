"""Which dtype a base computes in where nobody says: the documented default, unless the other is measured to be faster.

A CPU's flags say what it can multiply, not what is fast: that depends on the kernels, the shapes and the threads. So the
room that will work brings its kernels (a `TimedWork`), they are timed on the first layers of the very base, and the outcome is
kept for the machine. Only where there is a choice: on a CPU, for a base stored in bfloat16, which float32 holds whole.
"""

import copy
import json
import math
import platform
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig
from transformers.utils import logging as transformers_logging

from graft.hub.base.attention import ATTENTION
from graft.hub.base.model import DTYPES, Base, default_dtype, dtype_text, usable_device
from graft.hub.machine.cpu_load import Load, usable_cores
from graft.hub.machine.kept_values import keep, recall

GAIN = 1.15  # what the default is left for
_LOOK_S = 0.3  # how long the machine is looked at before
_RUNS, _CASE_S = 5, 3.0  # the best of so many, in about so long
_SAMPLE_BYTES = 1 << 30  # of stored weights: of a larger base some layers are timed
_KIND = "dtype"

Cases = Mapping[str, Callable[[], object]]  # what is timed, by name


@dataclass(frozen=True)
class TimedWork:
    """What a base is loaded for: `cases(base)` opens the real kernels on it. `sizes`: what the timing depends on."""

    name: str
    sizes: tuple[object, ...]
    cases: Callable[[Base], AbstractContextManager[Cases]]


@dataclass(frozen=True)
class DtypeOutcome:
    """`shares`: how many times as fast each case is in `other`; `gain`: their geometric mean."""

    default: str
    other: str
    shares: dict[str, float]

    @property
    def gain(self) -> float:
        return math.exp(sum(math.log(share) for share in self.shares.values()) / len(self.shares))

    @property
    def dtype(self) -> str:
        return self.other if self.gain >= GAIN else self.default

    def sentence(self, work: str) -> str:
        each = ", ".join(f"{name} {share:.2f}" for name, share in self.shares.items())
        why = "" if self.dtype == self.other else f", and it takes {GAIN:.2f} to leave the default"
        return (
            f"{self.dtype} for {work}: measured here, {self.other} is {self.gain:.2f} times as fast as {self.default} "
            f"({each}){why}. --dtype says otherwise."
        )


def chosen_dtype(
    source: str,
    device: str | None,
    work: TimedWork,
    say: Callable[[str], None],
    clock: Callable[[], float] = time.perf_counter,
) -> str | None:
    """The name of the dtype to load `source` in; None where `load_base` decides alone, and tells what is wrong with it.

    `say` is told what was measured. Nothing is while other work runs: then the default stays.
    """
    if not Path(source).is_dir() or usable_device(device) != "cpu":
        return None
    try:
        config = AutoConfig.from_pretrained(source)
    except (OSError, ValueError):
        return None
    if config.dtype != torch.bfloat16:
        return None
    default = dtype_text(default_dtype("cpu", config.dtype))
    key = json.dumps([_machine(), work.name, work.sizes, default, config.to_dict()], default=str, sort_keys=True)
    outcome = _recall_outcome(key)
    if outcome is None and not _quiet():
        say(
            f"{default} for {work.name}: other work is running, so which dtype is fast was not measured. --dtype chooses."
        )
        return default
    if outcome is None:
        outcome, quiet = _measure(Path(source), config, default, work, clock)
        if quiet:
            keep(_KIND, key, asdict(outcome))
    say(outcome.sentence(work.name))
    return outcome.dtype


def _measure(
    source: Path, config: PreTrainedConfig, default: str, work: TimedWork, clock: Callable[[], float]
) -> tuple[DtypeOutcome, bool]:
    """The outcome, and whether little else ran meanwhile."""
    (other,) = {"float32", "bfloat16"} - {default}
    load = Load()
    ours, theirs = (_seconds(source, config, dtype, work, clock) for dtype in (default, other))
    shares = {name: ours[name] / theirs[name] for name in ours}
    return DtypeOutcome(default, other, shares), load.cores().quiet


def _seconds(
    source: Path, config: PreTrainedConfig, dtype: str, work: TimedWork, clock: Callable[[], float]
) -> dict[str, float]:
    with work.cases(_sample(source, config, dtype)) as cases:
        return {name: _best_time(run, clock) for name, run in cases.items()}


def _best_time(run: Callable[[], object], clock: Callable[[], float]) -> float:
    """The shortest of a few runs after one to warm up."""
    run()
    taken: list[float] = []
    began = clock()
    while len(taken) < _RUNS and (len(taken) < 2 or clock() - began < _CASE_S):
        at = clock()
        run()
        taken.append(clock() - at)
    return min(taken)


def _sample(source: Path, config: PreTrainedConfig, dtype: str) -> Base:
    """The base without a tokenizer; of a large one the first layers."""
    stored = sum(path.stat().st_size for path in source.glob("*.safetensors"))
    short, layers = copy.deepcopy(config), config.num_hidden_layers
    if stored > _SAMPLE_BYTES:
        short.num_hidden_layers = max(1, layers * _SAMPLE_BYTES // stored)
        if types := getattr(config, "layer_types", None):
            short.layer_types = types[: short.num_hidden_layers]
    with _silence_transformers():
        model = AutoModelForCausalLM.from_pretrained(
            source, config=short, dtype=DTYPES[dtype], attn_implementation=ATTENTION, use_safetensors=True
        )
    return Base(model, None)


@contextmanager
def _silence_transformers() -> Iterator[None]:
    """Layers that are left out are no news."""
    before = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(before)


def _quiet() -> bool:
    load = Load()
    time.sleep(_LOOK_S)
    return load.cores().quiet


def _recall_outcome(key: str) -> DtypeOutcome | None:
    try:
        return DtypeOutcome(**recall(_KIND, key))
    except TypeError:  # none, or of another shape
        return None


def _machine() -> list[object]:
    """What speed depends on beside the base and the work."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        cpu = sorted({line for line in lines if line.startswith(("model name", "model\t", "flags", "Features"))})
    except OSError:
        cpu = [platform.processor()]
    abilities = torch.backends.cpu.get_cpu_capability()
    return [cpu, usable_cores(), torch.get_num_threads(), abilities, version("torch"), version("grafthub")]
