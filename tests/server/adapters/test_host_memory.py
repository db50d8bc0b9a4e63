"""Host memory: every copy is counted for as long as somebody has it, and keeping count takes no longer with many adapters."""

import gc
import itertools
import json
import queue
import random
import shutil
import threading
import time
import weakref

import pytest
import torch

from benchmarks.lib.pretended_engine import adapter, crowded_host
from graft.hub.adapters.probe import ProofOutcome
from graft.server.adapters import host as host_module
from graft.server.adapters import prover as prover_module
from graft.server.adapters.host_memory import HostMemory
from graft.server.engine.client import EngineClient
from graft.server.engine.engine import Engine
from graft.server.engine.options import Options
from graft.server.engine.request import Finished, Request
from graft.server.interest import Interest
from tests.conftest import tiny_base
from tests.server.adapters.test_device import calls_of
from tests.server.conftest import KINDS
from tests.server.engine.test_adapter_proof import proven_folder, rewritten


def asked(name, **more):
    return Request((5, 6, 7), name, max_tokens=3, ignore_eos=True, **more)


def test_keeping_count_takes_as_long_with_many_adapters_as_with_few():
    """Of 1,000 adapters of which 256 are in use, as of 32: to hold, to let go, to pin, to read the sum, to drop one for another."""
    few, many = calls_of_each(32, 8), calls_of_each(1000, 256)
    assert all(abs(a - b) <= 3 for a, b in zip(few, many, strict=True)), (few, many)
    assert max(many) < 120, many


def calls_of_each(adapters, used):
    tier, kept = crowded_host(adapters, used)
    counts = [
        calls_of(act)
        for act in (
            lambda: tier.hold(kept[-1]),
            lambda: tier.release(kept[-1]),
            lambda: tier.release(kept[-1]),
            lambda: tier.keep(frozenset({"0", "1"})),
            lambda: tier.keep(frozenset({"0"})),
            lambda: tier.bytes,
            lambda: tier.release(put(tier, "new")),
            lambda: tier.settle(kept[0]),
        )
    ]
    assert tier.bytes == adapters and len(tier.snapshot()) == adapters
    return counts


def put(tier, digest):
    """One more adapter, held."""
    loaded = tier._keep(adapter(digest))
    tier.hold(loaded)
    return loaded


def test_sums_and_order_are_those_of_a_plain_list():
    """Whatever is done in whatever order: nothing that somebody keeps is dropped, and the least recently used goes first."""
    draw = random.Random(3)
    memory, there, idle, pinned = HostMemory(), {}, [], set()
    held = []  # with those that are forgotten
    for _ in range(4000):
        match draw.choice(["put", "hold", "release", "forget", "pin", "shrink"]):
            case "put":
                new = adapter(str(draw.randrange(30)), draw.randint(1, 9))
                memory.put(new)
                there[new.digest] = new
                idle = [one for one in idle if one.digest != new.digest] + [new] * (new.digest not in pinned)
            case "hold" if there:
                one = draw.choice([*there.values()])
                memory.hold(one)
                held.append(one)
                idle = [other for other in idle if other is not one]
            case "release" if held:
                one = held.pop(draw.randrange(len(held)))
                memory.release(one)
                if one not in held and there.get(one.digest) is one and one.digest not in pinned:
                    idle.append(one)
            case "forget" if there:
                digest = draw.choice([*there])
                memory.forget(digest)
                idle = [one for one in idle if one is not there[digest]]
                del there[digest]
            case "pin":
                before, pinned = pinned, {str(draw.randrange(30)) for _ in range(3)}
                memory.pin(frozenset(pinned))
                idle = [one for one in idle if one.digest not in pinned]
                freed = [one for one in there.values() if one.digest in before - pinned and one not in held]
                assert {one.digest for one in freed} == {one.digest for one in memory._idle.values()} - {
                    one.digest for one in idle
                }
                idle = [*memory._idle.values()]  # of several that are unpinned at once none is before another
            case "shrink":
                budget = draw.randint(0, 60)
                memory.shrink(budget)
                while sum(one.bytes for one in {*there.values(), *held}) > budget and idle:
                    del there[idle.pop(0).digest]
        assert memory.bytes == sum(one.bytes for one in {*there.values(), *held})
        assert {one.digest: one for one in memory} == there and [*memory._idle.values()] == idle


