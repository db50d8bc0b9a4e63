"""An application of graft's on Ray whose engines cost nothing (free_engine.py), and a router that knows nothing beside ours."""

import random
import secrets
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from graft.server.commands.http_server import bind, port_of
from graft.server.keys.access import Access
from graft.server.scale.application import ROUTER, Replicas, make_application
from graft.server.scale.callers import Opening
from graft.server.scale.deployment import cluster, deploy, end
from graft.server.scale.engine_process import EngineCommand
from graft.server.scale.fleet import Asked, Declared
from graft.server.scale.ingress import IngressOptions
from graft.server.scale.replica import Needs
from graft.server.scale.router import DigestRouter

RANDOM = "benchmarks.lib.ray_stage:RandomRouter"


class RandomRouter(DigestRouter):
    """Any replica."""

    def order(self, asked: Asked) -> list[str]:
        order = super().order(asked)
        return random.sample(order, len(order))


@dataclass(frozen=True)
class _Version:
    repo: str
    id: str
    digest: str


class Shelf:
    """A registry that has every adapter of the name ann/a0, ann/a1, ..., its name its digest."""

    is_far = False
    trusted_s = 0.0

    def resolve(self, name: str, base: str) -> _Version:
        digest = name.removeprefix("ann/").partition("@")[0]
        return _Version(name.partition("@")[0], digest, digest)


@contextmanager
def stage(replicas: int, *, router: str = ROUTER, room: int = 32) -> Iterator[str]:
    """The ingress's address."""
    sockets = bind("127.0.0.1", 0)
    port = port_of(sockets)
    for one in sockets:
        one.close()
    deployment = secrets.token_urlsafe(8)
    program = ("-m", "benchmarks.lib.free_engine")
    folder = str(Path(__file__).parents[2])
    with cluster(None):
        opening = Opening(_anybody, Shelf)
        deploy(
            make_application(
                EngineCommand(sys.executable, ("--room", str(room)), folder, "1", program),
                Needs(None),
                IngressOptions("127.0.0.1", port, deployment, 5.0, Declared(), opening),
                Replicas(replicas, replicas, 64),
                router=router,
            )
        )
        _await_ready(f"http://127.0.0.1:{port}/ready")
        try:
            yield f"http://127.0.0.1:{port}"
        finally:
            end(deployment)


def _await_ready(url: str) -> None:
    while True:
        try:
            urllib.request.urlopen(url, timeout=5).close()
            return
        except OSError:
            time.sleep(0.1)


def _anybody(base: str) -> Access:
    return Access()
