"""Charts as inline SVG: pure functions from integers to markup.

The SVG holds shapes only and stretches to its place; labels are text beside it, so that they stay readable at every
width. Colours come from the style sheet by class. No style attributes: the content security policy forbids them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise
from typing import Final

WIDTH: Final = 1_000
HEIGHT: Final = 300
# Steps that people read easily: 1, 2, 5 times a power of ten.
_NICE: Final = (1, 2, 5)
_GAP: Final = 4
_MOST_COLUMN_WIDTH: Final = 96

Label = Callable[[int], str]


@dataclass(frozen=True, slots=True)
class Chart:
    """An SVG, and what to write beside it: `y_labels` from top to bottom, `x_labels` from left to right."""

    svg: str
    y_labels: tuple[str, ...]
    x_labels: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Point:
    """`y` None is a gap: no price is not a price of zero."""

    x: int
    y: int | None
    title: str = ""


@dataclass(frozen=True, slots=True)
class Column:
    """`parts` are stacked from the bottom; `title` is what a pointer or a screen reader gets."""

    title: str
    parts: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Segment:
    """A part of a bar, in the bar's own unit; `name` is also its class."""

    name: str
    size: int
    title: str


def line_chart(
    points: Sequence[Point], *, title: str, y_label: Label, x_labels: Sequence[str] = (), carried: bool = True
) -> Chart:
    """A price over time. `carried`: a dotted line carries the last price over periods without one."""
    known = [point for point in points if point.y is not None]
    if not known:
        return _empty(title, x_labels)
    low, high, step = _range([point.y for point in known if point.y is not None], from_zero=False)
    first, last = points[0].x, points[-1].x
    span = max(1, last - first)

    def place(point: Point) -> tuple[int, int]:
        assert point.y is not None
        return (point.x - first) * WIDTH // span, HEIGHT - (point.y - low) * HEIGHT // (high - low)

    runs: list[list[tuple[int, int]]] = [[]]
    for point in points:
        if point.y is None:
            if runs[-1]:
                runs.append([])
        else:
            runs[-1].append(place(point))
    runs = [run for run in runs if run]
    shapes = [_grid(low, high, step)]
    for run in runs:
        if len(run) > 1:
            area = f"M{run[0][0]} {HEIGHT}L{_path(run)}L{run[-1][0]} {HEIGHT}Z"
            shapes.append(f'<path class="area" d="{area}"/>')
    if carried:
        for before, after in pairwise(runs):
            shapes.append(f'<path class="carried" d="M{before[-1][0]} {before[-1][1]}H{after[0][0]}"/>')
        if runs[-1][-1][0] < WIDTH:
            shapes.append(f'<path class="carried" d="M{runs[-1][-1][0]} {runs[-1][-1][1]}H{WIDTH}"/>')
    for run in runs:
        # A lone point would have no length: a short dash shows it.
        drawn = (
            run
            if len(run) > 1
            else [(max(0, run[0][0] - 3), run[0][1]), (min(WIDTH, run[0][0] + 3), run[0][1])]
        )
        shapes.append(f'<path class="line" d="M{_path(drawn)}"/>')
    return Chart(
        _svg("".join(shapes), title, "line-chart"), _ticks(low, high, step, y_label), tuple(x_labels)
    )


