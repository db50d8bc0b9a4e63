"""The one spelling of a time: UTC, microseconds, a trailing Z, as Hugging Face clients parse it."""

from datetime import UTC, datetime

FORMAT = "%Y-%m-%dT%H:%M:%S.%fZ"


def now() -> str:
    return datetime.now(UTC).strftime(FORMAT)
