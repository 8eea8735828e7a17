"""The rules of the methods for equal models, against plain NumPy statements of the papers' formulas.

Defects of published code, and near misses of the same kind, are planted at the end of the file: each must make its guard
fail. What goes wrong between clients and server is planted in test_published_defects.py.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from h2tune.methods import flexlora
from h2tune.methods.factors import Pair, mean, stack
from h2tune.methods.fedex import remainder
from h2tune.methods.fedit import FedItServer
from h2tune.methods.fedsa import FedSaServer
from h2tune.methods.ffa import FfaServer
from h2tune.methods.flexlora import FlexLoraServer, product_svd
from h2tune.methods.flora import FloraServer
from h2tune.methods.hetlora import HetLoraServer, HetLoraSettings
from h2tune.methods.lora_fair import correction, objective

SEEDS = pytest.mark.parametrize("seed", range(4))
D_IN, D_OUT, RANK = 7, 5, 3


def pairs(seed: int, ranks: tuple[int, ...] = (3, 3, 3)) -> tuple[list[Pair], list[float]]:
    rng = np.random.default_rng(seed)
    made = [(torch.tensor(rng.normal(size=(r, D_IN))), torch.tensor(rng.normal(size=(D_OUT, r)))) for r in ranks]
    counts = rng.integers(1, 90, len(ranks))
    return made, (counts / counts.sum()).tolist()


def server(kind: type, **settings: Any) -> Any:
    return kind(SimpleNamespace(rank=RANK), SimpleNamespace(**settings))


def numpy_pairs(made: list[Pair]) -> list[tuple[np.ndarray, np.ndarray]]:
    return [(a.numpy(), b.numpy()) for a, b in made]


def mean_product(made: list[Pair], weights: list[float]) -> np.ndarray:
    return sum(p * b @ a for p, (a, b) in zip(weights, numpy_pairs(made), strict=True))


@SEEDS
def test_fedit_is_the_weighted_mean_of_every_client(seed: int) -> None:
    # The FLoRA repository's FedIT keeps p_0 times the first client only.
    made, p = pairs(seed)
    a, b = server(FedItServer).combine(made, p)
    np.testing.assert_allclose(a, sum(w * x for w, (x, _) in zip(p, numpy_pairs(made), strict=True)))
    np.testing.assert_allclose(b, sum(w * x for w, (_, x) in zip(p, numpy_pairs(made), strict=True)))
    assert np.abs(b.numpy() @ a.numpy() - mean_product(made, p)).max() > 0.1  # the rule is biased, and we know it


@SEEDS
def test_ffa_and_fedsa_share_one_factor(seed: int) -> None:
    made, p = pairs(seed)
    a0 = made[0][0]
    same_a = [(a0, b) for _, b in made]
    none, b = server(FfaServer).combine([(None, b) for _, b in made], p)
    assert none is None
    np.testing.assert_allclose(b.numpy() @ a0.numpy(), mean_product(same_a, p))  # exact, because A is common
    a, none = server(FedSaServer).combine([(a, None) for a, _ in made], p)
    assert none is None
    np.testing.assert_allclose(a, sum(w * x for w, (x, _) in zip(p, numpy_pairs(made), strict=True)))


@SEEDS
@pytest.mark.parametrize("ranks", [(3, 3, 3), (1, 3, 2), (2,)])
def test_flora_gives_exactly_the_mean_of_the_products(seed: int, ranks: tuple[int, ...]) -> None:
    # Weighting A and B both would square the weights; recognising a rank by shape[0] fails when d_in is a rank.
    made, p = pairs(seed, ranks)
    a, b = server(FloraServer).combine(made, p)
    assert a.shape == (sum(ranks), D_IN)
    np.testing.assert_allclose(b.numpy() @ a.numpy(), mean_product(made, p), atol=1e-12)


@SEEDS
def test_fedex_adds_exactly_what_the_means_miss(seed: int) -> None:
    made, p = pairs(seed)
    shared = mean([a for a, _ in made], p), mean([b for _, b in made], p)
    a, b = remainder(made, p, shared)
    whole = b.numpy() @ a.numpy() + shared[1].numpy() @ shared[0].numpy()
    np.testing.assert_allclose(whole, mean_product(made, p), atol=1e-12)


@SEEDS
@pytest.mark.parametrize("ranks", [(3, 3, 3), (1, 3, 2)])
def test_flexlora_is_the_truncated_svd_of_the_mean(seed: int, ranks: tuple[int, ...]) -> None:
    made, p = pairs(seed, ranks)
    a, b = server(FlexLoraServer).combine(made, p)
    u, s, vt = np.linalg.svd(mean_product(made, p))
    for r in range(1, RANK + 1):  # every client's cut is the best approximation of its rank
        best = u[:, :r] * s[:r] @ vt[:r]
        np.testing.assert_allclose(b[:, :r].numpy() @ a[:r].numpy(), best, atol=1e-10)
    np.testing.assert_allclose(a @ a.T, np.eye(RANK), atol=1e-10)


def test_flexlora_on_a_map_smaller_than_the_rank() -> None:
    made, p = pairs(0, (2, 2))
    kind = FlexLoraServer(SimpleNamespace(rank=6), SimpleNamespace())  # type: ignore[arg-type]
    a, b = kind.combine(made, p)
    assert a.shape == (6, D_IN)
    np.testing.assert_allclose(b.numpy() @ a.numpy(), mean_product(made, p), atol=1e-10)


@SEEDS
def test_product_svd_builds_no_dense_product_but_equals_it(seed: int) -> None:
    made, p = pairs(seed)
    u, s, vh = product_svd(*stack(made, p))
    np.testing.assert_allclose((u * s @ vh).numpy(), mean_product(made, p), atol=1e-12)


@SEEDS
def test_hetlora_weights_by_norm_and_pads_with_zeros(seed: int) -> None:
    # The H2Tune release rotates A and B by unrelated bases and uses no weights at all.
    made, p = pairs(seed, (1, 3, 2))
    a, b = HetLoraServer(SimpleNamespace(rank=RANK), HetLoraSettings()).combine(made, p)  # type: ignore[arg-type]
    norms = [np.linalg.norm(y @ x) for x, y in numpy_pairs(made)]
    want_a, want_b = np.zeros((RANK, D_IN)), np.zeros((D_OUT, RANK))
    for norm, (x, y) in zip(norms, numpy_pairs(made), strict=True):
        want_a[: len(x)] += norm / sum(norms) * x
        want_b[:, : len(x)] += norm / sum(norms) * y
    np.testing.assert_allclose(a, want_a)
    np.testing.assert_allclose(b, want_b)


def test_hetlora_before_anything_is_learnt() -> None:
    made, p = pairs(0)
    zero = [(a, torch.zeros_like(b)) for a, b in made]
    a, b = HetLoraServer(SimpleNamespace(rank=RANK), HetLoraSettings()).combine(zero, p)  # type: ignore[arg-type]
    assert torch.isfinite(a).all() and not b.any()


@SEEDS
def test_lora_fair_finds_the_best_correction(seed: int) -> None:
    made, p = pairs(seed)
    a, b = correction(made, p, 0.01)
    shared = [x.numpy() for x in (mean([a for a, _ in made], p), mean([b for _, b in made], p))]
    target = mean_product(made, p)

    def loss(flat: np.ndarray) -> float:
        delta = flat.reshape(D_OUT, RANK)
        got = (shared[1] + delta) @ shared[0]
        cosine = (got * target).sum() / np.linalg.norm(got) / np.linalg.norm(target)
        return 1 - cosine + 0.01 * np.linalg.norm(delta)

    found = loss((b.numpy() - shared[1]).ravel())
    np.testing.assert_allclose(a, shared[0])
    assert found < loss(np.zeros(D_OUT * RANK)) - 1e-3
    starts = [np.zeros(D_OUT * RANK) + 1e-3 * np.random.default_rng(k).normal(size=D_OUT * RANK) for k in range(3)]
    assert found <= min(minimize(loss, x, method="BFGS").fun for x in starts) + 1e-4
    delta = torch.tensor(b.numpy() - shared[1])
    ours = objective(delta, stack(made, p), (torch.tensor(shared[0]), torch.tensor(shared[1])), 0.01)
    assert abs(float(ours) - found) < 1e-9


@pytest.mark.parametrize("kind", [FedItServer, FlexLoraServer, HetLoraServer, FloraServer])
def test_equal_clients_come_out_equal(kind: type) -> None:
    (pair, *_), _ = pairs(0)
    a, b = kind(SimpleNamespace(rank=RANK), SimpleNamespace()).combine([pair, pair, pair], [0.2, 0.5, 0.3])
    np.testing.assert_allclose((b @ a).numpy(), (pair[1] @ pair[0]).numpy(), atol=1e-12)
    if kind is FedItServer:
        assert torch.equal(a, pair[0]) and torch.equal(b, pair[1])


# The published defects, planted: each must make the test fail that stands guard over it.


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


def first_client_only_of_b(self: Any, pairs: Any, weights: Any) -> Any:
    return None, weights[0] * pairs[0][1]


def first_client_only_of_a(self: Any, pairs: Any, weights: Any) -> Any:
    return weights[0] * pairs[0][0], None


def remainder_of_equal_clients(pairs: Any, weights: Any, shared: Any) -> Any:
    """FedEx as if all clients had as many examples: right in the paper's experiments only."""
    return stack([*pairs, shared], [*[1 / len(pairs)] * len(pairs), -1.0])


