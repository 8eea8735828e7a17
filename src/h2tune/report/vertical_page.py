"""One self-contained HTML page for the run of a vertical federation: no script, no external resource."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import compress
from pathlib import Path
from typing import Any

from markupsafe import Markup

from h2tune.report import format as words
from h2tune.report.data import Matrix
from h2tune.report.html import fill, write_page
from h2tune.report.plots import Axis, Line, caption, heatmap, line_chart, svg
from h2tune.report.read import read_metrics
from h2tune.report.values import matrix
from h2tune.utils.numbers import finite
from h2tune.vertical.exposure import STAYS, leaves
from h2tune.vertical.run_store import not_ended

PLANE = 220  # side of a picture of prototypes
LONGEST = 18  # characters of a label in it


def write_vertical_report(run_dir: Path) -> Path:
    """Write RUN/report.html from RUN's metrics, and return its path.

    Raises:
        StoreError: if the run has no metrics yet.
        ReportError: if they cannot be read.
    """
    run_dir = Path(run_dir)
    if not (run_dir / "metrics.json").is_file():
        raise not_ended(run_dir)
    return write_page(run_dir / "report.html", render(finite(read_metrics(run_dir))))


def render(metrics: dict[str, Any]) -> str:
    """The page as text."""
    names = [name + (" (unseen)" if i in metrics["unseen"] else "") for i, name in enumerate(metrics["classes"])]
    return fill(
        "vertical.html",
        name=metrics["name"],
        kind="vertical federation report",
        m=metrics,
        sentence=sentence(metrics),
        diverged=diverged(metrics["history"]),
        names=names,
        traffic=_traffic(metrics),
        pictures=_pictures(metrics, names),
        planes=_planes(metrics, names),
        recalls=_recalls(metrics),
        crossed=[("A passive party sends", leaves("up")), ("The active party sends", leaves("down"))],
        stays=STAYS,
    )


def sentence(metrics: dict[str, Any]) -> str:
    """The result in one sentence."""
    final = metrics["final"]
    if not final:
        why = "no test people were given" if final is None else "no test person has a label"
        return f"{len(metrics['parties'])} parties trained on {metrics['aligned']:,} aligned people; {why}."
    text = f"Balanced accuracy is {words.percent(final['balanced'])} on the test people"
    if metrics["alone"]:
        text += f"; {metrics['parties'][0]} alone has {words.percent(metrics['alone']['balanced'])}"
    if "unseen" in final:
        text += f". Unseen classes are recognised in {words.percent(final['unseen'])} of their rows"
    return text + "."


def diverged(history: Sequence[Mapping[str, Any]]) -> str:
    """A word on rounds whose loss is not a number; empty where there are none."""
    rounds = [record["round"] for record in history if record["loss"] is None]
    if not rounds:
        return ""
    return (
        f"The loss is not a number in {len(rounds)} of {len(history)} rounds, first in round {rounds[0]}: the training"
        " diverged. A smaller training.learning_rate may help."
    )


def _traffic(metrics: dict[str, Any]) -> dict[str, dict[str, float]]:
    """Bytes of each passive party: once, and a round."""
    found = {}
    for name, kinds in metrics["bytes"].items():
        once = sum(kinds[k]["up"] + kinds[k]["down"] for k in ("join", "align"))
        up, down = (
            sum(kinds[k][way] for k in ("step", "local")) / max(metrics["rounds"], 1) for way in ("up", "down")
        )
        found[name] = {"once": once, "up": up, "down": down}
    return found


def _pictures(metrics: dict[str, Any], names: list[str]) -> list[tuple[str, str, Markup]]:
    """Title, note and picture of the loss, coverage, gate and confusion."""
    numbers = [str(index) for index in range(len(names))]
    which = ", ".join(f"{i} {name}" for i, name in enumerate(names))
    history = metrics["history"]
    loss = line_chart(
        [Line("loss", [(r["round"], r["loss"]) for r in history], "shared")],
        [],
        metrics["rounds"],
        "loss over the rounds",
        False,
    )
    scores = [(r["round"], r["test"]["balanced"]) for r in history if r.get("test")]
    curve = line_chart(
        [Line("test", scores, "test")], [], metrics["rounds"], "balanced accuracy over the rounds", True
    )
    found = [("Loss", "of aligned batches", loss), ("Balanced accuracy", "of the test people", curve)]
    who = ", ".join(f"{i} {name}" for i, name in enumerate(metrics["parties"]))
    if rows := matrix(metrics["coverage"]):
        top = max((value for row in rows for value in row if value is not None), default=1.0) or 1.0
        found.append(
            (
                "Rows seen",
                f"parties: {who}; classes: {which}",
                heatmap(_whole(rows), numbers, "rows of each class by party", ("party", "class"), top),
            )
        )
    if (gate := matrix(metrics.get("gate"))) and _varied(gate):
        found.append(
            (
                "Gate",
                f"mean weight of each party for each class; parties: {who}; classes: {which}",
                heatmap(gate, numbers, "gate weights", ("party", "class")),
            )
        )
    if "confusion" in metrics:
        shares = tuple(tuple(v / max(sum(row), 1) for v in row) for row in metrics["confusion"])
        found.append(
            (
                "Confusion",
                f"share of each true class (row) that is called each class (column): {which}",
                heatmap(shares, numbers, "confusion", ("true", "called")),
            )
        )
    return [(title, note, picture) for title, note, picture in found if picture is not None]


def _varied(rows: Matrix) -> bool:
    """Whether there is anything to see: not where all views count alike."""
    return len({round(value, 2) for row in rows for value in row if value is not None}) > 1


def _whole(rows: Matrix) -> Matrix:
    """Counts without decimals: rows that were assigned count by their shares."""
    return tuple(tuple(None if value is None else round(value) for value in row) for row in rows)


def _planes(metrics: dict[str, Any], names: list[str]) -> list[tuple[str, Markup]]:
    """Each party's class means in the plane of their two main directions."""
    found = []
    for name, points, counts in zip(metrics["parties"], metrics["plane"], metrics["coverage"], strict=True):
        seen = [n is not None and n > 0.5 and None not in point for point, n in zip(points, counts, strict=True)]
        known = list(compress(zip(names, points, strict=True), seen))
        found.append((name, plane(known, f"class means of {name}")))
    return found