def column_chart(
    columns: Sequence[Column], *, title: str, y_label: Label, x_labels: Sequence[str] = ()
) -> Chart:
    """Amounts per slice of time, from zero; negative sums are drawn as nothing and told by their title."""
    sums = [sum(column.parts) for column in columns]
    if not any(total > 0 for total in sums):
        return _empty(title, x_labels)
    low, high, step = _range(sums, from_zero=True)
    pitch = WIDTH // max(1, len(columns))
    width = max(1, min(_MOST_COLUMN_WIDTH, pitch - min(_GAP, pitch // 3)))
    shapes = [_grid(low, high, step)]
    for index, column in enumerate(columns):
        left = index * WIDTH // len(columns) + (pitch - width) // 2
        bars, base = [], 0
        for part, amount in enumerate(column.parts):
            if amount <= 0:
                continue
            top = HEIGHT - (base + amount) * HEIGHT // high
            bottom = HEIGHT - base * HEIGHT // high
            # What is there must be seen, however small.
            top = min(top, bottom - 2)
            bars.append(
                f'<rect class="part-{part}" x="{left}" y="{top}" width="{width}" height="{bottom - top}"/>'
            )
            base += amount
        shapes.append(f"<g><title>{escape(column.title)}</title>{''.join(bars)}</g>")
    return Chart(
        _svg("".join(shapes), title, "column-chart"), _ticks(low, high, step, y_label), tuple(x_labels)
    )


def depth_chart(
    demand: Sequence[tuple[int, int]],
    supply: Sequence[tuple[int, int]],
    *,
    title: str,
    x_label: Label,
    y_label: Label,
) -> Chart:
    """Cumulative lots (across) at each rate (up): `demand` with falling rates, `supply` with rising ones."""
    if not demand and not supply:
        return _empty(title, ())
    _, high, step = _range([rate for rate, _ in (*demand, *supply)], from_zero=True)
    most = max(lots for _, lots in (*demand, *supply))
    shapes = [_grid(0, high, step)]
    for name, curve in (("demand", demand), ("supply", supply)):
        if not curve:
            continue
        path: list[str] = []
        left = 0
        for rate, lots in curve:
            y, right = HEIGHT - rate * HEIGHT // high, lots * WIDTH // max(1, most)
            path.append(f"{'M' if not path else 'L'}{left} {y}H{right}")
            left = right
        shapes.append(f'<path class="{name}" d="{"".join(path)}"/>')
    x_labels = (x_label(0), x_label(most // 2), x_label(most))
    return Chart(_svg("".join(shapes), title, "depth-chart"), _ticks(0, high, step, y_label), x_labels)


def share_bar(segments: Sequence[Segment], *, whole: int, title: str) -> str:
    """One horizontal bar of `whole`, its segments from left to right; what they leave is the bar's ground."""
    assert whole > 0
    shapes, used, right = [], 0, 0
    for segment in segments:
        # Where the one before ended, which may be a little further than its size.
        left = right
        used += max(0, segment.size)
        right = max(left, min(used, whole) * WIDTH // whole)
        if segment.size > 0:
            right = max(right, min(left + 2, WIDTH))
        if right > left:
            shapes.append(
                f'<rect class="{escape(segment.name)}" x="{left}" y="0" width="{right - left}" height="16">'
                f"<title>{escape(segment.title)}</title></rect>"
            )
    return (
        f'<svg class="share-bar" viewBox="0 0 {WIDTH} 16" preserveAspectRatio="none" role="img" '
        f'aria-label="{escape(title)}"><title>{escape(title)}</title>'
        f'<rect class="ground" x="0" y="0" width="{WIDTH}" height="16"/>{"".join(shapes)}</svg>'
    )


def nice_step(span: int, most_steps: int = 4) -> int:
    """The least of 1, 2, 5, 10, 20, ... that divides `span` into at most `most_steps` steps."""
    assert span >= 0
    step, power = 1, 1
    while True:
        for factor in _NICE:
            step = factor * power
            if span <= step * most_steps:
                return step
        power *= 10


def _range(values: Sequence[int], *, from_zero: bool) -> tuple[int, int, int]:
    """(low, high, step) on whole steps, around the values and never empty."""
    high = max(values)
    low = 0 if from_zero else min(values)
    if not from_zero:
        # A flat price lies in the middle, and small movements are not blown up to fill the height.
        margin = max((high - low) // 8, high // 40, 1)
        low, high = max(0, low - margin), high + margin
    step = nice_step(max(1, high - low))
    low -= low % step
    high += -high % step
    return low, max(high, low + step), step


def _grid(low: int, high: int, step: int) -> str:
    lines = (HEIGHT - (value - low) * HEIGHT // (high - low) for value in range(low, high + 1, step))
    return "".join(f'<path class="grid" d="M0 {y}H{WIDTH}"/>' for y in lines)


def _ticks(low: int, high: int, step: int, label: Label) -> tuple[str, ...]:
    return tuple(label(value) for value in range(high, low - 1, -step))


def _path(points: Sequence[tuple[int, int]]) -> str:
    return "L".join(f"{x} {y}" for x, y in points)


def _svg(shapes: str, title: str, name: str) -> str:
    return (
        f'<svg class="{name}" viewBox="0 0 {WIDTH} {HEIGHT}" preserveAspectRatio="none" role="img" '
        f'aria-label="{escape(title)}"><title>{escape(title)}</title>{shapes}</svg>'
    )


def _empty(title: str, x_labels: Sequence[str]) -> Chart:
    return Chart(_svg(_grid(0, 4, 1), title, "empty-chart"), (), tuple(x_labels))
