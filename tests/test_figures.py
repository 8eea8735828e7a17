"""The figures that a client tells the server."""

from __future__ import annotations

from typing import Any

import pytest

from h2tune.figures import majority


@pytest.mark.parametrize(("answers", "share"), [(["a"], 1.0), (["a", "b"], 0.5), (["b", "a", "b", "c", "a"], 0.4)])
def test_majority_is_the_share_of_the_most_frequent_answer(answers: list[str], share: float) -> None:
    assert majority(answers) == share


def test_majority_of_many_different_answers_compares_few_of_them() -> None:
    compared = []

    class Answer(str):
        __hash__ = str.__hash__

        def __eq__(self, other: Any) -> bool:
            compared.append(1)
            return super().__eq__(other)

    assert majority([Answer(i) for i in range(2000)]) == 1 / 2000
    assert len(compared) < 20_000
