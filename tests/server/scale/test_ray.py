"""`graft serve --ray` on a cluster of this machine's own: what it answers, and what happens when parts of it are killed."""

import http.client
import json
import os
import re
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from types import MappingProxyType

import psutil
import pytest

from graft.hub.registry.registry import Registry
from tests.conftest import tiny_base
from tests.server.conftest import write_folder
from tests.server.live import serving

pytest.importorskip("ray.serve", reason="Ray Serve is in the extra `ray`")
pytestmark = pytest.mark.slow

GRAFT = [sys.executable, "-m", "graft.hub.cli.main", "serve"]
KINDS = ("lora", "prefix", "ia3", "dora")
START_S = 300.0


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a base, and a registry with adapters of several kinds."""
    top, base = tmp_path_factory.mktemp("ray"), tiny_base("llama")
    base.model.save_pretrained(top / "base")
    base.tokenizer.save_pretrained(top / "base")
    registry = Registry(top / "registry.db")
    registry.add_base(base.spec)
    for number, kind in enumerate(KINDS):
        registry.publish(write_folder(top / f"folder-{kind}", kind, base, number), f"ann/{kind}")
    return top


class Cluster:
    """A running `graft serve --ray`."""

    def __init__(self, process, url):
        self.process = process
        self.url = url
        self.port = int(url.rpartition(":")[2])

    def get(self, path, headers=MappingProxyType({})):
        return send(urllib.request.Request(self.url + path, headers=dict(headers)))

    def post(self, path, body, headers=MappingProxyType({})):
        data = json.dumps(body).encode()
        return send(urllib.request.Request(self.url + path, data, {"Content-Type": "application/json", **headers}))

    def ask(self, model="ann/lora", **fields):
        return self.post(
            "/v1/completions", {"model": model, "prompt": "abc", "max_tokens": 8, "temperature": 0, **fields}
        )

    def replicas(self):
        return self.get("/ready")[2]["replicas"]

    def serving(self):
        try:
            return [name for name, one in self.replicas().items() if one["serves"]]
        except OSError:
            return []

    def processes(self, *words):
        """Those below the command whose command line has all the words."""
        found = []
        for one in psutil.Process(self.process.pid).children(recursive=True):
            try:
                line = " ".join(one.cmdline())
            except (psutil.NoSuchProcess, psutil.ZombieProcess):
                continue
            if all(word in line for word in words):
                found.append(one)
        return found

    @property
    def engines(self):
        return self.processes("graft.hub.cli.main serve --base")

    def stream(self, **fields):
        """A stream that has begun: the connection and its response."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        body = {"model": "ann/lora", "prompt": "abc", "max_tokens": 200, "ignore_eos": True, "stream": True, **fields}
        connection.request("POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"})
        response = connection.getresponse()
        assert response.status == 200
        assert response.readline().startswith(b"data: ")
        return response


def send(request):
    try:
        with urllib.request.urlopen(request, timeout=60) as response:
            return response.status, response.headers, json.loads(response.read() or b"null")
    except urllib.error.HTTPError as error:
        return error.code, error.headers, json.loads(error.read())


@contextmanager
def cluster(place, *options, env=MappingProxyType({})):
    words = [*GRAFT, "--base", "base", "--device", "cpu", "--dtype", "float32", "--runner", "eager", "--port", "0"]
    env = {**os.environ, "OMP_NUM_THREADS": "1", **env}
    process = subprocess.Popen([*words, "--ray", *options], cwd=place, env=env, stderr=subprocess.PIPE, text=True)
    lines = []
    try:
        for line in process.stderr:
            lines.append(line)
            if found := re.search(r"^graft serve: ready at (http://\S+)/v1", line):
                break
        else:
            raise AssertionError("it ended without being ready:\n" + "".join(lines[-30:]))
        drainer = threading.Thread(target=lambda: lines.extend(process.stderr), daemon=True)
        drainer.start()
        running = Cluster(process, found[1])
        running.lines = lines
        yield running
    finally:
        below = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
        process.send_signal(signal.SIGINT)
        try:
            process.wait(90)
        except subprocess.TimeoutExpired:
            process.kill()
            for one in below:
                if one.is_running():
                    one.kill()
            raise


