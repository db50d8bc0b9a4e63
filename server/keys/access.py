"""Who may come in, as a server is started. Torch-free."""

from dataclasses import dataclass

from graft.server.keys.keyring import Keyring


@dataclass(frozen=True)
class Access:
    """`keyring` None: whoever reaches the server may use all of it. `open_metrics`: nobody needs a key to read its numbers."""

    keyring: Keyring | None = None
    open_metrics: bool = False
