"""Who may come in, by the options of `graft serve`: proven before the base is loaded, opened in each process that answers.
Torch-free."""

from dataclasses import dataclass
from pathlib import Path

import click

from graft.hub.errors import GraftError
from graft.hub.registry.interface import AnyRegistry
from graft.hub.registry.registry import Registry
from graft.hub.wsgi import is_loopback
from graft.server.keys.access import Access
from graft.server.keys.hub_tokens import HubTokens
from graft.server.keys.key_file import KeyFile
from graft.server.keys.keyring import Keyring

HUB = "hub"


@dataclass(frozen=True)
class Admission:
    """`keys`: a file, or HUB for the tokens of the hub at `hub_url` or of the registry, or both: a file with a table [hub]. None:
    nobody is asked. Can be sent to another process."""

    keys: str | None
    registry_path: Path | None
    hub_url: str | None
    open_metrics: bool
    ingress_secret: str | None = None  # of the ingress that asks for keys; it alone may ask this engine

    @property
    def has_shelf(self) -> bool:
        return self.registry_path is not None or self.hub_url is not None

    def require_sound(self, shelf: AnyRegistry | None, host: str, *, is_open: bool) -> None:
        """`shelf`: the hub or registry. Raises UsageError for options that don't go together, GraftError for what can't be used,
        and where everybody could come in and nobody has said that they may."""
        if self.ingress_secret is not None:
            return
        if self.keys is None and not is_open and not is_loopback(host):
            raise GraftError(
                f"On {host} whoever reaches this machine could use the server, and load and unload its adapters. Give keys "
                "(make one with `graft keys new NAME`, and serve with --keys keys.toml), listen on 127.0.0.1, or say that "
                "everybody may: --open."
            )
        if self.keys is not None and is_open:
            raise click.UsageError("--keys asks everybody for a key and --open nobody: give one of them.")
        if self.keys is None and self.open_metrics:
            raise click.UsageError("--open-metrics goes with --keys: without keys the numbers are open.")
        if self.keys == HUB and shelf is None:
            raise click.UsageError(
                "--keys hub takes the tokens of a hub or registry: name it with --hub or --registry."
            )
        file = self._file(is_sound=True)
        if shelf is not None and (self.keys == HUB or (file is not None and file.book().hub is not None)):
            shelf.require_users()

    def access(self, base: str) -> Access:
        """`base`: the served one's fingerprint. A key file that has gone bad by now lets nobody in, until it is mended."""
        if self.ingress_secret is not None:
            return Access(secret=self.ingress_secret)
        if self.keys is None:
            return Access()
        hub = HubTokens(self._shelf(), base) if self.has_shelf else None
        return Access(Keyring(self._file(is_sound=False), hub), self.open_metrics)

    def _file(self, *, is_sound: bool) -> KeyFile | None:
        if self.keys is None or self.keys == HUB:
            return None
        return KeyFile(Path(self.keys), has_hub=self.has_shelf, is_sound=is_sound)

    def _shelf(self) -> AnyRegistry:
        if self.hub_url is None:
            assert self.registry_path is not None  # has_shelf
            return Registry(self.registry_path, create=False)
        from graft.hub.registry.remote.client import RemoteRegistry  # the client takes its time to import

        return RemoteRegistry(self.hub_url)