def wait_for(what, seconds):
    """What it returns once that is true; the seconds that it took."""
    began = time.monotonic()
    while not (found := what()):
        assert time.monotonic() < began + seconds, f"not within {seconds} s"
        time.sleep(0.05)
    return found, time.monotonic() - began


@pytest.fixture(scope="module")
def two(place):
    with cluster(place, "--replicas", "2") as running:
        yield running


def holders(running, name):
    """Ids of the replicas that have an adapter in memory, as /v1/adapters tells."""
    listed = {one["id"]: one for one in running.get("/v1/adapters")[2]["data"]}
    return set(listed[name]["replicas"]) if name in listed else set()


def ended_with_error(response):
    events = [line for line in response.read().split(b"\n\n") if line]
    assert b"[DONE]" not in events[-1]
    return json.loads(events[-1].removeprefix(b"data: "))["error"]


def test_texts_are_those_of_one_engine_and_each_adapter_is_in_one_place(two, place):
    """The router brings each adapter to one replica, and what it answers there is what one server answers."""
    base = tiny_base("llama")
    with serving(base, {}, shelf=Registry(place / "registry.db", create=False)) as alone:
        for kind in KINDS:
            told = two.ask(f"ann/{kind}")
            assert told[0] == 200 and told[2]["model"] == f"ann/{kind}"
            body = {"model": f"ann/{kind}", "prompt": "abc", "max_tokens": 8, "temperature": 0}
            reply = alone.post("/v1/completions", body)
            assert told[2]["choices"][0]["text"] == reply.json["choices"][0]["text"]
            assert told[1]["X-Adapter-Digest"] == reply.headers["X-Adapter-Digest"]
            for _ in range(3):
                two.ask(f"ann/{kind}")
            assert len(holders(two, f"ann/{kind}")) == 1
    assert two.ask("base")[0] == 200
    assert two.ask("ann/none")[2]["error"]["code"] == "model_not_found"


@pytest.mark.parametrize("victim", ["engine", "actor"])
def test_a_replica_that_is_killed(two, victim):
    """Who has no byte yet is answered by another; who has is told; survivors serve its adapters in 5 s, all is well in 60."""
    wait_for(lambda: len(two.serving()) == 2, 60)
    (holder,) = holders_after_asking(two, "ann/lora")
    stream = two.stream()
    bad, stop = [], threading.Event()

    def keep_asking(name):
        while not stop.is_set():
            told = two.ask(name)
            if told[0] != 200:
                bad.append(told)

    askers = [threading.Thread(target=keep_asking, args=(f"ann/{kind}",)) for kind in KINDS]
    for one in askers:
        one.start()
    time.sleep(0.5)
    began = time.monotonic()
    process = engine_of(two, holder)
    (process.parent() if victim == "actor" else process).kill()
    assert ended_with_error(stream)["code"] == "replica_lost"
    wait_for(lambda: two.ask("ann/lora")[0] == 200, 5)
    served_s = time.monotonic() - began
    wait_for(lambda: len(two.serving()) == 2 and holder not in two.serving(), 60)
    print(f"killed {victim}: others serve in {served_s:.2f} s, all in {time.monotonic() - began:.1f} s")
    stop.set()
    for one in askers:
        one.join(60)
    assert not bad


def holders_after_asking(running, name):
    assert running.ask(name)[0] == 200
    return holders(running, name)


def engine_of(running, replica):
    """The process of a replica's engine: the one whose actor has that id."""
    with urllib.request.urlopen(running.url + "/metrics") as numbers:
        port = re.search(rf'graft_replica_info{{.*replica="{replica}",url="[^"]+:(\d+)"', numbers.read().decode())[1]
    for engine in running.engines:
        if int(port) in {at.laddr.port for at in engine.net_connections() if at.status == "LISTEN"}:
            return engine
    raise AssertionError(f"no engine of {replica}")


