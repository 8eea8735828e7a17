"""An export states the prompt that its model was trained on, whatever the file calls its columns."""

from __future__ import annotations

from typing import Any

import pytest

from h2tune.tasks import build_task
from h2tune.tasks.custom import with_columns
from h2tune.tasks.read_by import read_by
from h2tune.tasks.rows import fill
from h2tune.tasks.told import TaskTexts, task_texts

RENAMED = {"question": "problem", "answer": "solution"}
TURNS = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "well?"}]


def told(spec: Any, row: dict[str, Any], columns: dict[str, str] | None = None, template: bool = True) -> TaskTexts:
    task = build_task(spec)
    return task_texts(task, spec, columns, read_by([with_columns(task, columns).read(row)]), template=template)


@pytest.mark.parametrize(("spec", "columns", "row", "prompt", "answer"), [
    ("gsm8k", None, {"question": "How many?", "answer": "3"}, "Question: {question}\nAnswer:", " {answer}"),
    ("gsm8k", RENAMED, {"problem": "How many?", "solution": "3"}, "Question: {problem}\nAnswer:", " {solution}"),
    ({"preset": "gsm8k", "columns": RENAMED}, None, {"problem": "How many?", "solution": "3"},
     "Question: {problem}\nAnswer:", " {solution}"),
    ("gsm8k", None, {"Body": "A has 3.", "Question": "How many?", "Answer": 3}, "Question: {Body} {Question}\nAnswer:",
     " The answer is {Answer}"),
    ("sst2", {"sentence": "text", "label": "y"}, {"text": "good", "y": 1}, "Review: {text}\nVerdict:", "{label}"),
    ({"preset": "mrpc", "kind": "choice"}, None, {"sentence1": "a", "sentence2": "b", "label": 1},
     "First: {sentence1}\nSecond: {sentence2}\nSame:", " {option}"),
    ("program", None, {"instruction": "Add", "output": "print(1)"}, "Question: {instruction}\nProgram:", " {output}"),
    ("demo-choice", None, {"prompt": "p", "options": ["1", "2"], "answer": "1", "gold": "1"}, "{prompt}", " {option}"),
    ({"kind": "generate"}, None, {"prompt": "Say", "answer": "this"}, "{prompt}", "{answer}"),
    ({"kind": "generate", "join": " "}, None, {"prompt": "Say", "completion": "this"}, "{prompt}", " {completion}"),
    ({"kind": "generate"}, None, {"instruction": "Add", "input": "1", "output": "3", "prompt": "air"},
     "Question: {instruction}\n{input}\nAnswer:", " {output}"),
    ({"kind": "generate", "prompt": "{a b}:", "answer": " {c}"}, {"c": "d"}, {"a b": "x", "d": "y"}, "{a b}:", " {d}"),
])  # fmt: skip
def test_columns_stand_by_the_files_names(
    spec: Any, columns: dict[str, str] | None, row: dict[str, Any], prompt: str, answer: str
) -> None:
    texts = told(spec, row, columns)
    assert (texts.prompt, texts.answer, texts.exact) == (prompt, answer, True)
    example = with_columns(build_task(spec), columns).read(row)
    assert fill(texts.prompt, row) == example.prompt  # what it says is what the model reads
    if "{option}" not in answer and "{label}" not in answer:
        assert fill(texts.answer, row) == example.answer


def test_letters_stand_for_options() -> None:
    texts = told("aqua", {"question": "Which?", "options": ["A)1", "B)2"], "correct": "A"})
    assert texts.prompt == "Question: {question}\nChoices: (A) {option A} (B) {option B}\nAnswer:"
    assert texts.answer == " {letter}" and texts.notes == ("There are as many options as {options} holds.",)


def test_a_chat_is_told_as_one() -> None:
    texts = told({"kind": "generate"}, {"messages": TURNS})
    assert "chat template" in texts.prompt and not texts.exact and texts.answer == "{last turn of the assistant}"
    plain = told({"kind": "generate"}, {"messages": TURNS}, template=False)
    assert (plain.prompt, plain.answer) == ("{role}: {content}\nassistant:", " {last turn of the assistant}")
    assert plain.exact and "the tokenizer has no chat template" in plain.notes[0]
    whole = {"kind": "classify", "prompt": "{chat}", "answer": "{y}", "labels": ["a", "b"]}
    assert told(whole, {"chat": TURNS, "y": "a"}, template=False).prompt == "{role}: {content}\n"
    apart = told({"kind": "generate"}, {"prompt": TURNS[:1], "completion": "well?"}, template=False)
    assert apart.answer == " {completion}"


def test_an_answer_is_what_the_model_writes_and_not_what_the_data_hold() -> None:
    spec: dict[str, Any] = {"kind": "generate", "prompt": "{t}:", "answer": " {urgent}",
                            "labels": {0: "routine", 1: "urgent"}}  # fmt: skip
    texts = told(spec, {"t": "fire", "urgent": 1})
    assert texts.answer == " {label}" and texts.written == {"0": "routine", "1": "urgent"}
    assert texts.notes == (
        "{label} is one of: routine, urgent.",
        "In the data 0 stands for routine, 1 stands for urgent.",
    )
    choice = {"kind": "choice", "prompt": "{t}", "answer": " {u}", "options": ["x", "y"]}
    texts = told(choice, {"t": "fire", "u": "x"})
    assert (texts.answer, texts.options, texts.notes) == (" {option}", ("x", "y"), ("{option} is one of: x, y.",))
    texts = told(choice | {"options": "{o}"}, {"t": "fire", "u": "x", "p": ["x", "y"]}, {"o": "p"})
    assert (texts.options, texts.notes) == ("{p}", ("{option} is one of the texts in {p}.",))


def test_rows_of_several_forms_are_all_told() -> None:
    task = build_task({"kind": "generate"})
    rows = [task.read({"question": "a", "answer": "b"})] * 2 + [task.read({"messages": TURNS})]
    texts = task_texts(task, {"kind": "generate"}, None, read_by(rows), template=True)
    assert texts.prompt == "Question: {question}\nAnswer:"
    assert texts.notes == ("1 of its training rows were read by other columns: messages (a chat).",)


def test_columns_that_are_not_known_are_not_guessed() -> None:
    texts = task_texts(build_task("gsm8k"), "gsm8k", None, (), template=True)
    assert "not known here" in texts.prompt and not texts.exact
    own = {"kind": "generate", "prompt": "{q}:", "answer": " {a}"}
    assert task_texts(build_task(own), own, None, (), template=True).prompt == "{q}:"