def plane(points: Sequence[tuple[str, Sequence[float]]], label: str) -> Markup:
    """Named points as SVG; an unseen class is drawn as a ring."""
    reach = max((abs(v) for _, point in points for v in point), default=1.0) or 1.0
    parts = [Markup('<rect class="frame" x="1" y="1" width="{}" height="{}"/>').format(PLANE - 2, PLANE - 2)]
    across, up = Axis(-reach, reach, 0.1 * PLANE, 0.9 * PLANE), Axis(-reach, reach, 0.9 * PLANE, 0.1 * PLANE)
    places = [(across.at(x), up.at(y)) for _, (x, y) in points]
    texts = [name if len(name) <= LONGEST else f"{name[: LONGEST - 1]}…" for name, _ in points]
    middles = [_inside(x, len(text)) for (x, _), text in zip(places, texts, strict=True)]
    heights = _label_heights([(x, y, len(text)) for x, (_, y), text in zip(middles, places, texts, strict=True)])
    for (name, _), text, (cx, cy), middle, height in zip(points, texts, places, middles, heights, strict=True):
        style = "ring" if name.endswith("(unseen)") else "mark shared"
        parts.append(Markup('<circle class="{}" cx="{}" cy="{}" r="4"/>').format(style, cx, cy))
        parts.append(caption(middle, round(height, 1), text))
    return svg(PLANE, PLANE, label, parts, natural=True)


def _inside(x: float, length: int) -> float:
    """Where the middle of a label of so many characters goes, so that it stays in the picture."""
    half = 3 * length + 3
    return min(max(x, half), PLANE - half)


def _label_heights(marks: Sequence[tuple[float, float, int]]) -> list[float]:
    """Where each label's baseline goes, so that labels do not lie on one another: above its point, below, or farther away.

    Args:
        marks: middle of each label, height of its point, and characters of the label.
    """
    taken: list[tuple[float, float, float]] = []
    for x, y, length in marks:
        tries = [y - 7, y + 15, y - 19, y + 27, y - 31, y + 39]
        free = [
            height
            for height in tries
            if 10 < height < PLANE
            and not any(abs(height - h) < 11 and abs(x - c) < 3 * (length + n) for c, h, n in taken)
        ]
        taken.append((x, (free or tries)[0], length))
    return [height for _, height, _ in taken]


def _recalls(metrics: dict[str, Any]) -> list[tuple[str, float | None, float | None, list[float]]]:
    """Each class with how often it is recognised, by all and by the active party alone, and what each party has seen of it."""
    both, alone = ((metrics[key] or {}).get("recalls", {}) for key in ("final", "alone"))
    return [
        (name, both.get(str(index)), alone.get(str(index)), [row[index] for row in metrics["coverage"]])
        for index, name in enumerate(metrics["classes"])
    ]
