"""One line for each request that was answered: who asked what of which adapter, what it took, and how it ended. Torch-free."""

import logging
import time
from dataclasses import dataclass, field

from graft.server.served_version import Served

LOG = logging.getLogger("graft.requests")
_DIGEST_CHARS = 12
_TRACE_PARTS, _TRACE_CHARS = 4, 32  # of W3C's traceparent, and of the trace's id in it


@dataclass
class RequestRecord:
    """What is known of a request so far. `route`: as the server knows it. `key`: the name of the one that was shown. `traceparent`: the
    caller's trace and its span (W3C), or nothing."""

    id: str
    method: str
    route: str
    client: str
    traceparent: str = ""
    key: str = ""
    began: float = field(default_factory=time.monotonic)
    model: str = ""
    served: Served = field(default_factory=Served)
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    first_token_s: float | None = None
    finish: str = ""  # why the texts end
    error: str = ""  # its code
    status: int = 0

    def write(self) -> None:
        """The client has been sent all, or has gone."""
        if LOG.isEnabledFor(logging.INFO):
            fields = self.fields(time.monotonic() - self.began)
            LOG.info("%s", as_text(fields), extra={"fields": fields, "request": self})

    def fields(self, total_s: float) -> dict[str, object]:
        """As they stand in a line of JSON."""
        return {
            "id": self.id,
            "trace": trace_id(self.traceparent),
            "client": self.client,
            "key": self.key,
            "method": self.method,
            "route": self.route,
            "status": self.status,
            "error": self.error,
            "model": self.model,
            "adapter": self.served.name or "",
            "digest": self.served.digest or "",
            "revision": self.served.revision or "",
            "prompt_tokens": self.prompt_tokens,
            "cached_tokens": self.cached_tokens,
            "completion_tokens": self.completion_tokens,
            "first_token_s": None if self.first_token_s is None else round(self.first_token_s, 4),
            "total_s": round(total_s, 4),
            "finish": self.finish,
        }


def as_text(fields: dict[str, object]) -> str:
    """For people: what there is to say."""
    shown = {name: value for name, value in fields.items() if value not in ("", None, 0)}
    head = " ".join(str(shown.pop(name, "-")) for name in ("method", "route", "status"))
    if "digest" in shown:
        shown["digest"] = str(shown["digest"])[:_DIGEST_CHARS]
    return f"{head} {' '.join(f'{name}={plain(str(value))}' for name, value in shown.items())}"


def plain(text: str, most: int = 200) -> str:
    """Without anything that a terminal or the reader of a line could take for more than text."""
    return "".join(one if one.isprintable() and not one.isspace() else "?" for one in text[:most])


def trace_id(traceparent: str) -> str:
    """The trace that a request is part of, by the header that OpenTelemetry's clients send; nothing where there is none."""
    parts = traceparent.split("-")
    sound = len(parts) >= _TRACE_PARTS and len(parts[1]) == _TRACE_CHARS and parts[1].isalnum() and parts[1].isascii()
    return parts[1] if sound else ""
