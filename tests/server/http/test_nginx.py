"""deploy/nginx.conf in front of servers, with the nginx that is installed."""

import http.client
import json
import shutil
import socket
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from ipaddress import ip_network
from itertools import pairwise
from pathlib import Path

import pytest

from graft.server.operations.drain import Drain, Draining
from tests.conftest import tiny_base
from tests.server.live import Live, serving

CONFIG = Path(__file__).parents[3] / "deploy" / "nginx.conf"
NGINX = shutil.which("nginx") or shutil.which("/usr/sbin/nginx")
ASKED = {"model": "test/llama", "prompt": "abc", "max_tokens": 100, "ignore_eos": True}
pytestmark = [pytest.mark.slow, pytest.mark.skipif(NGINX is None, reason="no nginx here")]


@dataclass
class Proxy:
    port: int

    def ask(self, body: dict) -> tuple[int, bytes, dict[str, str]]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        connection.request("POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"})
        answer = connection.getresponse()
        found = answer.status, answer.read(), dict(answer.headers)
        connection.close()
        return found


@contextmanager
def nginx(top: Path, *upstream: Live):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    servers = " ".join(f"server 127.0.0.1:{one.port} max_fails=0;" for one in upstream)
    site = (
        CONFIG.read_text()
        .replace("server graft:8000 max_fails=0;", servers)
        .replace("listen 80;", f"listen 127.0.0.1:{port};")
    )
    assert servers in site and str(port) in site
    main = f"daemon off; pid {top}/pid; error_log {top}/error.log; events {{}} http {{ access_log {top}/access.log;\n"
    temporary = "".join(
        f"{kind}_temp_path {top}/{kind};\n" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    (top / "nginx.conf").write_text(main + temporary + site + "}")
    running = subprocess.Popen([NGINX, "-c", str(top / "nginx.conf"), "-p", str(top)], stderr=subprocess.DEVNULL)
    try:
        end = time.monotonic() + 10
        while socket.socket().connect_ex(("127.0.0.1", port)):
            assert time.monotonic() < end and running.poll() is None, (top / "error.log").read_text()
            time.sleep(0.05)
        yield Proxy(port)
    finally:
        running.terminate()
        running.wait(10)


def slow_down(live: Live) -> None:
    outputs = live.engine.runner.outputs
    live.engine.runner.outputs = lambda batch: (time.sleep(0.02), outputs(batch))[1]


def test_streams_connections_and_refusals_pass_through(tmp_path):
    with (
        serving(tiny_base("llama"), {}, max_requests=1, trusted_proxies=[ip_network("127.0.0.1")]) as live,
        nginx(tmp_path, live) as proxy,
    ):
        for _ in range(20):
            assert proxy.ask(ASKED | {"max_tokens": 1})[0] == 200
        assert (
            sum("Connection" in type(one).__name__ for one in list(live.sockets.values())) <= 2
        )  # kept, not one a request
        slow_down(live)
        connection = http.client.HTTPConnection("127.0.0.1", proxy.port, timeout=60)
        body = json.dumps(ASKED | {"stream": True})
        connection.request("POST", "/v1/completions", body, {"Content-Type": "application/json"})
        answer, came = connection.getresponse(), []
        while line := answer.readline():
            if line.startswith(b"data: "):
                came.append(time.monotonic())
            if len(came) == 3:
                refused, said, headers = proxy.ask(ASKED)  # the same address: its only place is taken
                assert refused == 429 and json.loads(said)["error"]["code"] == "overloaded" and headers["Retry-After"]
        assert len(came) > 60 and came[-1] - came[0] > 1 and max(b - a for a, b in pairwise(came)) < 1
        assert proxy.ask(ASKED | {"prompt": "x" * 5_000_000})[0] == 400
        assert b"403" in (tmp_path / "access.log").read_bytes() or http_status(proxy, "/metrics") == 403


def http_status(proxy: Proxy, path: str) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", proxy.port, timeout=10)
    connection.request("GET", path)
    return connection.getresponse().status


def test_what_a_draining_server_refuses_goes_to_another_one(tmp_path):
    drain = Drain()
    with (
        serving(tiny_base("llama"), {}, drain=drain) as ending,
        serving(tiny_base("llama"), {}) as other,
        nginx(tmp_path, ending, other) as proxy,
        ThreadPoolExecutor(8) as pool,
    ):
        asked = [pool.submit(proxy.ask, ASKED | {"stream": True}) for _ in range(8)]
        time.sleep(0.1)
        done: list[bool] = []
        drain.begin(20, Draining(lambda: 0, lambda: None), lambda: done.append(True))
        asked += [pool.submit(proxy.ask, ASKED) for _ in range(30)]
        assert [one.result()[0] for one in asked] == [200] * 38
        assert ending.get("/ready").json["error"]["code"] == "draining" and other.get("/ready").status == 200
