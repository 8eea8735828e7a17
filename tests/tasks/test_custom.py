"""Tasks written as a mapping."""

from __future__ import annotations

import unicodedata
from typing import Any

import pytest

from h2tune.tasks import RowError, TaskError, build_task
from h2tune.tasks.custom import with_columns

TEXT = {"kind": "classify", "prompt": "{text}", "answer": "{label}", "labels": ["a", "b"]}


def test_generate_with_a_number() -> None:
    task = build_task({"kind": "generate", "prompt": "Q: {my question}\nA:", "answer": "{sol}", "score": "number"})
    example = task.read({"my question": "How {many}?", "sol": "3 + 4 = 7"})
    assert (example.prompt, example.answer, example.gold) == ("Q: How {many}?\nA:", "3 + 4 = 7", "7")
    assert task.score(example, "7.0")
    assert task.ask({"my question": "x"}).prompt == "Q: x\nA:"


def test_generate_with_labels() -> None:
    task = build_task(
        {"kind": "generate", "prompt": "{text}\nUrgent:", "answer": "{u}", "join": " ", "labels": {0: "no", 1: "yes"}}
    )
    example = task.read({"text": "fire", "u": "1"})
    assert example.answer == " yes" and task.score(example, "Yes!") and not task.score(example, "yesterday")


def test_classify() -> None:
    task = build_task(
        {"kind": "classify", "prompt": "{text}", "answer": "{y}", "labels": ["low", "high"], "name": "risk"}
    )
    example = task.read({"text": "fire", "y": "high"})
    assert (example.label, example.gold, example.answer) == (1, "high", "")
    with pytest.raises(RowError, match="label 'mid' is not known to task risk, which knows low, high"):
        task.read({"text": "fire", "y": "mid"})
    unnamed = build_task({"kind": "classify", "prompt": "{text}", "answer": "{y}", "labels": ["low", "high"]})
    with pytest.raises(RowError, match="label 'mid' is not known to the task, which knows low, high"):
        unnamed.read({"text": "fire", "y": "mid"})


@pytest.mark.parametrize("answer", ["blue", "B", "b", "(B)"])
def test_choice_from_a_column(answer: str) -> None:
    task = build_task({"kind": "choice", "prompt": "{q}", "answer": "{a}", "options": "{o}", "join": " "})
    example = task.read({"q": "Which?", "o": ["red", "blue"], "a": answer})
    assert (example.options, example.answer, example.gold) == ((" red", " blue"), " blue", "blue")
    assert task.score(example, " blue") and not task.score(example, " red")


def test_an_accent_typed_as_its_own_character_is_the_same_letter() -> None:
    task = build_task({"kind": "choice", "prompt": "{q}", "answer": "{a}", "options": ["très urgent", "différé"]})
    example = task.read({"q": "Quand ?", "a": unicodedata.normalize("NFD", "très urgent")})
    assert (example.options, example.answer) == (("très urgent", "différé"), "très urgent")


def test_choice_from_several_columns() -> None:
    task = build_task({"kind": "choice", "prompt": "{q}", "answer": "{a}", "options": ["{x}", "{y}", "neither"]})
    assert task.read({"q": "Which?", "x": "1", "y": "2", "a": "neither"}).options == ("1", "2", "neither")
    with pytest.raises(RowError, match="different"):
        task.read({"q": "Which?", "x": "1", "y": "1", "a": "1"})
    with pytest.raises(
        TaskError, match=r"the answer 'both' is none of the options \(1, 2, neither\), nor the letter of one"
    ):
        task.read({"q": "Which?", "x": "1", "y": "2", "a": "both"})
    assert task.texts == ("q",)


def test_program() -> None:
    task = build_task({"kind": "generate", "prompt": "{q}", "answer": "{code}", "score": "program"})
    example = task.read({"q": "x", "code": "answer = 2 + 2"})
    assert task.finish is not None
    (done,) = task.finish([example])
    assert done is not None and done.gold == "4" and task.score(done, "print(4.0)")


