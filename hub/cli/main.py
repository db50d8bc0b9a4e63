"""The command `graft`: a thin group that finds each room's commands by name and imports only the one that is called.

A GraftError ends as `error: ...` and exit code 1, wrong usage as exit code 2; a mistake of the user's never shows a
traceback.
"""

import sqlite3
from importlib.metadata import EntryPoint, entry_points
from typing import IO, Any

import click

from graft.hub.errors import GraftError
from graft.hub.terminal.strangers_words import visible_text

GROUP = "graft.commands"
# What `graft --help` says of each, in the order of a first day: their own first sentences (tests/test_house.py), which only an
# import of every room would give.
SUMMARIES = {
    "demo": "Train, publish, browse, serve mixed, evaluate and promote: the whole story on a real model.",
    "base": "Frozen bases: import one, show its identity.",
    "estimate": "Tell a training's memory and time before they are spent, from a few small steps of it.",
    "train": "Train adapters on a frozen base and write an artifact folder each.",
    "compare": "Train METHODS under one budget and write the literature's table: Markdown, JSON and a plot.",
    "publish": "Publish the adapter in FOLDER as a new version of NS/NAME.",
    "search": "Find adapters by TEXT in their name, tags or card, by task, base and method.",
    "pull": "Fetch an adapter's files, every byte checked.",
    "promote": "Point ALIAS (production, ...) at a version of an adapter.",
    "history": "Versions of an adapter, and every move of its branches, tags and aliases: what, when, who, why.",
    "task": "Tasks: a metric and an evaluation set each.",
    "eval": "Score every stored adapter of a task, and the bare base, in one run; print the leaderboard.",
    "serve": "Serve a base; the adapter is chosen per request, by `model`.",
    "keys": "Keys of the inference server: who may call it, for which adapters, how often.",
    "bench": "Measure throughput and latency, offline or against a server.",
    "plan": "Size a deployment: replicas, memory and what the hub bears, from what serving costs on this machine.",
    "export": "Merge the adapter in DIR into a copy of its base, or write it for another library.",
    "hub": "The hub: pages, the Hugging Face protocol, users.",
    "registry": "Upkeep of a registry on this machine.",
}


class Failure(click.ClickException):
    """A GraftError on its way to the terminal."""

    exit_code = 1

    def show(self, file: IO[Any] | None = None) -> None:
        click.echo(f"error: {visible_text(self.format_message())}", err=True)


class Rooms(click.Group):
    """Commands as pyproject.toml lists them in its `graft.commands`."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [name for name in SUMMARIES if name in _commands()]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        entry_point = _commands().get(cmd_name)
        return entry_point.load() if entry_point else None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, SUMMARIES[name]) for name in self.list_commands(ctx)])

    def invoke(self, ctx: click.Context) -> object:
        try:
            return super().invoke(ctx)
        except GraftError as error:
            raise Failure(str(error)) from None
        except (OSError, sqlite3.OperationalError) as error:  # a full disk, a missing right, a locked file
            raise Failure(f"{error}. Nothing half-done was left behind.") from None
        except (MemoryError, ImportError, RuntimeError) as error:
            if not _memory_ran_out(error):
                raise
            raise Failure(
                "There is not enough memory. End other programs, allow this one more (`ulimit -v`, a container's limit), "
                "or ask for less: a smaller base, --batch-size, --rows-per-pass or --kv-bytes."
            ) from None


def _memory_ran_out(error: Exception) -> bool:
    """Each library has its own way to say it: Python, the loader of libraries, torch's allocators."""
    said = str(error).lower()
    signs = ("failed to map segment", "allocate memory", "out of memory")
    return isinstance(error, MemoryError) or any(sign in said for sign in signs)


def _commands() -> dict[str, EntryPoint]:
    return {entry.name: entry for entry in entry_points(group=GROUP)}


@click.command(cls=Rooms)
@click.version_option(package_name="grafthub")
def main() -> None:
    """Train, publish, browse and serve PEFT adapters of every kind on one frozen base."""


if __name__ == "__main__":
    main(prog_name="graft")
