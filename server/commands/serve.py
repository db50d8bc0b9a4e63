"""`graft serve`: a base and its adapters over HTTP, until SIGINT or SIGTERM."""

import math
import socket
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from ipaddress import ip_network
from pathlib import Path
from typing import TYPE_CHECKING

import click

from graft.hub.adapters.validation import CONFIG
from graft.hub.base.manifest import recorded_spec
from graft.hub.machine.interpreter import hand_on_soon, keep_what_is_there
from graft.hub.terminal.base_argument import BASE
from graft.hub.terminal.options import ByteSize, FiniteRange
from graft.hub.wsgi import is_loopback
from graft.server.chat.tool_formats import FORMATS
from graft.server.commands.admission import Admission
from graft.server.commands.ending import Ending, leave
from graft.server.commands.http_server import answer, bind, draining, http_server, port_of, room_for_connections
from graft.server.commands.log_lines import begin_logging
from graft.server.commands.on_ray import RayOptions, ScaleRange, Serving, serve_on_ray
from graft.server.commands.start import DEFAULT_REGISTRY, open_shelf, prove_folders, summary
from graft.server.keys.usage import UsageFile
from graft.server.operations.children import die_with
from graft.server.operations.drain import Drain
from graft.server.operations.spans import begin_spans
from graft.server.operations.step_pace import HELD_S
from graft.server.operations.throughput import report
from graft.server.scale.engine_process import PARENT_VARIABLE, SECRET_VARIABLE

if TYPE_CHECKING:
    from flask import Flask

    from graft.hub.base.model import Base
    from graft.server.engine.client import EngineClient
    from graft.server.http.clients import Network, Places

_MEMORY_S = 2.0  # of a start, for taking the cache's memory


class _Network(click.ParamType):
    """An address, or a network of them."""

    name = "ADDRESS[/BITS]"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> "Network":
        try:
            return ip_network(value)
        except ValueError as error:
            self.fail(f"{error}: give an IP address, or a network such as 10.0.0.0/8.", param, ctx)


