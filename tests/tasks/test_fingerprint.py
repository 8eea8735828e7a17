"""A resumed run notices that its data are other data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from federations import small

from h2tune.config import Experiment, parse_config
from h2tune.tasks.fingerprint import check_fingerprint, data_fingerprint, keep_fingerprint, source_digest
from h2tune.utils.files import StoreError


def experiment(folder: Path, **client: Any) -> Experiment:
    data = small(1).model_dump(mode="json")
    data["clients"][0] |= {"train": "train.jsonl", "validation": None} | client
    return parse_config(data, folder)


def test_a_file_that_changes_is_named_before_anything_is_done(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text('{"a": 1}\n', encoding="utf-8")
    before = data_fingerprint(experiment(tmp_path))
    assert set(before) == {"anchors", "c0.train", "c0.test"}
    keep_fingerprint(tmp_path, before)
    assert check_fingerprint(tmp_path, data_fingerprint(experiment(tmp_path))) == []
    (tmp_path / "train.jsonl").write_text('{"a": 2}\n', encoding="utf-8")  # as long as before
    after = data_fingerprint(experiment(tmp_path))
    with pytest.raises(StoreError, match=r"have changed since it began: c0\.train\. .*--changed data"):
        check_fingerprint(tmp_path, after)
    assert check_fingerprint(tmp_path, after, ("data", "rounds")) == ["c0.train"]
    assert check_fingerprint(tmp_path, after) == []  # what was meant is what the run has now


def test_a_file_of_many_clients_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "train.jsonl").write_text('{"a": 1}\n', encoding="utf-8")
    data = small(3).model_dump(mode="json")
    for i, client in enumerate(data["clients"], 1):
        client |= {"train": "train.jsonl", "validation": None, "part": f"{i}/3"}
    read: list[str] = []

    def counted(source: str) -> str:
        read.append(source)
        return source_digest(source)

    monkeypatch.setattr("h2tune.tasks.fingerprint.source_digest", counted)
    found = data_fingerprint(parse_config(data, tmp_path))
    assert len({found[f"c{i}.train"] for i in range(3)}) == 1
    assert len(read) == len(set(read)) and sum(source.endswith("train.jsonl") for source in read) == 1


def test_a_folder_is_all_its_files_and_their_names(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    folder.mkdir()
    (folder / "train.jsonl").write_text("{}", encoding="utf-8")
    own = experiment(tmp_path, train="set?split=train")
    first = data_fingerprint(own)["c0.train"]
    (folder / "cache-1.arrow").write_text("made by reading", encoding="utf-8")
    assert data_fingerprint(own)["c0.train"] == first
    (folder / "train.jsonl").rename(folder / "other.jsonl")
    assert data_fingerprint(own)["c0.train"] != first
    assert data_fingerprint(experiment(tmp_path, train="set?split=test"))["c0.train"] != first


def test_a_run_of_an_older_version_is_not_checked(tmp_path: Path) -> None:
    assert check_fingerprint(tmp_path, {"anchors": "x"}) == []


def test_only_the_named_clients_are_read(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text("{}", encoding="utf-8")
    assert set(data_fingerprint(experiment(tmp_path), ())) == {"anchors"}
