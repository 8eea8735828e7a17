"""An upper bound: one network over all columns, with the labels of all rows that any party has. Needs the pooled table."""

from __future__ import annotations

from typing import Any

import pandas as pd
import torch
from torch import Tensor

from h2tune.utils.seeds import derive
from h2tune.vertical.config import VerticalConfig
from h2tune.vertical.encoder import make_encoder
from h2tune.vertical.fuse import loss
from h2tune.vertical.methods.training import optimise, shares_of
from h2tune.vertical.metrics import score
from h2tune.vertical.table import Columns


def evaluate_central(
    config: VerticalConfig, train: pd.DataFrame, test: pd.DataFrame, classes: list[str]
) -> dict[str, Any]:
    """Train on the pooled table and score; no party of a federation could."""
    names = [name for name in train.columns if name != config.label.column]
    columns = Columns.fit(train, names)
    x, probe = columns.apply(train, "pooled table"), columns.apply(test, "pooled test table")
    code = {name: index for index, name in enumerate(classes)}
    y, truth = (torch.tensor([code[str(v)] for v in frame[config.label.column]]) for frame in (train, test))
    network = make_encoder(x.shape[1], config.training.hidden, len(classes), derive(config.seed, "central"))
    shares = shares_of(y, len(classes))

    def step(rows: Tensor, generator: torch.Generator) -> Tensor:
        return loss(network(x[rows]), y[rows], shares).mean()

    optimise(config, network.parameters(), config.rounds * 3, step, len(y), "central", config.training.average)
    with torch.no_grad():
        return score(network(probe).argmax(1), truth, [])
