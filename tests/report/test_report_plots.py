from __future__ import annotations

import math
from xml.etree import ElementTree

import pytest

from h2tune.report.plots import Axis, Level, Line, heatmap, line_chart, strip, ticks


@pytest.mark.parametrize(
    ("low", "high", "bounds"),
    [
        (0.0, 1.0, (0.0, 1.0)),
        (0.5, 0.5, (0.0, 1.0)),
        (0.0, 0.0, None),
        (1e-9, 3e9, None),
        (-5.0, -4.99, None),
        (1, 1, (0, 1)),
    ],
)
def test_ticks_enclose_the_data(low: float, high: float, bounds: tuple[float, float] | None) -> None:
    marks = ticks(low, high, bounds)
    assert 2 <= len(marks) <= 7 and marks == sorted(set(marks))
    assert marks[0] <= low + 1e-12 and high - 1e-12 <= marks[-1]
    assert bounds is None or (bounds[0] <= marks[0] and marks[-1] <= bounds[1])


def test_an_axis_goes_either_way_and_ends_where_it_ends() -> None:
    up = Axis(-1, 3, 100, 20)
    assert [up.at(value) for value in (-1, 0, 1, 3, -9, 9)] == [100, 80, 60, 20, 100, 20]
    assert Axis(1, 1, 0, 50).at(1) == 25  # a run of one round: in the middle


def test_a_gap_breaks_the_line() -> None:
    chart = line_chart([Line("a", [(1, 0.1), (2, None), (3, 0.3), (4, 0.4)], "test")], [], 4, "x", True)
    path = next(node for node in ElementTree.fromstring(chart).iter("path") if node.get("class") == "line test")
    assert path.get("d", "").count("M") == 2 and path.get("d", "").count("L") == 1


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_a_number_is_a_gap(value: float) -> None:
    line, level = Line("a", [(1, 0.1), (2, value), (3, 0.3)], "test"), Level("b", value, "test")
    gap = Line("a", [(1, 0.1), (2, None), (3, 0.3)], "test")
    assert line_chart([line], [level], 3, "x", False) == line_chart([gap], [], 3, "x", False)
    assert line_chart([Line("a", [(1, value)], "test")], [], 1, "x", False) is None


def test_nothing_to_draw() -> None:
    assert line_chart([Line("a", [(1, None)], "test")], [Level("b", 0.5, "test")], 3, "x", True) is None
    assert strip(None, None, None, 0.5) is None


@pytest.mark.parametrize("size", [(1, 1), (4, 6), (32, 28), (80, 80)])
def test_heatmaps_of_any_size_are_well_formed(size: tuple[int, int]) -> None:
    rows, columns = size
    matrix = tuple(
        tuple((row + column) / 10 if row != 1 else None for column in range(columns)) for row in range(rows)
    )
    picture = heatmap(matrix, ["<b>"] * columns, 'a"<>&', ("row", "column"))
    assert ElementTree.fromstring(picture).get("aria-label") == 'a"<>&'
    assert len(picture) < 40 * rows * columns + 9000
