"""Pictures as inline SVG: they take colours from the page, so they follow light, dark and print.

Every string goes through `Markup.format`, which escapes it: a client's name can never close a tag.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from markupsafe import Markup

from h2tune.report.data import Matrix
from h2tune.report.format import decimal, percent
from h2tune.utils.numbers import number

WIDTH, HEIGHT = 260, 172
LEFT, RIGHT, TOP, BOTTOM = 36, 6, 8, 32
MARKERS = 40  # more points than this and dots would hide the line


@dataclass(frozen=True)
class Line:
    """One curve over the rounds. `style` is a class of the page; a None in `points` breaks the line."""

    name: str
    points: Sequence[tuple[int, float | None]]
    style: str
    marker: str = "dot"


@dataclass(frozen=True)
class Level:
    """A horizontal dashed line."""

    name: str
    value: float
    style: str


@dataclass(frozen=True)
class Axis:
    """Maps values from `low` to `high` to places in the drawing from `start` to `end`."""

    low: float
    high: float
    start: float
    end: float

    def at(self, value: float) -> float:
        span = self.high - self.low
        share = (min(max(value, self.low), self.high) - self.low) / span if span else 0.5
        return round(self.start + share * (self.end - self.start), 1)


@dataclass(frozen=True)
class _Scale:
    """Rounds and values of a chart over the rounds."""

    rounds: Axis
    values: Axis
    share: bool

    def place(self, position: int, value: float) -> tuple[float, float]:
        return self.rounds.at(position), self.values.at(value)


def line_chart(lines: Sequence[Line], levels: Sequence[Level], rounds: int, label: str, share: bool) -> Markup | None:
    """Curves over rounds; None where there is not a single value. `share` writes values as per cent.

    What is no finite number is a gap.
    """
    lines = [replace(line, points=[(position, number(value)) for position, value in line.points]) for line in lines]
    levels = [level for level in levels if number(level.value) is not None]
    values = [value for line in lines for _, value in line.points if value is not None]
    if not values:
        return None
    values += [level.value for level in levels]
    marks = ticks(min(values), max(values), (0.0, 1.0) if share else None)
    last_round = max([rounds, 1, *(position for line in lines for position, _ in line.points)])
    over = Axis(1, last_round, LEFT + 8, WIDTH - RIGHT - 8)
    scale = _Scale(over, Axis(marks[0], marks[-1], HEIGHT - BOTTOM, TOP), share)
    digits = _digits(marks, share)
    texts = [f"{100 * mark:.{digits}f}%" if share else decimal(mark, digits) for mark in marks]
    parts = grid_rows(scale.values, marks, texts, LEFT, WIDTH - RIGHT)
    for position in range(1, last_round + 1, max(1, math.ceil(last_round / 6))):
        parts.append(caption(over.at(position), HEIGHT - BOTTOM + 15, position))
    parts.append(caption((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 3, "round"))
    parts += [_level(scale, level) for level in levels]
    parts += [_curve(scale, line) for line in lines]
    return svg(WIDTH, HEIGHT, label, parts)


def grid_rows(axis: Axis, marks: Sequence[float], texts: Sequence[str], left: float, right: float) -> list[Markup]:
    """A thin line from `left` to `right` and its text at each of the axis's marks, which goes up the picture."""
    parts = []
    for y, text in zip(map(axis.at, marks), texts, strict=True):
        parts.append(Markup('<path class="grid" d="M{} {}H{}"/>').format(left, y, right))
        parts.append(caption(left - 6, y + 4, text, "end"))
    return parts


def caption(x: float, y: float, text: object, side: str = "mid") -> Markup:
    """A small text; `side` says whether `x` is its middle or its end."""
    return Markup('<text class="tick {}" x="{}" y="{}">{}</text>').format(side, x, y, text)


def _level(scale: _Scale, level: Level) -> Markup:
    shape = Markup('<path class="level {}" d="M{} {}H{}"><title>{}</title></path>')
    title = f"{level.name}: {_value(level.value, scale.share)}"
    return shape.format(level.style, LEFT, scale.values.at(level.value), WIDTH - RIGHT, title)


