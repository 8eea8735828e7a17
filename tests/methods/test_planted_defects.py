"""The published defects, planted: each must make the test fail that stands guard over it (peers of the field, 2023 to 2026)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import test_factor_rules as rules
import torch

from h2tune.methods import flexlora, flora
from h2tune.methods.factors import mean
from h2tune.methods.fedit import FedItServer
from h2tune.methods.flora import FloraServer
from h2tune.methods.hetlora import HetLoraServer


def first_client_only(self: Any, pairs: Any, weights: Any) -> Any:
    """FLoRA's repository, branch FedIT: a misspelt name keeps p_0 times the first client's factors."""
    return weights[0] * pairs[0][0], weights[0] * pairs[0][1]


def weighted_twice(self: Any, pairs: Any, weights: Any) -> Any:
    """Stacking with the weights on A and on B."""
    a = torch.cat([w * a for (a, _), w in zip(pairs, weights, strict=True)])
    return a, torch.cat([w * b for (_, b), w in zip(pairs, weights, strict=True)], dim=1)


def svd_of_each_factor(self: Any, pairs: Any, weights: Any) -> Any:
    """H2Tune's release, `parameter_hetlora`: A and B are rotated by bases of their own, B A is lost."""
    rank = max(a.shape[0] for a, _ in pairs)
    padded = [(torch.nn.functional.pad(a, (0, 0, 0, rank - a.shape[0])),
               torch.nn.functional.pad(b, (0, rank - b.shape[1]))) for a, b in pairs]  # fmt: skip
    a, b = mean([a for a, _ in padded], weights), mean([b for _, b in padded], weights)
    return torch.linalg.svd(a @ a.T)[0].T @ a, b @ torch.linalg.svd(b.T @ b)[0]


def means_not_products(self: Any, pairs: Any, weights: Any) -> Any:
    """FlexLoRA from the means of the factors instead of the mean of the products."""
    a, b = mean([a for a, _ in pairs], weights), mean([b for _, b in pairs], weights)
    u, s, vh = flexlora.product_svd(a, b)
    return vh, u * s


PLANTED: list[tuple[type, Callable, Callable, tuple]] = [
    (FedItServer, first_client_only, rules.test_fedit_is_the_weighted_mean_of_every_client, (0,)),
    (FloraServer, weighted_twice, rules.test_flora_gives_exactly_the_mean_of_the_products, (0, (3, 3, 3))),
    (HetLoraServer, svd_of_each_factor, rules.test_hetlora_weights_by_norm_and_pads_with_zeros, (0,)),
    (
        flexlora.FlexLoraServer,
        means_not_products,
        rules.test_flexlora_is_the_truncated_svd_of_the_mean,
        (0, (3, 3, 3)),
    ),
    (flora.FloraServer, first_client_only, rules.test_equal_clients_come_out_equal, (FloraServer,)),
]


@pytest.mark.parametrize(
    ("owner", "defect", "guard", "arguments"), PLANTED, ids=lambda v: getattr(v, "__name__", None)
)
def test_the_guard_notices(
    owner: type, defect: Callable, guard: Callable, arguments: tuple, monkeypatch: pytest.MonkeyPatch
) -> None:
    guard(*arguments)
    monkeypatch.setattr(owner, "combine", defect)
    with pytest.raises(AssertionError):
        guard(*arguments)
