"""The ingress: an actor with an HTTP server of its own, which picks an engine for each request and passes the answer on.

It sees to who asks and for what (front.py), Serve's router picks (router.py), bytes go by HTTP (exchange.py). Serve's own proxy
is not used: each piece of an answer would be a message of Ray's.
"""

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING

import ray
from aiohttp import web
from ray.serve.exceptions import DeploymentUnavailableError

from graft.hub.machine.interpreter import hand_on_soon
from graft.server.http.clients import Network
from graft.server.scale.callers import Opening, make_visits
from graft.server.scale.door import listen
from graft.server.scale.exchange import Engine, Exchange, NoReplicaError
from graft.server.scale.fleet import Asked, Declared, declare
from graft.server.scale.front import Front

if TYPE_CHECKING:
    from ray.serve.handle import DeploymentHandle

LOOK_S = 0.05
_ANY = ("0.0.0.0", "::", "")


@dataclass(frozen=True)
class IngressOptions:
    """`host` and `port`: where it listens. `deployment`: by which one is told from the next. `drain_s`: how long answers under way
    may take when it ends."""

    host: str
    port: int
    deployment: str
    drain_s: float
    declared: Declared
    opening: Opening
    trusted_proxies: tuple[Network, ...] = ()
    cors_origins: tuple[str, ...] = ()


class Ingress:
    """Listens as long as the actor lives."""

    def __init__(self, options: IngressOptions, engines: "DeploymentHandle"):
        hand_on_soon()  # Serve has threads of its own in this process
        self._options = options
        fleet = declare(options.declared)
        self._engines = engines.options(
            method_name="check_health"
        )  # by which Serve makes the router, which tells the fleet
        self._front = Front(
            fleet,
            Exchange(fleet, self._pick),
            make_visits(options.opening.usage),
            options.opening,
            f"http://{_reached_at(options.host)}:{options.port}",
            options.trusted_proxies,
            options.cors_origins,
        )
        self._runner = web.AppRunner(self._front.application(), handler_cancellation=True)
        self._listening: asyncio.Server | None = None

    async def reconfigure(self, listening: dict[str, bool]) -> None:
        """By Serve, when it has been made, and whenever the deployment's user_config changes."""
        if self._listening is None:
            self._listening = await listen(self._runner, self._options.host, self._options.port)

    async def is_of(self, deployment: str) -> bool:
        """Whether it is the ingress of that deployment, and not of one that has taken over."""
        return deployment == self._options.deployment

    async def check_health(self) -> None:
        """It answers as long as its loop turns."""

    async def __del__(self) -> None:
        """By Serve: answers under way may end, nothing new begins."""
        self._front.draining = True
        if self._listening is not None:
            self._listening.close()
        loop = asyncio.get_running_loop()
        until = loop.time() + self._options.drain_s
        while self._front.under_way and loop.time() < until:
            await asyncio.sleep(LOOK_S)
        await self._runner.cleanup()

    async def _pick(self, asked: Asked) -> Engine:
        # Nothing is reserved with the replica's actor: what a dead ingress had reserved nobody would give back.
        try:
            async with self._engines.choose_replica(asked, _reserve=False) as selection:
                told = selection.replica_metadata
                return Engine(selection.replica_id, told["url"], told["secret"])
        except DeploymentUnavailableError:
            raise NoReplicaError from None


def _reached_at(host: str) -> str:
    """Where engines on other machines find it."""
    shown: str = ray.util.get_node_ip_address() if host in _ANY else host
    return f"[{shown}]" if ":" in shown else shown
