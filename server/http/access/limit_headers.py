"""How a key stands with its limits, as each dialect's headers tell it."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from graft.server.keys.standing import Level, Standing


def span_text(seconds: float) -> str:
    """As OpenAI writes it: 450ms, 6s, 1m1.5s."""
    if seconds < 1:
        return f"{max(0, round(seconds * 1000))}ms"
    minutes, rest = divmod(round(seconds, 1), 60)
    shown = f"{rest:.1f}".removesuffix(".0")
    return f"{minutes:.0f}m{shown}s" if minutes else f"{shown}s"


def moment_text(seconds: float) -> str:
    """As Anthropic writes it, the moment when they are over, by RFC 3339, never too early: 2026-11-26T12:00:05Z."""
    then = datetime.now(UTC) + timedelta(seconds=seconds)
    return f"{datetime.fromtimestamp(math.ceil(then.timestamp()), UTC):%Y-%m-%dT%H:%M:%SZ}"


KINDS = ("requests", "tokens")
TOLD = ("limit", "remaining", "reset")


@dataclass(frozen=True)
class Wording:
    """Of a dialect. `name`: of a header, by `what` it tells (limit, remaining, reset) and of which `kind` (requests, tokens).
    `reset`: seconds until a limit is whole again -> how that is written."""

    name: str
    reset: Callable[[float], str]

    @property
    def names(self) -> tuple[str, ...]:
        """Of all headers that it may have."""
        return tuple(self.name.format(what=what, kind=kind) for kind in KINDS for what in TOLD)


OPENAI = Wording("x-ratelimit-{what}-{kind}", span_text)
ANTHROPIC = Wording("anthropic-ratelimit-{kind}-{what}", moment_text)
NAMES = (*OPENAI.names, *ANTHROPIC.names)


def limit_headers(standing: Standing, wording: Wording) -> dict[str, str]:
    """None for what has no limit."""
    return _headers("requests", standing.requests, wording) | _headers("tokens", standing.tokens, wording)


def _headers(kind: str, level: Level | None, wording: Wording) -> dict[str, str]:
    if level is None:
        return {}
    told = {"limit": str(level.limit), "remaining": str(level.left), "reset": wording.reset(level.reset_s)}
    return {wording.name.format(what=what, kind=kind): value for what, value in told.items()}
