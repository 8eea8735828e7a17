"""The published filter as reconstructed: its rewards in closed form, and what its two networks fit."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from distill.test_learnability import scores

from h2tune.distill.bandit import Bandit, by_clusters, change, features, rewards


def sigma(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def test_without_change_a_reward_is_one_half_and_a_rise_is_good() -> None:
    assert change(0.5, 0.5) == 0 and change(0.6, 0.3) == 0.5 and change(0.3, 0.6) == -0.5 and change(0, 0) == 0
    same = rewards([([1, 2], 0.5), ([3], 0.5)], 2.0, 2.0, 0.5)
    assert same == {1: 0.5, 2: 0.5, 3: 0.5}


def test_what_the_next_batch_shows_rewards_the_batch_before_it() -> None:
    found = rewards([([1, 2], 0.5), ([3], 0.8), ([1], 0.6)], 4.0, 2.0, 0.25)
    whole = sigma((4 - 2) / 4)
    assert found[1] == found[2] == pytest.approx(0.25 * whole + 0.75 * sigma((0.8 - 0.5) / 0.8))
    assert found[3] == pytest.approx(0.25 * whole + 0.75 * sigma((0.6 - 0.8) / 0.8))
    assert rewards([([7], 0.5)], 4.0, 2.0, 0.25) == {7: pytest.approx(whole)}  # the last batch has the round's only


def test_the_first_network_fits_the_reward_and_the_second_what_is_left() -> None:
    rng = np.random.default_rng(0)
    z = rng.normal(size=(64, 7)).astype(np.float32)
    r = [0.9 if row[0] > 0 else 0.1 for row in z]
    bandit = Bandit(1)
    bandit.learn(z, r)
    for _ in range(30):
        bandit.learn(z[:0], [])  # all that was seen is replayed every time
    with torch.no_grad():
        common, hidden = bandit.exploit(torch.from_numpy(z))
        rest = bandit.explore(hidden)[0]
    wanted = torch.tensor(r)
    assert (common - wanted).abs().mean() < 0.12
    # Fitted on r itself, the second would be near r; on the residual it is near 0.
    assert (rest - (wanted - common)).square().mean() < (rest - wanted).square().mean() / 4
    chosen = bandit.scores(z) > 0.5
    assert np.mean(chosen == (np.asarray(r) > 0.5)) > 0.9 and len(bandit.r) == 64


def test_its_state_brings_it_back_bit_for_bit() -> None:
    rng = np.random.default_rng(1)
    z, r = rng.normal(size=(20, 7)).astype(np.float32), rng.random(20).tolist()
    one = Bandit(5)
    one.learn(z, r)
    other = Bandit(5)
    assert not other.trained
    other.load(one.tensors())
    one.learn(z[:4], r[:4])
    other.learn(z[:4], r[:4])
    assert np.array_equal(one.scores(z), other.scores(z)) and other.trained


def test_features_are_standardised_and_what_is_not_known_is_at_the_mean() -> None:
    nan = float("nan")
    teacher, student = scores([0.1, 0.2, 0.4, 0.2], [0.3] * 4), scores([1.0, nan, 0.5, 0.9], [0.5, nan, 0.2, 0.4])
    z = features(teacher, student, np.asarray([30.0, 40.0, 50.0, 60.0]))
    assert z.shape == (4, 7) and np.isfinite(z).all()
    assert np.allclose(z.mean(0), 0, atol=1e-6) and z[1, 0] == pytest.approx(0, abs=1e-6)
    assert np.allclose(z[:, 5], 0)  # all are right: no spread


def test_the_first_round_takes_turns_through_the_clusters() -> None:
    rng = np.random.default_rng(2)
    centres = np.repeat(np.arange(4), 10)
    z = (10.0 * np.eye(7)[centres] + 0.1 * rng.normal(size=(40, 7))).astype(np.float32)
    order = by_clusters(z, seed=0)
    assert sorted(order) == list(range(40)) and {int(centres[i]) for i in order[:8]} == {0, 1, 2, 3}
    assert order == by_clusters(z, seed=0)
