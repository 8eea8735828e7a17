"""Clipping, noise and accounting against what the definitions say."""

from __future__ import annotations

import math
import os
import random
import re
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import brentq
from scipy.stats import kstest, norm
from torch import Tensor

from h2tune.aggregation.base import Mean
from h2tune.aggregation.private import Private, clipped, epsilon, noise_in_words, rounds_within, standard_normal
from h2tune.core.client_core import CoreShape

SHAPE = CoreShape(2, 3, ("q", "k"))
WHOLE = torch.ones(2, 2, 3, 3, dtype=torch.bool)


def repeatable(count: int) -> bytes:
    return random.Random(0).randbytes(count)


def drawn(seed: int, scale: float = 1.0, rank: int = 3) -> Tensor:
    return scale * torch.randn(2, 2, rank, rank, generator=torch.Generator().manual_seed(seed))


def test_small_vectors_are_clipped_by_hand() -> None:
    update, coverage = torch.tensor([3.0, 4.0, 100.0]), torch.tensor([True, True, False])
    assert clipped(update, coverage, 10.0).tolist() == [3.0, 4.0, 0.0]
    assert clipped(update, coverage, 5.0).tolist() == [3.0, 4.0, 0.0]
    torch.testing.assert_close(clipped(update, coverage, 1.0), torch.tensor([0.6, 0.8, 0.0]))
    assert clipped(torch.zeros(3), coverage, 1.0).tolist() == [0.0, 0.0, 0.0]


@given(st.integers(0, 99), st.floats(1e-6, 1e30), st.floats(1e-3, 10))
def test_nothing_is_longer_than_the_limit(seed: int, scale: float, limit: float) -> None:
    update = drawn(seed, scale).double()
    cut = clipped(update, WHOLE, limit)
    assert float(cut.norm()) <= limit * (1 + 1e-12)
    assert float((cut * update.norm() - update * cut.norm()).norm()) <= 1e-9 * float(cut.norm() * update.norm())


def test_the_noise_is_normal_and_never_the_same() -> None:
    numbers = standard_normal((200, 500))
    assert kstest(numbers.flatten().numpy(), norm.cdf).pvalue > 1e-6
    assert abs(float(numbers.mean())) < 0.02 and abs(float(numbers.std()) - 1) < 0.02
    torch.manual_seed(0)
    first = standard_normal((50,))
    torch.manual_seed(0)
    assert not torch.equal(first, standard_normal((50,)))
    assert torch.equal(standard_normal((50,), repeatable), standard_normal((50,), repeatable))


def mean_of(updates: dict[str, Tensor], covers: dict[str, Tensor], noise: float, before: Tensor) -> Tensor:
    total = started(0.5, noise, covers, before, repeatable)
    for name, update in updates.items():
        r = update.shape[-1]
        core = before[..., :r, :r].double() + update.double()
        total.fold(name, core, covers[name][..., :r, :r], 1)
    return total.result()


def started(clip: float, noise: float, covers: dict[str, Tensor], before: Tensor, source: Any = os.urandom) -> Private:
    total = Private(Mean(unread), clip, noise, source)
    total.start(before, covers)
    return total


def unread(client: str, tensors: Any) -> tuple[Tensor, Tensor]:
    raise AssertionError("these tests fold cores in directly")


def test_a_round_equals_plain_numpy() -> None:
    corner = WHOLE.clone()
    corner[..., 2, :], corner[..., 2], corner[0, 0] = False, False, False
    covers = {"a": WHOLE, "b": WHOLE, "small": corner, "silent": WHOLE}
    updates = {"a": drawn(1), "b": drawn(2, 0.01), "small": drawn(3, rank=2)}
    before = drawn(4)
    total, count = np.zeros((2, 2, 3, 3)), sum(c.numpy().astype(int) for c in covers.values())
    for name, update in updates.items():
        padded = np.zeros((2, 2, 3, 3))
        r = update.shape[-1]
        padded[..., :r, :r] = update.numpy()
        padded *= covers[name].numpy()
        total += padded * min(1.0, 0.5 / np.linalg.norm(padded))
    noise = 2.0 * 0.5 * standard_normal((2, 2, 3, 3), repeatable).numpy()
    wanted = before.numpy() + (total + noise) / count  # the silent client still counts
    np.testing.assert_allclose(mean_of(updates, covers, 2.0, before), wanted, rtol=1e-6)


def test_entries_of_nobody_stay_and_entries_of_few_have_more_noise() -> None:
    one = torch.zeros_like(WHOLE)
    one[0] = True
    two = torch.zeros_like(WHOLE)
    two[0, 0] = True
    covers, before = {"a": one, "b": two}, drawn(0)
    found = [mean_of_fresh(covers, before) for _ in range(600)]
    spread = torch.stack(found).double().std(0)
    assert torch.equal(found[0][1], before[1])
    assert spread[0, 0].mean() == pytest.approx(3.0 * 0.5 / 2, rel=0.05)
    assert spread[0, 1].mean() == pytest.approx(3.0 * 0.5, rel=0.05)


