"""Public questions: the same numbers and digest for the same questions, whoever holds them in which order."""

from __future__ import annotations

import json
from itertools import chain
from pathlib import Path
from typing import Any

import pytest

from h2tune.config import PublicQuestions
from h2tune.tasks.example import TaskError
from h2tune.tasks.public import load_questions

ROWS = [{"question": f"What is {i} and {i}?", "answer": f"{i} + {i} = {2 * i} #### {2 * i}"} for i in range(30)]


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def questions(path: Path, **changes: Any) -> Any:
    return load_questions(PublicQuestions(**({"source": str(path), "task": "gsm8k"} | changes)))


def test_the_order_of_the_file_and_copies_of_a_row_change_nothing(tmp_path: Path) -> None:
    one = questions(write(tmp_path / "a.jsonl", ROWS))
    with pytest.warns(UserWarning, match="1 of 31 rows repeat a question"):
        other = questions(write(tmp_path / "b.jsonl", [*reversed(ROWS), ROWS[3]]))
    assert one.digest == other.digest and [e.prompt for e in one.examples] == [e.prompt for e in other.examples]
    assert len(one) == 30 and one.answered and one.examples[0].answer.endswith(one.examples[0].gold)


@pytest.mark.parametrize("key", ["question", "answer"])
def test_another_question_or_answer_is_another_digest(key: str, tmp_path: Path) -> None:
    changed = [ROWS[0] | {key: "What is 1 and 3?" if key == "question" else "#### 5"}, *ROWS[1:]]
    one, other = questions(write(tmp_path / "a.jsonl", ROWS)), questions(write(tmp_path / "b.jsonl", changed))
    assert one.digest != other.digest
    assert questions(tmp_path / "a.jsonl", limit=9).digest != one.digest


def test_a_limit_takes_the_same_questions_from_any_order(tmp_path: Path) -> None:
    one = questions(write(tmp_path / "a.jsonl", ROWS), limit=7)
    other = questions(write(tmp_path / "b.jsonl", ROWS[::-1]), limit=7)
    assert one.digest == other.digest and len(one) == 7


def test_slices_cover_all_questions_before_any_comes_again(tmp_path: Path) -> None:
    found = questions(write(tmp_path / "a.jsonl", ROWS))
    slices = [found.slice(round, 8, seed=3) for round in range(1, 9)]
    assert sorted(chain(*slices[:4])) == sorted(chain(*slices[4:])) == list(range(30))
    assert {len(s) for s in slices} == {7, 8} and slices[0] != slices[4]
    assert found.slice(1, 100, 3) == list(range(30)) and found.slice(2, 8, seed=4) != slices[1]


def test_questions_without_answers_are_read_too(tmp_path: Path) -> None:
    bare = questions(write(tmp_path / "a.jsonl", [{"question": row["question"]} for row in ROWS]))
    assert not bare.answered and bare.examples[0].answer == "" and len(bare) == 30


def test_a_file_in_which_one_answer_is_missing_is_a_mistake_and_names_its_row(tmp_path: Path) -> None:
    rows = [*ROWS[:5], {"question": "What is 7 and 8?", "answer": ""}]
    with pytest.raises(TaskError, match="row 6"):
        questions(write(tmp_path / "a.jsonl", rows))


def test_public_questions_are_for_models_that_write(tmp_path: Path) -> None:
    with pytest.raises(TaskError, match="must be of kind generate"):
        questions(write(tmp_path / "a.jsonl", ROWS), task="aqua")


def test_a_question_with_two_answers_is_a_mistake_and_names_both_rows(tmp_path: Path) -> None:
    again = ROWS[3] | {"answer": "3 + 3 = 7 #### 7"}
    with pytest.raises(
        TaskError, match=r"row 31.*the same question as in .*row 4.*with another answer \('6' there, '7' here\)"
    ):
        questions(write(tmp_path / "a.jsonl", [*ROWS, again]))