def test_the_ingress_is_killed(two):
    wait_for(lambda: len(two.serving()) == 2, 60)
    (ingress,) = two.processes("graft:ingress")
    began = time.monotonic()
    ingress.kill()
    wait_for(lambda: answers(two), 60)
    print(f"killed ingress: answers again in {time.monotonic() - began:.1f} s")
    wait_for(lambda: len(two.serving()) == 2, 10)
    assert len(holders(two, "ann/lora")) >= 1  # nothing was loaded anew


def answers(running):
    try:
        return running.ask()[0] == 200
    except OSError:
        return False


def test_serves_controller_is_killed(two):
    """Requests need it for nothing; it comes back by itself, and looks after replicas again."""
    (controller,) = two.processes("ServeController")
    stream = two.stream()
    controller.kill()
    assert all(two.ask()[0] == 200 for _ in range(20))
    assert b"[DONE]" in stream.read()
    engine = two.engines[0]
    wait_for(lambda: two.processes("ServeController"), 60)
    engine.kill()
    wait_for(lambda: len(two.serving()) == 1, 30)
    wait_for(lambda: len(two.serving()) == 2, 120)


def test_a_promotion_is_followed_by_all_replicas_at_once(two, place):
    registry = Registry(place / "registry.db", create=False)
    first = registry.resolve("ann/lora")
    second = registry.publish(write_folder(place / "again", "lora", tiny_base("llama"), 9), "ann/lora")
    for version in (first, second, first):
        registry.promote(f"ann/lora@{version.id}", "now")
        with ThreadPoolExecutor(8) as pool:
            told = list(pool.map(lambda _: two.ask("ann/lora@now"), range(16)))
        assert {one[1]["X-Adapter-Digest"] for one in told} == {version.digest}


def test_ctrl_c_drains_and_leaves_no_process(place):
    """A request that is under way ends as it would have."""
    with cluster(place, "--replicas", "1") as running:
        stream, below = running.stream(), psutil.Process(running.process.pid).children(recursive=True)
        running.process.send_signal(signal.SIGINT)
        assert b"[DONE]" in stream.read()
        assert running.process.wait(90) == 0
        wait_for(lambda: not any(alive(one) for one in below), 30)
        assert running.lines[-1] == "graft serve: ended\n"


def alive(process):
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_the_clusters_head_is_killed(place):
    """What is under way goes on; the command says what has happened, and ends with all it started."""
    with cluster(place, "--replicas", "1") as running:
        below = psutil.Process(running.process.pid).children(recursive=True)
        (head,) = running.processes("gcs_server")
        head.kill()
        assert all(running.ask()[0] == 200 for _ in range(20))
        assert running.process.wait(120) == 1
        assert "The head of the Ray cluster" in "".join(running.lines)
        wait_for(lambda: not any(alive(one) for one in below), 60)


def test_replicas_come_as_requests_do(place):
    with cluster(place, "--autoscale", "1:2", "--max-running", "2") as running:
        assert len(running.serving()) == 1
        stop = threading.Event()

        def keep_asking():
            while not stop.is_set():
                running.ask(max_tokens=100, ignore_eos=True)

        askers = [threading.Thread(target=keep_asking) for _ in range(8)]
        for one in askers:
            one.start()
        wait_for(lambda: len(running.serving()) == 2, 120)
        stop.set()
        for one in askers:
            one.join(60)


@pytest.fixture
def hub(place):
    """A hub's process and address."""
    words = [sys.executable, "-m", "graft.hub.cli.main", "hub", "serve", "--registry", "registry.db"]
    process = subprocess.Popen([*words, "--port", str(port := free_port())], cwd=place)
    wait_for(lambda: listens(port), 60)
    yield process, f"http://127.0.0.1:{port}"
    process.kill()
    process.wait()