def mean_of_fresh(covers: dict[str, Tensor], before: Tensor) -> Tensor:
    total = started(0.5, 3.0, covers, before)
    for name, cover in covers.items():
        total.fold(name, before, cover, 1)
    return total.result()


@given(st.integers(0, 99), st.floats(1e-3, 1e9))
def test_one_client_more_or_less_moves_the_sum_by_the_clip_at_most(seed: int, scale: float) -> None:
    updates = {name: drawn(seed + i, scale) for i, name in enumerate("abc")}
    covers = dict.fromkeys("abc", WHOLE)
    with_c = mean_of(updates, covers, 1.0, torch.zeros(2, 2, 3, 3))
    without = mean_of({n: u for n, u in updates.items() if n != "c"}, covers, 1.0, torch.zeros(2, 2, 3, 3))
    assert float(3 * (with_c - without).double().norm()) <= 0.5 * (1 + 1e-5)


def test_a_client_that_covers_something_else_is_refused() -> None:
    total = started(1.0, 1.0, {"a": WHOLE}, torch.zeros(2, 2, 3, 3))
    fewer = WHOLE.clone()
    fewer[0, 0, 0, 0] = False
    for coverage in (fewer, WHOLE[..., :2, :2]):
        with pytest.raises(ValueError, match="covers"):
            total.fold("a", torch.zeros(coverage.shape), coverage, 1)


def renyi(noise: float, rounds: int, delta: float) -> float:
    """Gaussian mechanism: RDP(alpha) = alpha / (2 noise^2); to (epsilon, delta) by Canonne et al. 2020, prop. 12."""
    alphas = 1 + np.logspace(-3, 4, 20_000)
    spent = rounds * alphas / (2 * noise**2)
    return float((spent + np.log1p(-1 / alphas) - (math.log(delta) + np.log(alphas)) / (alphas - 1)).min())


def exact(noise: float, rounds: int, delta: float) -> float:
    """The analytic Gaussian mechanism (Balle and Wang 2018, theorem 8); rounds compose to one with less noise."""
    s = noise / math.sqrt(rounds)

    def gap(e: float) -> float:
        return norm.cdf(1 / (2 * s) - e * s) - math.exp(e + norm.logcdf(-1 / (2 * s) - e * s)) - delta

    return float(brentq(gap, 0, 2000))


@pytest.mark.parametrize(("noise", "rounds"), [(0.7, 1), (1.0, 1), (1.0, 20), (4.0, 100), (12.0, 50)])
@pytest.mark.parametrize("delta", [1e-5, 1e-3])
def test_epsilon_equals_independent_accountants(noise: float, rounds: int, delta: float) -> None:
    pytest.importorskip("dp_accounting")
    found = epsilon([noise] * rounds, delta)
    assert found == pytest.approx(renyi(noise, rounds, delta), rel=0.01)
    assert exact(noise, rounds, delta) <= found <= 1.35 * exact(noise, rounds, delta)


@pytest.mark.parametrize(("noise", "rounds"), [(1.0, 10), (4.0, 100)])
def test_epsilon_equals_that_of_opacus(noise: float, rounds: int) -> None:
    pytest.importorskip("dp_accounting")
    accountants = pytest.importorskip("opacus.accountants")
    other = accountants.RDPAccountant()
    for _ in range(rounds):
        other.step(noise_multiplier=noise, sample_rate=1.0)
    assert epsilon([noise] * rounds, 1e-5) == pytest.approx(other.get_epsilon(1e-5), rel=0.01)


def test_rounds_of_different_noise_compose_and_the_budget_is_never_exceeded() -> None:
    pytest.importorskip("dp_accounting")
    assert epsilon([], 1e-5) == 0.0
    assert epsilon([1.0, 2.0], 1e-5) == epsilon([2.0, 1.0], 1e-5) > epsilon([1.0], 1e-5)
    for budget in (1.0, 8.0, 20.0, 1e9):
        count = rounds_within(1.0, 1e-5, budget, 30)
        assert epsilon([1.0] * count, 1e-5) <= budget
        assert count == 30 or epsilon([1.0] * (count + 1), 1e-5) > budget


def test_the_sentence_about_noise_says_what_the_noise_is() -> None:
    """Its norm is measured with the aggregator itself, on updates of zero."""
    clients, noise, clip, shape = 3, 2.0, 0.5, (4, 3, 8, 8)
    covers = {f"c{i}": torch.ones(shape, dtype=torch.bool) for i in range(clients)}
    private = Private(Mean(lambda payload: (payload, payload)), clip, noise)
    private.start(torch.zeros(shape), covers)
    for name, coverage in covers.items():
        private.fold(name, torch.zeros(shape), coverage, 1)
    measured = float(private.result().norm())
    said = noise_in_words(noise, clip, clients, 4 * 3 * 8 * 8)
    assert abs(float(re.search(r"has norm ([0-9.]+)", said)[1]) / measured - 1) < 0.15
    assert "the updates drown; from about 111 clients a round on" in said
    assert "that is 45% of it" in noise_in_words(noise, clip, 123, 768) and "from about" not in noise_in_words(
        2, 1, 123, 768
    )
