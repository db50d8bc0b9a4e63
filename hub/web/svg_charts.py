"""Charts as SVG text, drawn here: no script, no styles beyond the page's sheet, readable by tests and screen readers."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

WIDTH, HEIGHT = 640, 300
LEFT, RIGHT, TOP, BOTTOM = 56, 16, 14, 40


@dataclass(frozen=True)
class Point:
    """A dot at (x, y); [low, high] its interval. `kind` is the CSS class that colours it."""

    x: float
    y: float
    label: str
    kind: str = ""
    low: float | None = None
    high: float | None = None
    href: str | None = None


@dataclass(frozen=True)
class Axis:
    """Maps values to pixels, on a log scale where `log`."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def at(self, value: float) -> float:
        low, high, value = (math.log10(v) if self.log else v for v in (self.low, self.high, value))
        return round(self.start + (value - low) / (high - low) * (self.end - self.start), 1)

    def ticks(self) -> list[float]:
        """Round values, at most seven."""
        if self.log:
            return [10.0**p for p in range(math.ceil(math.log10(self.low)), math.floor(math.log10(self.high)) + 1)]
        step = 10 ** math.floor(math.log10((self.high - self.low) / 3))
        while (self.high - self.low) / step > 6:
            step *= 2
        first = math.ceil(self.low / step - 1e-9)
        return [tick * step for tick in range(first, math.floor(self.high / step + 1e-9) + 1)]


def scatter(points: Sequence[Point], title: str, x_name: str, y_name: str, line: Point | None = None) -> Markup:
    """Score against size, sizes on a log scale; `line` is a level to compare with (the bare base)."""
    if not points:
        return Markup("")
    levels = [v for p in [*points, *([line] if line else [])] for v in (p.y, p.low, p.high) if v is not None]
    y = _pad_axis(min(levels), max(levels), HEIGHT - BOTTOM, TOP)
    x = Axis(min(p.x for p in points) / 2, max(p.x for p in points) * 2, LEFT, WIDTH - RIGHT, log=True)
    parts = [_frame(x, y, x_name, y_name)]
    if line is not None:
        at = y.at(line.y)
        parts.append(f'<line class="level" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{at}" y2="{at}"/>')
        parts.append(
            f'<text class="level" x="{WIDTH - RIGHT}" y="{at - 5}" text-anchor="end">{escape(line.label)}</text>'
        )
    parts += [_dot(point, x, y) for point in points]
    return _svg(parts, title)


def curve(values: Sequence[tuple[float, float]], title: str, x_name: str, y_name: str) -> Markup:
    """A line through (x, y) values, such as a training loss."""
    if len(values) < 2:
        return Markup("")
    x = Axis(values[0][0], max(values[-1][0], values[0][0] + 1), LEFT, WIDTH - RIGHT)
    y = _pad_axis(min(v for _, v in values), max(v for _, v in values), HEIGHT - BOTTOM, TOP)
    path = " ".join(f"{x.at(a)},{y.at(b)}" for a, b in values)
    return _svg([_frame(x, y, x_name, y_name), f'<polyline class="curve" points="{path}"/>'], title)


def _pad_axis(low: float, high: float, start: float, end: float) -> Axis:
    room = (high - low) * 0.08 or abs(high) * 0.1 or 1.0
    return Axis(low - room, high + room, start, end)


def _dot(point: Point, x: Axis, y: Axis) -> str:
    at_x, at_y = x.at(point.x), y.at(point.y)
    parts = []
    if point.low is not None and point.high is not None:
        parts.append(
            f'<line class="whisker {point.kind}" x1="{at_x}" x2="{at_x}" y1="{y.at(point.low)}" y2="{y.at(point.high)}"/>'
        )
    parts.append(
        f'<circle class="{escape(point.kind)}" cx="{at_x}" cy="{at_y}" r="6"><title>{escape(point.label)}</title></circle>'
    )
    drawn = "".join(parts)
    return f'<a href="{escape(point.href)}">{drawn}</a>' if point.href else drawn


def _frame(x: Axis, y: Axis, x_name: str, y_name: str) -> str:
    bottom = HEIGHT - BOTTOM
    parts = [f'<line class="axis" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{bottom}" y2="{bottom}"/>']
    for tick in y.ticks():
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y.at(tick)}" y2="{y.at(tick)}"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{y.at(tick) + 4}" text-anchor="end">{_number(tick)}</text>')
    for tick in x.ticks():
        parts.append(f'<text x="{x.at(tick)}" y="{bottom + 16}" text-anchor="middle">{_number(tick)}</text>')
    parts.append(
        f'<text class="name" x="{(LEFT + WIDTH) // 2}" y="{HEIGHT - 6}" text-anchor="middle">{escape(x_name)}</text>'
    )
    parts.append(f'<text class="name" x="4" y="{TOP - 2}">{escape(y_name)}</text>')
    return "".join(parts)


def _number(value: float) -> str:
    for scale, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= scale:
            return f"{value / scale:g}{unit}"
    return f"{value:.3g}"


def _svg(parts: Sequence[str], title: str) -> Markup:
    inside = "".join(parts)
    return Markup(
        f'<svg class="chart" viewBox="0 -6 {WIDTH} {HEIGHT + 6}" role="img" aria-label="{escape(title)}">'
        f"<title>{escape(title)}</title>{inside}</svg>"
    )
