"""`graft serve --ray`: the same options, carried out by engines on a cluster behind one ingress."""

import os
import secrets
import signal
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

import click
from click.core import ParameterSource

from graft.hub.base.manifest import recorded_spec
from graft.hub.errors import GraftError
from graft.server.commands.admission import HUB, Admission
from graft.server.commands.http_server import bind, port_of
from graft.server.commands.start import open_shelf

if TYPE_CHECKING:
    from ray.serve import Application

    from graft.server.http.clients import Network

# Options of `graft serve` that are an engine's; the others are the ingress's, or say how many engines there are.
ENGINE_OPTIONS = (
    "base_name",
    "hub_url",
    "adapters",
    "device",
    "dtype",
    "runner",
    "max_requests",
    "http_processes",
    "max_running",
    "max_batch_rows",
    "max_model_len",
    "kv_bytes",
    "adapter_host_bytes",
    "adapter_device_bytes",
    "cors_origins",
    "tool_format",
    "step_timeout",
    "drain_seconds",
    "request_timeout",
    "log_format",
    "allow_base_mismatch",
)
RAY_OPTIONS = ("replicas", "autoscale", "ray_address", "engine_python", "replica_cpus", "replica_gpus")
READY_S = 60.0  # after the replicas have started
_LOOK_S = 0.2


class ScaleRange(click.ParamType):
    """MIN:MAX, numbers of replicas."""

    name = "MIN:MAX"

    def convert(
        self, value: str | tuple[int, int], param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, int]:
        if isinstance(value, tuple):
            return value
        least, _, most = value.partition(":")
        if not (least.isdecimal() and most.isdecimal() and 1 <= int(least) < int(most)):
            self.fail(f"{value!r} is no range: write MIN:MAX, such as 1:4; for as many always, --replicas.", param, ctx)
        return int(least), int(most)


@dataclass(frozen=True)
class RayOptions:
    """What `graft serve` was told of Ray. None: nothing."""

    replicas: int | None
    autoscale: tuple[int, int] | None
    address: str | None
    python: str | None
    cpus: float
    gpus: float

    def require_sound(self, *, on_ray: bool, adapter_root: Path | None, port: int) -> None:
        """Raises UsageError for options that don't go together."""
        if not on_ray:
            if self != NO_RAY:
                raise click.UsageError(
                    "--replicas, --autoscale, --replica-..., --ray-address and --engine-python go with --ray."
                )
            return
        if self.replicas is not None and self.autoscale is not None:
            raise click.UsageError("Give --replicas (so many always) or --autoscale (as many as it takes), not both.")
        if adapter_root is not None:
            raise click.UsageError("--adapter-root would give names to one engine alone: publish adapters instead.")
        if self.address is not None and "://" in self.address:
            raise click.UsageError("--ray-address is HOST:PORT of the cluster's head, or auto on one of its machines.")
        if self.address is not None and port == 0:
            raise click.UsageError(
                "With --ray-address say a --port, by which all know the ingress, whoever starts it next."
            )

    @classmethod
    def of(cls, context: click.Context) -> "RayOptions":
        """Of the parameters of `graft serve`."""
        return cls(*(context.params[name] for name in RAY_OPTIONS))

    @property
    def range(self) -> tuple[int, int]:
        """The fewest and the most replicas."""
        return self.autoscale or (self.replicas or 1, self.replicas or 1)


NO_RAY = RayOptions(None, None, None, None, 0.0, 0.0)


@dataclass(frozen=True)
class Serving:
    """What the command has found out before: where to listen, who may come in, what adapters there are."""

    host: str
    port: int
    admission: Admission
    local: dict[str, Path]
    usage: Path | None
    trusted_proxies: tuple["Network", ...]


def serve_on_ray(context: click.Context, ray_options: RayOptions, serving: Serving, say: Callable[[str], None]) -> None:
    """Until a signal. Raises GraftError for what is not there, and what goes wrong."""
    from graft.server.scale import deployment

    deployment.require_ray()
    serving = anywhere(_with_port(serving) if ray_options.address is None else serving)
    say(f"starting {_replicas(ray_options)} on {ray_options.address or 'a Ray cluster of its own'} ...")
    with deployment.cluster(ray_options.address) as head:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, _interrupt)
        if ray_options.address is None:
            deployment.require_room(ray_options.range[0], ray_options.cpus, ray_options.gpus)
        deployed = secrets.token_urlsafe(8)
        try:
            here = deployment.this_machine()
            deployment.deploy(make_application(context, ray_options, serving, here, deployed))
            _await_ready(serving)
            say(
                f"ready at http://{_shown(serving.host)}:{serving.port}/v1  ({_replicas(ray_options)}; GET /ready shows each)"
            )
            deployment.watch(head, threading.Event().wait)
        except KeyboardInterrupt:
            say("draining; once more to end at once")
            deployment.end(deployed)
    say("ended")