def live_bytes():
    """Of all tensors in host memory that somebody has, each storage once."""
    gc.collect()
    storages = {}
    for one in gc.get_objects():
        if issubclass(type(one), torch.Tensor) and one.device.type == "cpu":
            storages[one.untyped_storage().data_ptr()] = one.untyped_storage().nbytes()
    return sum(storages.values())


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Of all kinds, with probes; three of a kind."""
    base, parent = tiny_base("llama"), tmp_path_factory.mktemp("adapters")
    return {
        f"{kind}-{seed}": proven_folder(parent / f"{kind}-{seed}", kind, base, 40 + seed)
        for kind in KINDS
        for seed in range(3)
    }


@pytest.mark.parametrize("runner", ["eager", "auto"])
def test_what_lies_in_memory_is_what_is_counted(llama, folders, runner):
    """Measured: tensors that live, once more adapters came in than host memory and the device hold."""
    with Engine(llama, folders, options=Options(host_bytes=100_000, device_bytes=200_000, runner=runner)) as engine:
        engine.generate([asked(None)])
        before = live_bytes()
        for name in folders:
            engine.generate([asked(name)])
        engine.generate([asked(name) for name in folders])
        engine.generate([asked(name) for name in folders][::-1])
        assert engine.residency.evictions and len(engine.loader.snapshot()) < len(folders)
        assert engine.residency.bytes <= 200_000 and engine.loader.bytes <= 100_000
        grown = live_bytes() - before
        counted = engine.loader.bytes + engine.residency.bytes
        assert grown <= counted, (grown, counted)


@pytest.fixture
def unproven(monkeypatch, tmp_path):
    """No proof goes on until it is set, and none is known."""
    monkeypatch.setenv("GRAFT_CACHE", str(tmp_path / "cache"))
    go, turn = threading.Event(), prover_module.Prover.turn

    def held(self, *seconds):
        if go.wait(0.005):
            turn(self, *seconds)

    monkeypatch.setattr(prover_module.Prover, "turn", held)
    monkeypatch.setattr(prover_module.Prover, "beside", lambda self, seconds: None)
    yield go
    go.set()


def test_what_is_kept_for_a_proof_is_counted_until_it_is_made(llama, folders, unproven):
    name = "lora-0"
    with Engine(llama, folders) as engine:
        engine.generate([asked(None)])
        before = live_bytes()
        stream = engine.submit(asked(name))
        wait_for(lambda: engine.prover._waiting)
        (loaded,) = engine.loader.snapshot()
        assert engine.loader.bytes == loaded.host_bytes > 2 * loaded.bytes  # in float32, beside a form in float32
        assert live_bytes() - before <= engine.loader.bytes + engine.residency.bytes
        assert EngineClient(engine).adapters()[loaded.digest].host_bytes == loaded.host_bytes
        unproven.set()
        stream.result()
        assert engine.loader.bytes == loaded.host_bytes == loaded.bytes
        assert live_bytes() - before <= engine.loader.bytes + engine.residency.bytes


def test_probes_of_copies_are_counted_once_each_and_gone_with_the_proof(llama, folders, unproven, tmp_path):
    """Whoever copies an adapter brings what has to be kept until one of the probes holds: as long as that, and no longer."""
    copies = {"own": folders["lora-0"]}
    probe = json.loads((folders["lora-0"] / "graft.json").read_text())["probe"]
    for number, texts in enumerate((1, 2, 2)):
        copies[f"copy {number}"] = copied = tmp_path / f"copy {number}"
        shutil.copytree(folders["lora-0"], copied)
        rewritten(copied, probe | {"texts": probe["texts"][:texts]})
    with Engine(llama, copies) as engine:
        streams = []
        for name in copies:
            streams.append(engine.submit(asked(name)))
            wait_for(lambda: not engine.loader._waiting)
        (loaded,) = engine.loader.snapshot()
        assert len(loaded.cases) == 2
        assert engine.loader.bytes == loaded.bytes + 3 * loaded.case.bytes
        unproven.set()
        for stream in streams:
            stream.result()
        assert loaded.case.verdict.outcome is ProofOutcome.PROVEN and not loaded.cases
        assert engine.loader.bytes == loaded.bytes


@pytest.mark.parametrize("runner", ["eager", "auto"])
def test_an_adapter_on_the_device_holds_no_copy_that_host_memory_has_dropped(llama, folders, runner):
    with Engine(llama, folders, options=Options(runner=runner)) as engine:
        engine.generate([asked("lora-0")])
        (loaded,) = engine.loader.snapshot()
        assert loaded.users == 0
        gone = weakref.ref(loaded)
        engine.loader.budget_bytes = 0
        engine.loader.keep(frozenset())
        del loaded
        gc.collect()
        assert gone() is None and engine.loader.bytes == 0 and engine.residency.bytes
        engine.loader.budget_bytes = 1 << 30
        engine.generate([asked("lora-0"), asked("ia3-0")])


def test_what_is_dropped_while_it_is_used_is_counted_until_it_is_not(llama, folders):
    with Engine(llama, folders) as engine:
        engine.generate([asked("lora-0")])
        (loaded,) = engine.loader.snapshot()
        engine.loader.hold(loaded)
        engine.loader.drop(loaded.digest)
        assert not engine.loader.snapshot() and engine.loader.bytes == loaded.bytes
        engine.loader.release(loaded)
        assert engine.loader.bytes == 0


def test_adapters_in_use_never_take_more_than_the_budget_and_what_is_being_made(llama, folders, unproven, monkeypatch):
    """Twelve at once where some three have room: the others are made when there is room again, and all are answered."""
    names = [name for name in folders if name.startswith(("lora", "dora", "houlsby"))]
    with Engine(llama, folders) as engine:
        engine.loader.budget_bytes = budget = 100_000
        most, put_into = [], HostMemory.put
        monkeypatch.setattr(HostMemory, "put", lambda self, loaded: (put_into(self, loaded), most.append(self.bytes)))
        streams = [engine.submit(asked(name, client=str(i))) for i, name in enumerate(names)]
        reading = engine.loader._loading._reading
        wait_for(lambda: len(most) >= 2 and reading._idle and not engine.loader._loading._disk._waiting)
        largest = max(one.host_bytes for one in engine.loader.snapshot())
        assert 2 <= len(most) < len(names) and len(reading._waiting) and engine.loader.bytes > budget - largest
        unproven.set()
        for stream in streams:
            stream.result()
        assert len(most) >= len(names) and max(most) <= budget + 2 * largest, (most, budget, largest)
        assert engine.loader.bytes <= budget


@pytest.fixture
def scarce(llama, folders):
    """An engine whose host memory holds two of its three LoRAs, but for a byte, so that two are in use at most; and their names."""
    names = ["lora-0", "lora-1", "lora-2"]
    with Engine(llama, folders) as engine:
        engine.generate([asked(name) for name in names])
        size = min(one.host_bytes for one in engine.loader.snapshot())
    with Engine(llama, folders, options=Options(host_bytes=2 * size - 1)) as engine:
        yield engine, names


def use(engine, name):
    """Where a user's copy comes, at once or when it has been made."""
    answers = queue.SimpleQueue()
    engine.loader.request(name, name, answers.put, Interest())
    return answers