def _curve(scale: _Scale, line: Line) -> Markup:
    path, pen_down = [], False
    for position, value in line.points:
        if value is not None:
            x, y = scale.place(position, value)
            path.append(f"{'L' if pen_down else 'M'}{x} {y}")
        pen_down = value is not None
    parts = [Markup('<path class="line {}" d="{}"/>').format(line.style, "".join(path))]
    known = [(position, value) for position, value in line.points if value is not None]
    if len(known) <= MARKERS:
        parts += [_marker(scale, line, position, value) for position, value in known]
    return Markup("").join(parts)


def _marker(scale: _Scale, line: Line, position: int, value: float) -> Markup:
    shapes = {
        "dot": '<circle class="mark {}" cx="{}" cy="{}" r="3">',
        "square": '<path class="mark {}" d="M{} {}m-3-3h6v6h-6z">',
        "diamond": '<path class="mark {}" d="M{} {}m0-5.5l5.5 5.5-5.5 5.5-5.5-5.5z">',
    }
    closing = "</circle>" if line.marker == "dot" else "</path>"
    shape = Markup(shapes[line.marker] + "<title>{}</title>" + closing)
    title = f"{line.name}, round {position}: {_value(value, scale.share)}"
    return shape.format(line.style, *scale.place(position, value), title)


def strip(base: float | None, local: float | None, final: float | None, majority: float | None) -> Markup | None:
    """Results on a line from 0 to 100 %: base a ring, alone a square, federated a dot, majority class a tick."""
    if base is None and local is None and final is None:
        return None

    x = Axis(0, 1, 7, 113).at
    start = local if local is not None else base
    parts = [Markup('<path class="axis" d="M7 11H113M7 8v6M113 8v6"/>')]
    if majority is not None:
        parts.append(Markup('<path class="majority" d="M{} 4v14"/>').format(x(majority)))
    if start is not None and final is not None:
        style = "better" if final > start else "worse"
        parts.append(Markup('<path class="span {}" d="M{} 11H{}"/>').format(style, x(start), x(final)))
    if base is not None:
        parts.append(Markup('<circle class="ring" cx="{}" cy="11" r="3.5"/>').format(x(base)))
    if local is not None:
        parts.append(Markup('<path class="mark alone" d="M{} 11m-3.5-3.5h7v7h-7z"/>').format(x(local)))
    if final is not None:
        parts.append(Markup('<circle class="mark validation" cx="{}" cy="11" r="4"/>').format(x(final)))
    label = f"base {percent(base)}, alone {percent(local)}, federated {percent(final)}, majority {percent(majority)}"
    return svg(120, 22, label, parts)


