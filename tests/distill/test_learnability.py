"""The filter against closed forms: what is learnable, what is high, what fits into the bytes."""

from __future__ import annotations

import itertools
import random
from dataclasses import replace

import numpy as np
import pytest

from h2tune.distill.learnability import (
    EXTRA,
    Scores,
    adapted,
    allocate,
    at_equal_bytes,
    bands,
    gaps,
    high,
)

NAN = float("nan")


def scores(n: list[float], rho: list[float], **other: list[float]) -> Scores:
    def column(name: str, default: float) -> np.ndarray:
        return np.asarray(other.get(name, [default] * len(n)), dtype=np.float64)

    sizes = np.asarray(other.get("sizes", [10] * len(n)), dtype=np.int64)
    return Scores(
        np.asarray(n), np.asarray(rho), column("omega", NAN), column("right", 1), column("path_right", 1), sizes
    )


FIVE_T = scores([0.1, 0.2, 0.5, 0.1, 1.2], [0.3] * 5, path_right=[1, 1, 1, 0, 1])
FIVE_S = scores([1.0, 0.4, 0.5, 1.0, 0.8], [0.5, 0.4, 0.3, 0.5, 0.2], omega=[0.8, 0.5, 0.5, 0.9, 0.5])
LENGTHS = np.asarray([10.0, 20.0, 10.0, 10.0, 10.0])


def test_five_questions_in_closed_form() -> None:
    """rhobar weighs each question by its cross-entropy n x bytes: sum of Brier scores over sum of cross-entropies."""
    entropy = [10.0, 8.0, 5.0, 10.0, 8.0]
    usual = (0.5 * 10 + 0.4 * 8 + 0.3 * 5 + 0.5 * 10 + 0.2 * 8) / sum(entropy)
    first = 0.9 * (2 * 0.5 - usual) * 0.8
    second = 0.5 * (2 * 0.4 - usual) * 0.5
    # Equal losses have nothing to reduce; a wrong teacher and one that is worse have nothing to teach.
    assert gaps(FIVE_T, FIVE_S, LENGTHS) == pytest.approx([first, second, 0, 0, 0])
    plain = gaps(FIVE_T, FIVE_S, LENGTHS, reducible=False, up=True)
    assert plain == pytest.approx([1 - usual, 0.8 - usual, 0, 0, 0])


def test_questions_that_the_student_solves_itself_can_be_left_out() -> None:
    solves_the_first = replace(FIVE_S, right=np.asarray([1.0, 0, 0, 0, 0]))
    every, rest = (gaps(FIVE_T, solves_the_first, LENGTHS, solved=solved) for solved in (True, False))
    assert every[0] > 0 and rest[0] == 0 and np.array_equal(every[1:], rest[1:])


def test_allocation_of_the_five_in_closed_form() -> None:
    values = {"t": gaps(FIVE_T, FIVE_S, LENGTHS)}
    peak = high(values["t"])
    assert peak == pytest.approx(np.quantile(values["t"][:2], 0.9))
    sizes, allowed = {"t": FIVE_T.sizes}, {"t": np.ones(5, bool)}
    both = allocate(values, sizes, allowed, {"t": 0.0}, 2 * (10 + EXTRA), 0.0, 1)
    assert both.chosen == [("t", 0), ("t", 1)] and both.spent == 44 and not both.explored
    one = allocate(values, sizes, allowed, {"t": 0.5 * peak}, 1000, 0.0, 1)
    assert one.chosen == [("t", 0)]  # 0.098 is below half of the 90th percentile
    assert allocate(values, sizes, allowed, {"t": 0.0}, 21, 0.0, 1).chosen == []  # no path fits


def test_a_path_that_does_not_fit_is_skipped_and_a_shorter_one_taken() -> None:
    values = {"t": np.asarray([3.0, 2.0, 1.0])}
    sizes = {"t": np.asarray([100, 8, 9])}
    assert allocate(values, sizes, {"t": np.ones(3, bool)}, {"t": 0.0}, 41, 0.0, 1).chosen == [("t", 1), ("t", 2)]