def test_who_finds_no_room_gets_that_of_one_that_is_asked_for_anew(scarce, monkeypatch):
    """Once it has waited long enough, and of as many as have to go; who has them keeps them until done."""
    engine, (first, second, third) = scarce
    one, other = (use(engine, name).get(timeout=20)[0] for name in (first, second))
    waits = use(engine, third)
    wait_for(lambda: engine.loader._loading.stalled_s)
    assert use(engine, first).get(timeout=0)[0] is one  # the third has not waited for long
    monkeypatch.setattr(host_module, "HOLD_BACK_S", 0.001)
    wait_for(lambda: engine.loader._loading.stalled_s > 0.001)
    anew = use(engine, first)
    monkeypatch.setattr(host_module, "HOLD_BACK_S", 3600.0)  # from one that gives way to the next
    engine.loader._loading._reading._stalled_since -= 3600
    assert anew.empty() and use(engine, second).get(timeout=0)[0] is other
    for _ in range(2):
        assert waits.empty() and one.users
        engine.loader.release(one)
    came = waits.get(timeout=20)[0]
    assert anew.empty() and engine.loader.find(engine.library.locate(third)) is came
    engine.loader.release(came)
    assert anew.get(timeout=20)[0] is not one


def test_what_is_asked_for_all_the_time_keeps_nobody_out_of_host_memory(scarce, monkeypatch):
    """Two adapters with requests that overlap for as long as a third one has not been answered."""
    monkeypatch.setattr(host_module, "HOLD_BACK_S", 0.2)
    engine, (*hot, cold) = scarce
    events, lengths, ended, waits = queue.SimpleQueue(), itertools.cycle((40, 57, 73, 91, 62)), 0, None

    def ask(name):
        engine.submit(Request((5, 6, 7), name, max_tokens=next(lengths), ignore_eos=True), events)

    for name in hot * 8:
        ask(name)
    while waits is None or waits.sink.empty():
        stream, event = events.get(timeout=20)
        if isinstance(event, Finished):
            ended += 1
            assert ended < 2000
            ask(stream.request.model)
            if ended == 100:  # by now they end at different times
                waits = engine.submit(asked(cold, client="cold"))
    assert len(waits.result().tokens) == 3


def wait_for(what, seconds=20.0):
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.005)
