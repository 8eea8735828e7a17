"""The active party's labels: what is said of classes under `label_dp`."""

from __future__ import annotations

from typing import Any

from vertical.tables import changed, config, planted

from h2tune.vertical.config import VerticalConfig
from h2tune.vertical.exchange import Direct
from h2tune.vertical.federation import load_parties, salt_of
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
