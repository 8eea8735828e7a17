"""An export states the prompt that its model was trained on, whatever the file calls its columns."""

from __future__ import annotations

from typing import Any

import pytest

from h2tune.exporting import task_texts
from h2tune.tasks import build_task

RENAMED = {"question": "problem", "answer": "solution"}


@pytest.mark.parametrize(("spec", "columns", "prompt"), [
    ("gsm8k", None, "Question: {question}\nAnswer:"),
    ("gsm8k", RENAMED, "Question: {problem}\nAnswer:"),
    ({"preset": "gsm8k", "columns": RENAMED}, None, "Question: {problem}\nAnswer:"),
    ("sst2", {"sentence": "text", "label": "y"}, "Review: {text}\nVerdict:"),
    ("program", None, "Question: {instruction}\nProgram:"),
    ("demo-choice", None, "{prompt}"),
])  # fmt: skip
def test_columns_stand_by_the_files_names(spec: Any, columns: dict[str, str] | None, prompt: str) -> None:
    assert task_texts(build_task(spec), spec, columns)[0] == prompt


def test_a_chat_is_told_as_one() -> None:
    task = build_task({"kind": "generate"})
    turns = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "well?"}]
    assert "chat template" in task_texts(task, {"kind": "generate"}, None, task.read({"messages": turns}))[0]
    plain = task.read({"question": "why", "answer": "so"})
    assert task_texts(task, {"kind": "generate"}, None, plain)[0] == "Question: {question}\nAnswer:"
