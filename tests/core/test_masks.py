"""Budgets: what `dims` and `entries` keep, and how a learned mask learns."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from h2tune.core.masks import EntryScores, kept_rank

SHARES = st.floats(0.01, 1.0)


@given(SHARES, st.integers(1, 64))
def test_dims_keeps_the_share_of_the_rank_and_at_least_one(keep: float, rank: int) -> None:
    assert kept_rank(keep, rank) == max(1, round(keep * rank))
    assert kept_rank(1.0, rank) == rank


@pytest.mark.parametrize("keep", [0.0, -0.5, 1.01, float("nan")])
def test_a_share_outside_its_range_is_refused(keep: float) -> None:
    with pytest.raises(ValueError, match=r"keep must lie in \(0, 1\]"):
        kept_rank(keep, 8)


@given(SHARES, st.integers(0, 99))
def test_entries_keeps_the_largest_scores_of_every_matrix(keep: float, seed: int) -> None:
    scores = EntryScores(torch.Size((3, 2, 5, 5)), keep)
    generator = np.random.default_rng(seed)
    values = generator.permutation(np.arange(1, 151)).reshape(3, 2, 5, 5) * generator.choice([-1.0, 1.0], (3, 2, 5, 5))
    scores.M.data = torch.tensor(values, dtype=torch.float32)
    kept = max(1, round(keep * 25))
    mask = scores.mask()
    for g in range(3):
        for j in range(2):
            largest = np.argsort(-np.abs(values[g, j]).ravel())[:kept]
            assert set(mask[g, j].flatten().nonzero().flatten().tolist()) == set(largest.tolist())


@given(st.integers(1, 6), st.integers(0, 99))
def test_straight_through(kept: int, seed: int) -> None:
    """Forward C * S; with G the gradient before masking dS = C * G and dM = G * S."""
    generator = torch.Generator().manual_seed(seed)
    scores = EntryScores(torch.Size((2, 3, 3, 3)), kept / 9)
    scores.M.data = torch.randn(2, 3, 3, 3, generator=generator)
    core = torch.randn(2, 3, 3, 3, generator=generator, requires_grad=True)
    weight = torch.randn(2, 3, 3, 3, generator=generator)
    out = scores(core)
    mask = scores.mask()
    assert torch.equal(out, core * mask)
    (out * weight).sum().backward()
    assert torch.equal(core.grad, weight * mask)
    torch.testing.assert_close(scores.M.grad, weight * core.detach())


def test_scores_without_a_gradient_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The defect of H2Tune's release: top-k of `.data`, and the mask learns nothing from the task."""
    monkeypatch.setattr(EntryScores, "forward", lambda self, core: core * self.mask() + 0 * self.M)
    with pytest.raises(AssertionError):
        test_straight_through()


@given(st.integers(2, 12), st.floats(0.05, 0.9))
def test_before_learning_all_clients_keep_leading_coordinates_and_nested_sets(rank: int, keep: float) -> None:
    small, large = (EntryScores(torch.Size((2, 1, rank, rank)), k).mask()[0, 0] for k in (keep / 2, keep))
    assert not (small & ~large).any()
    corner = torch.arange(rank).float()
    outer = torch.maximum(corner[:, None], corner[None])
    assert outer[large].max() <= outer[~large].min() if (~large).any() else True
    assert bool(small[0, 0])


def test_positions_keep_their_meaning_when_the_budget_changes() -> None:
    """The same entry, chosen under two budgets, stays where it was."""
    core = torch.arange(16.0).view(1, 1, 4, 4) + 1
    one, two = EntryScores(core.shape, 0.25), EntryScores(core.shape, 0.5)
    one.M.data = two.M.data = torch.rand(core.shape, generator=torch.Generator().manual_seed(0))
    first, second = one(core).detach(), two(core).detach()
    both = (first != 0) & (second != 0)
    assert int((first != 0).sum()) == 4
    assert int((second != 0).sum()) == 8
    assert int(both.sum()) == 4
    assert torch.equal(first[both], core[both])
    assert torch.equal(second[both], core[both])