def heatmap(matrix: Matrix, columns: Sequence[str], label: str, axes: tuple[str, str], top: float = 1.0) -> Markup:
    """A matrix from the top row down, 0 blank and `top` full colour; a small one also has its numbers in it."""
    height, width = len(matrix), len(matrix[0])
    cell_w, cell_h = max(5, min(38, 288 // width)), max(5, min(22, 300 // height))
    left, bottom = 40, 34
    parts = [Markup('<rect class="frame" x="{}" y="6" width="{}" height="{}"/>')]
    parts[0] = parts[0].format(left, cell_w * width, cell_h * height)
    parts += _numbered(matrix, cell_w, cell_h, left, top) if cell_w >= 26 and cell_h >= 14 else []
    parts += [] if len(parts) > 1 else _shaded(matrix, cell_w, cell_h, left, top)
    for row in range(0, height, math.ceil(height * 12 / (cell_h * height))):
        parts.append(caption(left - 5, 6 + cell_h * (row + 0.5) + 4, row, "end"))
    longest = max(map(len, columns), default=1)
    for column in range(0, min(width, len(columns)), math.ceil((7 * longest + 5) / cell_w)):
        parts.append(caption(left + cell_w * (column + 0.5), 6 + cell_h * height + 14, columns[column]))
    middle = 6 + cell_h * height / 2
    parts.append(caption(left + cell_w * width / 2, cell_h * height + bottom + 2, axes[1]))
    text = Markup('<text class="tick mid" transform="translate(10 {}) rotate(-90)">{}</text>')
    parts.append(text.format(middle, axes[0]))
    return svg(max(left + cell_w * width + 8, 120), cell_h * height + bottom + 8, label, parts, natural=True)


def _numbered(matrix: Matrix, cell_w: int, cell_h: int, left: int, top: float) -> list[Markup]:
    shape = Markup(
        '<rect class="heat" x="{}" y="{}" width="{}" height="{}" fill-opacity="{:.2f}"/>'
        '<text class="cell {}" x="{}" y="{}">{}</text>'
    )
    parts = []
    for row, values in enumerate(matrix):
        for column, value in enumerate(values):
            x, y, shade = left + cell_w * column, 6 + cell_h * row, _shade(value, top)
            place = (x + cell_w / 2, y + cell_h / 2 + 4)
            ink = "on" if shade > 0.55 else "off"
            parts.append(shape.format(x, y, cell_w, cell_h, shade, ink, *place, _short(value)))
    return parts


def _shaded(matrix: Matrix, cell_w: int, cell_h: int, left: int, top: float) -> list[Markup]:
    """Cells of a large matrix, one path for each of 20 shades: 60 clients must not make a page of 50 MB."""
    shades: dict[int, list[str]] = {}
    for row, values in enumerate(matrix):
        for column, value in enumerate(values):
            corner = f"M{left + cell_w * column} {6 + cell_h * row}h{cell_w}v{cell_h}h-{cell_w}z"
            shades.setdefault(round(20 * _shade(value, top)), []).append(corner)
    shape = Markup('<path class="heat" fill-opacity="{}" d="{}"/>')
    return [shape.format(shade / 20, "".join(corners)) for shade, corners in sorted(shades.items()) if shade]


def _shade(value: float | None, top: float) -> float:
    return 0.0 if value is None or top <= 0 else min(max(value / top, 0.0), 1.0)


def _short(value: float | None) -> str:
    if value is None:
        return "\u2013"
    if isinstance(value, int):  # a count
        return str(value)
    value = value if abs(value) >= 0.005 else 0.0  # no minus before a zero
    text = decimal(value, 2 if abs(value) < 10 else 1 if abs(value) < 100 else 0)
    return text.replace("0.", ".", 1) if abs(value) < 0.995 else text


def svg(width: float, height: float, label: str, parts: Sequence[Markup], natural: bool = False) -> Markup:
    """A picture as wide as its place on the page; a `natural` one as wide as `width` says."""
    size = Markup(' style="width:{}px"').format(round(width)) if natural else Markup("")
    opening = Markup('<svg viewBox="0 0 {} {}" role="img" aria-label="{}"{}>')
    return opening.format(round(width), round(height), label, size) + Markup("").join(parts) + Markup("</svg>")


def _value(value: float, share: bool) -> str:
    return percent(value) if share else decimal(value, 3)


def _digits(ticks: Sequence[float], share: bool) -> int:
    step = (ticks[1] - ticks[0]) * (100 if share else 1)
    return max(0, -math.floor(math.log10(step) + 1e-9))


def ticks(low: float, high: float, bounds: tuple[float, float] | None) -> list[float]:
    """Three to six round values that enclose `low` and `high`, and stay in `bounds` where the data does."""
    if high - low < 1e-9 * max(1.0, abs(high)):
        low, high = low - 0.05 * max(abs(low), 0.2), high + 0.05 * max(abs(high), 0.2)
    if bounds and bounds[0] <= low + 0.1 and high - 0.1 <= bounds[1]:
        low, high = max(low, bounds[0]), min(high, bounds[1])
    raw = (high - low) / 4
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(step * index, 12) for index in range(first, max(last, first + 1) + 1)]