@click.command()
@click.option(
    "--base", "base_name", required=True, type=BASE, help="A folder, an imported base's name or id, or a hub id."
)
@click.option(
    "--registry",
    "registry_path",
    type=click.Path(dir_okay=False, path_type=Path),
    help=f"Where NS/NAME and task:T are looked up.  [default: {DEFAULT_REGISTRY}, if it is there]",
)
@click.option("--hub", "hub_url", metavar="URL", help="A hub instead (graft's own, or huggingface.co).")
@click.option("--adapter", "adapters", multiple=True, metavar="NAME=DIR", help="A folder by a name. Repeatable.")
@click.option(
    "--adapter-root",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Clients may have folders below it loaded (/v1/load_lora_adapter).",
)
@click.option("--host", default="127.0.0.1", show_default=True)
@click.option("--port", default=8000, show_default=True, type=click.IntRange(0, 65535), help="0: any free one.")
@click.option("--device", help="cpu, cuda, cuda:1, ...  [default: a GPU where there is one]")
@click.option("--dtype", type=click.Choice(["float32", "bfloat16", "float16"]), help="[default: as measured here]")
@click.option("--runner", type=click.Choice(["auto", "fast", "eager"]), default="auto", show_default=True)
@click.option("--max-requests", default=256, show_default=True, type=click.IntRange(1, 4096), help="Answered at once.")
@click.option(
    "--http-processes",
    default=0,
    show_default=True,
    type=click.IntRange(0, 64),
    help="Processes beside the engine's for HTTP, JSON and text; 0: all in one.",
)
@click.option("--max-running", default=64, show_default=True, type=click.IntRange(1), help="Sequences in a step.")
@click.option(
    "--max-batch-rows",
    type=click.IntRange(1),
    help=f"Most rows in a step. Default: as many as hold others' tokens up for {HELD_S} s.",
)
@click.option("--max-model-len", type=click.IntRange(1), help="Tokens of one sequence, virtual ones included.")
@click.option("--kv-bytes", type=ByteSize(), help="Memory of the KV cache.")
@click.option("--adapter-host-bytes", type=ByteSize(), help="Host memory of all adapters.")
@click.option("--adapter-device-bytes", type=ByteSize(), help="Device memory of all adapters.")
@click.option(
    "--cors-origin",
    "cors_origins",
    multiple=True,
    metavar="URL",
    help="Pages of it may call from a browser; '*': any. Repeatable.",
)
@click.option(
    "--trusted-proxy",
    "trusted_proxies",
    multiple=True,
    type=_Network(),
    help="Whose X-Forwarded-For says who asks: clients are served in turn. Repeatable.",
)
@click.option(
    "--keys", metavar="FILE|hub", help="Who may call: a file of `graft keys`, or whoever has a token of the hub."
)
@click.option("--open", "is_open", is_flag=True, help="Whoever reaches the address may call, and load and unload.")
@click.option("--open-metrics", is_flag=True, help="/metrics takes no key.")
@click.option(
    "--usage",
    "usage_path",
    type=click.Path(dir_okay=False, path_type=Path),
    help="What each request has used, by key and adapter, is added to this file: a line of JSON each.",
)
@click.option(
    "--tool-format",
    type=click.Choice(sorted(FORMATS)),
    help="How the models write calls of tools.  [default: as the chat template says]",
)
@click.option(
    "--step-timeout",
    default=600,
    show_default=True,
    type=click.IntRange(0),
    help="Seconds after which a step that does not end ends the server; 0: never.",
)
@click.option(
    "--drain-seconds",
    default=20,
    show_default=True,
    type=click.IntRange(0),
    help="After SIGTERM requests under way have so long to end, while new ones are refused; 0: none.",
)
@click.option(
    "--request-timeout",
    default=0,
    show_default=True,
    type=FiniteRange(0),
    help="Seconds that an answer may take; 0: as many as it takes.",
)
@click.option(
    "--log-format",
    type=click.Choice(["text", "json"]),
    default="text",
    show_default=True,
    help="Of what is written to stderr, a line a request among it.",
)
@click.option("--allow-base-mismatch", is_flag=True, help="Serve adapters that were made for another base.")
@click.option("--ray", "on_ray", is_flag=True, help="Several engines behind one address, on a Ray cluster.")
@click.option("--replicas", type=click.IntRange(1), help="With --ray: engines.  [default: 1]")
@click.option("--autoscale", type=ScaleRange(), help="With --ray: as many engines as requests take, between these.")
@click.option(
    "--ray-address", metavar="HOST:PORT", help="With --ray: a cluster that is there.  [default: one of its own]"
)
@click.option("--engine-python", metavar="FILE", help="With --ray: the engines' interpreter.  [default: this one]")
@click.option("--replica-cpus", default=0.0, type=FiniteRange(0), help="With --ray: set aside for each engine.")
@click.option("--replica-gpus", default=0.0, type=FiniteRange(0), help="With --ray: set aside for each engine.")
@click.option("--ingress-secret", envvar=SECRET_VARIABLE, hidden=True)
@click.option("--ingress-process", envvar=PARENT_VARIABLE, type=int, hidden=True)
def serve(
    base_name: str,
    registry_path: Path | None,
    hub_url: str | None,
    adapters: tuple[str, ...],
    adapter_root: Path | None,
    host: str,
    port: int,
    device: str | None,
    dtype: str | None,
    runner: str,
    max_requests: int,
    http_processes: int,
    max_running: int,
    max_batch_rows: int | None,
    max_model_len: int | None,
    kv_bytes: int | None,
    adapter_host_bytes: int | None,
    adapter_device_bytes: int | None,
    cors_origins: tuple[str, ...],
    trusted_proxies: tuple["Network", ...],
    keys: str | None,
    is_open: bool,
    open_metrics: bool,
    usage_path: Path | None,
    tool_format: str | None,
    step_timeout: int,
    drain_seconds: int,
    request_timeout: float,
    log_format: str,
    allow_base_mismatch: bool,
    on_ray: bool,
    replicas: int | None,
    autoscale: tuple[int, int] | None,
    ray_address: str | None,
    engine_python: str | None,
    replica_cpus: float,
    replica_gpus: float,
    ingress_secret: str | None,
    ingress_process: int | None,
) -> None:
    """Serve a base; the adapter is chosen per request, by `model`."""
    if ingress_process is not None:
        die_with(ingress_process)
    say = begin_logging(as_json=log_format == "json")
    begin_spans(say)
    ray_options = RayOptions(replicas, autoscale, ray_address, engine_python, replica_cpus, replica_gpus)
    ray_options.require_sound(on_ray=on_ray, adapter_root=adapter_root, port=port)
    local = dict(parse_folder(given) for given in adapters)
    if registry_path is not None and hub_url is not None:
        raise click.UsageError("Give --registry or --hub, not both.")
    if registry_path is None and hub_url is None and DEFAULT_REGISTRY.is_file():
        registry_path = DEFAULT_REGISTRY
    shelf = open_shelf(registry_path, hub_url)
    admission = Admission(keys, registry_path, hub_url, open_metrics, ingress_secret)
    admission.require_sound(shelf, host, is_open=is_open)
    known = None if allow_base_mismatch else recorded_spec(base_name)
    prove_folders(local, known)
    if on_ray:
        told = Serving(host, port, admission, local, usage_path, trusted_proxies)
        return serve_on_ray(click.get_current_context(), ray_options, told, say)
    usage = UsageFile(usage_path) if usage_path is not None else None
    room_for_connections(max_requests)  # before the base is loaded for nothing
    listening = bind(host, port)

    say(f"loading {base_name} ...")  # torch takes its seconds, too

    from graft.hub.base.dtype_choice import chosen_dtype
    from graft.hub.base.model import load_base, usable_device
    from graft.server.benchmark.dtype_speed import serving
    from graft.server.engine.client import EngineClient
    from graft.server.engine.engine import Engine
    from graft.server.engine.options import Options, require_budgets
    from graft.server.http.app import create_app

    options = Options(
        max_running=max_running,
        step_rows=max_batch_rows,
        cache_bytes=kv_bytes,
        host_bytes=adapter_host_bytes,
        device_bytes=adapter_device_bytes,
        max_model_len=max_model_len,
        runner=runner,
        allow_base_mismatch=allow_base_mismatch,
    )
    require_budgets(options, usable_device(device))
    ending = Ending(step_timeout)
    hand_on_soon()
    try:
        dtype = dtype or chosen_dtype(base_name, device, serving(runner, max_running), say)
        base = load_base(base_name, dtype=dtype, device=device)
        if known is None and not allow_base_mismatch:
            prove_folders(local, base.spec)
        with Engine(base, local, shelf, options) as engine:
            ending.watch(engine)
            client = EngineClient(engine, usage)
            report(client.load_now)
            name = base.spec.id or Path(base_name).name
            make_app = partial(
                create_app,
                base_name=name,
                cors_origins=cors_origins,
                trusted_proxies=trusted_proxies,
                adapter_root=adapter_root,
                tool_format=tool_format,
                open_access=partial(admission.access, base.spec.fingerprint),
                request_timeout=request_timeout or math.inf,
            )
            shelf_name = hub_url or (str(registry_path) if registry_path is not None else None)
            for line in summary(engine, local, shelf_name, max_requests):
                say(line)
            engine.take_memory(_MEMORY_S)
            keep_what_is_there()
            with_keys = keys is not None or ingress_secret is not None
            ready = partial(_say_ready, listening, base, name, host, say, with_keys=with_keys)
            answering = _Answering(listening, client, make_app, max_requests, drain_seconds, ending, ready)
            if http_processes:
                _answer_in_processes(answering, http_processes, log_as_json=log_format == "json")
            else:
                _answer_here(answering)
    except KeyboardInterrupt:
        pass
    failure = ending.engine.failure if ending.engine is not None else None
    if failure is None:
        say("ended")
    leave(failure)