@pytest.mark.parametrize("order", list(itertools.permutations(range(3)))[:4])
def test_the_order_of_questions_and_of_clients_changes_nothing(order: tuple[int, ...]) -> None:
    """Numbers of questions follow from the questions, so a permuted file has the same numbers; here: the same values."""
    rng = np.random.default_rng(0)
    values = {name: rng.random(40) for name in "abc"}
    sizes = {name: rng.integers(5, 30, 40) for name in "abc"}
    allowed = {name: np.ones(40, bool) for name in "abc"}
    thresholds = dict.fromkeys("abc", 0.5)
    first = allocate(values, sizes, allowed, thresholds, 400, 0.1, 7)
    names = ["abc"[i] for i in order]
    again = allocate(
        {n: values[n] for n in names}, {n: sizes[n] for n in names}, {n: allowed[n] for n in names}, thresholds, 400, 0.1, 7
    )  # fmt: skip
    assert first == again


def test_upwards_a_question_comes_from_the_client_with_the_largest_value_and_ties_go_by_name() -> None:
    values = {"b": np.asarray([0.5, 0.9]), "a": np.asarray([0.5, 0.1])}
    sizes = {name: np.asarray([5, 5]) for name in values}
    allowed = {name: np.ones(2, bool) for name in values}
    found = allocate(values, sizes, allowed, {"a": 0.0, "b": 0.0}, 1000, 0.0, 0)
    assert found.chosen == [("b", 1), ("a", 0)]


def test_exploration_spends_its_share_on_others_that_are_right() -> None:
    values = {"t": np.asarray([1.0] + [0.0] * 20)}
    sizes = {"t": np.full(21, 8)}
    allowed = {"t": np.asarray([True] * 11 + [False] * 10)}
    found = allocate(values, sizes, allowed, {"t": 0.5}, 400, 0.25, 3)
    assert found.chosen[0] == ("t", 0) and len(found.explored) == 5  # 100 bytes for paths of 20
    assert all(allowed["t"][item] for _, item in found.explored)
    nothing = allocate({"t": np.zeros(21)}, sizes, allowed, {"t": 0.0}, 400, 0.25, 3)
    assert nothing.chosen == []  # where nothing is learnable, nothing is explored


def test_equal_models_and_worse_teachers_have_nothing_to_give() -> None:
    same = scores([0.5, 1.0], [0.4, 0.4])
    assert not gaps(same, same, np.ones(2)).any()
    noisy = scores([0.497, 0.996], [0.4, 0.4])  # within half precision of the same
    assert not gaps(noisy, same, np.ones(2)).any()
    worse = scores([0.9, 1.5], [0.4, 0.4])
    assert not gaps(worse, same, np.ones(2)).any() and gaps(same, worse, np.ones(2), up=True).all()


def test_what_is_not_known_is_worth_nothing() -> None:
    student = scores([0.0, NAN, 1.0, 1.0], [0.4, 0.4, NAN, 0.4])
    teacher = scores([0.1] * 4, [0.4] * 4, sizes=[5, 5, 5, 0])
    assert not gaps(teacher, student, np.ones(4)).any()
    assert gaps(teacher, student, np.zeros(4)).tolist() == [1, 1, 1, 0]  # no reference answers: by w


def test_a_band_is_highest_where_half_of_the_answers_are_right() -> None:
    student = scores([1.0] * 3, [0.4] * 3, right=[0, 0.5, 1])
    assert bands(scores([1.0] * 3, [0.4] * 3), student).tolist() == [0, 1, 0]


def test_random_spends_no_more_than_gap_and_less_by_less_than_a_path() -> None:
    rng = random.Random(0)
    sizes = {"t": np.asarray([rng.randint(5, 40) for _ in range(60)])}
    for spent in (0, 100, 555, 1200):
        order = [("t", i) for i in range(60)]
        rng.shuffle(order)
        taken = at_equal_bytes(order, sizes, spent)
        used = sum(int(sizes["t"][i]) + EXTRA for _, i in taken)
        left = [int(sizes["t"][i]) + EXTRA for _, i in order if ("t", i) not in taken]
        assert used <= spent and spent - used < min(left)


def test_a_budget_grows_after_success_shrinks_after_failure_and_stays_in_its_range() -> None:
    assert adapted(100, 100, True) == 125 and adapted(100, 100, False) == 50
    assert adapted(190, 100, True) == 200 and adapted(20, 100, False) == 12.5
