"""What serving a base costs on this machine, measured on an engine of this process."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from psutil import Process

from graft.hub.base.dtype_choice import chosen_dtype
from graft.hub.base.model import load_base
from graft.server.benchmark.dtype_speed import serving
from graft.server.engine.client import EngineClient
from graft.server.engine.engine import Engine
from graft.server.engine.options import Options
from graft.server.sizing.costs import Costs
from graft.server.sizing.replica_costs import ReplicaCosts, machine_name, random_adapters, weights_bytes


@dataclass(frozen=True)
class Measured:
    """What is measured: a base with adapters of a kind, in steps of up to `rows` rows. None is for the machine to choose."""

    base: str
    method: str
    options: Mapping[str, str]
    rows: int
    dtype: str | None
    device: str | None

    @property
    def adapter(self) -> str:
        return " ".join([self.method, *(f"{key}={value}" for key, value in self.options.items())])


def measure_here(what: Measured, say: Callable[[str], None]) -> Costs:
    """Its costs, on an engine of this process. Raises GraftError for a base that can't be loaded, an unknown method, and options
    that it has not."""
    dtype = what.dtype or chosen_dtype(what.base, what.device, serving("auto", what.rows), say)
    base = load_base(what.base, dtype=dtype, device=what.device)
    on_gpu = base.device.type == "cuda"
    weights = sum({one.data_ptr(): one.nbytes for one in base.model.state_dict().values()}.values())  # tied ones once
    with TemporaryDirectory(prefix="graft-plan-") as folder:
        made = random_adapters(what.method, what.options, base.spec, Path(folder))
        with Engine(base, made, options=Options(max_running=max(len(made), what.rows))) as engine:
            held = weights if on_gpu else Process().memory_info().rss  # packed weights too, no cache's empty pages
            client = EngineClient(engine)
            # Prompts are of any tokens: what they say does not matter, for no text ends early.
            costs = ReplicaCosts(client, list(made), range(1, base.spec.vocab_size))
            costs.warm()
            return Costs(
                base=Path(what.base).name,
                adapter=what.adapter,
                machine=machine_name(),
                runner=client.base.runner,
                measured=time.strftime("%Y-%m-%d", time.gmtime()),
                steps=costs.steps(),
                prompt_token=costs.prompt_token(),
                load=costs.load(),
                load_work=costs.load_work(),
                file_bytes=max(weights_bytes(one) for one in made.values()),
                adapter_bytes=costs.adapter_bytes(on_gpu=on_gpu),
                base_bytes=held,
                token_bytes=engine.sizes.cache_bytes // engine.sizes.cache_tokens,
            )
