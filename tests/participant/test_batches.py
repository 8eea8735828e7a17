"""How rows are put into batches where their order does not matter."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest

from h2tune.participant.batches import ENOUGH, by_length

CASES = [(seed, size) for seed in range(20) for size in (1, 7, 64)]


def drawn(seed: int) -> list[int]:
    rng = random.Random(seed)
    return [rng.randint(1, 400) for _ in range(rng.randint(0, 120))]


@pytest.mark.parametrize(("seed", "size"), CASES)
def test_each_row_is_in_one_batch_and_shorter_rows_come_first(seed: int, size: int) -> None:
    lengths = drawn(seed)
    for split in (True, False):
        batches = by_length(lengths, size, split=split)
        assert sorted(place for batch in batches for place in batch) == list(range(len(lengths)))
        assert all(0 < len(batch) <= size for batch in batches)
        inorder = [lengths[place] for batch in batches for place in batch]
        assert inorder == sorted(lengths)
    assert len(by_length(lengths, size, split=False)) == -(-len(lengths) // size)


@pytest.mark.parametrize(("seed", "size"), CASES)
def test_what_has_enough_tokens_is_padded_by_an_eighth_at_most(seed: int, size: int) -> None:
    lengths = drawn(seed)
    batches = [[lengths[place] for place in batch] for batch in by_length(lengths, size)]
    for own in batches:
        padded = max(own) * len(own)
        assert padded <= 1.125 * sum(own) or sum(own[:-1]) < ENOUGH
    for own, following in pairwise(batches):  # no batch ends early without a reason
        one_more = [*own, following[0]]
        full = len(own) == size
        assert full or (sum(own) >= ENOUGH and max(one_more) * len(one_more) > 1.125 * sum(one_more))
