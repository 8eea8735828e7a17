"""The active party's labels: x"""

from __future__ import annotations

import json
from typing import Any

import pytest
from vertical.tables import changed, config, planted

from h2tune.vertical.config import VerticalConfig
from h2tune.vertical.exchange import Direct
from h2tune.vertical.federation import load_parties, run, salt_of
from h2tune.vertical.labels import Labels
from h2tune.vertical.meeting import meet
from h2tune.vertical.passive import Passive


def labels_of(settings: VerticalConfig, frames: Any, secrets: int = 1) -> list[Labels]:
    """The labels of a federation that is about to run, drawn from so many secrets."""
    data = load_parties(settings, frames)
    parties = {p.name: Passive(settings, data[p.name], salt_of(settings, p.name)) for p in settings.passive}
    meeting = meet(settings, data["bank"], salt_of(settings, "bank"), Direct(dict(parties)))
    return [Labels(settings, data["bank"].train, meeting, bytes([i]) * 32) for i in range(secrets)]


def test_a_class_that_the_active_party_has_is_not_called_unseen_where_its_estimate_is_zero():
    def rarer(table):
        kept = table.index[table["kind"] == "class-3"][:4]
        return table[(table["kind"] != "class-3") | table.index.isin(kept)]

    drawn = labels_of(config(exposure={"label_dp": 1.0}), changed("bank", rarer), secrets=8)
    assert any(labels.counts[3] <= 0 for labels in drawn)  # the estimate, which is trained with
    assert all(labels.unseen == [] for labels in drawn)
    without = config(unseen=3, exposure={"label_dp": 1.0})
    assert all(labels.unseen == [3] for labels in labels_of(without, planted(unseen=3), secrets=4))


@pytest.mark.parametrize(("share", "kept"), [(0.0, 0), (0.001, 1), (0.0125, 1), (0.3, 24), (0.89, 71)])
def test_a_share_above_0_keeps_a_row_for_validation(share: float, kept: int, tmp_path):
    settings = config(rounds=1, baseline="none", evaluation={"every": 1, "validation": share})
    (labels,) = labels_of(settings, planted())
    assert len(labels.validation) == kept and int(labels.trained.sum()) == 80 - kept
    if kept == 1:
        metrics = run(settings, tmp_path / "run", frames=planted())
        assert metrics["validation"]["accuracy"] in (0, 1)
        said = [json.loads(line)["text"] for line in (tmp_path / "run" / "events.jsonl").read_text().splitlines()]
        assert "80 people are aligned, 1 of them kept for validation" in said
        assert any("1 of 80 aligned people is kept for validation" in text for text in said)


def test_a_run_tells_test_people_without_labels_from_none(tmp_path):
    settings, frames = config(rounds=1, baseline="none", evaluation={"every": 1}), planted()
    train, test = frames["bank"]
    blank = frames | {"bank": (train, test.assign(kind=None))}
    assert run(settings, tmp_path / "blank", frames=blank)["final"] == {}
    none = {name: (table, None) for name, (table, _) in frames.items()}
    assert run(settings, tmp_path / "none", frames=none)["final"] is None
