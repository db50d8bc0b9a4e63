"""One server for all clients: a tiny base that has learned a few answers, and random adapters of several kinds."""

from collections.abc import Iterator

import pytest

from graft.hub.base.model import Base
from graft.server.engine.options import Options
from tests.server.conftest import write_folder
from tests.server.http.learned import BASE, learned_base
from tests.server.live import Live, serving

KINDS = ("lora", "houlsby", "ia3", "prompt")
POSITIONS = 8192  # agents' own words are long, and each letter is a token


@pytest.fixture(scope="session")
def server(tmp_path_factory) -> Iterator[Live]:
    made = learned_base()
    made.model.config.max_position_embeddings = POSITIONS
    base = Base(made.model, made.tokenizer, id=BASE)
    top = tmp_path_factory.mktemp("adapters")
    adapters = {kind: write_folder(top / kind, kind, base, seed) for seed, kind in enumerate(KINDS)}
    with serving(
        base, adapters, options=Options(cache_bytes=1 << 26, max_running=32, step_rows=512), max_requests=64
    ) as running:
        yield running
