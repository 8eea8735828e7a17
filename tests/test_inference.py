"""Many rows are answered a window at a time: nothing waits for all of them, and no mistake is found too late."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from model_folders import ROWS, TASKS, model_folder, one_client, write_rows

from h2tune import federation, inference
from h2tune.inference import predict, to_jsonl
from h2tune.tasks.example import TaskError

LONG = {"text": "the market " * 50}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one client that writes its answers."""
    folder = tmp_path_factory.mktemp("predict")
    federation.run(one_client(folder, model_folder(folder / "model", "gpt2"), TASKS["generate"]), folder / "run")
    return folder / "run"


def test_rows_become_tokens_a_window_at_a_time_and_answers_stay_in_order(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", [LONG, *ROWS, LONG])
    whole = list(predict(finished, "c", rows))
    said = capsys.readouterr().err
    assert [row["text"] for row in whole] == [row["text"] for row in [LONG, *ROWS, LONG]]
    assert "2 of 10 rows are longer than the model reads" in said

    sizes: list[int] = []
    encode_prompts = inference.encode_prompts

    def counted(examples: Sequence[Any], tokenizer: Any) -> list[list[int]]:
        sizes.append(len(examples))
        return encode_prompts(examples, tokenizer)

    monkeypatch.setattr(inference, "encode_prompts", counted)
    monkeypatch.setattr(inference, "WINDOW", 4)
    answers = predict(finished, "c", rows, batch_size=2)
    assert next(answers) == whole[0] and sizes == [4]
    assert list(answers) == whole[1:] and sizes == [4, 4, 2]
    assert capsys.readouterr().err == said


def test_rows_of_other_tasks_are_counted(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    trained = inference.load_trained(finished, "c")
    task = replace(trained.task, accepts=lambda row: row.get("task") != "another")
    monkeypatch.setattr(inference, "load_trained", lambda *_: replace(trained, task=task))
    rows = write_rows(tmp_path / "rows.jsonl", [{"task": "another"}, *ROWS[:2]])
    assert len(list(predict(finished, "c", rows))) == 2
    assert "rows.jsonl: 1 of 3 rows belong to other tasks and were left out" in capsys.readouterr().err


def test_rows_of_like_length_are_answered_together(finished: Path, tmp_path: Path) -> None:
    trained = inference.load_trained(finished, "c")
    short, long = {"text": "a"}, {"text": "a doctor " * 3}
    rows = write_rows(tmp_path / "rows.jsonl", [short, long] * 4)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(inference, "load_trained", lambda *_: trained)
        prompts: list[list[int]] = []
        generate: Any = type(trained.model).generate

        def watched(self: Any, **given: Any) -> Any:
            prompts.append(given["attention_mask"].sum(1).tolist())
            return generate(self, **given)

        patch.setattr(type(trained.model), "generate", watched)
        assert len(list(predict(finished, "c", rows, batch_size=4))) == 8
    assert all(len(set(lengths)) == 1 for lengths in prompts) and len(prompts) == 2


@pytest.mark.parametrize(
    ("bad", "message"), [({"other": "x"}, "row 9"), (ROWS[0] | {"prediction": "x"}, "'prediction'")]
)
def test_a_mistake_in_the_last_row_is_told_before_anything_is_answered(
    bad: dict[str, str], message: str, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inference, "WINDOW", 4)
    rows = write_rows(tmp_path / "rows.jsonl", [*ROWS, bad])
    with pytest.raises(TaskError, match=message):
        next(predict(finished, "c", rows))


def test_the_question_of_training_is_asked_whatever_else_a_row_holds(tmp_path: Path) -> None:
    """`prompt` is looked for before `instruction`, but has no answer beside it; rows for prediction have none at all."""
    rows = [{"prompt": "air", "instruction": row["text"], "input": "", "output": row["word"]} for row in ROWS]
    task = {"kind": "generate", "max_new_tokens": 3}
    model = model_folder(tmp_path / "model", "gpt2")
    federation.run(one_client(tmp_path, model, task, rows, method="local"), tmp_path / "run")
    asked = [{key: value for key, value in row.items() if key != "output"} for row in rows]
    trained = inference.load_trained(tmp_path / "run", "c")
    assert trained.task.ask(asked[0]).prompt == f"Question: {ROWS[0]['text']}\nAnswer:"
    alone = [{"instruction": row["instruction"]} for row in rows]
    answers = [
        [row["prediction"] for row in predict(tmp_path / "run", "c", write_rows(tmp_path / "asked.jsonl", given))]
        for given in (asked, alone)
    ]
    assert answers[0] == answers[1]

    kept = next((tmp_path / "run" / "clients" / "c" / "adapter").glob("read_by.json"))
    kept.unlink()  # a run of an older version
    with pytest.raises(TaskError, match=r"row 1: the question may be \(prompt\) or \(instruction\), and no column of"):
        next(predict(tmp_path / "run", "c", write_rows(tmp_path / "asked.jsonl", asked)))
    answered = predict(tmp_path / "run", "c", write_rows(tmp_path / "asked.jsonl", rows))
    assert [row["prediction"] for row in answered] == answers[0]


def test_bytes_are_written_in_base64_and_said(capsys: pytest.CaptureFixture[str]) -> None:
    """As text they were `b'...'`, which nothing reads back."""
    rows = [{"text": "a", "image": {"bytes": b"\x00\xff", "path": None}, "raw": b"", "parts": [b"a"]}, {"text": "b"}]
    lines = [json.loads(line) for line in to_jsonl(iter(rows))]
    assert lines == [
        {"text": "a", "image": {"bytes": "AP8=", "path": None}, "raw": "", "parts": ["YQ=="]},
        {"text": "b"},
    ]
    assert capsys.readouterr().err == "bytes are written in base64: image, raw, parts\n"
    list(to_jsonl(iter([{"text": "a"}])))
    assert not capsys.readouterr().err
