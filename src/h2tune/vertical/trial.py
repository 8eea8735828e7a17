"""Train a method in memory and score it on the test people: for comparisons of many runs."""

from __future__ import annotations

from typing import Any

import torch

from h2tune.vertical.active import Active
from h2tune.vertical.config import VerticalConfig
from h2tune.vertical.evaluation import test_labels
from h2tune.vertical.exchange import Direct
from h2tune.vertical.federation import fit, salt_of
from h2tune.vertical.fuse import predict
from h2tune.vertical.meeting import meet
from h2tune.vertical.methods.base import Method, Pooled, configure
from h2tune.vertical.metrics import score
from h2tune.vertical.parties import PartyData
from h2tune.vertical.passive import Passive

Data = dict[str, PartyData]


def evaluate(config: VerticalConfig, method: Method, data: Data) -> dict[str, Any]:
    """Train a method and score it on the test people; see `h2tune.vertical.metrics.score`."""
    if method.train is None:
        active = fit(configure(config, method), data)
        return dict(active.result.get("test") or {})
    pooled = pool(config, data)
    scores, seen = method.train(config, pooled)()
    return score(predict(scores, seen), pooled.test_y, pooled.unseen)


def pool(config: VerticalConfig, data: Data) -> Pooled:
    """Match the parties as a federation does, and gather what each would use."""
    parties = {p.name: Passive(config, data[p.name], salt_of(config, p.name)) for p in config.passive}
    exchange = Direct(dict(parties))
    own = data[config.label.party]
    meeting = meet(config, own, salt_of(config, own.name), exchange)
    active = Active(config, own, meeting, exchange)
    rows = torch.arange(len(active.labels.y))
    tests = own.test.x if own.test else own.train.x[:0]
    test_x = [tests]
    for passive in parties.values():
        places = passive.tests.clamp_min(0)
        source = passive.data.test
        test_x.append(source.x[places] if source else torch.zeros(len(tests), passive.data.width))
    return Pooled(
        len(meeting.classes),
        [own.train.x[meeting.rows], *(p.aligned_rows(rows)[0] for p in parties.values())],
        meeting.present,
        active.labels.y,
        [active.labels.own_x, *(p.free_x for p in parties.values())],
        [active.labels.own_y, *(p.free_labels for p in parties.values())],
        test_x,
        meeting.test_present,
        test_labels(active),
        active.labels.unseen,
        active.top.counts,
    )