def test_of_several_reasons_for_an_answer_the_order_of_rows_chooses_none(tmp_path: Path) -> None:
    """Else participants with the same rows in another order would hold other questions."""
    again = ROWS[3] | {"answer": "It is 6 #### 6"}
    with pytest.warns(UserWarning, match="1 of 31 rows repeat a question; each question counts once"):
        one = questions(write(tmp_path / "a.jsonl", [*ROWS, again]))
    with pytest.warns(UserWarning, match="1 of 31 rows"):
        other = questions(write(tmp_path / "b.jsonl", [again, *ROWS]))
    assert one.digest == other.digest and len(one) == 30


OWN = {"kind": "generate", "prompt": "{question}", "answer": " {solution}", "score": "number"}
CHAT = [{"role": "user", "content": "What is 1 and 2?"}]


@pytest.mark.parametrize(
    ("changes", "row"),
    [
        ({"task": OWN}, {"question": "1 + 2?", "solution": "3,5"}),
        ({"columns": {"answer": "solution"}}, {"question": "1 + 2?", "solution": "#### 3,5"}),
        ({"task": {"preset": "gsm8k", "columns": {"answer": "solution"}}}, {"question": "1 + 2?", "solution": "3,5"}),
        ({"task": "gsm8k"}, {"question": "1 + 2?", "answer": "3,5"}),
        ({"task": "gsm8k"}, {"messages": [*CHAT, {"role": "assistant", "content": "3,5"}]}),
    ],
)
def test_an_answer_that_cannot_be_read_is_refused_wherever_it_stands(
    changes: dict[str, Any], row: dict[str, Any], tmp_path: Path
) -> None:
    with pytest.raises(TaskError, match=r"public\.source: .*row 1: .*3,5.* would be read as"):
        questions(write(tmp_path / "a.jsonl", [row]), **changes)


def test_answers_in_a_column_that_the_task_does_not_know_are_told(tmp_path: Path) -> None:
    rows = [{"question": row["question"], "id": i, "solution": "3"} for i, row in enumerate(ROWS)]
    path = write(tmp_path / "a.jsonl", rows)
    with pytest.warns(UserWarning, match=r"no row has an answer .*; other columns there: id, solution\. If") as said:
        assert not questions(path).answered
    assert len(said) == 1
    assert questions(path, columns={"answer": "solution"}).answered


@pytest.mark.parametrize(
    ("task", "row"),
    [
        ("gsm8k", {"question": "1 + 2?", "answer": None}),
        ("gsm8k", {"messages": CHAT}),
        ({**OWN, "prompt": "{question} {value}"}, {"question": "1 +", "value": "2?", "solution": ""}),
        (
            {**OWN, "prompt": "{question} Hint: {hint}", "answer": "{hint} so {result}"},
            {"question": "1 + 2?", "hint": "h"},
        ),
        ({"preset": "sst2", "kind": "generate"}, {"sentence": "fine", "label": -1}),  # as in GLUE's test sets
    ],
)
@pytest.mark.filterwarnings("error")
def test_a_column_of_the_question_and_an_empty_cell_are_no_answers(
    task: Any, row: dict[str, Any], tmp_path: Path
) -> None:
    assert not questions(write(tmp_path / "a.jsonl", [row]), task=task).answered


def test_labels_of_minus_one_are_answers_where_some_are_not_or_the_task_knows_them(tmp_path: Path) -> None:
    rows = [{"sentence": "fine", "label": -1}, {"sentence": "dull", "label": 0}]
    path = write(tmp_path / "a.jsonl", rows)
    with pytest.raises(TaskError, match="row 1: label '-1' is not known"):
        questions(path, task={"preset": "sst2", "kind": "generate"})
    own = {"kind": "generate", "prompt": "{sentence}", "answer": "{label}", "labels": {-1: "bad", 0: "good"}}
    assert questions(path, task=own).answered
    with pytest.raises(TaskError, match="every row has the label 'bad'"):
        questions(write(tmp_path / "b.jsonl", rows[:1]), task=own)


@pytest.mark.parametrize("rows", [[], [{"source": "data/CoT/college_math.json"}]])
def test_a_file_without_a_question_is_a_mistake_of_the_file(rows: list[dict[str, Any]], tmp_path: Path) -> None:
    with pytest.raises(TaskError):
        questions(write(tmp_path / "a.jsonl", rows), task={"preset": "sst2", "kind": "generate"})
