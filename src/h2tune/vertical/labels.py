"""The active party's labels as numbers: which rows are trained on, how many there are of each class, and their privacy."""

from __future__ import annotations

import torch
from torch import Tensor

from h2tune.vertical import exposure
from h2tune.vertical.config import VerticalConfig
from h2tune.vertical.encoder import batch_rows
from h2tune.vertical.meeting import Meeting
from h2tune.vertical.parties import Rows
from h2tune.vertical.priors import class_shares


class Labels:
    """Labels of the aligned people, and of the active party's other rows.

    With ``label_dp`` every label is randomised once, here, and nothing that is trained or sent follows from the true ones;
    counts are estimates of the true counts. The draws follow from a secret of the active party, so that a resumed run repeats
    them and nobody else can.

    Attributes:
        y: classes of the aligned people (N).
        trained: which of them are trained on (N, bool).
        validation: positions of those that are not.
        own_x, own_y: features and classes of the active party's other labelled rows.
        flip: chance of each label to be used as another (C x C), or None.
        aligned_counts: aligned rows of each class that each party has (K x C).
        own_counts: other rows of each class at the active party (C).
        shares: class shares of the aligned rows (C).
        unseen: classes that the active party has no row of that is trained on, by the true labels; for its report alone.
    """

    def __init__(self, config: VerticalConfig, rows: Rows, meeting: Meeting, secret: bytes) -> None:
        self.classes = len(meeting.classes)
        labels = true = numbers(rows.labels, meeting.classes)
        epsilon = config.exposure.label_dp
        self.flip = None if epsilon is None else exposure.flip_matrix(epsilon, self.classes)
        if epsilon is not None:
            private = exposure.randomise(labels.clamp_min(0), epsilon, self.classes, secret)
            labels = torch.where(labels >= 0, private, labels)
        own = labels >= 0
        own[meeting.rows] = False
        self.own_x, self.own_y, self.y = rows.x[own], labels[own], labels[meeting.rows]
        count = config.evaluation.kept(len(self.y))
        self.validation = (
            batch_rows(len(self.y), count, config.seed, "validation") if count else torch.zeros(0, dtype=torch.int64)
        )
        self.trained = torch.ones(len(self.y), dtype=torch.bool)
        self.trained[self.validation] = False
        used = [self.y[self.trained & meeting.present[:, k]] for k in range(meeting.present.shape[1])]
        self.aligned_counts = torch.stack([self._counted(y) for y in used])
        self.own_counts = self._counted(self.own_y)
        total = self._counted(self.y[self.trained])
        self.shares = total / total.sum()
        # An estimate is cut off at 0, also for a class that the party has rows of.
        seen = class_shares(torch.cat([true[own], true[meeting.rows[self.trained]]]), self.classes)
        self.unseen = torch.nonzero(seen <= 0)[:, 0].tolist()

    def _counted(self, labels: Tensor) -> Tensor:
        found = class_shares(labels, self.classes)
        return found if self.flip is None or not len(labels) else exposure.true_counts(found, self.flip)

    @property
    def counts(self) -> Tensor:
        """Labelled rows of each class at the active party (C)."""
        return self.shares * int(self.trained.sum()) + self.own_counts


def numbers(names: list[str | None], classes: list[str]) -> Tensor:
    """Class numbers (n), -1 where there is no name or one that is not a class."""
    code = {name: index for index, name in enumerate(classes)}
    return torch.tensor([-1 if name is None else code.get(name, -1) for name in names], dtype=torch.int64)
