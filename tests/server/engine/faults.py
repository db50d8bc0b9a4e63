"""Faults for the engine's parts, found by introspection: which methods there are, which of them handle numbers, and one that fails once."""

import inspect
import threading
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, fields, is_dataclass, replace
from functools import partial, wraps
from types import FunctionType, UnionType
from typing import Union, get_args, get_origin, get_type_hints

import numpy as np
import torch
from torch import Tensor

from graft.hub.chat.words import AdapterWords
from graft.server.adapters.device import DeviceTier
from graft.server.adapters.host import HostTier
from graft.server.adapters.loaded import Loaded
from graft.server.adapters.loading import Loading
from graft.server.adapters.prover import Prover
from graft.server.cache.blocks import BlockPool
from graft.server.cache.tensors import KVCache
from graft.server.engine import messages, questions
from graft.server.engine.adapter_proof import Proof
from graft.server.engine.consumers import Question, RowsJob, RunningRequest
from graft.server.engine.ledger import Ledger
from graft.server.engine.messages import Inbox
from graft.server.engine.scheduler import Scheduler
from graft.server.engine.steps import Answer, StepAsked, Stepper
from graft.server.runners.eager.runner import EagerRunner
from graft.server.runners.protocol import Runner
from graft.server.sampling.params import Sampling, StepResult, Token
from graft.server.structured.compiler import Compiler
from graft.server.structured.mask_thread import MaskThread
from graft.server.structured.matcher import Matcher
from graft.server.work_pool import WorkPool

MESSAGES = (
    *(messages.Opened, messages.Placed, messages.Masked, messages.Cancelled, messages.DetoursPrepared),
    *(messages.Refused, messages.Ask),
)
# Not among them: what these are made of, and nobody else calls (queues by turns, idle adapters, time slices, interest, pace): its
# faults are those of the methods that call it. Names and hubs are the library's, whose own tests fail them; Wake does nothing.
PARTS = (
    *(Scheduler, BlockPool, HostTier, DeviceTier, Prover, Proof, KVCache, RunningRequest, RowsJob, Question),
    *(Compiler, MaskThread, Matcher, WorkPool, Loading, Ledger, Stepper, StepAsked, Answer, Inbox),
    *(*MESSAGES, questions.Stats, questions.Unload, questions.Pin),
)
INSIDE = ("step", "outputs")  # of a runner, beside what its protocol says: while its result is waited for

# Why it can't fail here, by where it is called.
_END = "when all is over"
_START = "before the first request"
_NEVER = "of what it never asks for"
UNCALLED = {
    "Prover.close": _END,
    "Compiler.close": _END,
    "MaskThread.close": _END,
    "HostTier.close": _END,
    "Loading.close": _END,
    "WorkPool.close": _END,
    "Inbox.end": _END,
    "Ledger.fail_all": _END,
    "KVCache.blocks": "where steps are recorded: on a GPU",
    "KVCache.bytes": _START,
    "KVCache.take_memory": _START,
    **dict.fromkeys(("RowsJob.accept", "RowsJob.observe", "RowsJob.pool", "RowsJob.no_token"), _NEVER),
    **dict.fromkeys(("Question.accept", "Question.pool"), _NEVER),
    **dict.fromkeys(("RowsJob.foreseeable", "Question.foreseeable"), "of those that draw a token"),
}

Case = tuple[type, str]


def methods(part: type) -> list[str]:
    """Names of its public methods and properties."""
    return [
        name
        for name, member in inspect.getmembers(part)
        if not name.startswith("_") and (inspect.isfunction(member) or isinstance(member, property))
    ]


def label(case: Case) -> str:
    return f"{case[0].__name__}.{case[1]}"


def is_own(part: type, name: str) -> bool:
    """Whether it is no abstract method, and not the one of another part."""
    member = getattr(part, name)
    others = (other for other in PARTS if other is not part and issubclass(part, other))
    return not getattr(member, "__isabstractmethod__", False) and all(
        getattr(other, name, None) is not member for other in others
    )


CONSTANTS = {(Runner, "begins_early")}  # of each class
ALL: list[Case] = [
    (part, name)
    for part in (*PARTS, Runner)
    for name in methods(part)
    if is_own(part, name) and (part, name) not in CONSTANTS
]
CASES = [case for case in ALL if label(case) not in UNCALLED] + [(Runner, name) for name in INSIDE]


class Struck(Exception):
    """What a fault raises is of this kind, beside its own."""


