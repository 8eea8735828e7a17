"""How rows are put into batches where their order does not matter."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest

from h2tune.participant.batches import ENOUGH, MOST_LOGITS, by_length, scored_together
from h2tune.tasks.prompts import Encoded

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


@pytest.mark.parametrize(("seed", "size"), CASES)
def test_no_pass_that_scores_asks_for_too_many_logits(seed: int, size: int) -> None:
    lengths = drawn(seed)
    rows = [Encoded([1] * n, [-100] * (n - n // 2) + [1] * (n // 2)) for n in lengths]
    few, many = scored_together(rows, size, 50), scored_together(rows, size, MOST_LOGITS // 300)
    assert few == by_length(lengths, size)
    assert [place for batch in many for place in batch] == [place for batch in few for place in batch]
    asked = [[lengths[place] // 2 for place in batch] for batch in many]
    assert all(sum(batch) <= 300 for batch in asked)
    together = [set(batch) for batch in few]
    for (own, following), (batch, after) in zip(
        pairwise(asked), pairwise(many), strict=True
    ):  # none ends early without a reason
        assert sum(own) + following[0] > 300 or not any({batch[-1], after[0]} <= places for places in together)


def test_a_row_that_asks_for_too_many_logits_is_alone_and_classes_ask_for_none() -> None:
    rows = [Encoded([1] * n, [1] * n) for n in (2, 9, 2)]
    assert scored_together(rows, 64, MOST_LOGITS // 4) == [[0, 2], [1]]
    assert scored_together([Encoded([1, 2], [], label=0)] * 3, 64, MOST_LOGITS) == [[0, 1, 2]]
