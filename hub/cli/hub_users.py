"""`graft hub`'s commands about people: tokens, quotas, withdrawn adapters, the audit. They work on the file itself."""

from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from typing import TextIO

import click

from graft.hub.registry import audit as audits
from graft.hub.registry import withdrawal
from graft.hub.registry.access import quotas, tokens
from graft.hub.registry.access.callers import Quota
from graft.hub.registry.access.permissions import SCOPES
from graft.hub.registry.registry import Registry
from graft.hub.terminal.options import ByteSize, Duration, json_option, local_user, registry_option
from graft.hub.terminal.tables import day, print_json, print_table

user_option = click.option("--user", required=True)


@click.command()
@registry_option
@click.option("--user", required=True, help="The first admin's name; it is also their namespace.")
@json_option
def init(registry_path: Path, user: str, as_json: bool) -> None:
    """Make the first admin and print their token, once."""
    new = not registry_path.exists()
    token = tokens.first_admin(Registry(registry_path).db, user)
    if new:
        click.echo(f"Made a new registry, {registry_path}.", err=True)
    _show_token(user, token, as_json)


@click.command()
@registry_option
@user_option
@click.option("--scope", required=True, type=click.Choice(tuple(SCOPES)))
@click.option("--name", help="What the token is called when it is listed and revoked (default: token-1, ...).")
@click.option("--namespace", "namespaces", multiple=True, help="One more namespace they may write to. Repeatable.")
@click.option("--limit", "limits", multiple=True, metavar="NS[/NAME]", help="Good for this only. Repeatable.")
@click.option("--expires", "life", type=Duration(), help="When it ends: 30d, 12h. Default: never.")
@json_option
def token(
    registry_path: Path,
    user: str,
    scope: str,
    name: str | None,
    namespaces: tuple[str, ...],
    limits: tuple[str, ...],
    life: timedelta | None,
    as_json: bool,
) -> None:
    """One more token; the user is added where unknown."""
    db = Registry(registry_path, create=False).db
    made = tokens.create_token(db, user, scope, name=name, namespaces=namespaces, limits=limits, life=life)
    _show_token(user, made, as_json)


def _show_token(user: str, made: str, as_json: bool) -> None:
    if as_json:
        print_json({"user": user, "token": made})
        return
    click.echo(made)
    click.echo("This is the only time it is shown. Use it as HF_TOKEN, or with `hf auth login`.", err=True)


@click.command("tokens")
@registry_option
@click.option("--user", help="Only theirs.")
@json_option
def list_tokens(registry_path: Path, user: str | None, as_json: bool) -> None:
    """Every token that is not revoked; never the token itself."""
    listed = tokens.list_tokens(Registry(registry_path, create=False).db, user)
    if as_json:
        print_json(listed)
        return
    rows = [
        (
            each.user,
            each.name,
            each.scope,
            "all of theirs" if each.limits is None else ", ".join(each.limits),
            day(each.created_at),
            day(each.last_used_at or "never"),
            day(each.expires_at or "never"),
        )
        for each in listed
    ]
    columns = ("user", "name", "scope", "good for?", "created?", "last used", "expires")
    print_table("Tokens", columns, rows, empty="none yet, `graft hub init` makes the first")


@click.command()
@registry_option
@user_option
@click.option("--name", help="Only the token of this name.")
@click.option("--token", "token_file", type=click.File(), help="Only the token in this file ('-': on standard input).")
@json_option
def revoke(registry_path: Path, user: str, name: str | None, token_file: TextIO | None, as_json: bool) -> None:
    """Take back a user's tokens, all of them or one, and end the sign-ins by them. What they published stays."""
    token = token_file.read().strip() if token_file else None
    revoked = tokens.revoke_tokens(Registry(registry_path, create=False).db, user, name=name, token=token)
    if as_json:
        print_json({"user": user, "revoked": revoked})
    else:
        click.echo(f"{revoked} of {user}'s tokens revoked.")


@click.command()
@registry_option
@click.argument("user")
@click.option("--bytes", "most_bytes", type=ByteSize(), help="Bytes they may have stored: 50G.")
@click.option("--repos", "most_repos", type=click.IntRange(0), help="Adapters they may have.")
@click.option("--requests", "most_requests", type=click.IntRange(1), help="Requests of theirs in 5 minutes.")
@json_option
def quota(
    registry_path: Path,
    user: str,
    most_bytes: int | None,
    most_repos: int | None,
    most_requests: int | None,
    as_json: bool,
) -> None:
    """How much USER may have, and has. With options: change it."""
    db = Registry(registry_path, create=False).db
    quotas.set_quota(db, user, Quota(most_bytes, most_repos, most_requests))
    most, used = quotas.read_quota(db, user), quotas.measure_usage(db, user)
    if as_json:
        print_json({"user": user, "quota": asdict(most), "used": asdict(used)})
        return
    rows = [
        ("bytes", f"{used.bytes:,}", f"{most.bytes:,}"),
        ("repos", f"{used.repos:,}", f"{most.repos:,}"),
        ("requests in 5 minutes", "", "the hub's default" if most.requests is None else f"{most.requests:,}"),
    ]
    print_table(f"Quota of {user}", ("what", "has:", "may have:"), rows)


@click.command()
@registry_option
@click.argument("name", metavar="NS/NAME")
@click.option("--why", required=True, help="The reason, which everybody who asks for the adapter is told.")
@json_option
def disable(registry_path: Path, name: str, why: str, as_json: bool) -> None:
    """Withdraw an adapter: nobody reads, lists or serves it until `graft hub enable`. Nothing of it is deleted."""
    withdrawal.disable(Registry(registry_path, create=False).db, name, why, local_user())
    if as_json:
        print_json({"name": name, "disabled": why})
    else:
        click.echo(f"{name} is withdrawn.")


@click.command()
@registry_option
@click.argument("name", metavar="NS/NAME")
@json_option
def enable(registry_path: Path, name: str, as_json: bool) -> None:
    """Take back `graft hub disable`."""
    registry = Registry(registry_path, create=False)
    withdrawal.enable(registry.db, registry.blobs, name, local_user())
    if as_json:
        print_json({"name": name, "disabled": None})
    else:
        click.echo(f"{name} is back.")


@click.command("audit")
@registry_option
@click.option("--who", default="", help="Only what they did.")
@click.option("--subject", default="", help="Only what was done to this: NS/NAME, a task, a user.")
@click.option("--limit", default=50, show_default=True, type=click.IntRange(1))
@json_option
def list_audit(registry_path: Path, who: str, subject: str, limit: int, as_json: bool) -> None:
    """Who did what, the newest first."""
    entries = audits.entries(Registry(registry_path, create=False).db, who=who, subject=subject, limit=limit)
    if as_json:
        print_json(entries)
        return
    rows = [(each.id, day(each.at), each.who, each.action, each.subject, each.detail) for each in entries]
    print_table("Audit, newest first", ("entry:", "when", "who", "what", "to what", "detail?"), rows)


COMMANDS = (init, token, list_tokens, revoke, quota, disable, enable, list_audit)
