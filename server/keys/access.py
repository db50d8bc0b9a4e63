"""Who may come in, as a server is started. Torch-free."""

from dataclasses import dataclass

from graft.server.keys.keyring import Keyring


@dataclass(frozen=True)
class Access:
    """`keyring` None: whoever reaches the server may use all of it. `open_metrics`: nobody needs a key to read its numbers.
    `secret`: shown by an ingress, which alone may ask, and says for whom; no key is asked for beside it."""

    keyring: Keyring | None = None
    open_metrics: bool = False
    secret: str | None = None
