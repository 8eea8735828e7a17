"""Cells and files in odd forms: read as they are meant, or refused with the row or the column; never a traceback."""

from __future__ import annotations

import csv
import datetime
import json
from pathlib import Path
from typing import Any

import pytest

from h2tune.tasks import RowError, TaskError, build_task, load_examples
from h2tune.tasks.sources import read_rows

TURNS = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
CHAT = build_task({"kind": "generate"})
CHOICE = build_task({"kind": "choice", "prompt": "{q}", "answer": "{a}", "options": "{o}"})
TOOL = {"name": "clock", "parameters": {}}


def parquet(path: Path, **columns: Any) -> Path:
    pyarrow, writer = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    writer.write_table(pyarrow.table(columns), path)
    return path


@pytest.mark.parametrize("kind", ["timestamp", "date", "duration"])
def test_a_time_beyond_pythons_is_named_by_its_column(tmp_path: Path, kind: str) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    far = {
        "timestamp": pyarrow.array([10**16], pyarrow.timestamp("ms")),
        "date": pyarrow.array([10**8], pyarrow.int32()).cast(pyarrow.date32()),
        "duration": pyarrow.array([2**62], pyarrow.duration("s")),
    }
    path = parquet(tmp_path / "x.parquet", sentence=["good"], when=far[kind])
    with pytest.raises(TaskError, match=r"x\.parquet: column 'when' \(.*\) cannot be read: "):
        read_rows(str(path))


def test_a_time_that_python_knows_is_read(tmp_path: Path) -> None:
    day = datetime.date(2024, 5, 17)
    assert read_rows(str(parquet(tmp_path / "x.parquet", day=[day, None]))) == [{"day": day}, {"day": None}]


