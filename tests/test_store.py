"""The run's directory: what a stop at a bad moment, a full disk and people's copies leave."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from federations import small

from h2tune.store import ClientStore, RunStore
from h2tune.utils.files import StoreError


@pytest.mark.parametrize("left", ["config.yaml.partial", "run.json.partial"])
def test_a_start_that_was_killed_can_be_made_again(left: str, tmp_path: Path) -> None:
    (tmp_path / left).write_text("half")
    assert len(RunStore(tmp_path).create(small())) == 32


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_an_event_on_a_full_disk_is_a_sentence(tmp_path: Path) -> None:
    os.symlink("/dev/full", tmp_path / "events.jsonl")
    with pytest.raises(StoreError, match="could not be written: No space left"):
        RunStore(tmp_path).event("warning", "text")


def test_copies_of_states_are_left_alone(tmp_path: Path) -> None:
    store = ClientStore(tmp_path)
    (tmp_path / "state-000001 (copy).safetensors").write_bytes(b"")
    for number in range(3):
        store.save_state(number, {"x": torch.full((1,), float(number))})
    found = store.load_state(5)
    assert found is not None and found["x"].item() == 2.0
    assert (tmp_path / "state-000001 (copy).safetensors").exists()


def test_a_damaged_file_of_a_client_is_named(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(StoreError, match=r"run\.json is damaged"):
        ClientStore(tmp_path).read_json("run.json")
