"""The pictures of a vertical report."""

from __future__ import annotations

import re

import pytest

from h2tune.report.vertical_page import LONGEST, PLANE, plane

LABEL = re.compile(r'<text class="tick mid" x="([\d.]+)" y="([\d.]+)">([^<]*)</text>')


@pytest.mark.parametrize("name", ["a", "rare (unseen)", "hypertension, not treated"])
@pytest.mark.parametrize("corner", [(-1.0, -1.0), (-1.0, 1.0), (1.0, -1.0), (1.0, 1.0), (0.0, 0.0)])
def test_a_label_stays_in_its_picture_and_a_cut_one_says_so(name: str, corner: tuple[float, float]) -> None:
    ((x, y, text),) = LABEL.findall(str(plane([(name, corner)], "class means")))
    half = 3 * len(text)  # 11 pixels high letters are 6 wide at most
    assert half <= float(x) <= PLANE - half and 10 < float(y) < PLANE
    assert text == name if len(name) <= LONGEST else (len(text) == LONGEST and text.endswith("…"))