def test_the_hub_is_killed(place, hub, tmp_path):
    """What is in memory goes on, by the names it was asked for; /ready says what each replica is missing."""
    process, url = hub
    with cluster(place, "--replicas", "2", "--hub", url, env={"HF_HOME": str(tmp_path)}) as running:
        for kind in ("lora", "ia3"):
            assert running.ask(f"ann/{kind}")[0] == 200
        process.kill()
        wait_for(lambda: all("can't be reached" in str(one["missing"]) for one in running.replicas().values()), 30)
        assert [running.ask(f"ann/{kind}")[0] for kind in ("lora", "ia3", "lora")] == [200] * 3
        status, _, told = running.ask("ann/dora")
        assert status == 502 and told["error"]["code"] == "unreachable"


def test_one_replica_can_write_no_file(place, hub, tmp_path):
    """As with a full disk: what it can't fetch another one serves."""
    with cluster(place, "--replicas", "2", "--hub", hub[1], env={"HF_HOME": str(tmp_path)}) as running:
        resource.prlimit(running.engines[0].pid, resource.RLIMIT_FSIZE, (0, 0))
        assert [running.ask(f"ann/{kind}")[0] for kind in KINDS] == [200] * len(KINDS)
        assert set.union(*(holders(running, f"ann/{kind}") for kind in KINDS)) < set(running.serving())


def test_a_new_deployment_takes_over_and_loses_no_request(place):
    """On a cluster of several raylets that is there: replicas are replaced one after another, each drained."""
    from ray.cluster_utils import Cluster as Raylets

    raylets = Raylets(initialize_head=True, head_node_args={"num_cpus": 2})
    raylets.add_node(num_cpus=2)
    port, bad, stop = str(free_port()), [], threading.Event()
    try:
        where = ("--ray-address", raylets.address, "--port", port)
        with cluster(place, "--replicas", "2", *where) as first:
            before = set(first.serving())

            def keep_asking(kind):
                while not stop.is_set():
                    told = first.ask(f"ann/{kind}", stream=False, max_tokens=30, ignore_eos=True)
                    if told[0] != 200:
                        bad.append(told)

            askers = [threading.Thread(target=keep_asking, args=(kind,)) for kind in KINDS]
            for one in askers:
                one.start()
            with cluster(place, "--replicas", "2", "--max-running", "8", *where) as second:
                wait_for(lambda: len(second.serving()) == 2 and not before & set(second.serving()), 120)
                first.process.send_signal(signal.SIGINT)
                assert first.process.wait(60) == 0  # it ends, and leaves alone what is not its own
                assert second.ask()[0] == 200
                stop.set()
                for one in askers:
                    one.join(60)
            assert not bad
    finally:
        raylets.shutdown()


def listens(port):
    with socket.socket() as sock:
        return sock.connect_ex(("127.0.0.1", port)) == 0


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as sock:
        return sock.getsockname()[1]


# What is not there


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--ray", "--ray-address", "127.0.0.1:9", "--port", "8123"), "No Ray cluster could be joined at 127.0.0.1:9"),
        (("--ray", "--engine-python", "/no/python"), "/no/python"),
        (("--ray", "--replica-gpus", "99"), "take 99 GPUs, and this machine has"),
        (("--ray", "--max-model-len", "100000"), "--max-model-len 100000 is more than"),
    ],
)
def test_what_can_not_start_says_why(place, options, words):
    started = [
        *GRAFT,
        "--base",
        "base",
        "--device",
        "cpu",
        "--dtype",
        "float32",
        "--runner",
        "eager",
        "--port",
        "0",
        *options,
    ]
    done = subprocess.run(started, cwd=place, capture_output=True, text=True, timeout=300)
    assert done.returncode == 1 and "Traceback" not in done.stderr.splitlines()[-1]
    assert words in done.stderr.splitlines()[-1] and done.stderr.splitlines()[-1].startswith("error: ")
