"""Right or wrong. Names of the form row_NN are the rows of errors in the released code that they guard against."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from h2tune.distill.generation import tidy
from h2tune.tasks import build_task, scoring
from h2tune.tasks.example import Example
from h2tune.tasks.scoring import program_text, score_choice, score_number

LETTERS = tuple(f" {letter}" for letter in "ABCDE")


def number(gold: str, answer: str = " long\nThe answer is 1") -> Example:
    return Example("q", answer, gold)


@pytest.mark.parametrize(
    ("gold", "text"),
    [
        ("45", "45.0"), ("45", "45."), ("1000", "1,000"), ("1000", "$1,000.00"), ("50", "50%"), ("18", "$18"),
        ("0.3333333333", "1/3"), ("1/3", "0.33333"), ("-3", "= -3"), ("-3", "\u22123"), ("1000", "1e3"),
        ("3", "16-13 = 3"), ("13", "so 16-13"), ("0", "0"), ("2/35", "The answer is 0.0571428"),
        ("7", "a is 3, b is 4.\nThe answer is 7"), ("7", "The answer is 5? No. The answer is: **7** of 9"),
        ("7", "First, she has 3.\nThen 3+4=7 in all.\n\nQuestion: Tom has 9"), ("12", "they paid 3, 4 and 12"),
        ("72", "48+24 = 72\n#### 72"), ("1200000", "1,200,000 people"),
        ("12", "The answer is 3 + 9 = 12"), ("12", "#### 3+9 = 12"), ("12", "The answer is 12 = 3 * 4"), ("-6", "The answer is 3 - 9 = -6"),
        ("12", "The answer is 12 since x = 4"), ("5", "The answer is 5. Then 7 + 8 = 15"),
    ],
)  # fmt: skip
def test_row_24_numbers_are_compared_as_numbers(gold: str, text: str) -> None:
    assert scoring.score_number(number(gold), text)


@pytest.mark.parametrize(
    ("gold", "text"),
    [
        ("45", "46"), ("45", ""), ("45", "none"), ("70000", "70001"), ("0.3333", "0.33"), ("3", "1/0"), ("1000", "1,00"),
        ("7", "The answer is"), ("7", "The answer is 5. 7"), ("3", "-3"), ("5", "5\n\nso 6\n\nThe answer is 6"),
        ("1", "1e999"), ("3", "The answer is 3 + 9 = 12"),
    ],
)  # fmt: skip
def test_wrong_numbers(gold: str, text: str) -> None:
    assert not scoring.score_number(number(gold), text)


def test_an_answer_of_one_line_is_looked_for_in_the_first_line() -> None:
    example = number("11", " 11")
    assert scoring.score_number(example, " 11\nProblem: Tom has 5")
    assert scoring.score_number(example, " 11\nTom has 5")
    assert not scoring.score_number(example, " 5\n11")


@pytest.mark.parametrize(
    "text",
    [
        "### Step 1\n3*4 = 12\n\nThe answer is 12", "First: 3*4 is 12.\nThe answer is 12", "...\nProblem: find 3*4.\nThe answer is 12",
        "Problem: find 3*4.\n12", "We know 3 and 4.\nFirst: 3*4 = 12.\n#### 12", "### Response:\nThe answer is 12",
        "The answer is 12\nQuestion: What is 2+3?\nThe answer is 5", "12\nQuestion: What is 2+3?\nAnswer: The answer is 5",
        "12\n\n### Instruction: What is 2+3?\n### Response:\nThe answer is 5", "#### 12\n### Question 2\n#### 5",
    ],
)  # fmt: skip
def test_the_next_question_begins_only_after_an_answer(text: str) -> None:
    assert scoring.score_number(number("12"), text) and not scoring.score_number(number("5"), text)


def test_a_letter_is_looked_for_before_the_next_question() -> None:
    example = Example("q", " B", "B", LETTERS)
    assert scoring.score_choice(example, "B\nQuestion: which?\nAnswer: the answer is C")
    assert scoring.score_choice(example, "The answer is B\nQuestion: which?\nThe answer is C")
    assert scoring.score_choice(example, "First: compare.\nProblem: which is larger?\nThe answer is B")


@pytest.mark.parametrize(
    ("text", "one_line", "path"),
    [
        ("### Step 1\n3*4 = 12\nThe answer is 12\nand so on", False, "### Step 1\n3*4 = 12\nThe answer is 12"),
        ("First: 3*4 is 12.\nThe answer is 12.\nQuestion: x", False, "First: 3*4 is 12.\nThe answer is 12."),
        ("Paris is\nthe capital\nQuestion: of Italy?\nAnswer: Rome", False, "Paris is\nthe capital"),
        ("12\nProblem: Tom has 5", True, "12"),
        ("\n", False, ""),
    ],
)  # fmt: skip
def test_a_path_ends_before_the_next_question(text: str, one_line: bool, path: str) -> None:
    assert tidy(text, " ", one_line) == (f" {path}" if path else "")


@given(st.integers(-(10**12), 10**12))
def test_every_way_to_write_a_whole_number(value: int) -> None:
    for text in (f"{value}", f"{value:,}", f"{value}.0", f" {value}.", f"so\nThe answer is {value:,}."):
        assert scoring.score_number(number(str(value)), text)
    assert not scoring.score_number(number(str(value)), str(value + 1))


@given(st.floats(-1e9, 1e9).filter(lambda x: abs(x) > 1e-3 and not x.is_integer()))
def test_a_rounded_number_is_right_and_a_double_is_not(value: float) -> None:
    assert scoring.same_number(value, float(f"{value:.7g}"))
    assert not scoring.same_number(value, 2 * value)


@settings(max_examples=200)
@given(st.text())
def test_no_text_breaks_a_scorer(text: str) -> None:
    for found in (scoring.parse_number(text), scoring.final_number(text)):
        assert found is None or math.isfinite(found)
    assert scoring.find_letter(text) in (None, *"ABCDE")
    assert scoring.leading_label(text, ("yes", "no")) in (None, "yes", "no")
    scoring.program_text(text)


@pytest.mark.parametrize("text", ["know", "not sure", "cannot", "I say no", "yes", "", "nothing", "eyes"])
def test_row_22_a_label_is_not_found_inside_other_words(text: str) -> None:
    assert not scoring.score_label(("no", "yes"))(Example("q", " no", "no"), text)


@pytest.mark.parametrize("text", [" no", "No.", "NO, because", "\nno\nQuestion", "no way", "The answer is no"])
def test_a_label_is_whole_words_at_the_start(text: str) -> None:
    assert scoring.score_label(("no", "yes"))(Example("q", " no", "no"), text)


def test_the_longest_label_counts() -> None:
    labels = ("no", "no change")
    assert scoring.leading_label("no change at all", labels) == "no change"
    assert scoring.leading_label("no changes", labels) == "no"
    assert scoring.leading_label("not_entailment", ("entailment", "not_entailment")) == "not_entailment"


HINDI = ("\u0939\u093e\u0901", "\u0928\u0939\u0940\u0902")  # yes, no: their vowels are combining marks


@pytest.mark.parametrize(
    ("text", "labels", "label"),
    [
        ("\u0939\u094b \u0938\u0915\u0924\u093e \u0939\u0948", HINDI, None),  # "may be" begins with the same consonant as "yes"
        (HINDI[0] + "\u0964", HINDI, HINDI[0]), (HINDI[1] + " " + HINDI[0], HINDI, HINDI[1]), ("\u0939", HINDI, None),
        ("Schme\u0301 ja", ("schm\u00e9", "schme"), "schm\u00e9"), ("schm\u00e9", ("schme\u0301", "x"), "schme\u0301"),
        ("schme", ("schm\u00e9", "x"), None), ("\u0301 yes", ("yes", "no"), "yes"), ("+\u00e9", ("+e\u0301", "-"), "+e\u0301"),
    ],
)  # fmt: skip
def test_words_keep_their_combining_marks(text: str, labels: tuple[str, ...], label: str | None) -> None:
    assert scoring.leading_label(text, labels) == label


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("I think it is B", "B"), ("I was thinking: C", "C"), ("I", "I"), ("(I)", "I"), ("I is right", "I"), ("I. Because", "I"),
        ("The answer is I", "I"), ("The answer is I because", "I"), ("I believe", None), ("J, I think", "J"), ("I'm for D", "D"),
    ],
)  # fmt: skip
def test_the_word_i_is_no_option(text: str, letter: str | None) -> None:
    assert scoring.find_letter(text, "ABCDEFGHIJ") == letter


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        (" C", "C"), ("(C)", "C"), ("C) 600", "C"), ("answer is C", "C"), ("The answer is (c).", "C"), ("C.", "C"),
        ("I think it is a trick, so option c", "C"), ("A train travels 5 miles, so C", "C"), ("a car. Then (D)", "D"),
        ("A is wrong, B too. The answer is E", "E"), ("The answer is A", "A"), ("A because", "A"), ("(A)", "A"),
        ("the answer is a", "A"), ("a train", None), ("A train", None), ("DAB", None), ("Bob's Dad", None), ("", None),
        ("The answer is a multiple of 3: B", "B"), ("Answer: D", "D"), ("B\nThe other choice", "B"),
    ],
)  # fmt: skip
def test_row_23_letters_and_never_the_article(text: str, letter: str | None) -> None:
    assert scoring.find_letter(text) == letter
    assert letter is None or scoring.score_choice(Example("q", f" {letter}", letter, LETTERS), text)


def test_choices_by_content() -> None:
    numbers = Example("q", " 7", "7", (" 7", " 17", " 60"))
    assert scoring.score_choice(numbers, " 7\nProblem") and not scoring.score_choice(numbers, " 17")
    words = Example("q", " red wine", "red wine", (" red", " red wine"))
    assert scoring.score_choice(words, "Red wine.") and not scoring.score_choice(words, "red")


@pytest.mark.parametrize(
    "text",
    [
        " n = 3\nanswer = n * 4", "```python\nn = 3\nprint(n * 4)\n```\nDone.", "answer = 12.0",
        "answer = 24 / 2\nprint(answer)\n\nProblem: Tom has 5", "n = 12\nanswer = n\nand so we are done",
    ],
)  # fmt: skip
def test_programs_are_scored_by_their_value(text: str) -> None:
    assert scoring.score_program(Example("q", " a = 1\nanswer = 12", "12"), text)


ONE_LINE = Example("q", " answer = 3*4", "12")


@pytest.mark.parametrize(
    "text",
    [
        "x = 3\nanswer = x*4", "```python\nx = 3\nanswer = x*4\n```", "```python3\nx = 3\nanswer = x*4\n```\nIt is 12.",
        "```\nx = 3\nanswer = x*4", "``` py title='a.py'\nx = 3\nanswer = x*4\n```", "answer = 12\nraise ValueError",
        "answer = 12\nProblem: Tom has 5", "print(12)\nopen('x')",
    ],
)  # fmt: skip
@pytest.mark.parametrize("reference", [" answer = 3*4", "", " ```python\nanswer = 3*4\n```"])
def test_a_program_of_several_lines_is_right_beside_a_reference_of_one(reference: str, text: str) -> None:
    assert scoring.score_program(Example("q", reference, "12"), text)


def test_the_first_line_counts_only_where_the_whole_comes_to_nothing() -> None:
    assert not scoring.score_program(ONE_LINE, "answer = 12\nanswer = 13")
    assert not scoring.score_program(ONE_LINE, "```\nanswer = 12\nraise ValueError\n```")
    assert not scoring.score_program(Example("q", " x = 3\nanswer = x*4", "12"), "answer = 12\nraise ValueError")


def test_a_task_of_single_lines_counts_the_first_line_whatever_follows() -> None:
    task = build_task("demo-program")
    assert task.score(ONE_LINE, " answer = 3*4\nanswer = 13") and not task.score(ONE_LINE, "x = 3\nanswer = x*4")
    assert scoring.score_all(task.score, [ONE_LINE] * 2, ["answer = 12\nanswer = 13", "answer = 13"]) == [True, False]


def test_a_fenced_reference_is_run_without_its_fence() -> None:
    example = Example("q", " Here it is:\n```python\nn = 3\nanswer = n * 4\n```\nDone.", "")
    assert scoring.score_program(example, "answer = 12") and not scoring.score_program(example, "answer = 3")
    assert scoring.reference_program("answer = 3\nanswer = answer *") == "answer = 3\nanswer = answer *"


def test_row_27_a_program_is_never_run_here() -> None:
    example = Example("q", " answer = 1", "1")
    assert not scoring.score_program(example, "raise SystemExit")
    assert not scoring.score_program(example, "import sys; sys.exit()")
    assert scoring.score_program(Example("q", " answer = 8 + 3", ""), "answer = 11\nraise ValueError")


def test_text_answers() -> None:
    assert scoring.score_text(Example("q", " Paris", "Paris"), " paris.\nNext")
    assert not scoring.score_text(Example("q", " Paris", "Paris"), "Paris Texas")
    assert scoring.score_text(Example("q", " caf\u00e9", "caf\u00e9"), "Cafe\u0301.")


@pytest.mark.parametrize("gold", [".", "...", ". ."])
def test_an_answer_of_stops_is_no_empty_text(gold: str) -> None:
    example = Example("q", f" {gold}", gold)
    assert scoring.score_text(example, f" {gold}")
    assert not any(scoring.score_text(example, text) for text in ("", " ", "\n", "x"))


@pytest.mark.parametrize("name", ["sst2", "qqp", "qnli", "mrpc"])
def test_heads_are_scored_by_the_name_of_the_label(name: str) -> None:
    task = build_task(name)
    example = Example("q", "", task.labels[1], label=1)
    assert task.score(example, task.labels[1]) and not task.score(example, task.labels[0])


def test_programs_scored_together_are_judged_as_alone() -> None:
    texts = ["answer = 12", "raise SystemExit", "while True:\n    pass", "", "answer = 12", "answer = 13"]
    examples = [Example("q", " answer = 8 + 4", "") for _ in texts[:-1]] + [Example("q", " answer = 8 + 4", "13")]
    together = scoring.score_all(scoring.score_program, examples, texts)
    assert together == [True, False, False, False, True, True]
    assert scoring.score_all(scoring.score_number, [Example("q", " 4", "4")], ["4"]) == [True]


@pytest.mark.parametrize(
    "text",
    [
        lambda n: "a" + "\n" * n + "x",
        lambda n: "a\nQuestion" + " " * n,
        lambda n: "1" + ",111" * (n // 4) + "1",
        lambda n: "answer is " * (n // 10),
        lambda n: "\nProblem: 1" * (n // 11),
        lambda n: "\nProblem: The answer is " * (n // 24),
        lambda n: "\n### " + " \n" * (n // 2),
        lambda n: "-" * n,
        lambda n: "1/" * (n // 2),
        lambda n: "```" * (n // 3),
        lambda n: "(" * n,
    ],
)
def test_a_longer_text_takes_no_more_than_its_share_of_time(text: Callable[[int], str]) -> None:
    """A path of another participant may have 16 kB; searches that went back from every character took seconds."""

    def seconds(size: int) -> float:
        began = time.process_time()
        for scorer in (score_number, score_choice):
            scorer(Example("p", "a long\nreference 12", "12"), text(size))
        program_text(text(size))
        return time.process_time() - began

    assert seconds(16000) < 9 * seconds(4000) + 0.3
