"""How `graft serve` writes to stderr: lines for people, or each as one object of JSON."""

import json
import logging
import sys
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime

import click

from graft.hub.terminal.strangers_words import visible_text

_QUIET = ("httpx", "httpx2", "waitress")  # our own requests to a hub; clients that hang up


class JsonLines(logging.Formatter):
    """A record's fields, where it has any, else its message."""

    def format(self, record: logging.LogRecord) -> str:
        fields = vars(record).get("fields") or {"message": record.getMessage()}
        line: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            **fields,
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line)


def begin_logging(*, as_json: bool) -> Callable[[str], None]:
    """Log to stderr from now on. Returns what says a line of the command's own."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines() if as_json else logging.Formatter("%(asctime)s %(name)s %(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    for name in _QUIET:
        logging.getLogger(name).setLevel(logging.WARNING)
    own = logging.getLogger("graft.serve")
    return own.info if as_json else _say


def _say(text: str) -> None:
    with suppress(OSError):  # a disk that is full, or a reader that has gone, ends no server: as with logging's lines
        click.echo(visible_text(f"graft serve: {text}"), err=True)
