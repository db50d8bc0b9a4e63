"""The options of commands that spread their work over a Ray cluster."""

from collections.abc import Callable
from functools import wraps

import click

from graft.hub.machine.ray_tasks import Spread, require_ray


def ray_options(command: Callable[..., None]) -> Callable[..., None]:
    """Adds --ray, --ray-address and --ray-cpus; the command gets `spread`, a Spread, or None without --ray.

    Where Ray is missing, the command is not called: GraftError."""

    @click.option(
        "--ray", "on_ray", is_flag=True, help="Spread the work over a Ray cluster (pip install grafthub[ray])."
    )
    @click.option(
        "--ray-address",
        metavar="HOST:PORT",
        help="The cluster's head (default: the one that runs here, else a new one).",
    )
    @click.option("--ray-cpus", type=click.IntRange(1), help="CPUs, and threads, of a task (default: 1).")
    @wraps(command)
    def with_spread(*, on_ray: bool, ray_address: str | None, ray_cpus: int | None, **values: object) -> None:
        if not on_ray and (ray_address is not None or ray_cpus is not None):
            flag = "--ray-address" if ray_address is not None else "--ray-cpus"
            raise click.UsageError(f"{flag} says how --ray spreads: add --ray.")
        if on_ray:
            require_ray()
        command(**values, spread=Spread(ray_address, ray_cpus or 1) if on_ray else None)

    return with_spread
