"""A comparison as one self-contained HTML page: tables, differences with intervals, accuracy against bytes, curves."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from h2tune.comparison.result import Comparison, Interval, MethodRow, Quantity, Table
from h2tune.report.comparison_text import (
    averaging_of,
    client_of,
    mean_of,
    missing_of,
    quantity_of,
    span_of,
    table_verdict,
    text_of,
    verdict,
)
from h2tune.report.format import size
from h2tune.report.html import fill, write_page
from h2tune.report.plots import Axis, Line, caption, grid_rows, line_chart, svg, ticks
from h2tune.utils.numbers import number

STYLES = ("validation", "test", "shared", "specific", "other")
MARKERS = ("dot", "square", "diamond")


def render(result: Comparison) -> str:
    """The page as text."""
    tables: list[dict[str, Any]] = [
        {
            **table,
            "differences": differences(table),
            "traffic": against_bytes(table),
            "curves": curves(table),
            "keys": [(row["method"], *_style(index)) for index, row in enumerate(table["methods"])],
        }
        for table in result["tables"]
        if table["methods"]
    ]
    return fill(
        "compare.html",
        name=result["name"],
        kind="comparison of methods",
        result=result,
        tables=tables,
        text_of=text_of,
        mean_of=mean_of,
        span_of=span_of,
        client_of=client_of,
        quantity_of=quantity_of,
        averaging_of=averaging_of,
        missing_of=missing_of,
        table_verdict=table_verdict,
        sweep=sweep(result["tables"]),
        verdict=verdict(result),
    )


def write_comparison_page(result: Comparison, folder: Path) -> Path:
    """Write FOLDER/compare.html and return its path."""
    return write_page(folder / "compare.html", render(result))


def _style(index: int) -> tuple[str, str]:
    return STYLES[index % len(STYLES)], MARKERS[index // len(STYLES) % len(MARKERS)]


def _known(value: Interval | None) -> Interval | None:
    """The interval where all of it are numbers: a method that diverged has no place in a picture."""
    return value if value and all(number(end) is not None for end in value) else None


def differences(table: Table) -> Markup | None:
    """A dot and its interval for every method's difference to local training."""
    rows = [(row["method"], over) for row in table["methods"] if (over := _known(row.get("over_local")))]
    if not rows:
        return None
    factor = 100 if table["quantity"] == "metric" else 1
    values = [factor * v for _, found in rows for v in found] + [0.0]
    marks = ticks(min(values), max(values), None)
    left, right, step = 130, 520, 22
    height = step * len(rows) + 40
    x = Axis(marks[0], marks[-1], left, right).at
    parts = []
    for mark in marks:
        style = "majority" if mark == 0 else "grid"
        parts.append(Markup('<path class="{}" d="M{} 6V{}"/>').format(style, x(mark), height - 34))
        parts.append(caption(x(mark), height - 20, f"{mark:+g}" if mark else "0"))
    for index, (name, found) in enumerate(rows):
        y = 6 + step * (index + 0.5)
        mean, low, high = (x(factor * v) for v in found)
        style = "better" if found[0] > 0 else "worse"
        row = Markup(
            '<path class="span {}" d="M{} {}H{}"/>'
            '<circle class="mark {}" cx="{}" cy="{}" r="4"><title>{}</title></circle>'
        )
        dot = "validation" if found[0] > 0 else "test"
        text = f"{name}: {text_of(found, table['quantity'], signed=True)}"
        parts.append(caption(left - 10, y + 4, name, "end"))
        parts.append(row.format(style, low, y, high, dot, mean, y, text))
    unit = "points over local training" if factor == 100 else "nats per answer token below local training"
    parts.append(caption((left + right) / 2, height - 4, unit))
    return svg(right + 10, height, "difference to local training by method", parts, natural=True)


def against_bytes(table: Table) -> Markup | None:
    """The mean figure of every method against the bytes that a client sends in a round (a logarithmic axis)."""
    rows = [row for row in table["methods"] if row["bytes_up"] > 0 and _known(row["mean"])]
    if not rows:
        return None
    factor = 100 if table["quantity"] == "metric" else 1
    means = [factor * row["mean"][0] for row in rows]
    marks = ticks(min(means), max(means), None)
    low = math.floor(math.log10(min(r["bytes_up"] for r in rows)))
    high = max(low + 1, math.ceil(math.log10(max(r["bytes_up"] for r in rows))))
    left, right, top, bottom = 46, 520, 10, 190
    across, up = Axis(low, high, left, right), Axis(marks[0], marks[-1], bottom, top)

    def place(row: MethodRow) -> tuple[float, float]:
        return across.at(math.log10(row["bytes_up"])), up.at(factor * row["mean"][0])

    parts = grid_rows(up, marks, [f"{mark:g}" for mark in marks], left, right)
    parts += [caption(across.at(power), bottom + 16, size(10.0**power)) for power in range(low, high + 1)]
    placed: list[tuple[float, float]] = []
    styled = [(row, _style(index)[0]) for index, row in enumerate(table["methods"]) if row in rows]
    for row, style in sorted(styled, key=lambda item: place(item[0])[1]):
        x, y = place(row)
        end = x > right - 90
        # A name that would cover another one moves down.
        text_y = y - 5
        while any(abs(x - px) < 90 and abs(text_y - py) < 12 for px, py in placed):
            text_y += 4
        placed.append((x, text_y))
        dot = Markup(
            '<circle class="mark {}" cx="{}" cy="{}" r="4.5"><title>{}</title></circle>'
            '<text x="{}" y="{}" class="{}">{}</text>'
        )
        title = f"{row['method']}: {text_of(row['mean'], table['quantity'])}, {size(row['bytes_up'])}"
        text_x = x + (-8 if end else 8)
        parts.append(dot.format(style, x, y, title, text_x, text_y, "end" if end else "start", row["method"]))
    parts.append(caption((left + right) / 2, bottom + 32, "sent by a client in a round"))
    return svg(right + 10, bottom + 38, "figure against bytes by method", parts, natural=True)


def curves(table: Table) -> Markup | None:
    """Mean validation loss by round for every method."""
    lines = []
    for index, row in enumerate(table["methods"]):
        style, marker = _style(index)
        lines.append(Line(row["method"], [(int(n), v) for n, v in row["curve"]], style, marker))
    rounds = max((point[0] for line in lines for point in line.points), default=1)
    return line_chart(lines, [], rounds, "validation loss by round and method", share=False)


def sweep(tables: Sequence[Table]) -> list[tuple[str, list[tuple[str, Interval | None, Quantity]]]]:
    """For a sweep over amounts of data: method -> (amount, its figure, in what), in the order of the tables."""
    sized = [t for t in tables if t["n_train"]]
    if len(sized) < 2:
        return []
    names = list(dict.fromkeys(row["method"] for t in sized for row in t["methods"]))
    return [
        (
            name,
            [
                (
                    str(t["n_train"]),
                    next((r.get("over_local") for r in t["methods"] if r["method"] == name), None),
                    t["quantity"],
                )
                for t in sized
            ],
        )
        for name in names
    ]
