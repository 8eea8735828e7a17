"""What a vertical method is here: options of the protocol, or a training of its own over all parties' tensors.

Methods of the first kind run as a federation does, message by message. Methods of the second kind are rivals that are
trained in one process from the same rows; no message format was built for them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from h2tune.vertical.active import Active
from h2tune.vertical.config import VerticalConfig, parse_vertical
from h2tune.vertical.exchange import Direct
from h2tune.vertical.federation import fit, salt_of
from h2tune.vertical.fuse import predict
from h2tune.vertical.meeting import Meeting, meet
from h2tune.vertical.metrics import score
from h2tune.vertical.parties import PartyData
from h2tune.vertical.passive import Passive

Data = dict[str, PartyData]
Candidate = dict[str, Any]
"""Values by `section.key` that tuning may choose; every method has four candidates."""

PLAIN: Candidate = {}
FASTER: Candidate = {"training.learning_rate": 4e-3}
AUGMENTED: Candidate = {"training.augment": 0.1}


class Trained(Protocol):
    """Class scores of a trained model on the test people."""

    def __call__(self) -> tuple[Tensor, Tensor]:
        """Scores (n x C), and the classes that may be predicted (C, bool)."""


@dataclass(frozen=True)
class Method:
    """A method of vertical federated learning.

    Attributes:
        name: as in `method.name`.
        says: one line about it.
        source: paper.
        options: sections of the config that it sets, for methods of the protocol.
        train: its own training, for the others.
        alone: whether only the active party takes part.
        tuned: values that tuning chooses from, by `section.key`.
    """

    name: str
    says: str
    source: str
    options: dict[str, dict[str, Any]] | None = None
    train: Callable[[VerticalConfig, Pooled], Trained] | None = None
    alone: bool = False
    tuned: tuple[Candidate, ...] = (PLAIN,)


def configure(config: VerticalConfig, method: Method) -> VerticalConfig:
    """The config with the method's options in place."""
    plain = config.model_dump(mode="json")
    for section, values in (method.options or {}).items():
        plain[section] |= values
    plain["method"]["name"] = method.name
    if method.alone:
        plain["parties"] = [party for party in plain["parties"] if party["name"] == config.label.party]
    return parse_vertical(plain)


def evaluate(config: VerticalConfig, method: Method, data: Data) -> dict[str, Any]:
    """Train a method and score it on the test people; see `h2tune.vertical.metrics.score`."""
    if method.train is None:
        active = fit(configure(config, method), data)
        return dict(active.history[-1].get("test") or {})
    pooled = pool(config, data)
    scores, seen = method.train(config, pooled)()
    return score(predict(scores, seen), pooled.test_y, pooled.unseen)


@dataclass(frozen=True)
class Pooled:
    """All parties' rows in one process, as rivals of the second kind see them.

    Attributes:
        x, present, y: features of the aligned people at each party (K of N x m), who has them (N x K), classes (N).
        free, labels: each party's unaligned rows and their classes, -1 for none.
        test_x, test_present, test_y: the same for the test people.
        unseen: classes that the active party has no row of.
    """

    classes: int
    x: list[Tensor]
    present: Tensor
    y: Tensor
    free: list[Tensor]
    labels: list[Tensor]
    test_x: list[Tensor]
    test_present: Tensor
    test_y: Tensor
    unseen: list[int]
    counts: Tensor


def pool(config: VerticalConfig, data: Data) -> Pooled:
    """Match the parties as a federation does, and gather what each would use."""
    parties = {p.name: Passive(config, data[p.name], salt_of(config, p.name)) for p in config.passive}
    exchange = Direct(dict(parties))
    own = data[config.label.party]
    meeting: Meeting = meet(config, own, salt_of(config, own.name), exchange)
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
        active.test_labels(),
        active.labels.unseen,
        active.top.counts,
    )
