"""Ends a run when validation has not become better for some rounds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any


class EarlyStopping:
    """Watches the mean validation loss of each round's clients; test data never decides.

    Args:
        patience: rounds without a better mean after which the run ends; None never ends it.
    """

    def __init__(self, patience: int | None) -> None:
        self.patience, self.best, self.waited = patience, math.inf, 0

    @property
    def exhausted(self) -> bool:
        return self.patience is not None and self.waited >= self.patience

    def judge(self, losses: Sequence[float]) -> None:
        """Take in a round's validation losses (nats), one for each client; a round without any does not count."""
        if losses:
            mean = sum(losses) / len(losses)
            self.waited = 0 if mean < self.best else self.waited + 1
            self.best = min(self.best, mean)

    def plain(self) -> dict[str, Any]:
        return {"best": None if math.isinf(self.best) else self.best, "waited": self.waited}

    def load(self, plain: dict[str, Any]) -> None:
        """Inverse of `plain`."""
        self.best, self.waited = math.inf if plain["best"] is None else plain["best"], plain["waited"]
