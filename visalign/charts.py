"""Line charts as plain geometry; `templates/chart.svg.jinja` draws them as SVG, so every text passes autoescape."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

Point = tuple[float, float]

WIDTH, HEIGHT = 400, 190
LEFT, RIGHT, TOP, BOTTOM = 52, 10, 10, 24
MAX_POINTS = 240
"""Longer series are averaged in buckets: a line of 400 pixels shows no more."""
COLORS = 8
"""Colours of the style sheet, --c0 … --c7."""


@dataclass(frozen=True)
class Series:
    """One line.

    Attributes:
        name: of the legend.
        points: (x, y), x rising.
        band: (low, high) of each point, or empty.
        dots: mark every point (few, measured ones).
    """

    name: str
    points: Sequence[Point]
    band: Sequence[tuple[float, float]] = ()
    dots: bool = False


@dataclass(frozen=True)
class Line:
    """A drawn line: SVG paths, dots as (x, y, tooltip), and the last value for the legend."""

    name: str
    color: int
    path: str
    band: str
    dots: tuple[tuple[float, float, str], ...]
    last: str


@dataclass(frozen=True)
class Chart:
    """A chart, ready to draw: lines and ticks as (position, label)."""

    title: str
    lines: tuple[Line, ...]
    x_ticks: tuple[tuple[float, str], ...]
    y_ticks: tuple[tuple[float, str], ...]
    note: str = ""
    width: int = WIDTH
    height: int = HEIGHT
    left: int = LEFT
    right: int = WIDTH - RIGHT
    top: int = TOP
    bottom: int = HEIGHT - BOTTOM
    legend: bool = field(default=True)


@dataclass(frozen=True)
class _Scale:
    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        return round(self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start), 2)


def draw(title: str, series: Sequence[Series], note: str = "") -> Chart:
    """A chart of at least one point.

    Example:
        >>> chart = draw("loss", [Series("loss", [(0, 1.0), (10, 0.5)])])
        >>> chart.lines[0].path, chart.lines[0].last
        ('M52.0 17.09 L390.0 158.91', '0.5')
    """
    thin = [s if s.dots else Series(s.name, thinned(s.points)) for s in series]
    xs = [x for s in thin for x, _ in s.points]
    ys = [y for s in thin for _, y in s.points] + [v for s in thin for pair in s.band for v in pair]
    across = _Scale(min(xs), max(xs) if max(xs) > min(xs) else min(xs) + 1, LEFT, WIDTH - RIGHT)
    up = _Scale(*padded(min(ys), max(ys)), HEIGHT - BOTTOM, TOP)
    lines = tuple(_line(s, place % COLORS, across, up) for place, s in enumerate(thin))
    x_ticks = tuple((across(v), f"{v:.0f}") for v in ticks(across.low, across.high, 6) if v == int(v))
    y_ticks = tuple((up(v), f"{v:.6g}") for v in ticks(up.low, up.high, 5))
    return Chart(title, lines, x_ticks, y_ticks, note, legend=len(lines) > 1 or lines[0].name != title)


def _line(series: Series, color: int, across: _Scale, up: _Scale) -> Line:
    places = [(across(x), up(y)) for x, y in series.points]
    band = ""
    if series.band:
        xs = [x for x, _ in places]
        upper = [(x, up(high)) for x, (_, high) in zip(xs, series.band, strict=True)]
        lower = [(x, up(low)) for x, (low, _) in zip(xs, series.band, strict=True)]
        band = path([*upper, *reversed(lower)]) + " Z"
    tips = [f"{series.name} at {number(x)}: {number(y)}" for x, y in series.points]
    dots = tuple((x, y, tip) for (x, y), tip in zip(places, tips, strict=True)) if series.dots else ()
    return Line(series.name, color, path(places), band, dots, number(series.points[-1][1]))


def path(points: Iterable[Point]) -> str:
    """An SVG path through the points."""
    return "M" + " L".join(f"{x} {y}" for x, y in points)


def spread(total: int, count: int) -> tuple[int, ...]:
    """At most `count` of `total` places, evenly spread, the first among them.

    Example:
        >>> spread(10, 4), spread(2, 4)
        ((0, 2, 5, 7), (0, 1))
    """
    count = min(count, total)
    return tuple(total * i // count for i in range(count))


def thinned(points: Sequence[Point]) -> list[Point]:
    """At most `MAX_POINTS` points: means of equal buckets."""
    size = math.ceil(len(points) / MAX_POINTS)
    buckets = [points[i : i + size] for i in range(0, len(points), size)]
    return [(sum(x for x, _ in b) / len(b), sum(y for _, y in b) / len(b)) for b in buckets]


def padded(low: float, high: float) -> tuple[float, float]:
    """A range with a little air; a constant gets a range around it."""
    if high - low <= 1e-9 * max(abs(low), abs(high)):
        return low - (abs(low) or 1) * 0.5, high + (abs(high) or 1) * 0.5
    air = 0.05 * (high - low)
    return low - air, high + air


def ticks(low: float, high: float, count: int) -> list[float]:
    """About `count` round numbers between low and high.

    Example:
        >>> ticks(0.03, 0.98, 5)
        [0.2, 0.4, 0.6, 0.8]
    """
    raw = (high - low) / count
    power = 10 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= raw * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [float(f"{i * step:.10g}") for i in range(first, last + 1)]


def number(value: float) -> str:
    """A number for people: three significant digits, no needless zeros.

    Example:
        >>> number(0.123456), number(12000.0), number(1e-05), number(3.0)
        ('0.123', '12000', '1e-05', '3')
    """
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}"
