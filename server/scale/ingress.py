"""The ingress: an actor with an HTTP server of its own, which picks an engine for each request and passes the answer on.

It sees to who asks and for what (front.py), Serve's router picks (router.py), bytes go by HTTP (exchange.py). Serve's own proxy
is not used: each piece of an answer would be a message of Ray's.
"""

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING

import ray
from aiohttp import ClientSession, ClientTimeout, TCPConnector, web

from graft.server.http.clients import Network
from graft.server.scale.callers import Opening, make_visits
from graft.server.scale.exchange import Exchange
from graft.server.scale.fleet import Asked, Declared, declare
from graft.server.scale.front import Front

if TYPE_CHECKING:
    from ray.serve.handle import DeploymentHandle

CONNECT_S = 5.0
LOOK_S = 0.05
_BACKLOG = 1024
_ANY = ("0.0.0.0", "::", "")


@dataclass(frozen=True)
class IngressOptions:
    """`host` and `port`: where it listens. `drain_s`: how long answers under way may take when it ends."""

    host: str
    port: int
    secret: str
    drain_s: float
    declared: Declared
    opening: Opening
    trusted_proxies: tuple[Network, ...] = ()


class Ingress:
    """Listens as long as the actor lives."""

    async def __init__(self, options: IngressOptions, engines: "DeploymentHandle"):  # type: ignore[misc]
        self._drain_s = options.drain_s
        fleet = declare(options.declared)
        self._engines = engines.options(
            method_name="check_health"
        )  # by which Serve makes the router, which tells the fleet
        self._session = ClientSession(
            connector=TCPConnector(limit=0),
            timeout=ClientTimeout(total=None, sock_connect=CONNECT_S),
            auto_decompress=False,
        )
        self._front = Front(
            fleet,
            Exchange(fleet, self._pick, self._session),
            make_visits(options.opening.usage),
            options.opening,
            options.secret,
            f"http://{_reached_at(options.host)}:{options.port}",
            options.trusted_proxies,
        )
        self._runner = web.AppRunner(self._front.application(), handler_cancellation=True, access_log=None)
        await self._runner.setup()
        self._site = web.TCPSite(self._runner, options.host, options.port, reuse_port=True, backlog=_BACKLOG)
        await self._site.start()

    async def check_health(self) -> None:
        """It answers as long as its loop turns."""

    async def __del__(self) -> None:
        """By Serve: answers under way may end, nothing new begins."""
        self._front.draining = True
        await self._site.stop()
        loop = asyncio.get_running_loop()
        until = loop.time() + self._drain_s
        while self._front.under_way and loop.time() < until:
            await asyncio.sleep(LOOK_S)
        await self._runner.cleanup()
        await self._session.close()

    async def _pick(self, asked: Asked) -> tuple[str, str]:
        # Nothing is reserved with the replica's actor: what a dead ingress had reserved nobody would give back.
        async with self._engines.choose_replica(asked, _reserve=False) as selection:
            return selection.replica_id, selection.replica_metadata["url"]


def _reached_at(host: str) -> str:
    """Where engines on other machines find it."""
    shown: str = ray.util.get_node_ip_address() if host in _ANY else host
    return f"[{shown}]" if ":" in shown else shown