def test_parquet_files_that_cannot_be_read_are_parquet_files_still(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    zone = pyarrow.array([0], pyarrow.timestamp("ms", tz="Mars/Olympus"))
    path = parquet(tmp_path / "zone.parquet", when=zone)
    with pytest.raises(TaskError, match=r"column 'when' .* cannot be read: "):
        read_rows(str(path))
    latin = pyarrow.array([b"caf\xe9"], pyarrow.binary()).cast(pyarrow.string(), safe=False)
    with pytest.raises(TaskError, match=r"column 'text' \(string\) cannot be read: "):
        read_rows(str(parquet(tmp_path / "latin.parquet", text=latin)))
    (tmp_path / "cut.parquet").write_bytes(path.read_bytes()[:-20])
    with pytest.raises(TaskError, match=r"cut\.parquet: cannot be read: "):
        read_rows(str(tmp_path / "cut.parquet"))


def test_single_precision_is_read_as_it_is_written(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    single = pyarrow.float32()
    written = [0.1, None, 16777216.0, 1e-30, float("inf")]
    path = parquet(
        tmp_path / "x.parquet",
        a=pyarrow.array(written, single),
        b=pyarrow.array([[0.1, 0.7], [], None, [2.5], [3]], pyarrow.list_(single)),
        c=pyarrow.array([{"d": 0.3}] * 5, pyarrow.struct([("d", single)])),
        e=pyarrow.array([1 / 3] * 5, pyarrow.float64()),
    )
    rows = read_rows(str(path))
    assert [row["a"] for row in rows] == written
    assert [row["b"] for row in rows] == [[0.1, 0.7], [], None, [2.5], [3.0]]
    assert rows[0]["c"] == {"d": 0.3} and rows[0]["e"] == 1 / 3


@pytest.mark.parametrize(
    ("cell", "tools"),
    [("", ()), ("  ", ()), (None, ()), ([], ()), (TOOL, (TOOL,)), ([TOOL], (TOOL,)), (json.dumps(TOOL), (TOOL,)),
     (json.dumps([TOOL, TOOL]), (TOOL, TOOL))],
)  # fmt: skip
def test_tools_are_none_one_or_a_list(cell: Any, tools: tuple[Any, ...]) -> None:
    assert CHAT.read({"messages": TURNS, "tools": cell}).tools == tools


@pytest.mark.parametrize("cell", [3, float("nan"), True, "clock", '"clock"', "3", "[" * 100_000])
def test_tools_that_are_none_are_refused(cell: Any) -> None:
    with pytest.raises(RowError, match="column 'tools' is not a list of tools"):
        CHAT.read({"messages": TURNS, "tools": cell})


@pytest.mark.parametrize(
    "turn", [{"from": ["x"], "value": "a"}, {"from": {}, "value": "a"}, {"from": None, "value": "a"}]
)
def test_a_role_that_is_no_text_is_refused(turn: dict[str, Any]) -> None:
    with pytest.raises(RowError, match="turn 1 needs a role and a content"):
        CHAT.read({"conversations": [turn, TURNS[1]]})


def test_sharegpt_turns_with_null_for_the_other_form() -> None:
    empty = {"role": None, "content": None}
    turns = [{"from": "human", "value": "a"} | empty, {"from": "gpt", "value": "b"} | empty]
    example = CHAT.read({"conversations": turns})
    assert example.messages == (TURNS[0],) and example.answer == " b"
    own = build_task({"kind": "generate", "prompt": "{conversations}", "answer": "{conversations}"})
    assert own.read({"conversations": turns}).messages == (TURNS[0],)


@pytest.mark.parametrize("prompt", [None, "{messages}"])
def test_a_chat_in_a_table_is_a_chat(tmp_path: Path, prompt: str | None) -> None:
    with (tmp_path / "x.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["messages"], [json.dumps(TURNS)]])
    task = build_task({"kind": "generate"} | ({"prompt": prompt, "answer": prompt} if prompt else {}))
    (example,) = load_examples(str(tmp_path / "x.csv"), task)
    assert example.messages == (TURNS[0],) and example.answer == " b" and example.prompt == "user: a\nassistant:"


def test_text_that_is_no_chat_stays_text() -> None:
    task = build_task({"kind": "generate", "prompt": "{q}", "answer": "{a}"})
    for text in ("[1, 2]", "[not JSON", '[{"role": "x"}]', "[" * 100_000):
        assert task.read({"q": text, "a": "b"}).prompt == text
    with pytest.raises(RowError, match="column 'q' holds a list of chat turns"):
        build_task({"kind": "generate", "prompt": "Say {q}", "answer": "{a}"}).read({"q": json.dumps(TURNS), "a": "b"})


@pytest.mark.parametrize("cell", ["[{[]:1}, 2]", "[" * 100_000, "[1, 2", '["a"]', "true"])
def test_options_that_are_no_list_are_refused_as_they_were_written(cell: str) -> None:
    with pytest.raises(RowError) as error:
        CHOICE.read({"q": "x", "o": cell, "a": "2"})
    assert repr(cell[:60]) in str(error.value)


def test_options_as_json_text() -> None:
    assert CHOICE.read({"q": "x", "o": "[true, false]", "a": "false"}).options == ("true", "false")
    assert CHOICE.read({"q": "x", "o": "['a ) 1', 'b ) 2']", "a": "2"}).options == ("1", "2")
    with pytest.raises(RowError, match="option 2 of 2 is empty"):
        CHOICE.read({"q": "x", "o": '["a", null]', "a": "a"})


def test_more_options_than_letters_are_refused() -> None:
    aqua = build_task("aqua")
    lettered = [f"{letter}){number}" for number, letter in enumerate("ABCDEFGHIJKL")]
    assert aqua.read({"question": "q", "options": lettered[:10], "correct": "J"}).gold == "J"
    line = " , ".join(f"{letter.lower()} ) {number}" for number, letter in enumerate("ABCDEFGHIJKL"))
    for options in (lettered, lettered[:11], line):
        with pytest.raises(RowError, match="more than 10 options"):
            aqua.read({"question": "q", "options": options, "correct": "B"})


@pytest.mark.parametrize(("row", "said"), [({"Body": "", "Question": " "}, "'Body' and 'Question' are empty"),
                                           ({"Body": None, "Question": None}, "'Body' and 'Question' are empty"),
                                           ({"Question": ""}, "column 'Question' is empty")])  # fmt: skip
def test_a_problem_without_words_is_refused(row: dict[str, Any], said: str) -> None:
    with pytest.raises(RowError, match=said):
        build_task("gsm8k").read(row | {"Answer": 3})


def test_tables_with_old_line_ends(tmp_path: Path) -> None:
    for name, mark in (("a.tsv", "\t"), ("a.csv", ",")):
        (tmp_path / name).write_bytes(f"a{mark}b\r1{mark}2\r3{mark}4\r".encode())
        assert read_rows(str(tmp_path / name)) == [{"a": "1", "b": "2"}, {"a": "3", "b": "4"}]
    (tmp_path / "b.tsv").write_bytes(b"a\tb\n1\rx\t2\r\n")  # with line feeds, a CR inside a cell is a character
    assert read_rows(str(tmp_path / "b.tsv")) == [{"a": "1\rx", "b": "2"}]


@pytest.mark.parametrize(("commas", "count"), [(2, "two"), (3, "3")])
def test_commas_at_the_end_of_lines_are_told(tmp_path: Path, commas: int, count: str) -> None:
    (tmp_path / "a.csv").write_text("".join(f"{line}{',' * commas}\n" for line in ("a,b", "1,2")))
    with pytest.raises(TaskError, match=rf"a\.csv: {count} columns have no name; are there commas at the end of the"):
        read_rows(str(tmp_path / "a.csv"))


@pytest.mark.parametrize("name", ["x.csv", "x.tsv"])
def test_a_blank_line_is_an_empty_cell_where_there_is_one_column_and_else_is_told(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_text("\ntext\na\n\nb\n\n\n")
    assert read_rows(str(path)) == [{"text": "a"}, {"text": ""}, {"text": "b"}]
    between = "," if name == "x.csv" else "\t"
    path.write_text(f"q{between}a\n\n1{between}2\n\n3{between}4\n\n")
    with pytest.warns(UserWarning, match="2 blank lines are no rows; rows are counted without them"):
        assert read_rows(str(path)) == [{"q": "1", "a": "2"}, {"q": "3", "a": "4"}]


@pytest.mark.parametrize("nothing", [None, float("nan"), "", " ", []], ids=repr)
@pytest.mark.parametrize(
    ("spec", "empty", "row", "form"),
    [
        ({"kind": "generate"}, ("prompt", "answer"), {"instruction": "do", "output": "y"}, "instruction -> output"),
        ({"kind": "generate"}, ("messages",), {"instruction": "do", "output": "y"}, "instruction -> output"),
        ({"kind": "generate"}, ("answer", "completion"), {"prompt": "do", "response": "y"}, "prompt -> response"),
        ("qqp", ("is_duplicate",), {"question1": "a", "question2": "b", "label": 1}, "question1, question2 -> label"),
        ("gsm8k", ("question", "answer"), {"instruction": "a", "output": "1"}, "instruction -> output"),
        ("program", ("value",), {"instruction": "a", "output": "answer = 1"}, "instruction -> output"),
    ],
)
def test_empty_cells_of_other_forms_are_passed_over(
    spec: Any, empty: tuple[str, ...], row: dict[str, Any], form: str, nothing: Any
) -> None:
    task, mixed = build_task(spec), dict.fromkeys(empty, nothing) | row
    example = task.read(mixed)
    assert example == task.read(row) and example.form == form
    assert task.ask(mixed) == task.ask(row)


def test_where_no_form_is_filled_the_first_says_what_is_empty() -> None:
    with pytest.raises(RowError, match="column 'answer' is empty"):
        build_task({"kind": "generate"}).read({"prompt": "x", "answer": None, "instruction": "x", "output": None})
    asked = build_task({"kind": "generate"}).ask({"prompt": "x", "instruction": "do", "output": None})
    assert asked.prompt == "Question: do\nAnswer:"  # a column of answers tells what is asked, empty or not
