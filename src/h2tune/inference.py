"""What comes out of a run: a client's model answering a file; `exporting` writes it for others."""

from __future__ import annotations

import json
import math
import sys
from base64 import b64encode
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from peft import PeftModel
from transformers import PreTrainedTokenizerBase

from h2tune.exporting import Exported, export
from h2tune.participant.prepare import max_length
from h2tune.participant.scoring import answers
from h2tune.tasks.dataset import read_questions
from h2tune.tasks.example import Example, Task, TaskError
from h2tune.tasks.prompts import encode, encode_prompts, fit_prompts, templated
from h2tune.trained import Trained, find_client, load_trained, only_client

__all__ = ["Exported", "export", "find_client", "load_client", "only_client", "predict", "to_jsonl"]

WINDOW = (
    256  # rows that are answered together, those of like length in one batch; with more, the first answers are late
)


def load_client(run: Path, name: str) -> tuple[PeftModel, PreTrainedTokenizerBase, Task]:
    """Base model with the client's trained adapter, tokenizer and task."""
    trained = load_trained(run, name)
    return trained.model, trained.base.tokenizer, trained.task


def predict(run: Path, name: str, source: Path, batch_size: int = 32) -> Iterator[dict[str, Any]]:
    """The rows of a file with the model's answer under ``prediction``, by the same steps as the run's scores.

    Rows of other tasks are left out, and rows that are too long for the model lose their beginning; how many is said on
    standard error at the end. `WINDOW` rows at a time become tokens and are answered.

    Raises:
        TaskError: before anything is answered, naming the row that cannot be read, or a column that is called as the answers
            will be; later, a row that gives no tokens.
    """
    trained = load_trained(run, name)
    questions = read_questions(str(source), trained.task, trained.client.columns)
    if any("prediction" in row for row, _ in questions):  # reads every row, which is little beside answering it
        raise TaskError(f"{source}: there is a column 'prediction' already, which would be lost: rename it")
    length, cut, rest = max_length(trained.client, trained.base), 0, iter(questions)
    while part := list(islice(rest, max(WINDOW, batch_size))):
        examples = [example for _, example in part]
        cut += _too_long(trained, examples, length)
        model: Any = trained.model  # PEFT's wrapper passes on what a model of Transformers has
        found = answers(model, trained.base.tokenizer, trained.task, examples, batch_size, length, trained.passes)
        for (row, example), text in zip(part, found, strict=True):
            yield {**row, "prediction": _own_text(example, text, trained)}
    if questions.others:
        print(f"{source}: {questions.others} of {questions.others + len(questions.rows)} rows belong to other tasks and were"
              " left out", file=sys.stderr)  # fmt: skip
    if cut:
        print(f"{source}: {cut} of {len(questions.rows)} rows are longer than the model reads and lost their beginning",
              file=sys.stderr)  # fmt: skip


def _own_text(example: Example, text: str, trained: Trained) -> str:
    """An answer without what only leads to it."""
    return text if templated(example, trained.base.tokenizer) else text.removeprefix(example.lead)


def _too_long(trained: Trained, examples: list[Example], length: int) -> int:
    task, tokenizer = trained.task, trained.base.tokenizer
    if task.kind == "classify":
        return sum(len(row.input_ids) > length for row in encode(examples, tokenizer, max_length=1 << 30))
    prompts = encode_prompts(examples, tokenizer)
    return fit_prompts(prompts, tokenizer, context=length, new_tokens=task.max_new_tokens)[1]


def to_jsonl(rows: Iterator[dict[str, Any]]) -> Iterator[str]:
    """One row a line, letters as they are, and bytes in base64; which columns hold bytes is said on standard error at the end."""
    binary: dict[str, None] = {}
    for row in rows:
        binary |= dict.fromkeys(str(name) for name, value in row.items() if _has_bytes(value))
        yield json.dumps(_plain(row), ensure_ascii=False, allow_nan=False, default=str)
    if binary:
        print(f"bytes are written in base64: {', '.join(binary)}", file=sys.stderr)


def _has_bytes(value: Any) -> bool:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    return isinstance(value, bytes | bytearray) or any(map(_has_bytes, inner))


def _plain(value: Any) -> Any:
    """A value without what JSON does not know: a missing cell of a Parquet file is null, bytes are base64."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, bytes | bytearray):
        return b64encode(value).decode()
    if isinstance(value, dict):
        return {str(key): _plain(inner) for key, inner in value.items()}
    return [_plain(inner) for inner in value] if isinstance(value, list | tuple) else value
