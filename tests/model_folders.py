"""Tiny models of every family as folders that a config can name, with a tokenizer that fits their vocabulary."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from families import build
from federations import ANCHORS
from tiny_tokenizers import tokenizer

from h2tune.config import Experiment, parse_config

LABELS = ("low", "high", "odd")
# Words of the tokenizers' lines, so that a vocabulary of 64 can spell them.
ROWS = [{"text": text, "word": word, "label": LABELS[i % 3]} for i, (text, word) in enumerate([
    ("the old farmer", "market"), ("two ships left", "winter"), ("she counted the stars", "river"), ("a doctor", "pain"),
    ("water boils at a lower temperature", "mountain"), ("he knew", "them"), ("the dog chased its tail", "tail"),
    ("every engine needs oil", "air")])]  # fmt: skip
TASKS: dict[str, dict[str, Any]] = {
    "generate": {"kind": "generate", "prompt": "{text}:", "answer": " {word}", "max_new_tokens": 5},
    "choice": {"kind": "choice", "prompt": "{text}:", "answer": "{label}", "options": list(LABELS), "join": " "},
    "classify": {"kind": "classify", "prompt": "{text}", "answer": "{label}", "labels": list(LABELS)},
}  # fmt: skip


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> Path:
    """JSON lines; half characters are written as escapes, as the programs do that cut them."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def model_folder(folder: Path, family: str, dtype: torch.dtype = torch.float32, **saved: Any) -> Path:
    """A model of `families` with a tokenizer beside it."""
    model = build(family, dtype)
    model.save_pretrained(folder, **saved)
    words = tokenizer("characters")
    words.save_pretrained(folder)
    return folder


def one_client(folder: Path, model: Path | str, task: Any, rows: Iterable[Mapping[str, Any]] = ROWS, **changes: Any) -> Experiment:  # fmt: skip
    """A federation of one client, whose rows lie in the folder."""
    path = write_rows(folder / "rows.jsonl", rows)
    client = {
        "name": "c",
        "model": str(model),
        "task": task,
        **dict.fromkeys(("train", "validation", "test"), str(path)),
    }
    data = {"name": "case", "rounds": 1, "rank": 2, "anchors": ANCHORS, "device": "cpu", "baseline": "none",
            "training": {"steps": 1, "batch_size": 4, "head_steps": 1}, "clients": [client | changes.pop("client", {})]}  # fmt: skip
    return parse_config(data | changes, folder)
