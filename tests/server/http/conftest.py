"""What the tests of the HTTP interface share."""

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from itertools import count

import pytest

from graft.hub.base.model import Base
from tests.server.http.learned import learned_base
from tests.server.live import Live


@pytest.fixture(scope="session")
def learned() -> Base:
    return learned_base()


@pytest.fixture
def breaking_soon(monkeypatch) -> Callable[[Live], AbstractContextManager[None]]:
    """While it lasts the server's steps fail from the tenth on, slowly enough for a stream to have begun by then."""

    @contextmanager
    def soon(live: Live) -> Iterator[None]:
        outputs, steps = live.engine.runner.outputs, count()

        def broken(batch):
            time.sleep(0.05)
            if next(steps) >= 9:
                raise RuntimeError("secret detail")
            return outputs(batch)

        with monkeypatch.context() as patched:
            patched.setattr(live.engine.runner, "outputs", broken)
            yield

    return soon
