"""What an export for some of the parties holds, and that it and a run's folder predict as the run does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from vertical.tables import config, planted

from h2tune.cli import vertical as commands
from h2tune.vertical.federation import run
from h2tune.vertical.predictor import Predictor

CLASSES = [f"class-{c}" for c in range(4)]
SHARED = ("bias", "mlp.0.bias", "mlp.2.weight", "mlp.2.bias")  # of the active party, not of one view


def ran(folder: Path, method: dict[str, Any], rows: int = 200, **changes: Any) -> tuple[Path, dict[str, pd.DataFrame]]:
    """A short run in which the clinic alone labels rows of class 3 and the shop has few; its folder and the test tables."""
    frames = planted(unseen=3)
    train, test = frames["shop"]
    kinds = frames["bank"][0].set_index("id")["kind"]
    # The shop shares nobody of class 2, so that it has not seen that class.
    frames["shop"] = (train[[kinds.get(i) != "class-2" for i in train["id"]]].head(rows), test)
    settings = config(unseen=3, baseline="none", method={"warmup": 2, "select": "none"} | method, **changes)
    run(settings, folder / "run", frames=frames)
    return folder / "run", {name: test for name, (_, test) in frames.items()}


@pytest.mark.parametrize("method", [{"top": "mlp", "gate": "learned"}, {"gate": "coverage"}, {}])
def test_no_tensor_of_an_export_holds_anything_of_a_party_that_is_left_out(method: dict[str, Any], tmp_path: Path):
    folder, _ = ran(tmp_path, method)
    before = load_file(folder / "server" / "top.safetensors")
    after = load_file(Predictor(folder).export(["bank", "shop"], tmp_path / "part") / "server" / "top.safetensors")
    assert before.keys() == after.keys()
    left = before.keys() - set(SHARED)
    for name in left:
        dim, k = 8, 1  # the clinic
        if name == "mlp.0.weight":
            parts = [t.reshape(t.shape[0], 3, dim).transpose(0, 1) for t in (before[name], after[name])]
        elif name.startswith("gate.inner"):
            mine = int(name.split(".")[2]) == k
            assert bool(after[name].any()) is not mine and (mine or torch.equal(before[name], after[name]))
            continue
        else:
            parts = [before[name], after[name]]
        assert parts[0].shape[0] == 3 and bool(parts[0][k].any()) and not parts[1][k].any(), name
        assert torch.equal(parts[0][[0, 2]], parts[1][[0, 2]]), name


def gap(folder: Path, part: Path, tables: dict[str, pd.DataFrame]) -> float:
    """How far an export's probabilities are from its run's, over people whom all or some of its parties know."""
    whole, alone = Predictor(folder), Predictor(part)
    found = []
    for names in (alone.here, *([name] for name in alone.here)):
        chosen = {name: tables[name] for name in names}
        for mine, theirs in zip(alone.predict(chosen), whole.predict(chosen), strict=True):
            assert mine["id"] == theirs["id"]
            found += [abs(p - theirs["probabilities"][c]) for c, p in mine["probabilities"].items()]
    return max(found)


@pytest.mark.parametrize(
    "method",
    [{}, {"top": "mlp"}, {"combine": "probabilities"}, {"missing": "coverage", "gate": "learned"},
     {"gate": "learned", "borrow": 1.0}, {"gate": "coverage", "borrow": 0.0}],
)  # fmt: skip
def test_an_export_predicts_as_its_run_for_whoever_its_parties_know(method: dict[str, Any], tmp_path: Path):
    # Few rows at the clinic but those of class 3: the largest counts of the other classes are the bank's.
    folder, tables = ran(tmp_path, method)
    whole = Predictor(folder)
    part = whole.export(["bank", "shop"], tmp_path / "part")
    assert whole.top.counts[1, 3] > 0 and not whole.top.counts[[0, 2], 3].any() and whole.top.counts[2, 2] == 0
    assert whole.differs(["bank", "shop"]) == [] and gap(folder, part, tables) <= 1.1e-6
    again = Predictor(part).export(["bank", "shop"], tmp_path / "again")
    assert gap(folder, again, tables) <= 1.1e-6


def test_an_export_places_described_classes_as_its_run(tmp_path: Path):
    vectors = tmp_path / "vectors.csv"
    pd.DataFrame({"class": CLASSES, "a": [0.0, 1.0, 2.0, 3.0], "b": [1.0, 0.0, 1.0, 0.0]}).to_csv(vectors, index=False)
    label = {"party": "bank", "column": "kind", "classes": CLASSES, "vectors": str(vectors)}
    folder, tables = ran(tmp_path, {"unseen": "described"}, label=label)
    vectors.unlink()
    assert gap(folder, Predictor(folder).export(["bank", "shop"], tmp_path / "part"), tables) <= 1.1e-6


@pytest.mark.parametrize(
    ("method", "parties", "classes"),
    [({"gate": "coverage"}, "bank,shop", []), ({"gate": "coverage"}, "clinic,shop", [2]),
     ({"gate": "learned"}, "clinic,shop", [2]), ({"missing": "relation"}, "bank,shop", [2, 3])],
)  # fmt: skip
def test_whoever_exports_is_told_where_it_takes_figures_of_others(
    method: dict[str, Any], parties: str, classes: list[int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    folder, tables = ran(tmp_path, method)
    part = commands.export(folder, parties, tmp_path / "part")
    said = capsys.readouterr().err
    named = ", ".join(CLASSES[c] for c in classes)
    assert f"warning: probabilities of {named}, and" in said if classes else not said
    assert (gap(folder, part, tables) > 1e-4) is bool(classes)
    every = commands.export(folder, "bank,clinic,shop", tmp_path / "every")
    assert not capsys.readouterr().err and gap(folder, every, tables) == 0


@pytest.mark.parametrize(("missing", "known"), [("evidence", False), ("coverage", False), ("relation", True)])
def test_a_class_that_only_another_party_has_seen_has_a_probability_where_views_speak_for_it(
    missing: str, known: bool, tmp_path: Path
):
    folder, tables = ran(tmp_path, {"missing": missing})
    found = Predictor(folder).predict({name: tables[name] for name in ("bank", "shop")})
    assert any(answer["probabilities"]["class-3"] > 0 for answer in found) is known


def test_a_run_predicts_for_its_test_people_what_stands_in_its_folder(tmp_path: Path):
    """With an average of the weights, and a best round before the last; the order of people may differ."""
    training, evaluation = {"average": 0.9, "learning_rate": 0.05}, {"every": 1, "validation": 0.2}
    folder, tables = ran(tmp_path, {}, training=training, evaluation=evaluation)
    assert json.loads((folder / "metrics.json").read_text())["best"] < 6
    written = [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]
    found = Predictor(folder).predict(tables)
    assert sorted(found, key=lambda a: a["id"]) == sorted(written, key=lambda a: a["id"])
