"""Sources, samples, the held-out part and the overlap of train and test."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from h2tune.tasks import Example, TaskError, build_task, load_examples, overlap, split_validation
from h2tune.tasks.rows import question_key

ROWS = [{"sentence": f'it is "film" {i}', "label": i % 2} for i in range(10)]
SST2 = build_task("sst2")


def write(path: Path, rows: list[dict[str, Any]] = ROWS) -> str:
    kind = path.suffix
    if kind == ".jsonl":
        path.write_text("\n".join(json.dumps(row) for row in rows) + "\n\n", "utf-8-sig")
    elif kind == ".json":
        path.write_text(json.dumps(rows))
    elif kind == ".parquet":
        parquet = pytest.importorskip("pyarrow.parquet")
        table = pytest.importorskip("pyarrow").Table.from_pylist(rows)
        parquet.write_table(table, path)
    elif kind == ".csv":
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    else:
        lines = ["\t".join(rows[0])] + ["\t".join(str(value) for value in row.values()) for row in rows]
        path.write_text("\r\n".join(lines) + "\r\n")
    return str(path)


@pytest.mark.parametrize("kind", ["jsonl", "json", "csv", "tsv", "parquet"])
def test_every_format_gives_the_same(tmp_path: Path, kind: str) -> None:
    examples = load_examples(write(tmp_path / f"data.{kind}"), SST2)
    assert [e.prompt for e in examples] == [f'Review: it is "film" {i}\nVerdict:' for i in range(10)]
    assert [e.label for e in examples] == [i % 2 for i in range(10)]


def test_raw_tables_quote_nothing_and_miss_nothing(tmp_path: Path) -> None:
    path = tmp_path / "glue.tsv"
    path.write_text('sentence\tlabel\n"half a quotation\t1\nnull\t0\nNA\u2028x\t1\n')
    examples = load_examples(str(path), SST2)
    assert [e.prompt.split("\n")[0] for e in examples] == [
        'Review: "half a quotation',
        "Review: null",
        "Review: NA\u2028x",
    ]


def test_json_variants(tmp_path: Path) -> None:
    path = tmp_path / "data.json"
    path.write_text(json.dumps({"version": 1, "data": ROWS}))
    assert len(load_examples(str(path), SST2)) == 10
    path.write_text("\n".join(json.dumps(row) for row in ROWS))
    assert len(load_examples(str(path), SST2)) == 10


def test_a_saved_data_set(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    part = datasets.Dataset.from_list(ROWS)
    datasets.DatasetDict(train=part, dev=part.select(range(4))).save_to_disk(str(tmp_path / "saved"))
    with pytest.raises(TaskError, match=r"saved: holds the splits train, dev; say which, as .*saved\?split=train"):
        load_examples(str(tmp_path / "saved"), SST2)
    assert len(load_examples(f"{tmp_path / 'saved'}?split=train", SST2)) == 10
    assert len(load_examples(str(tmp_path / "saved"), SST2, split="dev")) == 4
    with pytest.raises(TaskError, match="no split 'test'; there are: train, dev"):
        load_examples(str(tmp_path / "saved"), SST2, split="test")


def test_samples_are_seeded_and_nested(tmp_path: Path) -> None:
    path = write(tmp_path / "data.tsv")
    five, again = (load_examples(path, SST2, limit=5, seed=1) for _ in range(2))
    assert five == again and len(five) == 5
    assert set(five) <= set(load_examples(path, SST2, limit=7, seed=1))
    assert five != load_examples(path, SST2, limit=5, seed=2)
    assert len(load_examples(path, SST2, limit=99)) == 10
    assert len(load_examples(path, SST2, limit=1)) == 1


def test_columns_are_renamed(tmp_path: Path) -> None:
    path = write(tmp_path / "d.csv", [{"sentence": "no", "text": f"t{i}", "y": i % 2} for i in range(4)])
    examples = load_examples(path, SST2, columns={"sentence": "text", "label": "y"})
    assert examples[0].prompt == "Review: t0\nVerdict:"
    with pytest.raises(TaskError, match=r"d\.csv: row 1: no column 'txt'; columns there: sentence, text, y"):
        load_examples(path, SST2, columns={"sentence": "txt"})


def test_questions_without_answers(tmp_path: Path) -> None:
    path = write(tmp_path / "in.jsonl", [{"sentence": "x"}])
    assert load_examples(path, SST2, answered=False)[0].prompt == "Review: x\nVerdict:"
    with pytest.raises(TaskError, match="needs the columns"):
        load_examples(path, SST2)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.jsonl", "", "no rows"),
        ("a.tsv", "sentence\tlabel\n", "no rows"),
        ("a.json", "[]", "no rows"),
        ("a.json", "{", "line 1: not JSON"),
        ("a.json", "[1, 2]", "row 1: should be an object"),
        ("a.jsonl", '{"sentence": "x", "label": 1}\n{', "line 2: not JSON"),
        ("a.jsonl", '[\n {"sentence": "x", "label": 1}\n]', "holds one JSON list; name it .json, or write one object a line"),
        ("a.jsonl", '[{"sentence": "x", "label": 1}]', "holds one JSON list; name it .json"),
        ("a.jsonl", '{\n "sentence": "x", "label": 1\n}', "holds one JSON object; name it .json"),
        ("a.csv", "sentence;label\nx;1\n", r"there: sentence;label; separated by semicolons\? save it with commas"),
        ("a.csv", "sentence\tlabel\nx\t1\n", r"separated by tabs\? save it with commas"),
        ("a.csv", "sentence;label\nx, y;1\n", r"2 cells where the header names 1 columns; separated by semicolons\?"),
        ("a.tsv", "sentence\tlabel\nx\t1\ty\n", "row 1: 3 cells where the header names 2"),
        ("a.tsv", "sentence\tlabel\nx\t1\ny\t1\n", "every row has the label 'positive'"),
        ("a.tsv", "sentence\tlabel\nx\t1\ny\t7\n", "row 2: label '7' is not known to task sst2"),
        ("a.tsv", "text\tlabel\nx\t1\n", "row 1: needs the columns .*; columns there: text, label"),
        ("a.csv", 'sentence,label\n"x,1\n', "line 2 is not CSV"),
        ("a.csv", 'sentence;label\n"x";1\n', "line [0-9]+ is not CSV: .* separated by commas, not by semicolons"),
        ("a.parquet", "x", "not a Parquet file"),
        ("a.jsonl", '{"sentence": "x", "label": ' + "9" * 5000 + "}", "digits"),
        ("a.json", "[" * 100_000, "recursion depth"),
        ("a.docx", "x", "cannot read .docx; known: .jsonl"),
    ],
)  # fmt: skip
def test_bad_files_say_file_and_row(tmp_path: Path, name: str, text: str, message: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(TaskError, match=message) as error:
        load_examples(str(tmp_path / name), SST2)
    assert name in str(error.value) and str(error.value).count("\n") <= 1


@pytest.mark.parametrize("query", ["seed=--5", "n=²", "n=-1", "rows=3"])
def test_a_demo_source_that_is_no_number_says_how_it_is_written(query: str) -> None:
    with pytest.raises(TaskError, match="write demo:fill"):
        load_examples(f"demo:fill?{query}", build_task("demo-fill"))


def test_missing_files_and_other_mistakes(tmp_path: Path) -> None:
    path = write(tmp_path / "train.tsv")
    with pytest.raises(TaskError, match=r"no file or folder .*tran\.tsv; did you mean .*train\.tsv"):
        load_examples(str(tmp_path / "tran.tsv"), SST2)
    with pytest.raises(TaskError, match=r"there is no folder .* either"):
        load_examples(str(tmp_path / "no" / "train.tsv"), SST2)
    with pytest.raises(TaskError, match="no splits"):
        load_examples(path, SST2, split="dev")
    with pytest.raises(TaskError, match="limit"):
        load_examples(path, SST2, limit=0)
    (tmp_path / "latin.tsv").write_bytes(b"sentence\tlabel\ncaf\xe9\t1\n")
    with pytest.raises(TaskError, match="not UTF-8"):
        load_examples(str(tmp_path / "latin.tsv"), SST2)
    with pytest.raises(TaskError, match="write hub:owner/name"):
        load_examples("hub:", SST2)


def made(prompts: list[str]) -> list[Example]:
    return [Example(prompt, " 1", "1") for prompt in prompts]


@given(st.lists(st.integers(0, 40), min_size=2, max_size=120), st.integers(0, 3))
def test_row_25_validation_shares_nothing_with_training(numbers: list[int], seed: int) -> None:
    examples = made([f"Q {n}" if i % 2 else f"q  {n}" for i, n in enumerate(numbers)])
    if len(set(numbers)) < 2:
        with pytest.raises(TaskError, match="too few"):
            split_validation(examples, seed)
        return
    train, held = split_validation(examples, seed)
    assert (train, held) == split_validation(examples, seed)
    assert train and held and overlap(train, held) == 0
    assert len({e.prompt.casefold().split()[1] for e in held}) == len(held) <= len(set(numbers)) // 2


def test_size_of_validation() -> None:
    assert [len(part) for part in split_validation(made([str(i) for i in range(1000)]), 0)] == [900, 100]
    assert [len(part) for part in split_validation(made([str(i) for i in range(60)]), 0)] == [40, 20]
    assert [len(part) for part in split_validation(made([str(i) for i in range(10)]), 0)] == [5, 5]


def test_validation_avoids_the_test_data() -> None:
    examples = made([str(i) for i in range(60)])
    _, held = split_validation(examples, 0, test=examples[:30])
    assert len(held) == 20 and overlap(examples[:30], held) == 0
    with pytest.raises(TaskError, match=r"also in the test data.*use other test rows"):
        split_validation(examples, 0, test=examples)


def test_row_25_overlap_is_counted() -> None:
    assert overlap(made(["How many?", "x"]), made(["how  MANY? ", "y", "x", "x"])) == 3


def test_parts_share_no_row_and_hold_all(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"p{i}", "answer": "1", "gold": "1"}) + "\n" for i in range(10)))
    task = build_task("demo-fill")
    parts = [[e.prompt for e in load_examples(str(path), task, part=f"{i}/3")] for i in (1, 2, 3)]
    assert sorted(p for part in parts for p in part) == sorted(f"p{i}" for i in range(10))
    assert [len(p) for p in parts] == [4, 3, 3]
    assert len(load_examples(str(path), task, part="2/3", limit=2)) == 2
    with pytest.raises(TaskError, match="part 11/11"):
        load_examples(str(path), task, part="11/11")


def test_fixed_options_of_which_one_alone_is_right_are_refused(tmp_path: Path) -> None:
    spec = {"kind": "choice", "prompt": "{q}", "answer": "{a}", "options": ["yes", "no"]}
    path = tmp_path / "a.jsonl"
    path.write_text('{"q": "x", "a": "yes"}\n{"q": "y", "a": "YES"}\n{"q": "z", "a": "A"}\n', encoding="utf-8")
    with pytest.raises(TaskError, match="every row has the answer 'yes'; the task needs two or more"):
        load_examples(str(path), build_task(spec))
    assert len(load_examples(str(path), build_task(spec), answered=False)) == 3
    # Options of each row by itself are other ones in every row.
    path.write_text('{"q": "x", "a": "A", "o": ["1", "2"]}\n', encoding="utf-8")
    assert len(load_examples(str(path), build_task(spec | {"options": "{o}"}))) == 1


TURNS = [{"role": "system", "content": "Be short."}, {"role": "user", "content": "How many? "}]


@pytest.mark.parametrize(
    ("spec", "row"),
    [
        ("gsm8k", {"question": "How  MANY?"}),
        ("gsm8k", {"Body": "How", "Question": "many?"}),
        ("gsm8k", {"messages": TURNS}),
        ("aqua", {"question": "How many?", "options": ["1", "2"]}),
        ({"kind": "generate", "prompt": "Say {x} now", "answer": "{y}"}, {"x": "How many?"}),
        (
            {"kind": "choice", "prompt": "{x}:", "answer": "{y}", "options": ["{b}", "none"]},
            {"x": "How many?", "b": 1},
        ),
        ({"kind": "generate", "columns": {"instruction": "do"}}, {"do": "How", "input": "many?"}),
    ],
)
def test_what_is_asked_is_known_whatever_the_words_around_it(spec: Any, row: dict[str, Any]) -> None:
    assert build_task(spec).ask(row).asked == question_key("how many?")


def test_options_are_known_whatever_their_letters_and_their_order() -> None:
    own: dict[str, Any] = {"kind": "choice", "prompt": "{q}", "answer": "{a}", "options": "{o}"}
    examples = [
        build_task("aqua").ask({"question": "x", "options": "(A) 24 (B) x"}),
        build_task(own).ask({"q": "x", "o": ["X", "24"]}),
        build_task(own | {"options": ["{b}", "{c}"]}).ask({"q": "x", "b": "B) x", "c": "A) 24"}),
        build_task("demo-choice").ask({"prompt": "x", "options": ["24", "x"]}),
    ]
    assert len({example.offered for example in examples}) == 1 and examples[0].offered
    # The same options for every row are no part of a question; a column of the prompt is, whatever it is called.
    assert not build_task(own | {"options": ["24", "x"]}).ask({"q": "x"}).offered
    written = build_task({"kind": "generate", "prompt": "{q} {options}", "answer": "{a}"})
    assert written.ask({"q": "x", "options": "A) 24"}).asked == question_key("x A) 24")


def test_short_questions_that_differ_are_not_taken_for_each_other() -> None:
    texts = ["3 + 4", "3 - 4", "3 + 45", "3 + 4?"]
    assert len({build_task("gsm8k").ask({"question": text}).asked for text in texts}) == 4