@pytest.mark.parametrize("answer", ["C", "(c)", "2 + 2 = 4. The answer is C", "4 is option (C)"])
def test_a_letter_at_the_end_of_a_rationale(answer: str) -> None:
    task = build_task({"kind": "generate", "prompt": "{q}", "answer": " {a}", "score": "choice"})
    example = task.read({"q": "x", "a": answer})
    assert (example.answer, example.gold) == (f" {answer}", "C")
    assert task.score(example, example.answer) and task.score(example, "So the answer is c")
    assert not task.score(example, "2 + 2 = 5. The answer is D")


@pytest.mark.parametrize(
    ("spec", "answer", "said"),
    [
        ({"kind": "generate", "score": "choice"}, "yes", "an answer names a letter from A to E, 'yes' does not"),
        ({"kind": "generate", "score": "choice", "labels": {"y": "yes", "n": "no"}}, "y", "'yes' would itself count"),
        ({"kind": "generate", "score": "number", "labels": {"y": "yes", "n": "no"}}, "y", "'yes' would itself count"),
        (
            {"kind": "choice", "score": "number", "options": ["y", "n"]},
            "y",
            "the answer 'y' would itself count as wrong",
        ),
        ({"kind": "classify", "score": "number", "labels": ["y", "n"]}, "y", "the answer 'y' would itself count"),
    ],
)
def test_a_row_whose_own_answer_would_count_as_wrong_is_refused(spec: dict[str, Any], answer: str, said: str) -> None:
    join = " " if spec["kind"] == "generate" and "labels" not in spec else ""
    task = build_task({"prompt": "{q}", "answer": join + "{a}"} | spec)
    with pytest.raises(RowError, match=said):
        task.read({"q": "x", "a": answer})


@pytest.mark.parametrize("kind", ["choice", "classify"])
def test_only_what_is_written_can_be_a_program(kind: str) -> None:
    given = {"options": ["1", "2"]} if kind == "choice" else {"labels": ["1", "2"]}
    with pytest.raises(TaskError, match="score: program belongs to kind generate"):
        build_task({"kind": kind, "prompt": "{q}", "answer": "{a}", "score": "program"} | given)


@pytest.mark.parametrize(
    ("row", "prompt", "answer"),
    [
        ({"prompt": "Say", "completion": "this"}, "Say", "this"),
        ({"instruction": "Add", "input": "1 2", "output": "3"}, "Question: Add\n1 2\nAnswer:", " 3"),
        ({"question": "Why?", "answer": "so"}, "Question: Why?\nAnswer:", " so"),
        ({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}, "user: a\nassistant:", " b"),
        ({"messages": '[{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]'}, "user: a\nassistant:", " b"),
    ],
)  # fmt: skip
def test_usual_columns_need_no_prompt(row: dict[str, Any], prompt: str, answer: str) -> None:
    example = build_task({"kind": "generate"}).read(row)
    assert (example.prompt, example.answer) == (prompt, answer)


def test_a_chat_ends_at_its_last_assistant_turn() -> None:
    turns = [("system", "s"), ("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d"), ("user", "e")]
    row = {"messages": [{"role": role, "content": content} for role, content in turns]}
    example = build_task({"kind": "generate"}).read(row)
    assert example.messages is not None and len(example.messages) == 4 and example.answer == " d"
    asked = build_task({"kind": "generate"}).ask(row)
    assert asked.messages is not None and len(asked.messages) == 6 and asked.answer == ""


def test_a_preset_with_changes() -> None:
    task = build_task(
        {"preset": "sst2", "name": "mood", "max_new_tokens": 9, "columns": {"sentence": "text", "label": "y"}}
    )
    assert (task.name, task.max_new_tokens) == ("mood", 9)
    assert task.read({"text": "fine", "y": 1}).gold == "positive"
    with pytest.raises(RowError, match="no column 'text'"):
        task.read({"sentence": "fine", "y": 1})


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("sst", "unknown task 'sst'; did you mean 'sst2'"),
        ("zzzzzz", "there are: gsm8k"),
        ({"preset": "gsm8"}, "did you mean 'gsm8k'"),
        ({"preset": "gsm8k", "kind": "classify"}, "gsm8k cannot be of kind 'classify'; it can be generate"),
        ({"preset": "gsm8k", "prompt": "x"}, "unknown key of a task 'prompt'"),
        ({"kind": "generat"}, "did you mean 'generate'"),
        ({"kind": "generate", "promt": "{x}"}, "did you mean 'prompt'"),
        ({"kind": "generate", "prompt": "{x}"}, "belong together"),
        ({"kind": "generate", "prompt": "x", "answer": "{y}"}, "names no column"),
        ({"kind": "generate", "prompt": 3, "answer": "{y}"}, "should be text"),
        ({"kind": "generate", "score": "numbers"}, "did you mean 'number'"),
        ({"kind": "generate", "max_new_tokens": 0}, "max_new_tokens"),
        ({"kind": "generate", "options": ["a", "b"]}, "belongs to kind choice"),
        ({"kind": "choice", "prompt": "{x}", "answer": "{y}"}, "needs options"),
        ({"kind": "classify", "prompt": "{x}", "answer": "{y}"}, "needs labels"),
        ({"kind": "classify", "labels": ["a", "b"]}, "needs prompt: and answer:"),
        ({"kind": "classify", "prompt": "{x}", "answer": "{y}", "labels": [False, True]}, "in quotes"),
        ({"kind": "classify", "prompt": "{x}", "answer": "{y}", "labels": ["a"]}, "two or more"),
        ({"kind": "choice", "prompt": "{x}", "answer": "{y}", "options": [False, True]}, "options: YAML .* in quotes"),
        ({"kind": "generate", "columns": ["a"]}, "columns should map"),
        ({"prompt": "{x}"}, "needs a preset or a kind"),
        (3, "name of a preset or a mapping"),
    ],
)  # fmt: skip
def test_mistakes_are_named(spec: Any, message: str) -> None:
    with pytest.raises(TaskError, match=message) as error:
        build_task(spec)
    assert str(error.value).count("\n") <= 1


@pytest.mark.parametrize("spec", [{"kind": "generate"}, {"kind": "generate", "labels": ["yes", "no"]},
                                  {"kind": "classify", "labels": ["yes", "no"]}], ids=str)  # fmt: skip
def test_a_space_at_the_start_of_the_answers_template_is_what_join_writes(spec: dict[str, Any]) -> None:
    """So a prediction is written without it, too."""
    row, spec = {"q": "Is it?", "a": "yes"}, {"prompt": "{q}"} | spec
    begun, joined = (build_task(spec | more) for more in ({"answer": " {a}"}, {"answer": "{a}", "join": " "}))
    assert begun.read(row) == joined.read(row) and begun.ask(row) == joined.ask(row)
    assert begun.ask(row).lead == " "


@pytest.mark.parametrize("wrong", [5, {"a": "b"}, None, True, [True, False]], ids=str)
def test_options_and_labels_that_are_no_list_are_refused_in_words(wrong: Any) -> None:
    spec = {"kind": "choice", "prompt": "{q}", "answer": "{a}"}
    with pytest.raises(TaskError, match="options: "):
        build_task(spec | {"options": wrong})
    for kind in ("generate", "classify"):
        with pytest.raises(TaskError, match="labels"):
            build_task(spec | {"kind": kind, "labels": wrong if wrong is not None else 1.5})


def test_a_question_needs_no_column_of_answers_whatever_it_is_called() -> None:
    task = build_task({"preset": "gsm8k", "columns": {"question": "problem", "answer": "solution"}})
    asked = task.ask({"problem": "How many?", "answer": "of another"})
    assert "How many?" in asked.prompt and asked.answer == ""
    with pytest.raises(RowError, match="no column 'solution'"):
        task.read({"problem": "How many?"})
    with pytest.raises(RowError, match="no column 'problem'"):
        task.ask({"solution": "3"})


def test_the_space_that_an_answer_begins_with_stands_before_every_option() -> None:
    task = build_task({"kind": "choice", "prompt": "Q: {t}\nA:", "answer": " {u}", "options": ["x", "y"]})
    example = task.read({"t": "which?", "u": "x"})
    assert (example.answer, example.options, example.gold) == (" x", (" x", " y"), "x")


@pytest.mark.parametrize("options", [["yes", "no", None], ["yes", " "], "a) yes, b) , c) no"])
def test_an_empty_option_is_named(options: Any) -> None:
    task = build_task({"kind": "choice", "prompt": "{t}", "answer": "{u}", "options": "{choices}"})
    with pytest.raises(RowError, match="option"):
        task.read({"t": "which?", "u": "yes", "choices": options})


def test_whole_numbers_that_pandas_wrote_as_floats_are_labels() -> None:
    spec = {"kind": "classify", "prompt": "{text}", "answer": "{y}", "labels": {0: "no", 1: "yes"}}
    task = build_task(spec)
    assert [task.read({"text": "x", "y": y}).label for y in ("0.0", "1.0", 1.0, "1")] == [0, 1, 1, 1]
    for wrong in ("0.5", "2.0", "00.0", "1.0x"):
        with pytest.raises(RowError, match="is not known"):
            task.read({"text": "x", "y": wrong})
    other = build_task({**spec, "labels": {"1.0": "no", "1": "yes"}})  # who names both means both
    assert [other.read({"text": "x", "y": y}).label for y in ("1.0", "1")] == [0, 1]
    assert build_task("sst2").read({"sentence": "x", "label": "1.0"}).label == 1


def test_true_and_false_are_told_how_they_are_written() -> None:
    spec = {"kind": "classify", "prompt": "{text}", "answer": "{y}", "labels": {0: "no", 1: "yes"}}
    for value, written in ((True, "true"), ("False", "True")):
        with pytest.raises(RowError, match=f'write labels: {{"{written}": '):
            build_task(spec).read({"text": "x", "y": value})
    named = build_task({**spec, "labels": {"false": "no", "true": "yes"}})
    assert named.read({"text": "x", "y": True}).label == 1


@pytest.mark.parametrize(
    ("name", "numbers"),
    [("sst2", "0 for negative and 1 for positive"), ("qnli", "0 for entailment and 1 for not_entailment")],
)
def test_a_preset_says_what_to_write_for_true_and_false(name: str, numbers: str) -> None:
    row = {"sentence": "x", "question": "y", "label": True}
    with pytest.raises(RowError, match=f"for true and false write {numbers} in the file, or an own task") as error:
        build_task(name).read(row)
    assert "labels: {" not in str(error.value)


def test_a_row_with_several_questions_is_asked_the_one_that_was_trained() -> None:
    task = build_task({"kind": "generate"})
    row = {"prompt": "air", "instruction": "Add", "input": "1 2", "output": "3"}
    example = task.read(row)
    assert (example.prompt, example.form) == ("Question: Add\n1 2\nAnswer:", "instruction -> output")
    assert task.ask(row).prompt == example.prompt  # the column of answers decides
    del row["output"]
    with pytest.raises(RowError, match=r"the question may be \(prompt\) or \(instruction\), and no column of answers"):
        task.ask(row)
    trained = task.trained_on([example.form])
    assert trained.ask(row).prompt == example.prompt
    renamed = build_task({"kind": "generate", "columns": {"instruction": "do", "output": "done"}})
    given = {"prompt": "air", "do": "Add", "input": "1 2"}
    with pytest.raises(RowError, match="the question may be"):
        renamed.ask(given)
    assert renamed.trained_on([example.form]).ask(given).prompt == example.prompt
    assert trained.ask({"question": "Why?"}).prompt == "Question: Why?\nAnswer:"  # other rows are read as they can be


def test_a_chat_does_not_tell_what_is_asked_before_it() -> None:
    chat = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    own, preset = build_task({"kind": "generate"}), build_task("gsm8k")
    assert own.ask({"messages": chat, "question": "Why?"}).messages  # what training takes, whatever else there is
    with pytest.raises(RowError, match=r"the question may be \(question\) or \(messages\)"):
        preset.ask({"messages": chat, "question": "Why?"})
    assert preset.ask({"instruction": "x", "question": "Why?", "answer": "1"}).prompt == "Question: Why?\nAnswer:"


def test_labels_say_what_a_file_writes_for_fixed_options() -> None:
    spec: dict[str, Any] = {"kind": "choice", "prompt": "{t}", "answer": " {u}", "options": ["routine", "urgent"],
                            "labels": {0: "routine", 1: "urgent", "Now": "urgent"}}  # fmt: skip
    task = build_task(spec)
    assert [task.read({"t": "fire", "u": u}).answer for u in (0, 1, "1.0", "Now")] == [" routine", *[" urgent"] * 3]
    with pytest.raises(RowError, match="label 'now' is not known"):
        task.read({"t": "fire", "u": "now"})
    assert build_task(spec | {"ignore_case": True}).read({"t": "fire", "u": "now"}).gold == "urgent"
    with pytest.raises(TaskError, match=r"labels: 'red' is none of the options \(routine, urgent\)"):
        build_task(spec | {"labels": {0: "routine", 1: "red"}})


@pytest.mark.parametrize(("spec", "said"), [
    ({"kind": "choice", "options": "{o}", "labels": ["a", "b"]}, "labels: of kind choice needs options: that are a list"),
    ({"kind": "choice", "options": ["{o}", "b"], "labels": ["a", "b"]}, "labels: of kind choice needs options:"),
    ({"kind": "choice", "options": ["a", "b"], "ignore_case": True}, "ignore_case: belongs to labels:; options match"),
    ({"kind": "generate", "ignore_case": True}, "ignore_case: belongs to labels:$"),
])  # fmt: skip
def test_a_key_that_would_do_nothing_is_refused(spec: dict[str, Any], said: str) -> None:
    with pytest.raises(TaskError, match=said):
        build_task({"prompt": "{q}", "answer": "{a}"} | spec)


@pytest.mark.parametrize(("spec", "columns", "said"), [
    (TEXT, {"sentence": "text"}, "columns: the task reads text, label; there is no 'sentence'"),
    ("sst2", {"text": "sentence"}, "columns: task sst2 reads sentence, qestion, label, answer; there is no 'text'"),
    ("qqp", {"question": "question1"}, "reads question1, question2, qestion, is_duplicate, label, answer; there is no 'q"),
    ({"kind": "generate"}, {"text": "input"}, "reads messages, conversations, prompt, question, instruction, input, "),
])  # fmt: skip
def test_a_name_that_the_task_does_not_read_takes_no_column_away(
    spec: Any, columns: dict[str, str], said: str
) -> None:
    """Such a key took the column away from the name by which the task reads it."""
    mapping = {"preset": spec} if isinstance(spec, str) else spec
    with pytest.raises(TaskError, match=said):
        build_task({**mapping, "columns": columns})
    with pytest.raises(TaskError, match=said):
        with_columns(build_task(spec), columns)


@pytest.mark.parametrize("more", [{"idx": "id"}, {"text": "sentence"}, {"idx": "text"}, {"idx": "source"}])
def test_a_name_that_does_nothing_is_passed_over(more: dict[str, str]) -> None:
    """Finished runs hold such entries."""
    task = build_task({"preset": "sst2", "columns": {"sentence": "text", **more}})
    assert task.read({"text": "fine", "label": 1, "id": 3}).label == 1
    assert task.ask({"text": "fine"}).prompt == build_task("sst2").ask({"sentence": "fine"}).prompt
    assert (task.asked_columns, task.answer_columns) == (("text", "qestion"), ("label", "answer"))


@pytest.mark.parametrize(("spec", "columns"), [
    (TEXT, {"text": "sentence", "label": "text"}),
    ("qqp", {"is_duplicate": "y"}), ("qqp", {"label": "y"}), ("qqp", {"source": "from"}), ("gsm8k", {"Body": "story"}),
    ("aqua", {"options": "choices"}), ("demo-choice", {"options": "choices", "gold": "right"}), ("program", {"value": "v"}),
    ({"kind": "generate"}, {"input": "more", "tools": "t"}), ({"kind": "generate"}, {"messages": "chat"}),
    ({"kind": "choice", "prompt": "{q}", "answer": "{a}", "options": ["{x}", "none"]}, {"x": "first"}),
    ({"kind": "choice", "prompt": "{q}", "answer": "{a}", "options": "{o}"}, {"o": "first"}),
])  # fmt: skip
def test_every_column_that_a_form_reads_can_have_another_name(spec: Any, columns: dict[str, str]) -> None:
    once = with_columns(build_task(spec), columns)
    with_columns(once, {now: f"{now} (2)" for now in columns.values()})  # a client's columns: beside its task's


def test_columns_of_a_client_name_those_of_its_task() -> None:
    task = build_task({**TEXT, "columns": {"text": "body"}})
    assert (task.asked_columns, task.answer_columns) == (("body",), ("label",))
    assert with_columns(task, {"body": "mail"}).read({"mail": "x", "label": "a"}).prompt == "x"
    with pytest.raises(TaskError, match="the task reads body, label; there is no 'text'"):
        with_columns(task, {"text": "label"})
