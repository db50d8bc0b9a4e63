"""Every public method of the engine's parts fails once, under 32 good streams and a download that hangs.

What is affected gets an error within a second, or finishes rightly; what isn't has the output of an undisturbed run.
Afterwards the server serves, or its engine has ended, has said so, and has told everybody. Nothing leaks.
"""

import gc
import inspect
import os
import random
import threading
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue

import pytest

from graft.hub.adapters.artifact import load_artifact
from graft.hub.base.model import load_base
from graft.hub.errors import GraftError
from graft.server.adapters import host as host_module
from graft.server.adapters import prover as prover_module
from graft.server.adapters.device import DeviceTier
from graft.server.adapters.host import HostTier
from graft.server.adapters.names import AdapterNames
from graft.server.adapters.prover import Prover
from graft.server.cache.blocks import BlockPool
from graft.server.cache.tensors import KVCache
from graft.server.engine.adapter_proof import Proof
from graft.server.engine.consumers import Question, RowsJob, RunningRequest
from graft.server.engine.engine import Engine
from graft.server.engine.options import Options
from graft.server.engine.questions import Pin, Stats, Unload
from graft.server.engine.request import Embedded, Finished, Pooling, Request
from graft.server.engine.scheduler import Scheduler
from graft.server.errors import EndedError
from graft.server.runners.protocol import Runner
from graft.server.sampling.params import Sampling, StepResult, Token
from graft.server.structured.compiler import Compiler
from graft.server.structured.constraint import Regex, Schema
from graft.server.structured.mask_thread import MaskThread
from graft.server.structured.matcher import Matcher
from graft.trainer.artifact.probe import Prober
from tests.conftest import tiny_model, tiny_tokenizer
from tests.server.conftest import write_folder
from tests.server.engine.test_adapter_proof import rewritten
from tests.server.live import ask

AT_ONCE_S = 1.0
CANCELLED = Request((5, 6, 7), "lora", max_tokens=200, ignore_eos=True)
DEVICE_BYTES = 60_000  # not all at once, with each one's place beside others
STREAMS = 32
WARM, COLD, SLOW = ("lora", "bitfit"), ("prompt", "prefix", "probed"), "slow"
CONSTRAINTS = {2: Regex("[a-z]+"), 5: Schema('{"type":"array","items":{"type":"integer"}}'), 8: Regex("[0-9]+")}
PARTS = (
    *(Scheduler, BlockPool, HostTier, DeviceTier, Prover, Proof, KVCache, RunningRequest, RowsJob, Question),
    *(Compiler, MaskThread, Matcher),
)
ENDS = {(part, "close") for part in (HostTier, Prover, Compiler, MaskThread)}  # called when all is over
FACTS = {(Runner, "begins_early")}  # a class's constant


def methods(part):
    """Names of its public methods and properties."""
    return [
        name
        for name, member in inspect.getmembers(part)
        if not name.startswith("_") and (inspect.isfunction(member) or isinstance(member, property))
    ]


CASES = [(part, name) for part in (*PARTS, Runner) for name in methods(part) if (part, name) not in ENDS | FACTS]
CASES.append((Runner, "step"))  # while its result is waited for


# What serves the handling of failures, or nothing here: what goes wrong there, test_liveness.py shows.
UNCALLED = {
    *("Scheduler.sequences", "Scheduler.withdraw", "BlockPool.discrepancy", "BlockPool.withdraw", "BlockPool.share"),
    *("HostTier.drop", "HostTier.refuse", "DeviceTier.drop", "DeviceTier.refuse", "Prover.abandon", "KVCache.bytes"),
    *("Scheduler.tokens_left", "KVCache.take_memory"),
    "KVCache.blocks",  # asked for where steps are recorded: on a GPU
    # of runners that begin steps early: test_following.py
    *("Scheduler.follow", "DeviceTier.sought"),
    *(f"{part}.foreseeable" for part in ("RunningRequest", "RowsJob", "Question")),
    *("Scheduler.miss", "Scheduler.repeat", "MaskThread.when_ready"),  # of masks that come late
    *("RunningRequest.no_token", "RowsJob.no_token", "Question.no_token"),  # of rows that give none
    "DeviceTier.discrepancy",
    "HostTier.words",  # asked for by who makes a prompt, before there is a request
    "Prover.base_content",  # asked for by an ingress
    *("RowsJob.accept", "RowsJob.fail", "RowsJob.observe", "RowsJob.pool"),
    *("Question.accept", "Question.fail", "Question.pool"),
}


