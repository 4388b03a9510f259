"""Line charts as inline SVG, of curves that stay small however long the run is."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from html import escape

POINTS = 500  # of a curve, at least half of it once it has been that long
WIDTH, HEIGHT = 640, 240  # of a chart's own coordinates; on the page it is as wide as there is room
LEFT, RIGHT, TOP, BOTTOM = 56, 12, 10, 24  # margins, for the labels of the axes


class Curve:
    """The points `(step, value)` of a curve, thinned out evenly: each stands for equally many logged values.

    Args:
        highest: whether a point shows the highest of its values, for peaks, or their mean.
    """

    def __init__(self, *, highest: bool = False) -> None:
        self._highest, self._every = highest, 1
        self._points: list[tuple[float, float]] = []
        self._open: list[tuple[float, float]] = []
        self.latest: float | None = None

    def add(self, step: float, value: float) -> None:
        """What is no finite number is the latest value, but no point."""
        self.latest = value
        if not math.isfinite(value):
            return
        self._open.append((step, value))
        if len(self._open) == self._every:
            self._points.append(self._joined(self._open))
            self._open = []
        if len(self._points) >= POINTS:
            pairs = zip(self._points[::2], self._points[1::2], strict=True)
            self._points, self._every = [self._joined(pair) for pair in pairs], self._every * 2

    def points(self) -> list[tuple[float, float]]:
        """At most `POINTS`."""
        return self._points + ([self._joined(self._open)] if self._open else [])

    def _joined(self, points: Sequence[tuple[float, float]]) -> tuple[float, float]:
        values = [value for _, value in points]
        return points[-1][0], max(values) if self._highest else sum(values) / len(values)


def line_chart(
    title: str,
    curves: dict[str, Curve],
    *,
    low: float | None = None,
    high: float | None = None,
    unit: float = 1.0,
    show: Callable[[float], str] = "{:.4g}".format,
    x_last: str = "step {:,.0f}",
) -> str:
    """A figure with a heading, a legend with the latest values, and the curves over the steps.

    Args:
        curves: by label.
        low, high: the y axis spans these at least.
        unit: in multiples of which the y axis has round numbers.
        show: writes a value.
        x_last: writes the last step.
    """
    drawn = {label: curve.points() for label, curve in curves.items()}
    everything = [point for points in drawn.values() for point in points]
    bottom = min([y for _, y in everything] + ([] if low is None else [low]))
    top = max([y for _, y in everything] + ([] if high is None else [high]))
    ys = [unit * tick for tick in ticks(bottom / unit, top / unit)]
    first, last = min(x for x, _ in everything), max(x for x, _ in everything)
    x_at = scale(first, last, LEFT, WIDTH - RIGHT)
    y_at = scale(ys[0], ys[-1], HEIGHT - BOTTOM, TOP)
    legend = "".join(
        f'<li class="c{number}">{escape(label)} <b>{escape(show(curves[label].latest))}</b></li>'
        for number, label in enumerate(drawn)
    )
    # What shows without the page's style, too, stands in attributes; colours are the style's.
    return (
        f"<figure><figcaption>{escape(title)}</figcaption><ul>{legend}</ul>"
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" font-size="12" fill="currentColor" role="img" '
        f'aria-label="{escape(title)}: {escape(_summary(curves, show))}">'
        f"<title>{escape(title)}</title>{''.join(axes(ys, y_at, show))}"
        f'<text x="{LEFT}" y="{HEIGHT - 6}">{first:,.0f}</text>'
        f'<text x="{WIDTH - RIGHT}" y="{HEIGHT - 6}" text-anchor="end">{x_last.format(last)}</text>'
        + "".join(_line(points, number, x_at, y_at) for number, points in enumerate(drawn.values()) if points)
        + "</svg></figure>"
    )


def ticks(low: float, high: float) -> list[float]:
    """Four to seven round numbers, evenly apart, that enclose both."""
    span = (high - low) or abs(high) or 1.0
    rough = span / 5
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough)
    first = math.floor(low / step + 1e-9)
    last = max(math.ceil(high / step - 1e-9), first + 1)
    return [number * step for number in range(first, last + 1)]


def scale(low: float, high: float, start: float, end: float) -> Callable[[float], float]:
    """From `low` to `high` onto `start` to `end`; the middle where there is no span."""
    return lambda value: start + (end - start) * ((value - low) / (high - low) if high > low else 0.5)


def axes(ys: list[float], y_at: Callable[[float], float], show: Callable[[float], str]) -> Iterator[str]:
    """A faint line and its label for every tick."""
    for value in ys:
        y = y_at(value)
        yield f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}" stroke="currentColor" stroke-opacity="0.2"/>'
        yield f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{escape(show(value))}</text>'


def _line(points: list[tuple[float, float]], number: int, x_at, y_at) -> str:
    if len(points) == 1:
        return f'<circle class="c{number}" cx="{x_at(points[0][0]):.1f}" cy="{y_at(points[0][1]):.1f}" r="3"/>'
    path = " ".join(f"{x_at(x):.1f},{y_at(y):.1f}" for x, y in points)
    return f'<polyline class="c{number}" fill="none" stroke="currentColor" stroke-width="2" points="{path}"/>'


def _summary(curves: dict[str, Curve], show: Callable[[float], str]) -> str:
    return ", ".join(f"{label} {show(curve.latest)}" for label, curve in curves.items())
