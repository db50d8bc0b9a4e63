"""Every public method of the engine's parts fails once, under 32 good streams and a download that hangs; those that handle failures,
while something else has failed.

What is affected gets an error within a second, or finishes rightly; what isn't has the output of an undisturbed run.
Afterwards the server serves, or its engine has ended, has said so, and has told everybody. Nothing leaks.
"""

import gc
import inspect
import os
import pkgutil
import random
import threading
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import wraps
from importlib import import_module
from queue import Empty, SimpleQueue
from types import SimpleNamespace

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from graft.hub.adapters.artifact import load_artifact
from graft.hub.base.model import load_base
from graft.hub.errors import GraftError, NotFoundError
from graft.server import engine as engine_package
from graft.server.adapters import device as device_module
from graft.server.adapters import host as host_module
from graft.server.adapters import prover as prover_module
from graft.server.adapters.prover import Prover
from graft.server.engine import engine as engine_module
from graft.server.engine.consumers import LOADER, Consumer
from graft.server.engine.engine import Engine
from graft.server.engine.inventory import Inventory
from graft.server.engine.messages import DetoursPrepared, Message, Wake
from graft.server.engine.options import Options
from graft.server.engine.questions import Pin, Stats, Unload
from graft.server.engine.request import Embedded, Finished, Pooling, PromptScored, Request, Started
from graft.server.engine.scheduler import Scheduler
from graft.server.errors import EndedError
from graft.server.runners.protocol import Runner
from graft.server.sampling.params import Sampling, Token
from graft.server.structured.constraint import Regex, Schema
from graft.server.structured.mask_thread import MaskThread
from graft.trainer.artifact.probe import Prober
from tests.conftest import tiny_model, tiny_tokenizer
from tests.server.conftest import write_folder
from tests.server.engine.faults import ALL, CASES, MESSAGES, PARTS, UNCALLED, WITH_NUMBERS, Fault, Struck, label
from tests.server.engine.test_adapter_proof import rewritten
from tests.server.engine.test_following import EarlyRunner
from tests.server.live import ask

AT_ONCE_S = 1.0
CANCELLED = Request((5, 6, 7), "lora", max_tokens=200, ignore_eos=True)
DEVICE_BYTES = 60_000  # not all at once, with each one's place beside others
HOST_BYTES = 20_000  # not all that are in use at once
STREAMS = 32
BESIDE = (4, 12, 20, 28)  # whoever comes before these
LATER = 100  # added to the places of those that are asked once more
WARM, COLD, SLOW = ("lora", "bitfit"), ("prompt", "prefix", "probed"), "ann/slow"
CONSTRAINTS = {2: Regex("[a-z]+"), 5: Schema('{"type":"array","items":{"type":"integer"}}'), 8: Regex("[0-9]+")}
OVERFLOWING = ("overflows", "overflows-probed")  # adapters whose answers are no numbers
UNLUCKY = ("detours", "unlucky")  # one whose detours don't arrive at first, and one whose probe can't be planned

# What is called only where something fails, or where steps begin early and masks come late.
IN_TROUBLE = {
    *(
        "Scheduler.sequences",
        "Scheduler.withdraw",
        "Scheduler.distrust",
        "Scheduler.tokens_left",
        "Scheduler.follow",
        "Scheduler.miss",
    ),
    *("Scheduler.repeat", "BlockPool.discrepancy", "BlockPool.withdraw", "HostTier.refuse"),
    *("DeviceTier.refuse", "DeviceTier.discrepancy", "DeviceTier.sought", "Prover.abandon"),
    *("RunningRequest.foreseeable", "RunningRequest.no_token", "RowsJob.fail", "Question.fail", "Question.no_token"),
    *("MaskThread.when_ready", "Masked.handle", "Ledger.discrepancy", "Inbox.is_empty", "Refused.handle"),
    *("Ledger.owned_by", "Ledger.suspect", "Ledger.unexpected", "Opened.fail", "Placed.fail", "Masked.fail"),
    *("Cancelled.fail", "DetoursPrepared.fail", "Refused.fail", "Ask.fail"),
    *("Loading.look_for_room", "WorkPool.look_again"),
}
TROUBLED = [case for case in CASES if label(case) in IN_TROUBLE]
QUIET = [case for case in CASES if label(case) not in IN_TROUBLE]