def no_correction(pairs: Any, weights: Any, penalty: float) -> Any:
    """LoRA-FAIR that is FedIT."""
    return mean([a for a, _ in pairs], weights), mean([b for _, b in pairs], weights)


HERE = sys.modules[__name__]
PLANTED: list[tuple[Any, str, Callable, Callable, tuple]] = [
    (FedItServer, "combine", first_client_only, test_fedit_is_the_weighted_mean_of_every_client, (0,)),
    (FloraServer, "combine", weighted_twice, test_flora_gives_exactly_the_mean_of_the_products, (0, (3, 3, 3))),
    (FloraServer, "combine", first_client_only, test_equal_clients_come_out_equal, (FloraServer,)),
    (HetLoraServer, "combine", svd_of_each_factor, test_hetlora_weights_by_norm_and_pads_with_zeros, (0,)),
    (FlexLoraServer, "combine", means_not_products, test_flexlora_is_the_truncated_svd_of_the_mean, (0, (3, 3, 3))),
    (FfaServer, "combine", first_client_only_of_b, test_ffa_and_fedsa_share_one_factor, (0,)),
    (FedSaServer, "combine", first_client_only_of_a, test_ffa_and_fedsa_share_one_factor, (0,)),
    (HERE, "remainder", remainder_of_equal_clients, test_fedex_adds_exactly_what_the_means_miss, (0,)),
    (HERE, "correction", no_correction, test_lora_fair_finds_the_best_correction, (0,)),
]


@pytest.mark.parametrize(
    ("owner", "name", "defect", "guard", "arguments"), PLANTED, ids=lambda v: getattr(v, "__name__", None)
)
def test_the_guard_notices(
    owner: Any, name: str, defect: Callable, guard: Callable, arguments: tuple, monkeypatch: pytest.MonkeyPatch
) -> None:
    guard(*arguments)
    monkeypatch.setattr(owner, name, defect)
    with pytest.raises(AssertionError):
        guard(*arguments)
