"""Scores and predictions of a federation for people whom several parties know, from the parties that answer."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from h2tune.protocol.codec import Payload
from h2tune.vertical import fuse
from h2tune.vertical.active import Active
from h2tune.vertical.labels import numbers
from h2tune.vertical.metrics import answers, score

CHUNK = 8192  # rows asked for at a time


def views(active: Active, split: str) -> list[Tensor]:
    """Embeddings of all aligned people of a split at every party (K of n x d); zeros for an absent party."""
    train = split == "train"
    own, rows = (active.data.train, active.meeting.rows) if train else (active.data.test, active.meeting.test_rows)
    with torch.no_grad():
        mine = active.shown[0](own.x[rows]) if own is not None else torch.zeros(0, active.config.training.dim)
    found = {name: torch.zeros_like(mine) for name in active.meeting.passive}
    for start in range(0, len(mine), CHUNK):
        stop = min(start + CHUNK, len(mine))
        meta = {"split": split, "start": start, "stop": stop}
        replies = active.exchange.ask("predict", {name: Payload(meta=dict(meta)) for name in active.exchange.here})
        for name, reply in replies.items():
            found[name][start:stop] = reply.tensors["z"]
    return [mine, *found.values()]


def evaluate(active: Active) -> dict[str, Any]:
    """Scores on the test people, and on validation rows if some were kept."""
    record: dict[str, Any] = {}
    if active.data.test is not None and len(active.data.test):
        z = views(active, "test")  # before asking who is here: a party may leave meanwhile
        record["test"] = _scored(active, z, active.meeting.test_present & active.here(), test_labels(active))
    rows = active.labels.validation
    if len(rows):
        z = [view[rows] for view in views(active, "train")]
        record["validation"] = _scored(active, z, active.meeting.present[rows] & active.here(), active.labels.y[rows])
    return record


def test_labels(active: Active) -> Tensor:
    """Class numbers of the test people, -1 where there is no label."""
    return numbers(active.data.test.labels if active.data.test else [], active.classes)


def predictions(active: Active) -> list[dict[str, Any]]:
    """Predictions for the test people; see `h2tune.vertical.metrics.answers`."""
    z = views(active, "test")
    present = active.meeting.test_present & active.here()
    with torch.no_grad():
        p = active.shown[1].probabilities(z, present)
    return answers(p, present, active.data.test.ids if active.data.test else [], active.classes, active.parties)


def _scored(active: Active, z: list[Tensor], present: Tensor, labels: Tensor) -> dict[str, Any]:
    with torch.no_grad():
        top = active.shown[1]
        found = fuse.predict(top.scores(z, present), top.possible(present))
    return score(found, labels, active.labels.unseen)
