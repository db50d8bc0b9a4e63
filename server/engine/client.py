"""The one way to an engine for whoever is not part of it: HTTP, evaluation, benchmarks, commands.

Knows no torch: what needs it stays on the other side.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from graft.hub.base.hook_points import last_hidden
from graft.hub.base.manifest import BaseSpec
from graft.hub.chat.words import AdapterWords
from graft.hub.errors import GraftError
from graft.server.engine.inventory import AdapterEntry, Inventory, Placed
from graft.server.engine.questions import EngineStats, Stats
from graft.server.engine.request import Outlet, Request, Result, Sink, Stream
from graft.server.errors import ClosedError, StuckError
from graft.server.interest import Interest
from graft.server.keys.accounts import Accounts, AnyAccounts
from graft.server.keys.usage import UsageFile
from graft.server.operations.patience import ENDLESS, Patience
from graft.server.operations.throughput import Load
from graft.server.replica_state import ReplicaState
from graft.server.served_version import Served

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from graft.server.engine.engine import Engine


STUCK_S = 120.0  # of one step: the longest that is no sign of a hang, with a large base on few cores


@dataclass(frozen=True)
class ServedBase:
    """What an engine serves. `ends`: ids that end a text. `runner`: the kind of runner that carries out its steps."""

    spec: BaseSpec
    tokenizer: "PreTrainedTokenizerBase | None"
    ends: frozenset[int]
    max_model_len: int
    runner: str

    @property
    def hidden_size(self) -> int:
        """Numbers in a hidden state behind all layers."""
        return self.spec.modules[last_hidden(self.spec).module].out_features


class EngineClient:
    """Safe for many threads. After the engine's end everything that asks its thread raises ClosedError or EndedError."""

    def __init__(self, engine: "Engine", usage: UsageFile | None = None):
        """`usage`: where what requests have used is written down."""
        self._engine = engine
        self.accounts: AnyAccounts = Accounts(engine.metrics.usage.add, usage)
        self._inventory = Inventory(engine)
        self.base = ServedBase(
            engine.base.spec,
            engine.base.tokenizer,
            engine.ends,
            engine.sizes.max_model_len,
            engine.runner_kind,
        )

    # Requests

    def submit(self, request: Request, sink: Sink | Outlet | None = None) -> Stream:
        """Queue a request. `sink`: where the events of several streams go (request.Stream).

        Raises RequestError where the request can't be served as it stands.
        """
        return self._engine.submit(request, sink)

    def cancel(self, stream: Stream) -> None:
        """Give a request up; its stream ends, if it has not."""
        stream.cancel()

    def generate(self, requests: Sequence[Request]) -> list[Result]:
        """Serve requests together and wait for all. Raises the first one's error, the others cancelled."""
        return self._engine.generate(requests)

    def after_steps(self, carry: Callable[[], None]) -> Callable[[], None]:
        """Have `carry` called whenever events have been put and no more are at hand. It holds the engine up. Returns what ends it."""
        return self._engine.after_steps(carry)

    # Adapters

    def ask_words(
        self, name: str, client: str, done: Callable[[AdapterWords | GraftError], None], interest: Interest
    ) -> None:
        """Have an adapter brought to host memory, as a request would; `done` gets its own words, or the error that the
        request would get: now, or on another thread. Once `interest` is over it may be told nothing."""
        self._inventory.ask_words(name, client, done, interest)

    def models(self) -> list[AdapterEntry]:
        """Every adapter that can be named: local ones, those on the shelf (a remote hub's as far as they were asked for, as they
        stood then)."""
        return self._inventory.entries()

    def model(self, name: str, client: str = "", patience: Patience = ENDLESS) -> AdapterEntry:
        """One adapter by any of its names; where a hub has to be asked, in the client's turn. Raises NotFoundError, or what
        `patience` ends with."""
        return self._inventory.entry(name, client, patience)

    def asks_hub(self, name: str) -> bool:
        """Whether `model` has to ask a hub."""
        return self._inventory.asks_hub(name)

    def known_model(self, name: str) -> AdapterEntry:
        """As `model`, but no hub is asked: as it stood when it was asked for last."""
        return self._inventory.known_entry(name)

    def adapters(self) -> dict[str, Placed]:
        """Digest -> where it is, of all adapters in memory."""
        return self._inventory.placements()

    def served(self, name: str) -> Served:
        """What a request for an adapter runs on, as far as that can be told without a network."""
        return self._inventory.served(name)

    def shelf_names(self, names: Sequence[str]) -> dict[str, str]:
        """Those of names whose adapters come from the registry or hub, and what they are called there. The others are the
        server's own folders, and what no registry is asked about."""
        return self._inventory.shelf_names(names)

    def load(self, name: str, client: str = "", weight: float = 1.0, patience: Patience = ENDLESS) -> Served:
        """Bring an adapter to the device and prove it, in the client's turn. Raises the GraftError that a request for it would get,
        or what `patience` ends with: where the server is about to end another one may as well have it."""
        return self._inventory.load(name, client, weight, patience)

    def unload(self, name: str) -> Served:
        """Take an adapter out of memory, unpinned; it stays known, and comes back when asked for.

        Raises NotLoadedError, or ConflictError while requests use it.
        """
        return self._inventory.unload(name)

    def pin(
        self, name: str, pinned: bool, client: str = "", weight: float = 1.0, patience: Patience = ENDLESS
    ) -> Served:
        """Keep the version that the name stands for now in memory, or let it go again.

        Raises ConflictError where pins would take more than their share of memory, and as `load`.
        """
        return self._inventory.pin(name, pinned, client, weight, patience)

    def attach(
        self,
        name: str,
        target: Path | str,
        client: str = "",
        weight: float = 1.0,
        patience: Patience = ENDLESS,
        *,
        replace: bool = False,
    ) -> Served:
        """Bring an adapter (a folder, or a name on the shelf) to the device, prove it, and give it a name of its own.

        `replace`: in place of what was attached by that name. Raises ConflictError for a name that stands for something,
        NotFoundError where there is no adapter, and as `load`; then the name is what it was.
        """
        return self._inventory.attach(name, target, client, weight, patience, replace=replace)

    def detach(self, name: str) -> bool:
        """Take an attached name back; False where it is none. Who uses the adapter keeps it until done."""
        return self._inventory.detach(name)

    # The engine itself

    def stats(self) -> EngineStats:
        """How it is doing, between two steps."""
        return self._engine.ask(Stats())

    def health(self) -> GraftError | None:
        """Why no requests are served: EndedError after a failure, ClosedError after `close`, StuckError while a step does not
        end; None where they are."""
        if self._engine.failure is not None:
            return self._engine.failure
        if not self._engine.alive:
            return ClosedError("The server is shutting down.")
        return StuckError(age) if (age := self._engine.turn_s) > STUCK_S else None

    def replica_state(self) -> ReplicaState:
        """As one of several engines. The first time all of the base's stored weights may be read."""
        return self._inventory.replica_state()

    def load_now(self) -> Load:
        """What it has done, and does at this moment. Waits for nothing."""
        return self._engine.gauges.load(self._engine.metrics)

    def metrics(self) -> bytes:
        """For Prometheus, in its exposition format."""
        return self._engine.metrics.text()

    def count_answer(self, route: str, status: int) -> None:
        """An HTTP request has been answered."""
        self._engine.metrics.answered(route, status)
