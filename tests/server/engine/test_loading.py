"""Loads wait for what they need, and not for each other: hubs that hang, clients with many, stored files that change."""

import threading
import time
from urllib.parse import unquote

import pytest

from graft.hub.adapters.methods import lora
from graft.hub.cli.hub_server import http_server
from graft.hub.errors import ArtifactError, ConflictError, GraftError, NotFoundError
from graft.hub.registry.access.tokens import create_token
from graft.hub.registry.registry import Registry
from graft.hub.registry.remote.client import TRUSTED_S, RemoteRegistry
from graft.hub.web.app import create_app
from graft.server.adapters.loading import HUB_THREADS, HUB_THREADS_EACH
from graft.server.engine.client import EngineClient
from graft.server.engine.engine import Engine
from graft.server.engine.request import Request
from graft.server.http.app import create_app as create_server
from graft.server.interest import Interest

SOON_S = 5.0  # generous: what hangs here hangs for longer


class Hub:
    """A real hub on loopback that can be made to hang: what is asked under `holds` waits until it is let go."""

    def __init__(self, registry):
        self.app = create_app(registry)
        self.holds = ()
        self.held = 0
        self.go = threading.Event()
        server = http_server(self._answer, "127.0.0.1", 0, threads=16)
        self.url = f"http://127.0.0.1:{server.effective_port}"
        threading.Thread(target=server.run, daemon=True).start()
        self.close = server.close

    def _answer(self, environ, start):
        asked = f"{environ['PATH_INFO']}?{unquote(environ['QUERY_STRING'])}"
        if any(part in asked for part in self.holds):
            self.held += 1
            self.go.wait(30)
        return self.app(environ, start)


@pytest.fixture
def registry(llama, make_folder, tmp_path):
    registry = Registry(tmp_path / "registry.db")
    registry.add_base(llama.spec)
    for number in range(HUB_THREADS + 2):
        registry.publish(make_folder("lora", llama, number), f"ann/a{number}")
    return registry


