"""What serving and evaluating are timed by where their dtype is to be chosen (hub/base/dtype_choice.py)."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from graft.hub.base.dtype_choice import Cases, TimedWork
from graft.hub.base.model import Base
from graft.server.engine.client import EngineClient
from graft.server.engine.engine import Engine
from graft.server.engine.options import Options
from graft.server.engine.request import Request

_NEW_TOKENS = 4
_CACHE_BYTES = 256 << 20
_EVALUATED = 64  # sequences: the more, the less the step's own cost counts
_MOST_ROWS = 512


def serving(runner: str, max_running: int) -> TimedWork:
    """An engine with these options: one request alone, and as many as it runs."""
    return _work("serving", runner, (1, max_running))


def evaluating() -> TimedWork:
    """Many requests at once, and nobody waits for one."""
    return _work("evaluating", "auto", (_EVALUATED,))


def _work(name: str, runner: str, counts: tuple[int, ...]) -> TimedWork:
    @contextmanager
    def cases(base: Base) -> Iterator[Cases]:
        most = max(counts)
        options = Options(runner=runner, max_running=most, step_rows=max(_MOST_ROWS, most), cache_bytes=_CACHE_BYTES)
        one = Request((1,), max_tokens=_NEW_TOKENS, ignore_eos=True)
        with Engine(base, options=options) as engine:
            client = EngineClient(engine)
            yield {f"{count} row{'s' * (count > 1)}": partial(client.generate, [one] * count) for count in counts}

    return TimedWork(name, (runner, counts, _NEW_TOKENS), cases)
