"""The run's directory: what a stop at a bad moment, a full disk and people's copies leave."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from federations import small
from safetensors.torch import save

from h2tune.store import ClientStore, RunStore
from h2tune.utils.files import StoreError, write_atomic


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


def test_records_of_a_commit_have_no_limit_in_size(tmp_path: Path) -> None:
    """The header of a safetensors file has one, of 100 MB."""
    store, records = RunStore(tmp_path), {"said": ["ü\ud800" * 200_000], "rate": 0.1}
    store.commit(3, {"x": torch.ones(2)}, records)
    with open(tmp_path / "server" / "core.safetensors", "rb") as file:
        assert int.from_bytes(file.read(8), "little") < 1000
    committed = store.committed()
    assert committed is not None
    number, tensors, found = committed
    assert (number, list(tensors), found) == (3, ["x"], records)


def test_a_commit_of_an_earlier_version_is_read(tmp_path: Path) -> None:
    path = tmp_path / "server" / "core.safetensors"
    write_atomic(path, save({"_": torch.zeros(1)}, metadata={"round": "7", "records": '{"once": 8}'}))
    assert RunStore(tmp_path).committed() == (7, {}, {"once": 8})


def test_reports_that_no_commit_counts_are_dropped_and_missing_ones_are_named(tmp_path: Path) -> None:
    store = RunStore(tmp_path)
    assert store.reports(0) == []
    first = store.add_reports([["a", {"round": 1}]], 0)
    store.add_reports([["a", {"round": 2, "of": "a round that was not committed"}]], first)
    length = store.add_reports([["b", {"round": 2}]], first)
    assert store.reports(length) == [["a", {"round": 1}], ["b", {"round": 2}]]
    assert store.reports(first) == [["a", {"round": 1}]]
    assert (tmp_path / "server" / "reports.jsonl").stat().st_size == length
    for use in (lambda: store.reports(length + 1), lambda: store.add_reports([], length + 1)):
        with pytest.raises(StoreError, match=r"reports\.jsonl is damaged"):
            use()


@pytest.mark.parametrize(
    "damage", [b'["a", {"round" 1}]\n', b"[1, 2]\n", b'"a"\n', b'["a", {"round": 1}, 3]\n', b'["a", {}]']
)
def test_reports_that_somebody_changed_are_named(tmp_path: Path, damage: bytes) -> None:
    (tmp_path / "server").mkdir()
    (tmp_path / "server" / "reports.jsonl").write_bytes(damage)
    with pytest.raises(StoreError, match=r"reports\.jsonl is damaged"):
        RunStore(tmp_path).reports(len(damage))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_reports_on_a_full_disk_are_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "server").mkdir()
    os.symlink("/dev/full", tmp_path / "server" / "reports.jsonl")
    with pytest.raises(StoreError, match="could not be written"):
        RunStore(tmp_path).add_reports([["a", {}]], 0)
