"""Having Ray Serve run an application: a cluster of one's own or one that is there, until its end. What goes wrong is told in words."""

import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from graft.hub.errors import GraftError
from graft.hub.machine.ray_head import no_cluster, require_head

if TYPE_CHECKING:
    from ray.serve import Application

NAME = "graft"  # of the application
VERSION = "2.60."  # whose routers, reports and surge this is written for
LOOK_S = 1.0
HEAD_AWAY_S = 15.0  # how long the head may not answer before it counts as gone: it may be restarted
_CONNECT_S = 2.0
ASK_S = 10.0
QUIET = {"log_level": "WARNING", "enable_access_log": False}  # each engine logs its requests


class RayError(GraftError):
    """Ray is not there, is another one, or did not do what it was asked."""

    code = "ray"


def require_ray() -> None:
    """Raises RayError without Ray Serve, or with another version."""
    try:
        import ray
        import ray.serve
    except ImportError as error:
        raise RayError(
            f"--ray takes Ray Serve, which can't be imported here ({error}): pip install 'grafthub[ray]'."
        ) from None
    if not ray.__version__.startswith(VERSION):
        raise RayError(
            f"Here is Ray {ray.__version__}, and graft works with {VERSION}x: pip install 'grafthub[ray]' brings that one."
        )


@contextmanager
def cluster(address: str | None) -> Iterator[str]:
    """A cluster on this machine for as long as the context lasts, or the one at `address`; yields where its head is.

    Raises GraftError where it can't be reached, or is of another version of Ray or Python.
    """
    require_head(address)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nobody was asked
    import ray

    try:
        ray.init(address=address or "local", include_dashboard=False if address is None else None, log_to_driver=True)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise RayError(no_cluster(address, " ".join(str(error).split())[:300])) from None
    try:
        yield ray.get_runtime_context().gcs_address
    finally:
        ray.shutdown()


def require_room(replicas: int, cpus: float, gpus: float) -> None:
    """Raises RayError for more than a cluster has to which nobody will add a machine: replicas would be waited for, for ever."""
    import ray

    there = ray.cluster_resources()
    for what, each in (("CPU", cpus), ("GPU", gpus)):
        if each * replicas > there.get(what, 0.0):
            raise RayError(
                f"{replicas} x --replica-{what.lower()}s {each:g} take {replicas * each:g} {what}s, and this machine has "
                f"{there.get(what, 0.0):g}: ask for less, or name a cluster that has them (--ray-address)."
            )


def this_machine() -> str:
    """Its address, as the cluster knows it."""
    import ray

    address: str = ray.util.get_node_ip_address()
    return address


def deploy(application: "Application") -> None:
    """Run it, in place of what runs under its name: replicas are replaced one after another. Waits until all are there.

    Raises RayError, with an engine's own words where that did not start.
    """
    from ray import serve

    serve.start(proxy_location="Disabled", logging_config=QUIET)
    try:
        serve.run(application, name=NAME, route_prefix=None)
    except RuntimeError as error:
        raise RayError(f"The replicas did not start: {_cause(str(error))}") from None


def end(deployment: str) -> None:
    """Drains, and ends the replicas of that deployment; leaves alone what somebody has deployed since."""
    from ray import serve

    if _is_there(deployment):
        serve.delete(NAME)


def _is_there(deployment: str) -> bool:
    """An ingress that does not say whose it is, is ours."""
    from ray import serve

    try:
        ours: bool = serve.get_app_handle(NAME).is_of.remote(deployment).result(timeout_s=ASK_S)
    except TimeoutError:
        return True
    except serve.exceptions.RayServeException:  # there is none any more
        return False
    return ours


def watch(head: str, is_over: Callable[[float], bool]) -> None:
    """Until `is_over`, which waits for so many seconds, says so. Raises RayError once the cluster's head has gone."""
    host, _, port = head.rpartition(":")
    answered = time.monotonic()
    while not is_over(LOOK_S):
        try:
            socket.create_connection((host, int(port)), _CONNECT_S).close()
            answered = time.monotonic()
        except OSError:
            if time.monotonic() > answered + HEAD_AWAY_S:
                raise RayError(
                    f"The head of the Ray cluster ({head}) has gone. Engines on other machines answer until Ray ends them too; "
                    "nothing is replaced any more. Start again."
                ) from None


def _cause(message: str) -> str:
    """Of Serve's report, which quotes a trace, what an engine said; else the report's end."""
    from ray import serve

    told = [one.message for app in serve.status().applications.values() for one in app.deployments.values()]
    for text in (*told, message):
        _, marker, said = text.partition("EngineFailure: ")
        if marker:
            return said.splitlines()[0]
    return " ".join((told[-1] if told and told[-1] else message).split())[-500:]
