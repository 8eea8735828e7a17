"""The public tasks of these benchmarks: where their rows are, and rows read and written in the files' own form."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from h2tune.utils.files import write_atomic

ANCHORS = 200
"""Rows at the end of a training file that no client has: anchors are made from them."""
Row = dict[str, Any]


@dataclass(frozen=True)
class Source:
    """A task's folder and files, the text of an anchor, and what a client's configuration says of the task."""

    folder: str
    columns: tuple[str, ...]
    prompt: str
    train: str = "train.tsv"
    test: str = "dev.tsv"
    task: dict[str, Any] = field(default_factory=lambda: {"kind": "choice"})


def _problems(folder: str, column: str, **task: Any) -> Source:
    # Numbers and programs are out of reach for models of this size: the quantity is nats, and nothing is generated to its end.
    return Source(folder, (column,), "Question: {} Answer:", "train.jsonl", "test.jsonl", task)


TASKS = {
    "sst2": Source("SST-2", ("sentence",), "Review: {} Verdict:"),
    "qqp": Source("QQP", ("question1", "question2"), "First: {} Second: {} Same:"),
    "qnli": Source("QNLI", ("question", "sentence"), "Question: {} Sentence: {} Answered:"),
    "mrpc": Source("MRPC", ("#1 String", "#2 String"), "First: {} Second: {} Same:"),
    "gsm8k": _problems("gsm8k", "question", max_new_tokens=4),
    "aqua": _problems("mathqa", "Problem", kind="choice"),
    "program": _problems("mathqa_program", "instruction", max_new_tokens=4),
}


def read(path: Path) -> list[Row]:
    with open(path, encoding="utf-8") as file:
        if path.suffix == ".jsonl":
            return [json.loads(line) for line in file]
        return list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))


def written(path: Path, rows: list[Row]) -> str:
    """Write rows in the form that the file's ending names; whole or not at all, since another process may be reading the same file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = io.StringIO(newline="")
    if path.suffix == ".jsonl":
        text.writelines(json.dumps(row) + "\n" for row in rows)
    else:
        writer = csv.DictWriter(text, rows[0].keys(), delimiter="\t", quoting=csv.QUOTE_NONE, quotechar=None)
        writer.writeheader()
        writer.writerows(rows)
    write_atomic(path, text.getvalue().encode(), several=True)
    return str(path.resolve())


def anchors(data: Path, task: str, out: Path) -> Path:
    """Unlabelled prompts from the end of the training file, one a line."""
    source = TASKS[task]
    path = out / f"anchors-{task}.txt"
    rows = read(data / source.folder / source.train)[-ANCHORS:]
    texts = (source.prompt.format(*(row[column].strip() for column in source.columns)) for row in rows)
    lines = [text.replace("\n", " ") for text in texts]
    write_atomic(path, ("\n".join(lines) + "\n").encode(), several=True)
    return path
