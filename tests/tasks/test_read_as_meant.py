"""What a reference answer means: rows that could mean something else are refused, and the right option is the only right one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from h2tune.config import PublicQuestions
from h2tune.tasks import RowError, TaskError, build_task, sample
from h2tune.tasks.public import load_questions

DATA = Path(__file__).resolve().parents[2] / "../shared/data"
NUMBER = {"kind": "generate", "prompt": "{q}", "answer": "{a}", "score": "number"}


@pytest.mark.parametrize("options", [["50 %", "50"], ["4", "3 and 4"], ["12", "less than 12"], ["10000.5", "10000.9"],
                                     ["yes", "yes, but not today"], ["1", "1.0"]])  # fmt: skip
def test_of_options_only_the_right_one_is_right(options: list[str]) -> None:
    task = build_task({"kind": "choice", "prompt": "{q}", "answer": "{a}", "options": "{o}", "join": " "})
    for right in options:
        example = task.read({"q": "x", "o": options, "a": right})
        assert [task.score(example, option) for option in example.options] == [option == right for option in options]


@pytest.mark.parametrize(
    ("options", "answer", "meant"),
    [
        (["vitamin A", "vitamin C", "vitamin D"], "Vitamin C", "vitamin C"),
        (["Hepatitis B", "Hepatitis A"], "hepatitis b", "Hepatitis B"),
        (["A only", "both A and B", "all of a and b"], "All of A and B", "all of a and b"),
        (["red", "blue"], "B) blue", "blue"),
        (["red", "blue"], "(B) blue", "blue"),
        (["red", "blue"], "The answer is B.", "blue"),
        (["red", "blue"], "It is not red. The answer is B", "blue"),
        (["red", "blue"], "option b", "blue"),
        (["Us", "us"], "us", "us"),
    ],
)
def test_an_answer_is_its_option_or_that_ones_letter(options: list[str], answer: str, meant: str) -> None:
    task = build_task({"kind": "choice", "prompt": "{q}", "answer": "{a}", "options": "{o}"})
    assert task.read({"q": "x", "o": options, "a": answer}).gold == meant


@pytest.mark.parametrize("answer", ["Vitamin B", "A man", "plan B", "both A and B", "C", ""])
def test_a_letter_in_other_words_names_no_option(answer: str) -> None:
    task = build_task({"kind": "choice", "prompt": "{q}", "answer": "{a}", "options": ["red", "blue"]})
    with pytest.raises(RowError):
        task.read({"q": "x", "a": answer})


@pytest.mark.parametrize(
    "answer",
    ["0,5", "1 000", "1.234.567", "3 1/2", "10^6", "5 m^2", "5 km2", "12:30", r"$\frac{1}{2}$", "0x10", "The answer is 3,5",
     "The answer is 1 000", "2024-05-06 12:30", "The answer is 12:30", "Rs.5", "2024-05-17", "The answer is 2024-05-17",
     "5-7", "16-13", "The answer is 3 + 9", "3 * 4", "1.5 million", "The answer is 2 Thousand", "5k", "2 dozen", "2 and a half",
     "12 apples in 3 boxes", "The answer is 12 apples in 3 boxes", "The answer is 12 = 3 * 4", "The answer is 12 since x = 4",
     "3 + 9 = 12 apples in 3 boxes", "In 2010, 12"],
)  # fmt: skip
@pytest.mark.parametrize("spec", [NUMBER, "gsm8k"])
def test_a_number_that_may_mean_another_is_refused(spec: dict[str, str] | str, answer: str) -> None:
    task = build_task(spec)
    with pytest.raises(RowError, match="would be read as"):
        task.read({"q": "x", "a": answer} if isinstance(spec, dict) else {"question": "x", "answer": answer})


@pytest.mark.parametrize(
    ("answer", "number"),
    [("16-3 = 13", "13"), ("x=5", "5"), ("1,000", "1000"), ("$5", "5"), (r"\boxed{5}", "5"), ("45%", "45"), ("1/3", "0.333333333333333"),
     ("-2.5e3", "-2500"), ("2 + 3 = 5. The answer is 5.", "5"), ("12345678901234567", "1.2345678901234568e+16"),
     ("Rs 5", "5"), ("5 apples", "5"), ("3 * 4 = 12 #### 12", "12"), ("The answer is 3 + 9 = 12", "12"), ("#### 3+9 = 12", "12"),
     ("The answer is 9 -3 = 6 apples", "6"), ("The answer is $3 + $9 = $12.", "12"), ("The answer is 2*3*2 = 6*2 = 12", "12"),
     ("The answer is x = -5", "-5"), ("The answer is 48/2 = 24", "24"), ("The answer is 3 apples + 9 apples = 12 apples", "12"),
     ("The answer is 12, since 3*4 = 12", "12"), ("For 3 boxes she pays 2 * 6 = 12 dollars", "12"), ("10-fold", "10"),
     ("Of 40 boxes 3 are full.\nThe answer is 12", "12"), (r"The answer is $6 \times 2 = 12$", "12")],
)  # fmt: skip
def test_a_plain_number_is_read_and_counts_as_right(answer: str, number: str) -> None:
    task = build_task(NUMBER)
    example = task.read({"q": "x", "a": answer})
    assert float(example.gold) == pytest.approx(float(number), rel=1e-14) and task.score(example, answer)


@pytest.mark.parametrize("file", ["gsm8k/train.jsonl", "gsm8k/test.jsonl", "svamp/train.jsonl", "svamp/test.jsonl"])
def test_every_real_answer_is_read_as_it_is_written(file: str) -> None:
    if not (path := DATA / file).is_file():
        pytest.skip("the real data sets are not beside the repository")
    task, own = build_task("gsm8k"), build_task(NUMBER)
    for row in map(json.loads, path.read_text("utf-8").strip().split("\n")):
        written = row["answer"].split("####")[-1].replace(",", "") if "answer" in row else row["Answer"]
        assert float(task.read(row).gold) == float(written)
        assert "answer" not in row or float(own.read({"q": "x", "a": row["answer"]}).gold) == float(written)


def test_a_preset_refuses_what_it_would_count_as_wrong_itself() -> None:
    task = build_task("gsm8k")
    with pytest.raises(RowError, match="would itself count as wrong"):
        task.read({"question": "x", "answer": "1+1=2\n#### 2\nQuestion: 0+1?\n#### 1"})
    first = task.read({"question": "x", "answer": "First: add.\nThen 0+1=1\n#### 1"})
    assert first.gold == "1"  # "First:" begins its answer and is no other question


def test_a_constant_is_no_answer() -> None:
    with pytest.raises(TaskError, match="names no column"):
        build_task({"kind": "generate", "prompt": "{q}", "answer": " a"})


def test_a_sample_is_spread_over_all_rows_and_keeps_their_order() -> None:
    rows = list(range(300))
    taken = sample(rows, 40, 3)
    assert taken == sorted(taken) and len(set(taken)) == 40 and max(taken) > 200 and min(taken) < 100
    assert set(sample(rows, 20, 3)) < set(taken) and sample(rows, None, 3) == rows == sample(rows, 999, 3)


def test_one_public_question_without_its_answer_is_named(tmp_path: Path) -> None:
    rows = [{"q": f"What is {i} + 1?", "solution": f"The answer is {i + 1}"} for i in range(6)]
    task = {"kind": "generate", "prompt": "{q}", "answer": " {solution}", "score": "number"}

    def load() -> bool:
        path = tmp_path / "public.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return load_questions(PublicQuestions(source=str(path), task=task)).answered

    assert load()
    rows[3]["solution"] = ""
    with pytest.raises(TaskError, match="row 4"):
        load()
    for row in rows:
        row["solution"] = ""
    assert not load()


@pytest.mark.parametrize("kind", ["generate", "classify"])
def test_a_space_before_the_answers_column_is_no_part_of_the_label(kind: str) -> None:
    spec: dict[str, Any] = {
        "kind": kind,
        "prompt": "{text}",
        "answer": " {category}",
        "labels": ["billing", "technical"],
    }
    example = build_task(spec).read({"text": "x", "category": "billing"})
    assert example.gold == "billing" and example.answer == (" billing" if kind == "generate" else "")
    spaced = build_task(spec | {"labels": [" billing", " technical"]}).read({"text": "x", "category": "billing"})
    assert spaced.gold == " billing"
    with pytest.raises(RowError, match="label 'other' is not known"):
        build_task(spec).read({"text": "x", "category": "other"})
    with pytest.raises(RowError, match="differs from 'billing' in case or spaces only"):
        build_task(spec).read({"text": "x", "category": " billing"})


OWN_CHOICE = {"kind": "choice", "prompt": "{question}", "answer": "{correct}", "options": "{options}"}


@pytest.mark.parametrize(
    ("options", "answer", "meant"),
    [
        (["B) 2", "A) 1", "C) 3"], "B", "2"),
        (["B) 2", "A) 1", "C) 3"], "The answer is A", "1"),
        (["F) 1", "G) 2", "H) 3"], "G", "2"),
        ("B) 2, A) 1, C) 3", "B", "2"),
        ("(C) 3 (A) 1 (B) 2", "C", "3"),
        ("A) 1, C) 3, B) 2", "C", "3"),
        ("(A) f(d) (B) 2 (C) 3", "A", "f(d)"),  # no letter of an option
        ("(A) a ) 1 (B) b ) 2", "B", "2"),
    ],
)
def test_an_answer_that_is_a_letter_means_the_option_with_that_letter(options: Any, answer: str, meant: str) -> None:
    row = {"question": "x", "options": options, "correct": answer}
    example, own = build_task("aqua").read(row), build_task(OWN_CHOICE).read(row)
    assert f"({example.gold}) {meant}" in example.prompt and example.answer in example.options
    assert own.gold == meant
    assert build_task("aqua").ask(row).prompt == example.prompt


@pytest.mark.parametrize(
    ("options", "answer", "meant"),
    [
        (["A)5", "B)6", "C)7", "D)8", "None of these"], "B", "6"),
        (["A)5", "B)6", "C)7", "D)8", "None of these"], "E", "None of these"),
        (["A)5", "6", "C)7"], "C", "7"),
        (["(a+b)", "(a)", "(b)", "(ab)"], "B", "(a)"),  # no letters of options, but their texts
        (["(a) only", "both (a) and (b)", "neither"], "A", "only"),
        (["(a) only", "(b) only", "both"], "A", "(a) only"),  # without their letters two would be one
        (["(c) 2020", "x", "y"], "C", "y"),
        (["A)5", "A)6", "C)7"], "C", "7"),  # the letter that is written twice is not the answer
        ("a ) 90 (f) , b ) 95 (f) , c ) 96 , d ) 97 , e ) 98", "b", "95 (f)"),
        ("a ) 5 (d) , b ) 6 (d) , c ) 7", "b", "6 (d)"),
        ("a ) 5 (c) , b ) 6", "b", "6"),
        ("c ) 5 (a) , d ) 6 (b)", "d", "6 (b)"),
    ],
)
def test_letters_inside_options_and_before_some_only_are_no_mistake(options: Any, answer: str, meant: str) -> None:
    row = {"question": "x", "options": options, "correct": answer}
    own = build_task(OWN_CHOICE)
    assert own.read(row).gold == own.read(row | {"correct": meant}).gold == meant
    example = build_task("aqua").read(row)
    assert f"({example.gold}) {meant}" in example.prompt and example.gold == answer.upper()


def test_an_answer_may_leave_out_the_letter_that_is_part_of_its_option() -> None:
    row = {"question": "x", "options": ["(c) 2020", "x", "y"], "correct": "2020"}
    assert build_task(OWN_CHOICE).read(row).gold == "(c) 2020"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["A) 1", "A) 2", "B) 3"], "the letter A is written before 2 of the options"),
        ("B) 1, A) 2, B) 3", "the letters of the options come as B, A, B"),
    ],
)
@pytest.mark.parametrize("spec", ["aqua", OWN_CHOICE])
def test_letters_that_contradict_each_other_are_refused(spec: Any, options: Any, said: str) -> None:
    with pytest.raises(RowError, match=said):
        build_task(spec).read({"question": "x", "options": options, "correct": "A"})


def test_letters_in_the_texts_of_own_options_are_meant_too() -> None:
    task = build_task({"kind": "choice", "prompt": "{q}", "answer": "{a}", "options": ["{x}", "{y}"]})
    for x, y in (("B) 2", "A) 1"), ("B. 2", "A. 1")):
        assert task.read({"q": "?", "x": x, "y": y, "a": "B"}).gold == x
    initials = {"q": "?", "x": "B. Franklin", "y": "H. Ford", "a": "B"}
    assert task.read(initials).gold == "H. Ford"  # initials are no letters of options: the second is B
    for x, y, a, gold in (("none", "A) 1", "A", "none"), ("(a) x", "y", "B", "y"), ("A) x", "A) y", "A", "A) x")):
        assert task.read({"q": "?", "x": x, "y": y, "a": a}).gold == gold
    assert task.read({"q": "?", "x": "none", "y": "A) 1", "a": "none"}).gold == "none"


def test_an_answer_that_is_the_letter_of_one_option_and_the_text_of_another_is_the_text() -> None:
    row = {"question": "Which vitamin?", "options": ["A) C", "B) A", "C) D"], "correct": "A"}
    assert build_task(OWN_CHOICE).read(row).gold == "A"
    assert build_task(OWN_CHOICE).read(row | {"correct": "A) C"}).gold == "C"