@pytest.fixture
def hub(registry, monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    hub = Hub(registry)
    yield hub
    hub.go.set()
    hub.close()


def one(engine, name, **more):
    return engine.submit(Request((5, 6, 7), name, max_tokens=2, ignore_eos=True, **more))


def wait_for(what):
    deadline = time.monotonic() + SOON_S
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def within(stream):
    """Its result, and that it came soon."""
    began = time.monotonic()
    result = stream.result()
    assert time.monotonic() - began < SOON_S
    return result


def test_downloads_that_hang_delay_neither_local_loads_nor_look_ups(llama, make_folder, hub):
    local = {f"local{i}": make_folder("ia3", llama, i) for i in range(3)}
    with Engine(llama, local, RemoteRegistry(hub.url)) as engine:
        within(one(engine, "ann/a0"))
        hub.holds = ("/resolve/",)
        hanging = [one(engine, f"ann/a{i}", client=f"{i}") for i in range(1, HUB_THREADS + 2)]
        wait_for(lambda: hub.held >= HUB_THREADS)
        for name in local:
            within(one(engine, name))
        engine.library._answers.clear()
        within(one(engine, "ann/a0"))  # is looked up anew
        assert not any(stream.sink.qsize() for stream in hanging)
        hub.go.set()
        for stream in hanging:
            assert len(stream.result().ids) == 2


def test_look_ups_that_hang_delay_neither_local_loads_nor_names_that_stand(llama, make_folder, hub):
    with Engine(llama, {"local": make_folder("ia3", llama)}, RemoteRegistry(hub.url)) as engine:
        within(one(engine, "ann/a0"))
        pinned = f"ann/a1@{engine.library.shelf.resolve('ann/a1').id}"
        within(one(engine, pinned))
        hub.holds = ("/",)
        hanging = [one(engine, f"ann/a{i}", client=f"{i}") for i in range(2, HUB_THREADS + 2)]
        wait_for(lambda: hub.held >= HUB_THREADS)
        within(one(engine, "local"))
        within(one(engine, pinned))
        assert not any(stream.sink.qsize() for stream in hanging)
        hub.go.set()
        for stream in hanging:
            stream.result()


def test_look_ups_that_nobody_waits_for_are_not_made(llama, hub):
    with Engine(llama, shelf=RemoteRegistry(hub.url)) as engine:
        within(one(engine, "ann/a0"))
        hub.holds = ("/",)
        hanging = [one(engine, f"ann/a{i}", client=f"{i}") for i in range(1, HUB_THREADS + 1)]
        wait_for(lambda: hub.held >= HUB_THREADS)
        gone = [one(engine, f"ann/none{i}", client=f"{i % 3}") for i in range(50)]
        wanted = one(engine, "ann/a5")
        for stream in gone:
            stream.cancel()
        assert len(engine.loader._loading._look_ups._waiting) == 1
        hub.go.set()
        for stream in (*hanging, wanted):
            assert len(stream.result().ids) == 2
        assert {stream.result().finish_reason for stream in gone} == {"cancelled"}


@pytest.mark.parametrize("step", ["look-ups", "downloads"])
@pytest.mark.parametrize("wanted", ["ann/a5", "ann/a4"])
def test_what_one_client_waits_for_at_a_hub_holds_no_other_client_up(llama, hub, step, wanted):
    """a4 is the fourth that the first client asks for: queued behind its own three, and not so for who asks too."""
    slow = [f"ann/a{i}" for i in range(1, HUB_THREADS)]
    with Engine(llama, shelf=RemoteRegistry(hub.url)) as engine:
        within(one(engine, "ann/a0"))
        commits = [engine.library.shelf.resolve(name).id for name in slow]
        hub.holds = tuple(f"resolve?name={name}" for name in slow) if step == "look-ups" else tuple(commits)
        hanging = [one(engine, name, client="slow") for name in slow]
        wait_for(lambda: hub.held >= HUB_THREADS_EACH)
        own = one(engine, "ann/a4", client="slow")
        wait_for(lambda: waits_behind_its_own(engine, step))
        within(one(engine, wanted, client="other"))
        assert hub.held == HUB_THREADS_EACH
        hub.go.set()
        for stream in (*hanging, own):
            assert len(stream.result().ids) == 2


def waits_behind_its_own(engine, step):
    loading = engine.loader._loading
    return len((loading._look_ups if step == "look-ups" else loading._downloads)._waiting) == 1


def test_of_those_who_give_a_load_up_nothing_is_kept_and_it_goes_on(llama, hub):
    told = []
    with Engine(llama, shelf=RemoteRegistry(hub.url)) as engine:
        client = EngineClient(engine)
        within(one(engine, "ann/a0"))
        hub.holds = ("/resolve/",)
        for number in range(20):
            interest = Interest()
            client.ask_words("ann/a1", "", told.append, interest)
            wait_for(lambda: hub.held)
            if number % 2:
                one(engine, "ann/a1").cancel()
            interest.end()
        wait_for(lambda: [len(waiting.done) for waiting in engine.loader._waiting.values()] == [1])
        hub.go.set()
        wait_for(lambda: len(engine.loader.snapshot()) == 2 and not any(a.users for a in engine.loader.snapshot()))
        misses = engine.loader.stats.misses
        within(one(engine, "ann/a1"))
        assert engine.loader.stats.misses == misses and len(told) <= 1


@pytest.mark.parametrize("asked", ["ann/a0", "ann/a0@main"])
def test_what_is_in_memory_can_be_told_and_let_go_while_the_hub_hangs(llama, hub, monkeypatch, asked):
    """By its name, also where it was loaded by that of a version."""
    monkeypatch.setattr("graft.hub.registry.remote.client.TRUSTED_S", 0.0)
    with Engine(llama, shelf=RemoteRegistry(hub.url)) as engine:
        client = EngineClient(engine)
        web = create_server(client).test_client()

        def told(path, model="ann/a0", **more):
            reply = web.post(path, json={"model": model, **more})
            assert reply.status_code == 200, reply.text
            if reply.json["state"] == "device":  # of a version's name nothing is left once that has gone
                assert reply.headers["X-Adapter-Digest"] == reply.json["digest"]
            return reply.json["state"], reply.json["pinned"]

        assert told("/v1/adapters/load", asked) == ("device", False)
        assert told("/v1/adapters/pin", asked) == ("device", True)
        hub.holds = ("/",)
        assert client.asks_hub("ann/a0")  # whoever wants to use it waits
        entries = web.get("/v1/adapters").json["data"]
        assert [(entry["id"], entry["state"], bool(entry["digest"])) for entry in entries] == [
            ("ann/a0", "device", True)
        ]
        assert told("/v1/adapters/pin", pinned=False) == ("device", False)
        assert told("/v1/adapters/unload") == ("disk", False)
        assert not client.adapters() and not hub.held


def test_closing_waits_for_no_hub(llama, hub):
    engine = Engine(llama, shelf=RemoteRegistry(hub.url))
    within(one(engine, "ann/a0"))
    hub.holds = ("/resolve/",)
    hanging = one(engine, "ann/a1")
    wait_for(lambda: hub.held)
    began = time.monotonic()
    engine.close()
    assert time.monotonic() - began < SOON_S
    with pytest.raises(GraftError, match="shutting down"):
        hanging.result()


@pytest.mark.parametrize("wanted, when", [("a29", "unasked"), ("a28", "fetched"), ("a28", "queued")])
def test_one_clients_many_cold_adapters_delay_another_by_two_loads(llama, make_folder, monkeypatch, wanted, when):
    """Loads are served in turn over clients. a28 is the last that the first client asks for, on its way to the queue or in it."""
    folders = {f"a{i}": make_folder("lora", llama, i) for i in range(30)}
    with Engine(llama, folders) as engine:
        loading, asked, order = engine.loader._loading, {}, []
        fetch, read, may_fetch, may_read = loading._fetch, loading._load_artifact, threading.Event(), threading.Event()

        def fetch_held(load):
            asked[load.location.name] = load
            assert load.location.name != "a28" or may_fetch.wait(30)
            fetch(load)

        def read_held(location, folder):
            order.append(location.name)
            assert may_read.wait(30)
            return read(location, folder)

        monkeypatch.setattr(loading, "_fetch", fetch_held)
        monkeypatch.setattr(loading, "_load_artifact", read_held)
        flood = [one(engine, f"a{i}", client="flood") for i in range(29)]
        wait_for(lambda: "a28" in asked and len(loading._reading._waiting) == 27)  # one is read, and a28 is fetched
        if when != "fetched":
            may_fetch.set()
            wait_for(lambda: len(loading._reading._waiting) == 28)
        other = one(engine, wanted, client="other")
        wait_for(lambda: wanted in asked and "other" in asked[wanted].clients)
        may_fetch.set()
        wait_for(lambda: len(loading._reading._waiting) == 29)
        may_read.set()
        for stream in (other, *flood):
            stream.result()
        assert order.index(wanted) <= 2 and len(order) == len({*order})


def test_what_a_registry_stores_is_read_where_it_lies(llama, registry, monkeypatch):
    """No copy of the weights, no download counted; a changed file is noticed all the same."""
    monkeypatch.setattr(registry.blobs, "copy_out", None)
    with Engine(llama, shelf=registry) as engine:
        within(one(engine, "ann/a0"))
        assert registry.repo("ann/a0").downloads == 0
        weights = registry.blobs.path(registry.tree(registry.resolve("ann/a1").id)["adapter_model.safetensors"])
        data = bytearray(weights.read_bytes())
        data[-1] ^= 1
        weights.chmod(0o644)
        weights.write_bytes(data)
        with pytest.raises(ArtifactError, match="not what was published"):
            one(engine, "ann/a1").result()
        config = registry.blobs.path(registry.tree(registry.resolve("ann/a2").id)["adapter_config.json"])
        config.chmod(0o644)
        config.write_bytes(config.read_bytes() + b" ")
        with pytest.raises(GraftError, match="damaged on disk"):
            one(engine, "ann/a2").result()


def test_what_names_stood_for_is_not_remembered_for_ever(llama, make_folder, monkeypatch):
    monkeypatch.setattr("graft.server.adapters.host.MOST_KNOWN", 5)
    folder = make_folder("lora", llama, 0, name="mine")
    with Engine(llama, {"mine": folder}) as engine:
        for seed in range(12):
            make_folder("lora", llama, seed, name="mine")
            one(engine, "mine").result()
        assert len(engine.loader._served) == 5


def test_a_fold_that_takes_long_delays_no_other_load(llama, make_folder, monkeypatch):
    """A DoRA is folded with the base's weights, in seconds for a large one; on the threads of all others' loads it held them up."""
    go, folding, gain = threading.Event(), threading.Event(), lora._gain

    def slow(*given):
        folding.set()
        assert go.wait(30)
        return gain(*given)

    monkeypatch.setattr(lora, "_gain", slow)
    local = {"dora": make_folder("dora", llama), "lora": make_folder("lora", llama), "ia3": make_folder("ia3", llama)}
    with Engine(llama, local) as engine:
        waiting = one(engine, "dora")
        assert folding.wait(SOON_S)
        within(one(engine, "lora"))
        within(one(engine, "ia3"))
        assert not waiting.sink.qsize()
        go.set()
        assert len(within(waiting).ids) == 2


def _taken_over(registry):
    """Renamed away by its owner; another member of the namespace would have the name that it left."""
    registry.move_repo("ann/a1", "ann/elsewhere", user="ann")
    for take in (lambda: registry.create_repo("ann/a1", user="bob"), lambda: registry.move_repo("ann/a2", "ann/a1")):
        with pytest.raises(ConflictError):
            take()


def _deleted(registry):
    registry.delete_repo("ann/a1", user="ann")
    with pytest.raises(ConflictError):
        registry.create_repo("ann/a1", user="bob")


MEANWHILE = {
    "taken over": _taken_over,
    "deleted": _deleted,
    "hidden": lambda registry: registry.set_private("ann/a1", True, user="ann"),
    "promoted": lambda registry: registry.promote("ann/a1@v2", "production", who="ann"),
}


@pytest.mark.parametrize("happens", MEANWHILE)
def test_a_version_that_is_taken_away_while_it_loads_is_itself_or_nothing(llama, make_folder, hub, registry, happens):
    """A request gets the version that its name stood for, or is told that there is none; nobody else notices."""
    registry.publish(make_folder("lora", llama, 90), "ann/a1", tags=["v2"])
    registry.promote(f"ann/a1@{registry.revisions('ann/a1')[-1].id}", "production")
    create_token(registry.db, "ann", "write")  # from now on there are users: a stranger sees no private repo
    before, after = registry.resolve("ann/a1@production"), registry.resolve("ann/a1@v2")
    with Engine(llama, shelf=RemoteRegistry(hub.url)) as engine:
        within(one(engine, "ann/a0"))
        hub.holds = ("/resolve/",)
        loading = one(engine, "ann/a1@production")
        wait_for(lambda: hub.held)
        MEANWHILE[happens](registry)
        within(one(engine, "ann/a0"))
        within(one(engine, None))
        hub.holds = ()
        hub.go.set()
        gone = happens in ("deleted", "hidden")
        for stream in (loading, *([one(engine, "ann/a1@production")] if gone else [])):
            if gone:
                with pytest.raises(NotFoundError, match="no adapter 'ann/a1' here"):
                    within(stream)
            else:
                assert within(stream).served.digest == before.digest
        time.sleep(TRUSTED_S)
        if not gone:
            now = within(one(engine, "ann/a1@production")).served
            assert (now.digest, now.name) == {
                "taken over": (before.digest, "ann/elsewhere"),
                "promoted": (after.digest, "ann/a1"),
            }[happens]
        within(one(engine, "ann/a0"))
