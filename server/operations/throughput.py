"""What the server does, every ten seconds while it does something. Torch-free."""

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

log = logging.getLogger("graft.throughput")
EVERY_S = 10.0


@dataclass(frozen=True)
class Load:
    """At this moment. Tokens: since the start; prompts' are counted when their requests end. `cache`: in use, of 1."""

    prompt_tokens: int
    tokens: int
    running: int
    waiting: int
    cache: float
    adapters: int  # on the device


def report(read: Callable[[], Load], every_s: float = EVERY_S) -> None:
    """On a thread that ends with the process."""
    threading.Thread(target=_report, args=(read, every_s), name="graft-throughput", daemon=True).start()


def _report(read: Callable[[], Load], every_s: float) -> None:
    before, since = read(), time.monotonic()
    while True:
        time.sleep(every_s)
        now, at = read(), time.monotonic()
        if now != before or now.running or now.waiting:
            log.info("%s", describe(before, now, at - since), extra={"fields": _fields(before, now, at - since)})
        before, since = now, at


def describe(before: Load, now: Load, seconds: float) -> str:
    """A line for people."""
    return (
        f"{(now.tokens - before.tokens) / seconds:,.1f} tokens/s, {(now.prompt_tokens - before.prompt_tokens) / seconds:,.1f} of "
        f"prompts; {now.running} running, {now.waiting} waiting; KV cache {now.cache:.0%}; {now.adapters} adapters on the device"
    )


def _fields(before: Load, now: Load, seconds: float) -> dict[str, object]:
    return {
        "tokens_per_s": round((now.tokens - before.tokens) / seconds, 2),
        "prompt_tokens_per_s": round((now.prompt_tokens - before.prompt_tokens) / seconds, 2),
        "running": now.running,
        "waiting": now.waiting,
        "cache": round(now.cache, 4),
        "adapters_on_device": now.adapters,
    }
