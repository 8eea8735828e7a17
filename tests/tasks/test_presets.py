"""Ready tasks on small rows of every column set they read, and on the real files where those are there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from h2tune.tasks import PRESETS, RowError, TaskError, build_task, load_examples

DATA = Path(__file__).resolve().parents[2] / "../shared/data"
LETTERS = tuple(f" {letter}" for letter in "ABCDE")
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="the real data sets are not beside the repository")

GSM = "She has <<48/2=24>>24.\nThat is 48+24 = <<48+24=72>>72 in all.\n#### 72"
PROGRAM = "n0 = 5\nanswer = n0 ** 2\nprint(answer)"
WRITE = "Let's write a Python program to solve it."
RENDERED = [
    ("gsm8k", {"question": "How many?", "answer": GSM}, "Question: How many?\nAnswer:",
     " She has 24.\nThat is 48+24 = 72 in all.\nThe answer is 72", "72"),
    ("gsm8k", {"Question": "How many ?", "Answer": 504.0}, "Question: How many ?\nAnswer:", " The answer is 504", "504"),
    ("gsm8k", {"Body": "If Ann has 3 nuts", "Question": "How many?", "Answer": 3.5},
     "Question: If Ann has 3 nuts, how many?\nAnswer:", " The answer is 3.5", "3.5"),
    ("gsm8k", {"task": "blank_fill", "qestion": "Q?", "answer": "x\nThe answer is 1,080"}, "Question: Q?\nAnswer:",
     " x\nThe answer is 1,080", "1080"),
    ("gsm8k", {"source": "data/CoT/gsm_rft.json", "instruction": "Q?", "output": "The answer is 4"},
     "Question: Q?\nAnswer:", " The answer is 4", "4"),
    ("aqua", {"question": "Q?", "options": ["A)1", "B)2 m", "C)3", "D)4", "E)None"], "correct": "B"},
     "Question: Q?\nChoices: (A) 1 (B) 2 m (C) 3 (D) 4 (E) None\nAnswer:", " B", "B"),
    ("aqua", {"Problem": "Q ?", "options": "a ) 1 , 5 , b ) 2 / 3 , c ) 3 , d ) 4 , e ) none", "correct": "c"},
     "Question: Q ?\nChoices: (A) 1 , 5 (B) 2 / 3 (C) 3 (D) 4 (E) none\nAnswer:", " C", "C"),
    ("aqua", {"Problem": "Q ?", "options": "['a ) 1', 'b ) 2', 'c ) 3', 'd ) 4', 'e ) 5']", "correct": "e"},
     "Question: Q ?\nChoices: (A) 1 (B) 2 (C) 3 (D) 4 (E) 5\nAnswer:", " E", "E"),
    ("aqua", {"qestion": "Q?\nAnswer Choices: (A) 1 (B) 2 (C) 3 (D) 4 (E) 5", "answer": "A or so.\nThe answer is D"},
     "Question: Q?\nChoices: (A) 1 (B) 2 (C) 3 (D) 4 (E) 5\nAnswer:", " D", "D"),
    ("program", {"instruction": f"Q ? {WRITE}", "output": PROGRAM, "value": 25.0}, "Question: Q ?\nProgram:",
     f" {PROGRAM}", "25"),
    ("sst2", {"sentence": "a fine film ", "label": "1"}, "Review: a fine film\nVerdict:", "", "positive"),
    ("sst2", {"qestion": "Analyze ... Negative\nReview: dull ", "answer": "Negative"}, "Review: dull\nVerdict:", "", "negative"),
    ("qqp", {"question1": "A?", "question2": "B?", "is_duplicate": "0"}, "First: A?\nSecond: B?\nSame:", "", "not_duplicate"),
    ("qqp", {"qestion": "D.\nQuestion1: A?\nQuestion2: B?", "answer": "Yes"}, "First: A?\nSecond: B?\nSame:", "", "duplicate"),
    ("qnli", {"question": "Q?", "sentence": "S.", "label": "entailment"}, "Question: Q?\nSentence: S.\nAnswered:", "",
     "entailment"),
    ("qnli", {"qestion": "D.\nQuestion: Q?\nSentence: S.", "answer": "No"}, "Question: Q?\nSentence: S.\nAnswered:", "",
     "not_entailment"),
    ("mrpc", {"#1 String": "A.", "#2 String": "B.", "Quality": 1}, "First: A.\nSecond: B.\nSame:", "", "equivalent"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "row", "prompt", "answer", "gold"), RENDERED)
def test_every_column_set(name: str, row: dict[str, Any], prompt: str, answer: str, gold: str) -> None:
    task = build_task(name)
    example = task.read(row)
    assert (example.prompt, example.answer, example.gold) == (prompt, answer, gold)
    assert task.score(example, answer or gold)
    if name == "aqua":
        assert example.options == LETTERS
    if task.kind == "classify":
        assert example.label is not None and task.labels[example.label] == gold
    asked = task.ask(
        {key: value for key, value in row.items() if key not in ("answer", "Answer", "output", "correct")}
    )
    assert (asked.prompt, asked.answer, asked.gold) == (prompt, "", "")


def test_chats_are_read_by_the_generating_presets() -> None:
    turns = [
        {"role": "user", "content": "How many?"},
        {"role": "assistant", "content": "Two and two. The answer is 4"},
    ]
    example = build_task("gsm8k").read({"messages": turns})
    assert example.messages == (turns[0],) and example.gold == "4"
    assert example.answer == " Two and two. The answer is 4"


@pytest.mark.parametrize("name", ["sst2", "qqp", "qnli", "mrpc"])
@pytest.mark.parametrize("kind", ["generate", "choice"])
def test_glue_in_words(name: str, kind: str) -> None:
    task, head = build_task({"preset": name, "kind": kind}), build_task(name)
    row = next(row for preset, row, *_ in RENDERED if preset == name)
    example = task.read(row)
    assert task.labels == (("negative", "positive") if name == "sst2" else task.labels)
    assert set(task.labels) in ({"negative", "positive"}, {"yes", "no"})
    assert example.prompt == head.read(row).prompt and example.answer == f" {example.gold}" and example.label is None
    assert task.score(example, example.answer + " .")
    other = next(label for label in task.labels if label != example.gold)
    assert not task.score(example, f" {other}")
    assert (example.answer in example.options) == (kind == "choice")


@pytest.mark.parametrize(
    ("name", "row", "reason"),
    [
        ("gsm8k", {"question": "Q", "answer": "none"}, "no number"),
        ("gsm8k", {"text": "Q"}, r"needs the columns \(question, answer\) or"),
        ("gsm8k", {"question": " ", "answer": "3"}, "'question' is empty"),
        ("gsm8k", {"question": None, "answer": "3"}, "'question' is empty"),
        ("gsm8k", {"question": float("nan"), "answer": "3"}, "'question' is empty"),
        ("aqua", {"question": "Q", "options": ["A)1", "B)2"], "correct": "C"}, "none of the options A, B"),
        ("aqua", {"question": "Q", "options": "24", "correct": "A"}, "two or more"),
        ("aqua", {"qestion": "Q", "answer": "A"}, "Answer Choices"),
        ("sst2", {"sentence": "x", "label": "2"}, "label '2' is not known to task sst2, which knows negative, positive"),
        ("sst2", {"qestion": "x", "answer": "Positive"}, "not a question of task sst2"),
        ("gsm8k", {"messages": [{"role": "user", "content": "x"}]}, "no assistant turn"),
        ("gsm8k", {"messages": "x"}, "not a list"),
        ("demo-choice", {"prompt": "x", "answer": "1", "gold": "1"}, "options"),
    ],
)  # fmt: skip
def test_bad_rows_say_why(name: str, row: dict[str, Any], reason: str) -> None:
    with pytest.raises(RowError, match=reason):
        build_task(name).read(row)


def test_mixed_files_give_each_task_its_rows(tmp_path: Path) -> None:
    rows = [
        {"source": "data/CoT/gsm_rft.json", "instruction": "Q1", "output": "The answer is 4"},
        {
            "source": "data/CoT/aqua_rat.json",
            "instruction": "Q2 Answer Choices: (A) 1 (B) 2",
            "output": "The answer is B",
        },
        {"source": "data/PoT/mathqa.json", "instruction": f"Q3 {WRITE}", "output": "n = 3\nprint(n * 2)"},
        {"source": "data/PoT/mathqa.json", "instruction": "Q4", "output": "import scipy"},
        {"source": "data/PoT/mathqa.json", "instruction": "Q5", "output": "answer = 7"},
    ]
    path = tmp_path / "mixed.json"
    path.write_text(json.dumps(rows))
    assert [e.gold for e in load_examples(str(path), build_task("gsm8k"))] == ["4"]
    assert [e.gold for e in load_examples(str(path), build_task("aqua"))] == ["B"]
    with pytest.warns(UserWarning, match="1 of 3 rows left out"):
        programs = load_examples(str(path), build_task("program"))
    assert [e.gold for e in programs] == ["6", "7"]
    path.write_text(json.dumps([{"task": "ssc", "qestion": "x", "answer": "Positive"}]))
    with pytest.raises(TaskError, match="none of its 1 rows belongs to task qqp"):
        load_examples(str(path), build_task("qqp"))


FENCED = "Here is the program:\n```python\nn0 = 5\nprint(n0 ** 2)\n```"
PROGRAMS = ["program", {"kind": "generate", "score": "program"}]


@pytest.mark.parametrize("spec", PROGRAMS)
@pytest.mark.parametrize("form", ["chat", "instruction"])
def test_fenced_programs_are_run_and_kept_as_they_were_written(tmp_path: Path, spec: Any, form: str) -> None:
    turns = [{"role": "user", "content": "5 squared?"}, {"role": "assistant", "content": FENCED}]
    row = {"messages": turns} if form == "chat" else {"instruction": "5 squared?", "output": FENCED}
    (tmp_path / "rows.json").write_text(json.dumps([row]))
    task = build_task(spec)
    (example,) = load_examples(str(tmp_path / "rows.json"), task)
    assert (example.gold, example.answer) == ("25", f" {FENCED}" if example.lead else FENCED)
    assert task.score(example, "answer = 25") and task.score(example, FENCED) and not task.score(example, "print(5)")


@pytest.mark.parametrize("spec", PROGRAMS)
def test_the_first_program_that_does_not_run_is_named_with_the_reason(tmp_path: Path, spec: Any) -> None:
    path = tmp_path / "rows.json"
    rows = [{"instruction": "Q1", "output": "n = 1"}, {"instruction": "Q2", "output": "import os\nanswer = 1"}]
    path.write_text(json.dumps(rows))
    with pytest.raises(TaskError, match=r"none of the 2 .* sandbox; row 1: it fails, .* or neither sets 'answer'"):
        load_examples(str(path), build_task(spec))
    path.write_text(json.dumps([*rows[1:], {"instruction": "Q", "output": "answer = 3\nanswer = answer *"}]))
    with pytest.raises(TaskError, match=r"none of the 2 .* sandbox; row 1: .*import"):
        load_examples(str(path), build_task(spec))
    path.write_text(json.dumps([{"instruction": "Q", "output": "answer = 3"}, *rows]))
    with pytest.warns(UserWarning, match="2 of 3 rows left out: their programs do not run; row 2: it fails"):
        assert len(load_examples(str(path), build_task(spec))) == 1


REAL = [
    ("gsm8k", "gsm8k/train.jsonl", 7473), ("gsm8k", "gsm8k/test.jsonl", 1319), ("gsm8k", "svamp/train.jsonl", 3138),
    ("gsm8k", "svamp/test.jsonl", 1000), ("aqua", "aqua_rat/train.jsonl", 254), ("aqua", "aqua_rat/test.jsonl", 254),
    ("aqua", "mathqa/train.jsonl", 4458), ("aqua", "mathqa/test.jsonl", 2000),
    ("program", "mathqa_program/train.jsonl", 2762), ("program", "mathqa_program/test.jsonl", 1841),
    ("sst2", "SST-2/train.tsv", 20000), ("sst2", "SST-2/dev.tsv", 872), ("qqp", "QQP/train.tsv", 20000),
    ("qqp", "QQP/dev.tsv", 2000), ("qnli", "QNLI/train.tsv", 4658), ("qnli", "QNLI/dev.tsv", 805),
    ("mrpc", "MRPC/train.tsv", 4076), ("mrpc", "MRPC/dev.tsv", 1725),
]  # fmt: skip
# Row 26: the released script reads keys that do not exist; here every preset reads the authors' form as it is.
WRITTEN = [
    ("gsm8k", "blank_fill", 5000), ("aqua", "choice", 1836), ("program", "program", 2762), ("sst2", "ssc", 5000),
    ("qqp", "spc", 5000), ("qnli", "nli", 4658),
]  # fmt: skip


@needs_data
@pytest.mark.parametrize(("name", "file", "count"), REAL)
def test_real_files(name: str, file: str, count: int) -> None:
    task = build_task(name)
    examples = load_examples(str(DATA / file), task)
    assert len(examples) == count
    some = examples[:: 1 if name != "program" else count // 4]
    assert all(task.score(example, example.answer or example.gold) for example in some)
    assert all(example.options == LETTERS for example in examples if name == "aqua")


@needs_data
@pytest.mark.parametrize(("name", "file", "count"), WRITTEN)
def test_row_26_the_authors_files(name: str, file: str, count: int) -> None:
    task = build_task(name)
    path = DATA / f"h2tune_json/{file}_trainset.json"
    limit = 60 if name == "program" else None
    examples = load_examples(str(path), task, limit=limit)
    assert len(examples) == (limit or count)
    rows = {row["answer"].strip().split("The answer is ")[-1] for row in json.loads(path.read_text())}
    if name == "aqua":
        assert {example.gold for example in examples} == rows
    assert len(load_examples(str(DATA / f"h2tune_json/{file}_testset.json"), task, limit=20)) == 20


@needs_data
def test_the_same_question_has_the_same_prompt_in_both_forms() -> None:
    for name, file, test in (("sst2", "SST-2/dev.tsv", "ssc"), ("qqp", "QQP/dev.tsv", "spc"), ("gsm8k", "gsm8k/test.jsonl", "blank_fill")):  # fmt: skip
        task = build_task(name)
        plain = {(e.prompt, e.gold) for e in load_examples(str(DATA / file), task)}
        written = load_examples(str(DATA / f"h2tune_json/{test}_testset.json"), task)
        assert sum((e.prompt, e.gold) in plain for e in written) >= 0.99 * len(written)


def test_all_presets_are_described() -> None:
    assert set(PRESETS) == {
        "gsm8k", "aqua", "program", "sst2", "qqp", "qnli", "mrpc", "demo-fill", "demo-choice", "demo-program",
    }  # fmt: skip
    for name in PRESETS:
        task = build_task(name)
        assert task.name == name and task.description and task.max_new_tokens > 0
