"""How a key stands with its limits, as OpenAI's headers tell it."""

from graft.server.keys.standing import Level, Standing

NAMES = tuple(
    f"x-ratelimit-{what}-{kind}" for kind in ("requests", "tokens") for what in ("limit", "remaining", "reset")
)


def limit_headers(standing: Standing) -> dict[str, str]:
    """None for what has no limit."""
    return _headers("requests", standing.requests) | _headers("tokens", standing.tokens)


def _headers(kind: str, level: Level | None) -> dict[str, str]:
    if level is None:
        return {}
    told = {"limit": str(level.limit), "remaining": str(level.left), "reset": span_text(level.reset_s)}
    return {f"x-ratelimit-{what}-{kind}": value for what, value in told.items()}


def span_text(seconds: float) -> str:
    """As OpenAI writes it: 450ms, 6s, 1m1.5s."""
    if seconds < 1:
        return f"{max(0, round(seconds * 1000))}ms"
    minutes, rest = divmod(round(seconds, 1), 60)
    shown = f"{rest:.1f}".removesuffix(".0")
    return f"{minutes:.0f}m{shown}s" if minutes else f"{shown}s"