class Struck(Exception):
    """What a fault raises is of this kind, beside its own."""


@dataclass
class Fault:
    """Raises at the `n`-th call of a method, once; `error` None: what it returns is not a number."""

    n: int
    error: type[Exception] | None
    calls: int = 0
    at: float | None = None  # when it struck
    lock: threading.Lock = field(default_factory=threading.Lock)

    def strikes(self):
        with self.lock:
            self.calls += 1
            if self.calls == self.n:
                self.at = time.monotonic()
            return self.calls == self.n

    def around(self, true):
        def call(*args, **options):
            strikes = self.strikes()
            if strikes and self.error is not None:
                raise type("Struck", (self.error, Struck), {})("as a fault would")
            result = true(*args, **options)
            return not_a_number(result) if strikes else result

        return call

    def put_into(self, monkeypatch, part, name):
        member = inspect.getattr_static(part, name)
        if isinstance(member, property):
            monkeypatch.setattr(part, name, property(self.around(member.fget)))
        else:
            monkeypatch.setattr(part, name, self.around(member))


def not_a_number(result):
    if isinstance(result, StepResult):  # how a runner says that rows are not finite
        return StepResult(*([None] * len(part) for part in (result.tokens, result.scores, result.hidden)))
    if callable(result):  # what waits for a step's
        return lambda: not_a_number(result())
    return float("nan") if isinstance(result, float) else result


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
    made[SLOW] = write_folder(top / SLOW, "lora", base, 9)
    probed = write_folder(top / "probed", "lora", base, 8)
    made["probed"] = rewritten(probed, Prober(base).probe(load_artifact(probed, base.spec)).to_json())
    return made


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
    """What became of each stream, by its place, and when."""

    of: dict[int, tuple[int, ...] | GraftError] = field(default_factory=dict)
    at: dict[int, float] = field(default_factory=dict)


