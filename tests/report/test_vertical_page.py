"""The pictures of a vertical report."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest

from h2tune.report.read import ReportError
from h2tune.report.vertical_page import LONGEST, PLANE, plane, write_vertical_report

LABEL = re.compile(r'<text class="tick mid" x="([\d.]+)" y="([\d.]+)">([^<]*)</text>')


@pytest.mark.parametrize("name", ["a", "rare (unseen)", "hypertension, not treated"])
@pytest.mark.parametrize("corner", [(-1.0, -1.0), (-1.0, 1.0), (1.0, -1.0), (1.0, 1.0), (0.0, 0.0)])
def test_a_label_stays_in_its_picture_and_a_cut_one_says_so(name: str, corner: tuple[float, float]) -> None:
    ((x, y, text),) = LABEL.findall(str(plane([(name, corner)], "class means")))
    half = 3 * len(text)  # 11 pixels high letters are 6 wide at most
    assert half <= float(x) <= PLANE - half and 10 < float(y) < PLANE
    assert text == name if len(name) <= LONGEST else (len(text) == LONGEST and text.endswith("…"))


def metrics(losses: list[float]) -> dict[str, Any]:
    """Two parties that tell two classes apart, with these losses."""
    traffic = {kind: {"up": 10, "down": 20} for kind in ("join", "align", "step", "local", "predict")}
    score = {"accuracy": 0.5, "balanced": 0.5, "recalls": {"0": 1.0, "1": 0.0}}
    return {
        "schema": 1, "kind": "vertical", "version": "0", "name": "two", "method": "proto-evfl", "seed": 0,
        "rounds": len(losses), "seconds": 1.0, "parties": ["bank", "shop"], "classes": ["[/b]", "low"], "unseen": [],
        "aligned": 20, "rows": {"bank": 30, "shop": 40}, "final": score, "alone": None, "bytes": {"shop": traffic},
        "history": [{"round": i, "loss": loss} for i, loss in enumerate(losses, 1)], "excluded": {},
        "coverage": [[3.0, 4.0], [5.0, 6.0]], "plane": [[[0.0, 1.0], [1.0, 0.0]]] * 2,
    }  # fmt: skip


def page(folder: Path, found: dict[str, Any]) -> str:
    (folder / "metrics.json").write_text(json.dumps(found))
    return write_vertical_report(folder).read_text()


def test_a_run_that_diverged_has_a_page_that_says_so(tmp_path: Path) -> None:
    text = page(tmp_path, metrics([0.7, 0.6, math.nan, math.nan, 0.5]))
    assert "The loss is not a number in 2 of 5 rounds, first in round 3: the training diverged." in text
    line = re.search(r'<path class="line shared" d="([^"]*)"', text)
    assert line and line[1].count("M") == 2 and line[1].count("L") == 1  # rounds 1 and 2, a gap, round 5
    assert "not a number" not in page(tmp_path, metrics([0.7, 0.6]))


def test_a_page_without_a_single_number_is_still_one(tmp_path: Path) -> None:
    spoiled = metrics([math.nan]) | {"coverage": [[math.nan] * 2] * 2, "plane": [[[math.nan] * 2] * 2] * 2}
    text = page(tmp_path, spoiled | {"gate": [[math.nan] * 2] * 2, "final": None, "seconds": math.inf})
    assert "1 of 1 rounds" in text and "nan" not in text.lower()


@pytest.mark.parametrize(("final", "said"), [(None, "no test people were given"), ({}, "no test person has a label")])
def test_a_page_without_scores_says_why(final: dict[str, Any] | None, said: str, tmp_path: Path) -> None:
    text = page(tmp_path, metrics([0.7]) | {"final": final})
    assert f"2 parties trained on 20 aligned people; {said}." in text


@pytest.mark.parametrize("text", ["", "[]", "{", json.dumps({"schema": 2})])
def test_damaged_or_newer_metrics_are_refused_by_name(tmp_path: Path, text: str) -> None:
    (tmp_path / "metrics.json").write_text(text)
    with pytest.raises(ReportError, match=r"metrics\.json"):
        write_vertical_report(tmp_path)