@dataclass
class Trouble:
    """What fails once each, from `begun` on, whatever else does; `at`: when it has."""

    begun: bool = False
    at: list[float] = field(default_factory=list)

    def at_first(self, true, when=lambda *args: True):
        there = threading.Event()

        @wraps(true)
        def call(*args):
            if self.begun and not there.is_set() and when(*args):
                there.set()
                self.at.append(time.monotonic())
                raise MemoryError("as a fault would")
            return true(*args)

        return call

    def put_into(self, patched, late, unlucky):
        """Messages of each kind (those of detours: of the adapter `late`), planning a soft prompt and the probe of `unlucky`, a proof;
        masks come late; steps begin early."""
        schedule = self.at_first(Scheduler._schedule, lambda _, plan, one, count: one.inputs is not None)
        schedule = self.at_first(schedule, lambda _, plan, one, count: one.client is LOADER and one.owner == unlucky)
        patched.setattr(Scheduler, "_schedule", schedule)
        patched.setattr(Prover, "_next_cases", self.at_first(Prover._next_cases))
        for kind in set(MESSAGES) - {DetoursPrepared}:
            patched.setattr(kind, "handle", self.at_first(kind.handle))
        prepared = DetoursPrepared.handle
        patched.setattr(DetoursPrepared, "handle", self.at_first(prepared, lambda one, _: one.resident.digest == late))
        missed, begin, wait, make = threading.Event(), MaskThread.begin, MaskThread.wait, MaskThread._make
        patched.setattr(MaskThread, "begin", lambda *args: (missed.clear(), begin(*args)))
        patched.setattr(MaskThread, "wait", lambda masks, all, seconds: (wait(masks, all, 0.0), all and missed.set()))
        patched.setattr(MaskThread, "_make", lambda masks, all: (all and missed.wait(0.1), make(masks, all)))
        patched.setattr(device_module, "HOLD_BACK_S", 0.0)
        patched.setattr(engine_module, "make_runner", lambda name, base, cache: EarlyRunner(base, cache))


class Hub:
    """A shelf elsewhere, which has one adapter, whose download hangs."""

    is_far = True
    trusted_s = 0.0

    def __init__(self):
        self.closed = threading.Event()

    def resolve(self, name, *, base):
        if name != SLOW:
            raise NotFoundError(f"There is no {name}.")
        return SimpleNamespace(repo=name, id="1", digest=None)

    @contextmanager
    def lend(self, name):
        self.closed.wait(30)
        raise NotFoundError(f"There is no {name} any more.")
        yield


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base")
    tiny_model("llama", 0).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return load_base(folder, dtype="float32", device="cpu")


@pytest.fixture(scope="module")
def folders(base, tmp_path_factory):
    top = tmp_path_factory.mktemp("adapters")
    made = {name: write_folder(top / name, name, base, seed) for seed, name in enumerate((*WARM, *COLD[:2]))}
    for seed, name in enumerate(("probed", "unlucky"), start=8):
        folder = write_folder(top / name, "lora", base, seed)
        probe = Prober(base).probe(load_artifact(folder, base.spec)).to_json()
        made[name] = rewritten(folder, probe)
    made["detours"] = write_folder(top / "detours", "lora", base, 12)
    for seed, name in enumerate(OVERFLOWING, start=10):
        made[name] = enlarged(write_folder(top / name, "lora", base, seed))
    rewritten(made["overflows-probed"], probe)
    return made


def enlarged(folder):
    """Its weights are finite, and what comes of them isn't."""
    weights = folder / "adapter_model.safetensors"
    save_file({name: tensor * 1e25 for name, tensor in load_file(weights).items()}, weights, metadata={"format": "pt"})
    return folder


def requests():
    """Good ones of all sorts, the same each time; long enough to be under way when others fail."""
    draw = random.Random(5)
    asked = []
    for i in range(STREAMS):
        prompt = tuple(draw.randrange(2, 300) for _ in range(draw.randint(2, 40)))
        sampling = Sampling(temperature=0) if i % 3 else Sampling(temperature=1.0, top_p=0.9, seed=i)
        model = (None, *WARM, *COLD)[i % 6]
        scored = 1 if i % 8 == 7 else None
        new, constraint = draw.choice((6, 12)), CONSTRAINTS.get(i % 9)
        if i % 8 == 6:
            asked.append(Request(prompt, model, 0, pooling=Pooling.MEAN))
            continue
        asked.append(Request(
            prompt, model, new, ignore_eos=True, sampling=sampling, score_from=scored, constraint=constraint
        ))  # fmt: skip
    return asked


