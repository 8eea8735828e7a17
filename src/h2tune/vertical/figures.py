"""What the report draws: coverage, prototypes in a plane, gate weights, confusion. Only what the active party knows."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from h2tune.vertical import fuse
from h2tune.vertical.active import Active
from h2tune.vertical.evaluation import test_labels, views
from h2tune.vertical.metrics import confusion

SHOWN = 2000  # test rows that gate weights are averaged over


def pictures(active: Active) -> dict[str, Any]:
    """Plain values for the report's pictures."""
    found: dict[str, Any] = {"coverage": active.top.counts.tolist(), "plane": plane(active.top.mu)}
    if not len(active.meeting.test_rows):
        return found
    with torch.no_grad():
        present, labels = active.meeting.test_present & active.here(), test_labels(active)
        z = views(active, "test")
        scores = active.top.scores(z, present)
        predicted = fuse.predict(scores, active.top.possible(present))
        weights = active.top.gate_weights(z, fuse.view_logits(z, active.top.nu), active.top.counts, present)
    found["confusion"] = confusion(predicted, labels, len(active.classes))
    found["gate"] = weights[:SHOWN].mean(0).tolist()
    return found


def plane(mu: Tensor) -> list[list[list[float]]]:
    """Each party's class means (K x C x d) in the plane of their two largest principal components (K x C x 2)."""
    found = []
    for means in mu:
        used = means.norm(dim=1) > 0
        centre = means[used].mean(0) if bool(used.any()) else means.mean(0)
        moved = torch.where(used[:, None], means - centre, 0.0)
        axes = torch.linalg.svd(moved, full_matrices=False).Vh[:2]
        flat = moved @ axes.T
        found.append(torch.nn.functional.pad(flat, (0, 2 - flat.shape[1])).tolist())
    return found
