"""`graft hub`: the registry over HTTP, and who may write to it."""

import logging
import os
from functools import partial
from pathlib import Path

import click

from graft.hub.cli import hub_users
from graft.hub.errors import GraftError
from graft.hub.registry.access.tokens import has_users
from graft.hub.registry.registry import Registry
from graft.hub.terminal.options import max_weights_option, registry_option
from graft.hub.wsgi import LOOPBACK

INFERENCE_KEY = "GRAFT_INFERENCE_KEY"  # a variable: what stands on a command line, everybody on the machine can read


@click.group()
def hub() -> None:
    """The hub: pages, the Hugging Face protocol, users."""


for command in hub_users.COMMANDS:
    hub.add_command(command)


@hub.command()
@registry_option
@click.option("--host", default="127.0.0.1", show_default=True)
@click.option("--port", default=7860, show_default=True, type=click.IntRange(1, 65535))
@click.option("--threads", default=16, show_default=True, help="Requests answered at once.")
@click.option("--trusted-host", "trusted_hosts", multiple=True, help="A name this hub is reached by. Repeatable.")
@click.option(
    "--inference",
    "inference_url",
    metavar="URL",
    help=f"A running `graft serve`, for the playground. Its key: ${INFERENCE_KEY}.",
)
@click.option("--behind-proxy", is_flag=True, help="Believe the X-Forwarded-* headers of one proxy in front.")
@max_weights_option
def serve(
    registry_path: Path,
    host: str,
    port: int,
    threads: int,
    trusted_hosts: tuple[str, ...],
    inference_url: str | None,
    behind_proxy: bool,
    max_weights_bytes: int,
) -> None:
    """Serve the registry. Without users and on loopback, whoever reaches it is its owner."""
    from graft.hub.cli.hub_server import http_server
    from graft.hub.web.app import create_app
    from graft.hub.web.large_bodies import admit_large_body

    registry = Registry(registry_path, create=False, max_weights_bytes=max_weights_bytes)
    if (behind_proxy or host not in LOOPBACK) and not has_users(registry.db):
        raise GraftError(
            f"This registry has no users yet, so a hub {'behind a proxy' if behind_proxy else f'on {host}'} could only "
            f"be read. "
            f"Make the first admin: graft hub init --registry {registry_path} --user NAME"
        )
    app = create_app(
        registry,
        host=host,
        trusted_hosts=trusted_hosts,
        inference_url=inference_url,
        inference_key=os.environ.get(INFERENCE_KEY),
        behind_proxy=behind_proxy,
    )
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s")
    server = http_server(app, host, port, threads, max_weights_bytes, partial(admit_large_body, app))
    click.echo(f"graft hub: http://{host}:{port}/  (registry {registry_path})", err=True)
    server.run()