def run(engine, asked, wait_s=20.0):
    """All of them, while one more is cancelled, one refused, and somebody asks and moves adapters."""
    beside = [lambda: engine.submit(Request((5, 6), "absent")), lambda: engine.submit(CANCELLED).cancel()]
    beside += [lambda: manage(engine), lambda: engine.generate([Request((5,), "nobody")])]
    sink, places, drawn, ends = SimpleQueue(), {}, {}, Ends()
    for place, request in enumerate(asked):
        if place % 8 == 4:
            with suppress(GraftError, Struck):  # who asked is told
                beside[place // 8]()
        try:
            stream = engine.submit(request, sink)
        except (GraftError, Struck) as error:
            ends.of[place], ends.at[place] = error, time.monotonic()
            continue
        places[stream], drawn[place] = place, []
    return collect(sink, places, drawn, ends, wait_s)


def manage(engine):
    """What a list of adapters, a pin and an unload ask for."""
    loaded = engine.loader.find(engine.library.locate("bitfit"))
    engine.ask(Stats())
    engine.loader.served()
    if loaded is not None:
        engine.ask(Pin(loaded, True))
        engine.ask(Pin(loaded, False))
    idle = [one for one in engine.loader.snapshot() if not one.users]
    for one in idle[:1]:
        engine.ask(Unload(one))
    engine.metrics.text()


def collect(sink, places, drawn, ends, wait_s):
    until = time.monotonic() + wait_s
    while len(ends.of) < STREAMS:
        try:
            stream, event = sink.get(timeout=max(0.0, until - time.monotonic()))
        except Empty:
            raise AssertionError(f"{STREAMS - len(ends.of)} streams wait for ever") from None
        place = places[stream]
        if isinstance(event, Token):
            drawn[place].append(event.id)
        elif isinstance(event, Embedded):
            drawn[place].append(len(event.vector))
        elif isinstance(event, GraftError):
            ends.of[place], ends.at[place] = event, time.monotonic()
        elif isinstance(event, Finished):
            ends.of[place], ends.at[place] = tuple(drawn[place]), time.monotonic()
    return ends


@contextmanager
def engine_of(base, folders, runner, monkeypatch):
    """An engine with two adapters in place and a download that hangs until the end."""
    monkeypatch.setattr(prover_module, "recall", lambda kind, key: None)  # proven anew each time
    monkeypatch.setattr(host_module, "FORGIVEN_AFTER_S", 0.0)  # so is one whose answers were not numbers
    options = Options(cache_bytes=3 << 15, max_running=24, step_rows=96, device_bytes=DEVICE_BYTES, runner=runner)
    never = threading.Event()
    fetch = AdapterNames.fetch

    def hanging(self, location):
        if location.name == SLOW:
            never.wait(30)
        return fetch(self, location)

    monkeypatch.setattr(AdapterNames, "fetch", hanging)
    engine = Engine(base, folders, options=options)
    try:
        engine.generate([Request((5, 6), name, max_tokens=1) for name in WARM])
        engine.submit(Request((5, 6), SLOW, max_tokens=1))
        yield engine
    finally:
        never.set()
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


def counts():
    gc.collect()
    return threading.active_count(), len(os.listdir("/proc/self/fd"))


@pytest.fixture(scope="module")
def undisturbed(base, folders):
    """runner -> (outputs, calls of each method while they were made)."""
    made = {}

    def of(runner):
        if runner not in made:
            with pytest.MonkeyPatch.context() as patched, engine_of(base, folders, runner, patched) as engine:
                faults = {(part, name): Fault(-1, None) for part, name in CASES}
                for (part, name), fault in faults.items():
                    fault.put_into(patched, type(engine.runner) if part is Runner else part, name)
                ends = run(engine, requests())
                assert not [end for end in ends.of.values() if isinstance(end, GraftError)]
                calls = {case: fault.calls for case, fault in faults.items()}
                assert_nothing_held(engine)
            made[runner] = ends.of, calls
        return made[runner]

    return of


def injected(base, folders, undisturbed, runner, part, name, error, n):
    """One run with one fault; says whether it struck, and whether the engine went on."""
    expected, _ = undisturbed(runner)
    before = counts()
    fault = Fault(n, error)
    with pytest.MonkeyPatch.context() as patched, engine_of(base, folders, runner, patched) as engine:
        with pytest.MonkeyPatch.context() as broken:
            fault.put_into(broken, type(engine.runner) if part is Runner else part, name)
            ends = run(engine, requests())
        for place, end in ends.of.items():
            if isinstance(end, GraftError):
                assert fault.at is not None and ends.at[place] - fault.at < AT_ONCE_S, (place, end)
            else:
                assert end == expected[place], place
        if engine.failure is None:
            again = run(engine, requests())
            assert again.of == expected
            assert_nothing_held(engine)
        else:
            assert engine.ended.wait(AT_ONCE_S) and not engine.alive
            with pytest.raises(EndedError):
                engine.submit(requests()[0])
        went_on = engine.failure is None
    until = time.monotonic() + 30
    while counts() > before and time.monotonic() < until:
        time.sleep(0.01)
    now = counts()
    assert now[0] <= before[0] and now[1] <= before[1], (before, now)
    return fault.at is not None, went_on


def label(case):
    return f"{case[0].__name__}.{case[1]}"


def strike(base, folders, undisturbed, runner, case, error, share):
    """Once, at the first call (0), the last (1) or one between."""
    _, calls = undisturbed(runner)
    if not calls[case]:
        pytest.skip(f"{label(case)} is not called while all goes well")
    injected(base, folders, undisturbed, runner, *case, error, 1 + round(share * (calls[case] - 1)))


def test_most_methods_are_called_while_all_goes_well(undisturbed):
    """So that the tests below show something."""
    _, calls = undisturbed("eager")
    assert {label(case) for case, count in calls.items() if not count} <= UNCALLED


@pytest.mark.parametrize("case", CASES, ids=label)
def test_a_method_that_raises_once(base, folders, undisturbed, case):
    strike(base, folders, undisturbed, "eager", case, RuntimeError, 0.5)


@pytest.mark.parametrize("error", [MemoryError, None])
@pytest.mark.parametrize("name", [name for part, name in CASES if part is Runner])
def test_a_fast_runner_that_fails_once(base, folders, undisturbed, name, error):
    strike(base, folders, undisturbed, "fast", (Runner, name), error, 0.5)


@pytest.mark.slow
@pytest.mark.parametrize("share", [0, 0.2, 1])
@pytest.mark.parametrize("error", [RuntimeError, MemoryError, None])
@pytest.mark.parametrize("runner", ["eager", "fast"])
@pytest.mark.parametrize("case", CASES, ids=label)
def test_a_method_that_fails_once_at_any_time(base, folders, undisturbed, case, runner, error, share):
    strike(base, folders, undisturbed, runner, case, error, share)
