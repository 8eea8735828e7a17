"""The data of every seed are looked at before a comparison runs anything."""

from __future__ import annotations

import inspect
import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from h2tune.cli import compare as command
from h2tune.cli.app import app
from h2tune.comparison.cells import TUNING_SEED, CompareError
from h2tune.comparison.compare import compare
from h2tune.participant.errors import ModelError

FILE = """
name: tiny
rounds: 1
rank: 4
device: cpu
training: {steps: 1, batch_size: 2}
clients:
  - {name: a, model: "zoo:llama", task: demo-fill, train: "train-{seed}.jsonl", test: "demo:fill?split=test&n=8"}
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A federation with 40 training rows for seed 0 and 30 for seed 1."""
    for seed, count in ((0, 40), (1, 30)):
        rows = [{"prompt": f"{n} and two are", "answer": f" {n + 2}", "gold": str(n + 2)} for n in range(count)]
        (tmp_path / f"train-{seed}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    path = tmp_path / "tiny.yaml"
    path.write_text(FILE)
    return path


def test_no_seed_has_fewer_rows_than_were_asked_for(file: Path, tmp_path: Path) -> None:
    with pytest.raises(CompareError, match=r"^--n-train 35: a has 30 training rows with seed 1$"):
        compare(file, ["local"], 2, tmp_path / "out", n_train=[20, 35])
    assert not (tmp_path / "out").exists()


def test_files_of_a_seed_that_are_not_there_are_named_before_anything_runs(file: Path, tmp_path: Path) -> None:
    with pytest.raises(CompareError, match=r"^a: train: no file or folder .*train-2.jsonl, .* with seed 2\n.*3"):
        compare(file, ["local"], 4, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_seed_that_rates_are_chosen_with_is_named(file: Path, tmp_path: Path) -> None:
    told = r"train-10000.jsonl, which is asked for with seed 10000, with which --tune chooses rates$"
    with pytest.raises(CompareError, match=told):
        compare(file, ["local"], 1, tmp_path / "out", tune=[0.3, 1])
    page = (Path(__file__).parents[2] / "docs/settings.md").read_text()
    assert f"seed {TUNING_SEED}" in inspect.getsource(command) and f"seed {TUNING_SEED}" in page


def test_each_missing_file_is_a_line_up_to_eight(file: Path, tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["compare", str(file), "--seeds", "20", "--out", str(tmp_path / "out")])
    assert done.exit_code == 1 and done.stderr.count("error: a: train: no file") == 8
    assert done.stderr.endswith("error: and 10 more\n")


def test_files_that_any_of_the_methods_reads_are_looked_for(file: Path, tmp_path: Path) -> None:
    """Public ones, too; what no method reads is not asked for."""
    for name in ("anchors", "words", "public", "codes", "practice"):
        (tmp_path / f"{name}-0.txt").touch()
    more = """anchors: "anchors-{seed}.txt"
anchor_words: "words-{seed}.txt"
public: {source: "public-{seed}.txt", task: demo-fill}
methods: {h2tune: {frames: words, codes: "codes-{seed}.txt"}}
clients:"""
    file.write_text(FILE.replace("task:", 'practice: "practice-{seed}.txt", task:').replace("clients:", more))

    def told(methods: list[str]) -> set[str]:
        with pytest.raises(CompareError) as error:
            compare(file, methods, 3, tmp_path / "out")
        lines = str(error.value).splitlines()
        return {
            line.partition(": no file")[0] for line in lines if line.endswith("-2.txt, which is asked for with seed 2")
        }

    (tmp_path / "train-2.jsonl").touch()
    for name in ("anchors", "words", "public", "codes", "practice"):
        (tmp_path / f"{name}-1.txt").touch()
    assert told(["local"]) == {"anchors", "anchor_words"}
    assert told(["local", "h2tune"]) == {"anchors", "anchor_words", "codes", "a: practice"}
    assert told(["local", "lada"]) == {"anchors", "anchor_words", "public.source"}
    assert not (tmp_path / "out").exists()


def test_what_is_finished_needs_neither_device_nor_data(file: Path, tmp_path: Path) -> None:
    """Its table can be made again elsewhere; what is still to be run is looked at as ever."""
    out, data = tmp_path / "out", tmp_path / "train-0.jsonl"
    rows = data.read_bytes()
    (tmp_path / f"train-{TUNING_SEED}.jsonl").write_bytes(rows)
    made = compare(file, ["local"], 1, out, n_train=[20], tune=[1], jobs=1)
    configs = list(out.rglob("config.yaml"))
    for path in (file, *configs):
        path.write_text(path.read_text().replace("device: cpu", "device: cuda:77"))
    for path in tmp_path.glob("train-*.jsonl"):
        path.unlink()
    assert len(configs) == 2
    assert compare(file, ["local"], 1, out, n_train=[20], tune=[1], jobs=1)["tables"] == made["tables"]
    with pytest.raises(ModelError, match="no cuda:77 on this machine"):
        compare(file, ["local"], 2, out, n_train=[20], tune=[1], jobs=1)

    for path in (file, *configs):
        path.write_text(path.read_text().replace("device: cuda:77", "device: cpu"))
    with pytest.raises(
        CompareError, match=r"^a: train: no file or folder .*train-1.jsonl, which is asked for with seed 1$"
    ):
        compare(file, ["local"], 2, out, n_train=[20], tune=[1], jobs=1)
    data.write_bytes(rows.replace(b"two", b"ten"))
    with pytest.raises(CompareError, match="holds a run of something else: The data of this run have changed"):
        compare(file, ["local"], 1, out, n_train=[20], tune=[1], jobs=1)