@dataclass
class Ends:
    """What became of each stream, by its place, and when; and when it began."""

    of: dict[int, tuple[object, ...] | GraftError | Struck] = field(default_factory=dict)
    at: dict[int, float] = field(default_factory=dict)
    began: dict[int, float] = field(default_factory=dict)

    def end(self, place, how):
        self.of[place], self.at[place] = how, time.monotonic()


def run(engine, world, wait_s=20.0):
    """All of them, while one more is cancelled, one refused, and somebody asks and moves adapters."""
    beside = [lambda: engine.submit(Request((5, 6), "ann/absent")), lambda: engine.submit(CANCELLED).cancel()]
    # in little room a pin would be the reason why others are refused
    beside += [lambda: manage(engine, pins=world != "troubled"), lambda: engine.generate([Request((5,), "nobody")])]
    sink, places, drawn, ends = SimpleQueue(), {}, {}, Ends()
    asked = dict(enumerate(requests()))
    if world == "troubled":
        asked |= {-1 - i: Request((5, 6, 7), name, 4) for i, name in enumerate((*OVERFLOWING, *UNLUCKY))}
    waves = [
        asked,
        {LATER + i: asked[i] for i in range(0, STREAMS, 6) if asked[i].pooling is None},
    ]  # those of the base
    for wave in waves if world == "troubled" else waves[:1]:
        for place, request in wave.items():
            if place in BESIDE:
                with suppress(GraftError, Struck):  # who asked is told
                    beside[BESIDE.index(place)]()
            try:
                stream = engine.submit(request, sink)
            except (GraftError, Struck) as error:
                ends.end(place, error)
                continue
            places[stream], drawn[place] = place, []
        collect(sink, places, drawn, ends, wait_s)
    unload(engine, None if world == "troubled" else 1)
    return ends


def manage(engine, *, pins):
    """What lists of adapters and a pin ask for."""
    location = engine.library.locate("bitfit")
    loaded = engine.loader.find(location)
    engine.ask(Stats())
    engine.loader.served(), engine.loader.words(location)
    Inventory(engine).replica_state()
    if loaded is not None and pins:
        engine.ask(Pin(loaded, True))
        engine.ask(Pin(loaded, False))
    assert not engine.turn_s < 0
    engine.metrics.text()


def unload(engine, count=None):
    """So many adapters, or all."""
    with suppress(GraftError, Struck):
        for one in engine.loader.snapshot()[:count]:
            engine.ask(Unload(one))


def collect(sink, places, drawn, ends, wait_s):
    until = time.monotonic() + wait_s
    while waiting := drawn.keys() - ends.of.keys():
        try:
            stream, event = sink.get(timeout=max(0.0, until - time.monotonic()))
        except Empty:
            raise AssertionError(f"{len(waiting)} streams wait for ever") from None
        place = places[stream]
        match event:
            case Started():
                ends.began[place] = time.monotonic()
            case Token():
                drawn[place].append(event.id)
            case PromptScored():
                assert all(np.isfinite(token.logprob) for token in event.tokens)
                drawn[place] += [token.id for token in event.tokens]
            case Embedded():
                assert np.isfinite(event.vector).all()
                drawn[place].append(len(event.vector))
            case GraftError():
                ends.end(place, event)
            case Finished():
                ends.end(place, tuple(drawn[place]))