def make_application(
    context: click.Context, ray_options: RayOptions, serving: Serving, ingress_on: str, deployment: str
) -> "Application":
    """Of the command's options. `ingress_on`: the machine that the ingress must be on (scale/application.py); `deployment`:
    by which it is told from the next one."""
    from graft.server.scale import application
    from graft.server.scale.callers import Opening
    from graft.server.scale.engine_process import THREADS_VARIABLE, EngineCommand
    from graft.server.scale.fleet import Declared
    from graft.server.scale.ingress import IngressOptions
    from graft.server.scale.replica import Needs

    given, admission = context.params, serving.admission
    known = None if given["allow_base_mismatch"] else recorded_spec(given["base_name"])
    least, most = ray_options.range
    words = [
        *_engine_words(context),
        *(["--registry", str(admission.registry_path)] if admission.registry_path else []),
    ]
    opening = Opening(
        admission.access, partial(open_shelf, admission.registry_path, admission.hub_url), serving.local, serving.usage
    )
    python, threads = ray_options.python or sys.executable, os.environ.get(THREADS_VARIABLE)
    return application.make_application(
        EngineCommand(python, tuple(words), os.getcwd(), threads),
        Needs(admission.hub_url),
        IngressOptions(
            serving.host,
            serving.port,
            deployment,
            given["drain_seconds"],
            Declared(known.fingerprint if known else None, given["dtype"]),
            opening,
            serving.trusted_proxies,
            given["cors_origins"],
        ),
        application.Replicas(least, most, given["max_running"], ray_options.cpus, ray_options.gpus),
        ingress_on=ingress_on,
    )


def _engine_words(context: click.Context) -> Iterator[str]:
    """The options that were given, as far as they are an engine's."""
    for option in context.command.params:
        name = option.name or ""
        if name not in ENGINE_OPTIONS or context.get_parameter_source(name) is ParameterSource.DEFAULT:
            continue
        value, is_flag = context.params[name], isinstance(option, click.Option) and option.is_flag
        for one in value if option.multiple else [value]:
            yield from (option.opts[0],) if is_flag else (option.opts[0], str(one))


def anywhere(serving: Serving) -> Serving:
    """With files by their whole paths, for it is carried out in another folder."""
    admission = serving.admission
    keys = admission.keys if admission.keys in (None, HUB) else os.path.abspath(admission.keys)
    registry = admission.registry_path and admission.registry_path.absolute()
    return replace(
        serving,
        admission=replace(admission, keys=keys, registry_path=registry),
        local={name: folder.absolute() for name, folder in serving.local.items()},
        usage=serving.usage and serving.usage.absolute(),
    )


def _with_port(serving: Serving) -> Serving:
    """With a port that is free here. Raises GraftError for one that is taken."""
    sockets = bind(serving.host, serving.port)
    port = port_of(sockets)
    for one in sockets:
        one.close()
    return replace(serving, port=port)


def _await_ready(serving: Serving) -> None:
    """Raises GraftError where no replica takes requests."""
    host = "127.0.0.1" if serving.host in ("0.0.0.0", "::") else _shown(serving.host)
    until, said = time.monotonic() + READY_S, ""
    while time.monotonic() < until:
        try:
            urllib.request.urlopen(f"http://{host}:{serving.port}/ready", timeout=READY_S).close()
            return
        except urllib.error.HTTPError as error:
            said = error.read().decode(errors="replace")
        except OSError as error:
            said = str(error)
        time.sleep(_LOOK_S)
    raise GraftError(f"The replicas have started, and none takes requests after {READY_S:.0f} s: {said}")


def _replicas(options: RayOptions) -> str:
    least, most = options.range
    return f"{least} to {most} replicas" if least < most else f"{least} replica{'s' * (least > 1)}"


def _shown(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt
