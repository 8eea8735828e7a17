"""Kind B: what is learnt is what the file says, to the character; what is no text is named by file, row and column."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from model_folders import write_rows

from h2tune.tasks import Example, TaskError, build_task, load_examples

GENERATE: dict[str, Any] = {"kind": "generate"}


def read(folder: Path, rows: list[dict[str, Any]], task: dict[str, Any] = GENERATE) -> list[Example]:
    return load_examples(str(write_rows(folder / "rows.jsonl", rows)), build_task(task))


def refusal(folder: Path, rows: list[dict[str, Any]], task: dict[str, Any] = GENERATE) -> str:
    with pytest.raises(TaskError) as error:
        read(folder, rows, task)
    assert str(error.value).count("\n") <= 1
    assert "rows.jsonl" in str(error.value)
    return str(error.value)


def test_a_program_stays_a_program(tmp_path: Path) -> None:
    row = {"prompt": "def f(x):\n", "completion": "    y = x + 1\n    return y\n"}
    (example,) = read(tmp_path, [row])
    assert example.prompt + example.answer == row["prompt"] + row["completion"]
    compile(example.prompt + example.answer, "x", "exec")


@pytest.mark.parametrize("text", ["  both  ", "a\n", "\tb", "no-break\u00a0", "crlf\r\n"])
def test_spaces_of_cells_stay_in_a_prompt_of_ones_own(tmp_path: Path, text: str) -> None:
    task = {"kind": "generate", "prompt": "<{text}> ", "answer": "{text}", "join": "|"}
    (example,) = read(tmp_path, [{"text": text}], task)
    assert (example.prompt, example.answer) == (f"<{text}> ", f"|{text}")


@pytest.mark.parametrize("blank", ["", " ", "\n", None, float("nan")])
def test_blank_cells_are_empty_where_an_empty_cell_is_allowed(tmp_path: Path, blank: Any) -> None:
    (example,) = read(tmp_path, [{"instruction": "Say it", "input": blank, "output": "it"}])
    assert example.prompt == "Question: Say it\nAnswer:"
    assert "row 1: column 'output' is empty" in refusal(
        tmp_path, [{"instruction": "Say", "input": "x", "output": blank}]
    )


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        ({"text": ["tea"]}, "an object"),
        (["tea"], "a list"),
        ([{"role": "user", "content": "x"}], "a list of chat turns"),
    ],
)
def test_a_structure_is_no_text(tmp_path: Path, value: Any, kind: str) -> None:
    task = {"kind": "generate", "prompt": "{context}\n{question}", "answer": "{answers}"}
    rows = [{"context": "c", "question": "q", "answers": "a"}, {"context": "c", "question": value, "answers": "b"}]
    message = refusal(tmp_path, rows, task)
    assert "row 2: column 'question' holds " + kind in message


def test_numbers_and_booleans_are_text(tmp_path: Path) -> None:
    task = {"kind": "generate", "prompt": "{a} {b} {c}", "answer": "{d}"}
    (example,) = read(tmp_path, [{"a": 3.0, "b": 0.5, "c": True, "d": -7}], task)
    assert (example.prompt, example.answer) == ("3 0.5 true", "-7")


@pytest.mark.parametrize("column", ["prompt", "answer"])
def test_half_a_character_is_named(tmp_path: Path, column: str) -> None:
    rows = [{"prompt": "a", "answer": "b"}, {"prompt": "a", "answer": "b"} | {column: "smile \ud83d"}]
    assert f"row 2: column {column!r} holds half a character (\\ud83d) at position 7" in refusal(tmp_path, rows)


TURNS = [{"role": "user", "content": "say tea "}]


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": TURNS, "completion": [{"role": "assistant", "content": " tea"}]},
        {"prompt": TURNS, "completion": " tea"},
        {"messages": [*TURNS, {"role": "assistant", "content": " tea"}]},
        {"messages": [*TURNS, {"role": "assistant", "content": [{"type": "text", "text": " tea"}]}]},
        {"conversations": [{"from": "human", "value": "say tea "}, {"from": "gpt", "value": " tea"}]},
    ],
)
def test_turns_are_turns_wherever_they_stand(tmp_path: Path, row: dict[str, Any]) -> None:
    (example,) = read(tmp_path, [row])
    assert example.messages == tuple(TURNS) and example.answer in (" tea", "  tea") and example.gold == "tea"


def test_turns_in_a_column_of_ones_own_prompt(tmp_path: Path) -> None:
    turns = [*TURNS, {"role": "assistant", "content": "tea"}]
    choice = {"kind": "choice", "prompt": "{chat}", "answer": "{word}", "options": ["tea", "sun"]}
    example = read(tmp_path, [{"chat": TURNS, "word": "tea"}, {"chat": TURNS, "word": "sun"}], choice)[0]
    assert example.messages == tuple(TURNS) and example.options == ("tea", "sun")
    judged = {"kind": "classify", "prompt": "{chat}", "answer": "{mood}", "labels": ["good", "bad"]}
    examples = read(tmp_path, [{"chat": turns, "mood": "good"}, {"chat": TURNS, "mood": "bad"}], judged)
    assert [len(e.messages or ()) for e in examples] == [2, 1]
    message = refusal(tmp_path, [{"chat": TURNS, "word": "tea"}], choice | {"prompt": "Chat: {chat}"})
    assert "column 'chat' holds a list of chat turns; write '{chat}' alone" in message


def test_a_call_of_a_tool_may_say_nothing(tmp_path: Path) -> None:
    calls = [{"type": "function", "function": {"name": "w", "arguments": "{}"}}]
    turns = [{"role": "user", "content": "rain?"}, {"role": "assistant", "content": None, "tool_calls": calls},
             {"role": "tool", "content": "yes"}, {"role": "assistant", "content": "It rains."}]  # fmt: skip
    (example,) = read(tmp_path, [{"messages": turns, "tools": [{"type": "function"}]}])
    assert example.messages is not None and example.messages[1] == {
        "role": "assistant",
        "content": "",
        "tool_calls": calls,
    }
    assert example.tools == ({"type": "function"},) and example.gold == "It rains."
    assert "only calls a tool" in refusal(tmp_path, [{"messages": turns[:2]}])
    picture = [{"role": "user", "content": [{"type": "image", "image": "x.png"}]}, turns[3]]
    assert "row 1: column 'messages': turn 1 has parts that are not text" in refusal(tmp_path, [{"messages": picture}])


def labelled(labels: Any, **more: Any) -> dict[str, Any]:
    return {"kind": "classify", "prompt": "{text}", "answer": "{unit}", "labels": labels} | more


def test_labels_that_differ_by_case_are_two(tmp_path: Path) -> None:
    rows = [{"text": "reading", "unit": unit} for unit in ("M", "m", "k")]
    task = labelled({"M": "mega", "m": "milli", "k": "kilo"})
    assert [e.gold for e in read(tmp_path, rows, task)] == ["mega", "milli", "kilo"]
    with pytest.raises(TaskError, match="differ only in case or spaces; leave out ignore_case"):
        build_task(task | {"ignore_case": True})


def test_a_fold_of_case_is_offered_and_not_guessed(tmp_path: Path) -> None:
    rows = [{"text": "a", "unit": "Yes"}, {"text": "b", "unit": "no"}]
    message = refusal(tmp_path, rows, labelled(["yes", "no"]))
    assert "row 1: label 'Yes' is not known" in message and "set ignore_case: true" in message
    assert [e.gold for e in read(tmp_path, rows, labelled(["yes", "no"], ignore_case=True))] == ["yes", "no"]


def test_an_accent_is_the_same_letter_however_it_is_typed(tmp_path: Path) -> None:
    rows = [{"text": "a", "unit": "pre\u0301sent"}, {"text": "b", "unit": "absent"}]
    assert [e.gold for e in read(tmp_path, rows, labelled(["pr\u00e9sent", "absent"]))] == ["pr\u00e9sent", "absent"]


def test_what_the_file_writes_goes_before_what_a_label_is_called(tmp_path: Path) -> None:
    rows = [{"text": "a", "unit": "0"}, {"text": "b", "unit": "1"}]
    assert [e.gold for e in read(tmp_path, rows, labelled({"0": "1", "1": "0"}))] == ["1", "0"]


def test_written_labels_that_signs_or_case_tell_apart_are_scored_so() -> None:
    task = build_task({"kind": "generate", "prompt": "{t}", "answer": "{u}", "labels": ["M", "m"]})
    assert task.score(task.read({"t": "x", "u": "m"}), "m") and not task.score(task.read({"t": "x", "u": "m"}), "M")
    signs = build_task({"kind": "generate", "prompt": "{t}", "answer": "{u}", "labels": ["+", "-", "++"]})
    example = signs.read({"t": "x", "u": "++"})
    assert signs.score(example, "++ surely") and not signs.score(example, "+ surely")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.csv", "text,word,text\na,b,c\n"),
        ("a.tsv", "text\tword\ttext\na\tb\tc\n"),
        ("a.jsonl", '{"text": "a", "word": "b", "text": "c"}\n'),
        ("a.json", '[{"text": "a", "word": "b", "text": "c"}]'),
    ],
)
def test_of_two_columns_of_one_name_none_is_lost(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text, encoding="utf-8")
    with pytest.raises(TaskError, match=rf"{name}: .*two columns are called 'text'; rename one"):
        load_examples(str(tmp_path / name), build_task({"kind": "generate", "prompt": "{text}", "answer": "{word}"}))


def test_a_cell_longer_than_the_csv_librarys_limit_is_read(tmp_path: Path) -> None:
    long = "word " * 40_000
    (tmp_path / "a.csv").write_text(f"text,word\n{long},b\n", encoding="utf-8")
    (example,) = load_examples(
        str(tmp_path / "a.csv"), build_task({"kind": "generate", "prompt": "{text}", "answer": "{word}"})
    )
    assert example.prompt == long


def test_a_tool_call_is_part_of_a_plain_prompt() -> None:
    calls = [{"function": {"name": "w"}}]
    turns = [{"role": "user", "content": "x"}, {"role": "assistant", "content": None, "tool_calls": calls}]
    row = {"messages": [*turns, {"role": "tool", "content": "r"}, {"role": "assistant", "content": "y"}]}
    assert build_task(GENERATE).read(row).prompt == f"user: x\nassistant: {json.dumps(calls)}\ntool: r\nassistant:"
