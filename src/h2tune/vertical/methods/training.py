"""What rivals that are trained in one process share: batches, and a supervised loop."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor
from torch.nn import functional as F

from h2tune.utils.seeds import derive
from h2tune.vertical import average
from h2tune.vertical.config import VerticalConfig
from h2tune.vertical.encoder import adamw, batch_rows
from h2tune.vertical.priors import class_shares


def shares_of(labels: Tensor, classes: int) -> Tensor:
    """Class shares of labelled rows (C)."""
    found = class_shares(labels, classes)
    return found / found.sum()


def optimise(
    config: VerticalConfig, parameters: Iterable[Tensor], rounds: int, loss: Callable[[Tensor, torch.Generator], Tensor],
    rows: int, purpose: str, keep: float = 0.0,
) -> None:  # fmt: skip
    """As many steps as a federation has in so many rounds; ``loss`` gets aligned rows and a generator.

    Args:
        keep: as `training.average`; the weights are in the end their running average over rounds.
    """
    training, trained = config.training, dict(enumerate(parameters))
    optimiser = adamw(trained.values(), training.learning_rate, training.weight_decay)
    running: dict[int, Tensor] = {}
    for step in range(rounds * training.steps):
        generator = torch.Generator().manual_seed(derive(config.seed, purpose, step))
        value = loss(batch_rows(rows, training.batch, config.seed, purpose, step), generator)
        optimiser.zero_grad()
        torch.autograd.backward(value)
        optimiser.step()
        if keep and (step + 1) % training.steps == 0:
            now = {index: parameter.detach().clone() for index, parameter in trained.items()}
            running = average.moved(running, now, keep, (step + 1) // training.steps)
    with torch.no_grad():
        for index, value in running.items():
            trained[index].copy_(value)


def unlike(a: Tensor, b: Tensor) -> Tensor:
    """Minus the mean cosine of rows; no gradient reaches the second."""
    return -F.cosine_similarity(a, b.detach(), dim=1).mean()