@dataclass
class Fault:
    """Raises at the `n`-th call of a method, once. `error` None: at the n-th that handles numbers these are not numbers."""

    n: int
    error: type[Exception] | None
    calls: int = 0
    at: float | None = None  # when it struck
    lock: threading.Lock = field(default_factory=threading.Lock)

    def strikes(self) -> bool:
        with self.lock:
            self.calls += 1
            if self.calls == self.n:
                self.at = time.monotonic()
            return self.calls == self.n

    def around(self, true, case):
        if self.error is None:
            return self.instead_of_numbers(true, case)

        @wraps(true)
        def call(*args, **options):
            if self.strikes():
                raise type("Struck", (self.error, Struck), {})("as a fault would")
            return true(*args, **options)

        return call

    def instead_of_numbers(self, true, case):
        gives, told, taken = numbers_of(case)
        signature = inspect.signature(true)

        @wraps(true)
        def call(*args, **options):
            bound = signature.bind(*args, **options).arguments
            if taken in bound and holds_numbers(bound[taken]) and self.strikes():
                bound[taken] = not_numbers(bound[taken])
            if told in bound:
                bound[told] = self.telling(bound[told])
            result = true(**bound)
            return not_numbers(result) if gives and holds_numbers(result) and self.strikes() else result

        return call

    def telling(self, tell):
        return lambda one: tell(not_numbers(one) if holds_numbers(one) and self.strikes() else one)

    def put_into(self, monkeypatch, kind, case):
        """`kind`: the class whose method it is, of a protocol's the one that is used."""
        member = inspect.getattr_static(kind, case[1])
        if isinstance(member, property):
            monkeypatch.setattr(kind, case[1], property(self.around(member.fget, case)))
        else:
            monkeypatch.setattr(kind, case[1], self.around(member, case))


# Numbers: of kernels, of adapters' tensors, of proofs. Not what is looked at before: a request's and a folder's settings, a runner's tokens.
_LOOKED_AT = (Sampling, Token, AdapterWords)


def numbers_of(case: Case) -> tuple[bool, str | None, str | None]:
    """By its signature: whether a method gives numbers, or which argument is called with some, or which one holds tensors."""
    part, name = case
    member = inspect.getattr_static(EagerRunner if part is Runner and name in INSIDE else part, name)
    hints = get_type_hints(inspect.unwrap(member.fget if isinstance(member, property) else member))
    if may_hold(hints.pop("return", None), (float, Tensor, np.floating)):
        return True, None, None
    told = next((name for name, hint in hints.items() if get_origin(hint) is Callable and is_told(hint)), None)
    taken = next((name for name, hint in hints.items() if may_hold(hint, (Tensor,))), None)
    return False, told, taken if told is None else None


def is_told(hint) -> bool:
    return any(may_hold(one, (float, Tensor)) for one in get_args(hint)[0])


def may_hold(hint, kinds: tuple[type, ...], within: tuple[object, ...] = ()) -> bool:
    """Whether a value of that type can have one of those kinds in it. `within`: the types around it, of which some hold themselves."""
    origin, args = get_origin(hint), get_args(hint)
    if origin is Callable:  # what waits for a step's result
        parts = () if args[0] else args[1:]
    elif origin in (Union, UnionType) or (
        isinstance(origin, type) and issubclass(origin, (Collection, np.ndarray, np.dtype))
    ):
        parts = args
    elif not isinstance(hint, type) or issubclass(hint, _LOOKED_AT) or hint in within:
        return False
    elif hint is Loaded or is_value(hint):
        parts = tuple(get_type_hints(hint, localns={"Tensor": Tensor}).values())
    else:
        return issubclass(hint, kinds)
    return hint is StepResult or any(may_hold(part, kinds, (*within, hint)) for part in parts)


def is_value(kind: type) -> bool:
    """Whether it is made once: what changes is somebody's state, not a result."""
    return is_dataclass(kind) and kind.__dataclass_params__.frozen


def holds_numbers(value) -> bool:
    return not_numbers(value, look=True) is not value


def not_numbers(value, *, look: bool = False):
    """The same with NaN for every number; the very same where there is none. Whoever has a `Loaded` has its only copy, which is
    changed itself, unless this is to `look` alone."""
    match value:
        case StepResult():  # how a runner says that rows are not finite
            rows = (value.tokens, value.scores, value.hidden)
            return StepResult(*([None] * len(part) for part in rows)) if any(map(len, rows)) else value
        case float():
            return float("nan")
        case Tensor():
            return torch.full_like(value, float("nan")) if value.is_floating_point() and value.numel() else value
        case tuple() | list():
            made = [not_numbers(one, look=look) for one in value]
            same = all(new is old for new, old in zip(made, value, strict=True))
            return value if same else type(value)(made)
        case Mapping():
            made = {key: not_numbers(one, look=look) for key, one in value.items()}
            return value if all(made[key] is value[key] for key in value) else made
        case Loaded():
            changed = {name: not_numbers(getattr(value, name), look=look) for name in ("detours", "rows")}
            if look:
                return changed
            for name, new in changed.items():
                setattr(value, name, new)
            return value
        case _ if isinstance(value, _LOOKED_AT):
            return value
        case _ if is_value(type(value)):
            changed = {one.name: not_numbers(getattr(value, one.name), look=look) for one in fields(value) if one.init}
            changed = {name: new for name, new in changed.items() if new is not getattr(value, name)}
            return replace(value, **changed) if changed else value
        case FunctionType() | partial():  # what waits for a step's result
            return lambda: not_numbers(value())
    return value


# The others handle none: there is nothing that could be no number.
WITH_NUMBERS = [case for case in CASES if any(numbers_of(case))]