@dataclass(frozen=True)
class _Answering:
    """What HTTP takes, wherever it is spoken. `ready`: says that it is."""

    listening: Sequence[socket.socket]
    client: "EngineClient"
    make_app: "Callable[[EngineClient, Places, Drain], Flask]"
    max_requests: int
    drain_seconds: int
    ending: Ending
    ready: Callable[[], None]


def _answer_here(answering: _Answering) -> None:
    """In this process, until it is told to end."""
    from graft.server.http.clients import AnswerPlaces

    drain, sockets = Drain(), dict[int, object]()
    app = answering.make_app(answering.client, AnswerPlaces(answering.max_requests), drain)
    server = http_server(app, answering.listening, answering.max_requests, sockets, lambda: drain.begun)
    if answering.drain_seconds:
        answering.ending.drain_first(partial(drain.begin, answering.drain_seconds, draining(sockets)))
    answering.ready()
    answer(server, sockets, lambda: answering.ending.ended)


def _answer_in_processes(answering: _Answering, processes: int, *, log_as_json: bool) -> None:
    """In so many others, until this one gets a signal."""
    from graft.server.front_ends.frames import Start
    from graft.server.front_ends.supervisor import FrontEnds
    from graft.server.http.clients import AnswerPlaces

    places, client = AnswerPlaces(answering.max_requests), answering.client
    start = Start(client.base, answering.make_app, answering.max_requests, log_as_json)
    with FrontEnds(processes, answering.listening, client, places, start) as fronts:
        if answering.drain_seconds:
            answering.ending.drain_first(partial(fronts.drain, answering.drain_seconds))
        answering.ready()
        threading.Event().wait()


def _say_ready(
    listening: Sequence[socket.socket],
    base: "Base",
    name: str,
    host: str,
    say: Callable[[str], None],
    *,
    with_keys: bool,
) -> None:
    if not with_keys and not is_loopback(host):
        say("open: whoever reaches this address may use it, and load and unload adapters.")
    shown = f"[{host}]" if ":" in host else host
    say(
        f"ready at http://{shown}:{port_of(listening)}/v1  ({name}, {str(base.dtype).removeprefix('torch.')} on {base.device})"
    )


def parse_folder(given: str) -> tuple[str, Path]:
    name, equals, folder = given.partition("=")
    if not equals or not name or not folder:
        raise click.UsageError(f"--adapter must be NAME=DIR, not {given!r}.")
    if not Path(folder).is_dir():
        raise click.UsageError(f"--adapter {name}: there is no folder {folder}.")
    if not (Path(folder) / CONFIG).is_file():
        raise click.UsageError(f"--adapter {name}: {folder} is no adapter's folder, for it holds no {CONFIG}.")
    return name, Path(folder)
