"""What a vertical method is here: options of the protocol, or a training of its own over all parties' tensors.

Methods of the first kind run as a federation does, message by message. Methods of the second kind are rivals that are
trained in one process from the same rows; no message format was built for them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from h2tune.vertical.config import VerticalConfig, parse_vertical

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
