"""P: where each block of a model reads the depths of the core."""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from h2tune.core.relation import Relation, depth_relation, nearest_relation

SIZES = st.integers(1, 60)


@given(SIZES, SIZES)
def test_by_relative_depth_a_block_shares_the_two_depths_around_it(depth: int, blocks: int) -> None:
    relation = depth_relation(depth, blocks)
    assert relation.shape == (depth, blocks)
    for block in range(blocks):
        place = Fraction(block * (depth - 1), blocks - 1) if blocks > 1 else Fraction(depth - 1, 2)
        wanted = [float(max(Fraction(0), 1 - abs(place - g))) for g in range(depth)]
        torch.testing.assert_close(relation[:, block], torch.tensor(wanted), atol=1e-6, rtol=0)
        assert [bool(share) for share in relation[:, block]] == [share > 0 for share in wanted]


def test_equal_depths_are_read_one_to_one_and_no_other_depth_is_touched() -> None:
    """Depths such as 24, 26 or 48 come out askew where place is computed in floating point."""
    for depth in range(1, 130):
        assert torch.equal(depth_relation(depth, depth), torch.eye(depth)), depth
        assert torch.equal(nearest_relation(depth, depth), torch.eye(depth)), depth
        if depth > 1:
            assert torch.equal(depth_relation(2 * depth - 1, depth)[::2], torch.eye(depth)), depth


@given(SIZES, SIZES)
def test_nearest_takes_one_depth(depth: int, blocks: int) -> None:
    relation = nearest_relation(depth, blocks)
    assert torch.equal(relation.sum(0), torch.ones(blocks))
    assert set(relation.unique().tolist()) <= {0.0, 1.0}
    for block in range(blocks):
        place = block * (depth - 1) / (blocks - 1) if blocks > 1 else (depth - 1) / 2
        assert abs(int(relation[:, block].argmax()) - place) <= 0.5 + 1e-9


@given(SIZES, SIZES)
def test_p_starts_exactly_where_it_is_told_and_covers_what_is_read(depth: int, blocks: int) -> None:
    start = depth_relation(depth, blocks)
    relation = Relation(start)
    torch.testing.assert_close(relation(), start, atol=1e-6, rtol=0)
    assert torch.equal(relation().detach() > 0, start > 0)
    assert relation.covered.tolist() == [bool(row.any()) for row in start]


def test_training_moves_mass_only_inside_the_support() -> None:
    start = depth_relation(5, 3)
    start[:, 1] = torch.tensor([0.0, 0.5, 0.5, 0.0, 0.0])
    relation = Relation(start)
    pull = torch.arange(15.0).view(5, 3)
    for _ in range(5):
        (relation() * pull).sum().backward()
        with torch.no_grad():
            relation.logits -= relation.logits.grad
        relation.logits.grad = None
    moved = relation().detach()
    assert moved[1, 1] > 0.9  # the smaller of the two pulls that its support allows
    assert torch.equal(moved > 0, start > 0)
    torch.testing.assert_close(moved.sum(0), torch.ones(3))


def test_the_gradient_of_p_is_that_of_a_softmax_down_the_column() -> None:
    relation = Relation(depth_relation(4, 6))
    pull = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))
    (relation() * pull).sum().backward()
    p = depth_relation(4, 6)
    wanted = p * (pull - (p * pull).sum(0))
    torch.testing.assert_close(relation.logits.grad, wanted, atol=1e-6, rtol=0)


@pytest.mark.parametrize("trainable", [True, False])
def test_p_can_be_frozen(trainable: bool) -> None:
    assert Relation(depth_relation(3, 2), trainable).logits.requires_grad is trainable
