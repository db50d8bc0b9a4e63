"""The one spelling of a time: UTC, microseconds, a trailing Z, as Hugging Face clients parse it. Texts compare as times."""

from datetime import UTC, datetime, timedelta

FORMAT = "%Y-%m-%dT%H:%M:%S.%fZ"


def now() -> str:
    return datetime.now(UTC).strftime(FORMAT)


def from_now(span: timedelta) -> str:
    return (datetime.now(UTC) + span).strftime(FORMAT)
