"""How a key stands with its limits, and what it is told when it has reached one. Torch-free."""

from dataclasses import dataclass

from graft.hub.errors import GraftError


@dataclass(frozen=True)
class Level:
    """How a limit stands. `reset_s`: seconds until nothing counts any more, if nothing comes."""

    limit: int
    left: int
    reset_s: float


@dataclass(frozen=True)
class Standing:
    """Of a key. None: no limit."""

    requests: Level | None = None
    tokens: Level | None = None


class RateLimitError(GraftError):
    """A key has used what it has a minute, or at once. `retry_s`: after which time it may again; `standing`: of its limits."""

    status = 429
    code = "rate_limit_exceeded"
    retry_s = 1.0
    standing = Standing()


class AboveLimitError(GraftError):
    """A single request that a key's limit can never admit."""

    code = "above_rate_limit"
