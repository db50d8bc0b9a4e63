"""`graft hub`: the registry over HTTP, and who may write to it."""

import logging
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

import click

from graft.hub.errors import GraftError
from graft.hub.registry import users as access
from graft.hub.registry.commits.accepted_files import MAX_WEIGHTS_BYTES
from graft.hub.registry.registry import Registry
from graft.hub.terminal.options import json_option, max_weights_option, registry_option
from graft.hub.terminal.tables import print_json
from graft.hub.wsgi import LOOPBACK

if TYPE_CHECKING:
    from flask import Flask
    from waitress.server import BaseWSGIServer, MultiSocketServer

CONNECTIONS = 200
RECEIVE_BYTES = 1 << 18


@click.group()
def hub() -> None:
    """The hub: pages, the Hugging Face protocol, users."""


@hub.command()
@registry_option
@click.option("--host", default="127.0.0.1", show_default=True)
@click.option("--port", default=7860, show_default=True, type=click.IntRange(1, 65535))
@click.option("--threads", default=16, show_default=True, help="Requests answered at once.")
@click.option("--trusted-host", "trusted_hosts", multiple=True, help="A name this hub is reached by. Repeatable.")
@click.option("--inference", "inference_url", metavar="URL", help="A running `graft serve`, for the playground.")
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
    from graft.hub.web.app import create_app

    registry = Registry(registry_path, create=False, max_weights_bytes=max_weights_bytes)
    if (behind_proxy or host not in LOOPBACK) and not access.has_users(registry.db):
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
        behind_proxy=behind_proxy,
    )
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s")
    server = http_server(app, host, port, threads, max_weights_bytes)
    click.echo(f"graft hub: http://{host}:{port}/  (registry {registry_path})", err=True)
    server.run()


def http_server(
    app: "Flask", host: str, port: int, threads: int, max_weights_bytes: int = MAX_WEIGHTS_BYTES
) -> "BaseWSGIServer | MultiSocketServer":
    """A listening server; its `run` answers. Raises GraftError where the port can't be had."""
    import waitress

    from graft.hub.web.request import upload_bytes

    try:
        return waitress.create_server(
            app,
            host=host,
            port=port,
            threads=threads,
            connection_limit=CONNECTIONS,
            recv_bytes=RECEIVE_BYTES,
            max_request_body_size=upload_bytes(max_weights_bytes),
            ident=None,
        )
    except OSError as error:
        raise GraftError(f"Can't listen on {host}:{port} ({error.strerror}): choose another --port.") from None


@hub.command()
@registry_option
@click.option("--user", required=True, help="The first admin's name; it is also their namespace.")
@json_option
def init(registry_path: Path, user: str, as_json: bool) -> None:
    """Make the first admin and print their token, once."""
    new = not registry_path.exists()
    token = access.first_admin(Registry(registry_path).db, user)
    if new:
        click.echo(f"Made a new registry, {registry_path}.", err=True)
    _show(user, token, as_json)


@hub.command()
@registry_option
@click.option("--user", required=True)
@click.option("--scope", required=True, type=click.Choice(access.SCOPES))
@click.option("--namespace", "namespaces", multiple=True, help="One more namespace they may write to. Repeatable.")
@json_option
def token(registry_path: Path, user: str, scope: str, namespaces: tuple[str, ...], as_json: bool) -> None:
    """One more token; the user is added where unknown."""
    registry = Registry(registry_path, create=False)
    _show(user, access.create_token(registry.db, user, scope, namespaces=namespaces), as_json)


@hub.command()
@registry_option
@click.option("--user", required=True)
@click.option("--token", "token_file", type=click.File(), help="Only the token in this file ('-': on standard input).")
@json_option
def revoke(registry_path: Path, user: str, token_file: TextIO | None, as_json: bool) -> None:
    """Take back a user's tokens, all of them or one. What they published stays."""
    token = token_file.read().strip() if token_file else None
    revoked = access.revoke_tokens(Registry(registry_path, create=False).db, user, token)
    if as_json:
        print_json({"user": user, "revoked": revoked})
    else:
        click.echo(f"{revoked} of {user}'s tokens revoked.")


def _show(user: str, made: str, as_json: bool) -> None:
    if as_json:
        print_json({"user": user, "token": made})
        return
    click.echo(made)
    click.echo("This is the only time it is shown. Use it as HF_TOKEN, or with `hf auth login`.", err=True)
