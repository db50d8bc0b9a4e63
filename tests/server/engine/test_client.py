"""The client of an engine: everything that others may ask of one, typed, and without torch on their side."""

import shutil
import subprocess
import sys
import threading
import time
from dataclasses import replace
from queue import SimpleQueue

import pytest

from graft.hub.errors import ConflictError, NotFoundError
from graft.hub.registry.registry import Registry
from graft.server.engine import client as client_module
from graft.server.engine.client import EngineClient
from graft.server.engine.engine import Engine
from graft.server.engine.inventory import NotLoadedError
from graft.server.engine.options import Options
from graft.server.engine.request import Finished, Request
from graft.server.errors import ClosedError, StuckError
from graft.server.sampling.params import Sampling

OUTSIDE = (
    *("graft.server.http.app", "graft.server.evaluation.evaluate", "graft.server.benchmark.targets"),
    *("graft.server.engine.client", "graft.server.engine.request"),
)


def test_whoever_has_a_client_needs_no_torch():
    code = f"import importlib, sys\nfor name in {OUTSIDE}: importlib.import_module(name)\nassert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_requests_and_what_is_said_of_the_base(llama):
    with Engine(llama, options=Options(runner="eager")) as engine:
        client = EngineClient(engine)
        assert (client.base.max_model_len, client.base.runner) == (256, "EagerRunner")
        assert client.base.spec is llama.spec and llama.tokenizer.eos_token_id in client.base.ends
        asked = Request((5, 6, 7), max_tokens=3, ignore_eos=True, sampling=Sampling(temperature=0))
        assert client.generate([asked])[0].ids == client.submit(asked).result().ids
        long = client.submit(Request((5, 6, 7), max_tokens=240, ignore_eos=True))
        next(iter(long))
        assert client.stats().running == 1
        client.cancel(long)
        assert long.result().finish_reason == "cancelled"
        stats = client.stats()
        assert (stats.running, stats.waiting, stats.blocks_used) == (0, 0, 0)
        assert stats.blocks == engine.blocks.count - 1 and stats.steps > 3
        assert b"graft_generated_tokens_total" in client.metrics() and client.health() is None
    assert isinstance(client.health(), ClosedError)
    with pytest.raises(ClosedError):
        client.stats()


def test_an_urgent_request_overtakes_ten_of_its_own_client(llama):
    with Engine(llama, options=Options(runner="eager", max_running=1)) as engine:
        client, sink = EngineClient(engine), SimpleQueue()
        running = client.submit(Request((5, 6, 7), max_tokens=240, ignore_eos=True, client="one"))
        next(iter(running))
        asked = Request((5, 6, 7), max_tokens=2, ignore_eos=True, client="one")
        waiting = [client.submit(asked, sink) for _ in range(10)]
        urgent = client.submit(replace(asked, priority=-1), sink)
        last = client.submit(replace(asked, priority=1 << 40), sink)
        assert client.stats().waiting == 12
        client.cancel(running)
        ended = []
        while len(ended) < 12:
            stream, event = sink.get(timeout=60)
            ended += [stream] if isinstance(event, Finished) else []
        assert ended == [urgent, *waiting, last]


def test_a_step_that_takes_too_long_is_told_for_as_long_as_it_does(llama, monkeypatch):
    monkeypatch.setattr(client_module, "STUCK_S", 0.1)
    with Engine(llama, options=Options(runner="eager")) as engine:
        client, step, go = EngineClient(engine), engine.runner.step, threading.Event()
        monkeypatch.setattr(engine.runner, "step", lambda *given: go.wait(30) and step(*given))
        stream = client.submit(Request((5, 6, 7), max_tokens=2, ignore_eos=True))
        time.sleep(0.3)
        said = client.health()
        assert isinstance(said, StuckError) and said.status == 503 and 0.1 < engine.turn_s < 30
        go.set()
        assert len(stream.result().ids) == 2
        time.sleep(0.3)  # idle is not stuck
        assert client.health() is None and engine.turn_s == 0


def test_a_name_that_is_taken_back_costs_lists_that_name_alone(llama, make_folder, monkeypatch):
    with Engine(llama, {"a": make_folder("lora", llama)}) as engine:
        before = iter([["a", "taken back"]])
        monkeypatch.setattr(type(engine.library), "names", property(lambda self: next(before, ["a"])))
        assert [entry.name for entry in EngineClient(engine).models()] == ["a"] and not list(before)


def test_a_given_name_whose_adapter_has_gone_is_listed_with_that(llama, make_folder, tmp_path):
    registry, folder = Registry(tmp_path / "registry.db"), make_folder("lora", llama)
    registry.add_base(llama.spec)
    registry.publish(folder, "ann/news")
    with Engine(llama, {"a": folder}, registry) as engine:
        client = EngineClient(engine)
        client.attach("mine", "ann/news")
        registry.delete_repo("ann/news")
        shutil.rmtree(folder)
        listed = {entry.name: entry for entry in client.models()}
        for name in ("a", "mine"):
            assert client.model(name) == listed[name] and listed[name].error == "The adapter is gone."
        with pytest.raises(NotFoundError):
            client.model("ann/news")


def test_adapters_are_loaded_pinned_and_unloaded(llama, make_folder):
    folders = {"a": make_folder("prefix", llama), "b": make_folder("lora", llama)}
    with Engine(llama, folders) as engine:
        client = EngineClient(engine)
        assert [entry.name for entry in client.models()] == ["a", "b"] and client.adapters() == {}
        with pytest.raises(NotLoadedError):
            client.unload("a")
        served = client.load("a")
        assert served == client.served("a") and served.digest == client.model("a").digest
        assert client.stats().virtual_blocks == client.stats().blocks_used == 2
        assert not client.adapters()[served.digest].pinned
        client.pin("a", True)
        assert client.adapters()[served.digest].pinned and engine.residency.pinned == {served.digest}
        engine.loader.budget_bytes = 30_000
        with pytest.raises(ConflictError, match="too little room"):
            client.pin("b", True)
        assert served.digest in client.adapters()
        client.unload("a")
        assert not engine.residency.pinned and client.stats().blocks_used == 0
        with pytest.raises(NotFoundError):
            client.load("absent")


def test_pins_leave_room_for_others_of_what_the_runner_makes_of_adapters(llama, make_folder):
    """It is more than what they take in host memory."""
    folders = {f"a{i}": make_folder("lora", llama, i) for i in range(4)}
    with Engine(llama, folders, options=Options(runner="eager")) as engine:
        client = EngineClient(engine)
        client.load("a0")
        loaded = engine.loader.snapshot()[0]
        assert loaded.device_bytes > loaded.bytes
        engine.residency.budget_bytes = 4 * loaded.device_bytes
        client.pin("a0", True), client.pin("a1", True)
        with pytest.raises(ConflictError, match="too little room"):
            client.pin("a2", True)
        assert len(engine.residency.pinned) == 2 and client.load("a3").digest
