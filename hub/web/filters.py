"""How things look on a page: numbers, times, cards, links that change one part of the URL."""

from datetime import UTC, datetime
from urllib.parse import urlencode

import nh3
from flask import Flask, request
from markdown_it import MarkdownIt
from markupsafe import Markup
from werkzeug.datastructures import MultiDict

MARKDOWN = MarkdownIt("commonmark", {"html": False}).enable(["table", "strikethrough"])
MAX_RENDERED_CHARS = 1 << 17
STEPS = ((60, "second"), (60, "minute"), (24, "hour"), (30, "day"), (12, "month"))


def install(app: Flask) -> None:
    app.jinja_env.filters.update(amount=amount, size=size, ago=ago, score=score, short=short)
    app.jinja_env.globals.update(link=link, toggle_link=toggle_link)
    app.jinja_env.trim_blocks = app.jinja_env.lstrip_blocks = True


def card_html(body: str) -> Markup:
    """A card's Markdown as harmless HTML. Raw HTML is shown as text; pictures, which could tell on readers, stay out.

    One that is longer than anybody writes is shown as it is: a megabyte of brackets takes half a minute to be rendered.
    """
    if len(body) > MAX_RENDERED_CHARS:
        return Markup("<pre>") + body + Markup("</pre>")
    return Markup(
        nh3.clean(MARKDOWN.render(body), tags=nh3.ALLOWED_TAGS - {"img"}, link_rel="noopener noreferrer nofollow")
    )


def amount(count: float | None) -> str:
    """A count with its magnitude: 1.2M."""
    return "–" if count is None else _scale(float(count), 1000, ("", "k", "M", "G"))


def size(count: int | None) -> str:
    return "–" if count is None else _scale(float(count), 1024, (" B", " KiB", " MiB", " GiB"))


def _scale(value: float, step: int, units: tuple[str, ...]) -> str:
    unit = 0
    while value >= step and unit < len(units) - 1:
        value, unit = value / step, unit + 1
    return f"{value:.0f}{units[unit]}" if unit == 0 or value >= 100 else f"{value:.1f}{units[unit]}"


def score(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}" if abs(value) < 10 else f"{value:.1f}"


def short(revision: str | None) -> str:
    return (revision or "")[:8]


def ago(at: str) -> str:
    """'3 hours ago'."""
    then = datetime.fromisoformat(at.replace("Z", "+00:00"))
    value = max((datetime.now(UTC) - then).total_seconds(), 0)
    if value < 60:
        return "just now"
    unit = ""
    for step, name in STEPS:
        unit = name
        if value < step:
            break
        value /= step
    else:
        unit = "year"
    return f"{int(value)} {unit}{'s' if int(value) != 1 else ''} ago"


def link(**changes: str | int | None) -> str:
    """This page's address with some arguments set (None: dropped). Changing a choice starts at the first page."""
    args = MultiDict(request.args)
    args.pop("offset", None)
    for key, value in changes.items():
        args.pop(key, None)
        if value not in (None, ""):
            args[key] = str(value)
    query = urlencode(list(args.items(multi=True)))
    return f"{request.path}?{query}" if query else request.path


def toggle_link(key: str, value: str) -> str:
    """The address with this facet's value chosen, or let go when it is chosen now."""
    return link(**{key: None if request.args.get(key) == value else value})