@contextmanager
def engine_of(base, folders, world, monkeypatch):
    """An engine with two adapters in place and a download that hangs until the end; and what else fails there."""
    monkeypatch.setattr(prover_module, "recall", lambda kind, key: None)  # proven anew each time
    monkeypatch.setattr(host_module, "FORGIVEN_AFTER_S", 0.0)  # so is one whose answers were not numbers
    trouble = Trouble()
    if world == "troubled":
        trouble.put_into(monkeypatch, *(load_artifact(folders[name], base.spec).digest for name in UNLUCKY))
    runner, room = ("eager", DEVICE_BYTES * 2 // 3) if world == "troubled" else (world, DEVICE_BYTES)
    host = HOST_BYTES if world == "troubled" else None
    options = Options(
        cache_bytes=3 << 15, max_running=24, step_rows=96, device_bytes=room, host_bytes=host, runner=runner
    )
    hub = Hub()
    engine = Engine(base, folders, hub, options)
    try:
        engine.generate([Request((5, 6), name, max_tokens=1) for name in WARM])
        engine.submit(Request((5, 6), SLOW, max_tokens=1))
        trouble.begun = True
        yield engine, trouble
    finally:
        hub.closed.set()
        engine.close()


def assert_nothing_held(engine):
    def left():
        coming = any(resident.state.value != "ready" for resident in engine.residency.snapshot())
        held = any(one.users for one in engine.loader.snapshot())  # for who failed while it was read
        return len(engine.ledger.scheduled) or coming or held or engine.prover.busy

    until = time.monotonic() + 60
    while ask(engine, left):
        assert time.monotonic() < until, "something stays under way"
        time.sleep(0.01)
    assert ask(engine, lambda: engine.ledger.discrepancy()) is None
    assert {one.digest: one.users for one in engine.loader.snapshot() if one.users} == {}
    assert engine.runner.adapters == {resident.digest for resident in engine.residency.snapshot()}


def assert_rightly_ended(ends, expected, struck):
    """With the output of an undisturbed run, or by an error at once after something struck."""
    for place, end in ends.of.items():
        if place < 0:
            assert isinstance(end, (GraftError, Struck)) or place < -len(OVERFLOWING), place
        elif isinstance(end, (GraftError, Struck)):
            assert any(0 <= ends.at[place] - at < AT_ONCE_S for at in struck), (place, end, ends.at[place], struck)
        else:
            assert end == expected[place % LATER], place


def counts():
    gc.collect()
    return threading.active_count(), len(os.listdir("/proc/self/fd"))


@pytest.fixture(scope="module")
def undisturbed(base, folders):
    """world -> (outputs, calls of each method while they were made: all, and those that handle numbers)."""
    made = {}

    def of(world):
        if world not in made:
            expected = of("eager")[0] if world == "troubled" else None
            with pytest.MonkeyPatch.context() as patched, engine_of(base, folders, world, patched) as (engine, trouble):
                faults = {(case, RuntimeError): Fault(-1, RuntimeError) for case in [*ALL, *CASES]}
                faults |= {(case, None): Fault(-1, None) for case in WITH_NUMBERS}
                for (case, _), fault in faults.items():
                    fault.put_into(patched, type(engine.runner) if case[0] is Runner else case[0], case)
                ends = run(engine, world)
                calls = {of: fault.calls for of, fault in faults.items()}
                assert_rightly_ended(ends, expected or ends.of, trouble.at)
                assert_nothing_held(engine)
            made[world] = ends.of, calls
        return made[world]

    gc.collect()
    gc.freeze()  # what has been imported until now is looked through with every `counts` otherwise, for most of a case's time
    yield of
    gc.unfreeze()


def injected(base, folders, expected, world, case, fault):
    """A run with a fault, and one after it."""
    before = counts()
    with pytest.MonkeyPatch.context() as patched, engine_of(base, folders, world, patched) as (engine, trouble):
        with pytest.MonkeyPatch.context() as broken:
            fault.put_into(broken, type(engine.runner) if case[0] is Runner else case[0], case)
            ends = run(engine, world)
        with suppress(GraftError):
            engine.ask(Stats())  # what struck in the last turn of all has had its consequences
        struck = [*trouble.at, *([] if fault.at is None else [fault.at])]
        if fault.error is None:  # where an adapter's numbers are none, whoever asks for it is struck when it begins
            struck += ends.began.values()
        assert_rightly_ended(ends, expected, struck)
        if engine.failure is None:
            if fault.error is None:
                assert_nothing_held(engine)
                unload(engine)
            trouble.begun = False  # what has not come to it does not any more
            again = run(engine, world)
            assert_rightly_ended(again, expected, [])
            assert_nothing_held(engine)
        else:
            assert engine.ended.wait(AT_ONCE_S) and not engine.alive
            with pytest.raises(EndedError):
                engine.submit(requests()[0])
    until = time.monotonic() + 30
    while counts() > before and time.monotonic() < until:
        time.sleep(0.01)
    now = counts()
    assert now[0] <= before[0] and now[1] <= before[1], (before, now)


def strike(base, folders, undisturbed, world, case, error, share):
    """Once, at the first call (0), the last (1) or one between."""
    expected, calls = (
        undisturbed("eager" if world == "troubled" else world)[0],
        undisturbed(world)[1][case, error and RuntimeError],
    )
    for attempt in range(5):
        fault = Fault(1 + round(share * 0.8**attempt * (calls - 1)), error)
        injected(base, folders, expected, world, case, fault)
        if fault.at is not None:
            return
        calls = max(1, fault.calls)  # fewer than in the other run
    raise AssertionError("it has never struck")


def concrete(kind):
    """What server/engine defines of that kind and makes."""
    found = {one for sub in kind.__subclasses__() for one in (sub, *concrete(sub))}
    return {one for one in found if one.__module__.startswith("graft.server.engine.") and not inspect.isabstract(one)}


def test_no_consumer_and_no_message_is_missed():
    for module in pkgutil.iter_modules(engine_package.__path__, "graft.server.engine."):
        import_module(module.name)
    assert concrete(Consumer) | concrete(Message) <= {*PARTS, Wake}, "add it to PARTS"
    assert concrete(Consumer) and concrete(Message)


def test_each_method_is_called_where_it_fails(undisturbed):
    """So that the tests below show something."""
    quiet, troubled = undisturbed("eager")[1], undisturbed("troubled")[1]
    assert {label(case) for case in QUIET if not quiet[case, RuntimeError]} == set()
    assert {label(case) for case in TROUBLED if not troubled[case, RuntimeError]} == set()
    assert {label(case) for case in WITH_NUMBERS if not quiet[case, None]} == set()
    called = {label(case) for case in ALL if quiet[case, RuntimeError] or troubled[case, RuntimeError]}
    assert called & UNCALLED.keys() == set()


@pytest.mark.parametrize("case", QUIET, ids=label)
def test_a_method_that_raises_once(base, folders, undisturbed, case):
    strike(base, folders, undisturbed, "eager", case, RuntimeError, 0.5)


@pytest.mark.parametrize("case", TROUBLED, ids=label)
def test_a_method_that_raises_once_while_others_have_failed(base, folders, undisturbed, case):
    strike(base, folders, undisturbed, "troubled", case, RuntimeError, 0.5)


@pytest.mark.parametrize("case", WITH_NUMBERS, ids=label)
def test_numbers_that_are_none_once(base, folders, undisturbed, case):
    strike(base, folders, undisturbed, "eager", case, None, 0.5)


@pytest.mark.parametrize("error", [MemoryError, None])
@pytest.mark.parametrize("case", [case for case in CASES if case[0] is Runner], ids=label)
def test_a_fast_runner_that_fails_once(base, folders, undisturbed, case, error):
    if error is None and case not in WITH_NUMBERS:
        pytest.skip(f"{label(case)} handles no numbers")
    strike(base, folders, undisturbed, "fast", case, error, 0.5)


@pytest.mark.slow
@pytest.mark.parametrize("share", [0, 0.2, 1])
@pytest.mark.parametrize("error", [RuntimeError, MemoryError])
@pytest.mark.parametrize("world", ["eager", "fast"])
@pytest.mark.parametrize("case", QUIET, ids=label)
def test_a_method_that_raises_at_any_time(base, folders, undisturbed, case, world, error, share):
    strike(base, folders, undisturbed, world, case, error, share)


@pytest.mark.slow
@pytest.mark.parametrize("share", [0, 0.2, 1])
@pytest.mark.parametrize("error", [RuntimeError, MemoryError])
@pytest.mark.parametrize("case", TROUBLED, ids=label)
def test_a_method_that_raises_at_any_time_while_others_have_failed(base, folders, undisturbed, case, error, share):
    strike(base, folders, undisturbed, "troubled", case, error, share)


@pytest.mark.slow
@pytest.mark.parametrize("share", [0, 0.2, 1])
@pytest.mark.parametrize("world", ["eager", "fast"])
@pytest.mark.parametrize("case", WITH_NUMBERS, ids=label)
def test_numbers_that_are_none_at_any_time(base, folders, undisturbed, case, world, share):
    strike(base, folders, undisturbed, world, case, None, share)
