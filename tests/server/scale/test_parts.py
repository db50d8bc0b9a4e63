"""What an ingress and a replica are made of, each by itself."""

import os
import subprocess
import sys
from collections import namedtuple
from types import SimpleNamespace

import psutil
import pytest

pytest.importorskip("aiohttp", reason="aiohttp is in the extras `test` and `ray`")

from graft.hub.errors import NotFoundError
from graft.server.http.access.introduction import Introduction, read_introduction
from graft.server.keys.accounts import Accounts
from graft.server.keys.far_accounts import Told
from graft.server.keys.holders import Holder, Limits, Profile
from graft.server.scale.callers import Visits
from graft.server.scale.engine_process import EngineCommand, EngineFailure, EngineProcess
from graft.server.scale.scaling import replicas_wanted


def test_an_introduction_arrives_as_it_was_meant():
    told = Introduction("1.2.3.4", "Bob’s", 2.5, True, ("ns/*",), False, "task:sql", "http://x/1", Limits(1, 2, 3))
    assert read_introduction(told.headers("secret"), "secret") == told
    assert told.holder == Holder("Bob’s", Profile(("ns/*",), False, Limits(1, 2, 3), 2.5), True)


# Accounts


def visits(**options):
    return Visits(Accounts(lambda used: None), all_count=False, **options)


def test_what_a_dead_engine_held_is_given_back_and_another_may_enter():
    """The same request, tried again elsewhere, holds one place in the end, and none when it is over."""
    here, holder = visits(), Holder("one", Profile(limits=Limits(concurrency=1, tokens=100)))
    first = here.begin(holder)
    assert not here.do(first, "enter", Told()).refusal and not here.do(first, "reserve", Told(60)).refusal
    second = here.begin(holder)
    assert here.do(second, "enter", Told()).refusal == "rate_limit_exceeded"
    here.end(second, answered=False)
    here.end(first, answered=False)
    third = here.begin(holder)
    assert not here.do(third, "enter", Told()).refusal and not here.do(third, "reserve", Told(100)).refusal
    with pytest.raises(NotFoundError):
        here.do(first, "leave", Told(reserved=60))


def test_nothing_is_counted_of_keys_without_limits():
    assert visits().begin(Holder("free")) == ""


# Processes


def command(program, *arguments):
    return EngineCommand(sys.executable, arguments, os.getcwd(), "1", ("-c", program))


def test_an_engine_that_does_not_start_says_why_in_its_own_words():
    engine = EngineProcess(command("import sys; sys.exit('error: no such base')"), "127.0.0.1")
    with pytest.raises(EngineFailure, match=r"status 1\): error: no such base"):
        engine.await_ready()
    with pytest.raises(EngineFailure, match="can't be started"):
        EngineProcess(EngineCommand("/no/python", (), os.getcwd()), "127.0.0.1")


def test_an_engine_has_the_threads_that_were_set_by_hand_and_not_those_of_a_worker(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    assert command("").environment(os.environ, "")["OMP_NUM_THREADS"] == "1"
    assert "OMP_NUM_THREADS" not in EngineCommand("", (), "").environment(os.environ, "")


def test_an_engine_dies_with_whoever_started_it(tmp_path):
    """However that ends, and although nobody tells it."""
    child = "import os, time; from graft.server.operations.children import die_with; die_with({parent}); print(os.getpid(), flush=True); time.sleep(600)"
    parent = f"import os, subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}.format(parent=os.getpid())])"
    started = subprocess.Popen([sys.executable, "-c", parent], stdout=subprocess.PIPE, text=True)
    engine = psutil.Process(int(started.stdout.readline()))
    started.kill()
    started.wait()
    engine.wait(10)


# How many


def test_there_are_as_many_replicas_as_requests_take():
    def wanted(metrics):
        config = SimpleNamespace(target_ongoing_requests=8.0)
        return replicas_wanted(SimpleNamespace(aggregated_metrics=metrics, target_num_replicas=3, config=config))[0]

    assert wanted({"requests": {"a": 20.0, "b": 4.0}}) == 3.0
    assert wanted({"requests": {"a": 0.0, "b": 0.0}}) == 0.0  # Serve keeps the least
    assert wanted({}) == 3 == wanted(None)  # nothing has been told yet


def test_what_a_machine_is_missing_is_told_in_words(monkeypatch):
    pytest.importorskip("ray", reason="Ray is in the extra `ray`")
    from graft.server.scale import replica

    assert replica.Needs(None).missing() == []
    (told,) = replica.Needs("http://127.0.0.1:9").missing()
    assert "http://127.0.0.1:9 can't be reached" in told
    usage = namedtuple("usage", "total used free")(1, 1, 1 << 20)
    monkeypatch.setattr(replica.shutil, "disk_usage", lambda path: usage)
    assert "its disk is full (1 MiB free" in replica.Needs(None).missing()[0]


def test_an_application_is_made_of_the_commands_words(tmp_path):
    serve = pytest.importorskip("ray.serve", reason="Ray is in the extra `ray`")
    from graft.server.commands.ray_application import application

    made = application({"options": f"--base {tmp_path} --replicas 3 --max-running 7"})
    assert isinstance(made, serve.Application)
