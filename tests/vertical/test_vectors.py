"""The file of class vectors: every mistake in it is told by `plan`, and before a run has left anything."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from vertical.tables import config, planted
from vertical.test_vertical_network import Scenario

from h2tune.vertical.config import VerticalConfig
from h2tune.vertical.federation import load_parties, run
from h2tune.vertical.plan import make_plan
from h2tune.vertical.table import TableError
from h2tune.vertical.vectors import class_vectors

CSV = "class,a,b\nclass-0,0,1\nclass-1,1.5,0\nclass-2,2,1\nclass-3,3,-1e3\n"


def described(path: Path, unseen: int | None = 3) -> VerticalConfig:
    label = {"vectors": str(path), "classes": [f"class-{c}" for c in range(4)]}
    return config(unseen=unseen, rounds=1, method={"unseen": "described"}, label=label)


MISTAKES = {
    "no file": (None, "There is no file {path}."),
    "text": (CSV.replace("1.5", '"1,5 m"'),
             "{path}: class 'class-1', column 'a': '1,5 m' is no number; write it bare and with a point."),
    "an empty cell": (CSV.replace("class-2,2", "class-2,"),
                      "{path}: class 'class-2', column 'a': the cell has no value; every class needs a number in every column."),
    "infinite": (CSV.replace("-1e3", "-inf"),
                 "{path}: class 'class-3', column 'b': '-inf' is no finite number; every class needs a number in every column."),
    "beyond float32": (CSV.replace("-1e3", "1e39"),
                       "{path}: class 'class-3', column 'b': '1e39' is no finite number; every class needs a number in every"
                       " column."),
    "rows of unequal length": (CSV.replace("class-1,1.5,0", "class-1,1.5"),
                               "{path}: line 3 has 2 cells, and there are 3 columns."),
    "a class less": (CSV.replace("class-2", "other"),
                     "{path}: there is no vector of the class 'class-2'; it needs one row, with its name under 'class'."),
    "a class twice": (CSV + "class-1,0,0\n",
                      "{path}: there are 2 vectors of the class 'class-1'; it needs one row, with its name under 'class'."),
    "no numbers": ("class\nclass-0\n",
                   "{path}: there is no column of numbers; the first column names the class, the others hold them."),
}  # fmt: skip


@pytest.mark.parametrize(("text", "said"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_in_the_class_vectors_is_told_before_anything_is_written(
    text: str | None, said: str, tmp_path: Path
):
    path = tmp_path / "vectors.csv"
    if text is not None:
        path.write_text(text)
    for act in (make_plan, lambda settings, frames: run(settings, tmp_path / "run", frames=frames)):
        with pytest.raises(TableError) as error:
            act(described(path), planted(unseen=3))
        assert str(error.value) == "label.vectors: " + said.format(path=path)
    assert not (tmp_path / "run").exists()


def test_rows_of_json_that_lack_a_number_are_not_of_equal_length(tmp_path: Path):
    path = tmp_path / "vectors.jsonl"
    rows = [{"class": f"class-{c}", "a": c} | ({} if c == 1 else {"b": 1}) for c in range(4)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(TableError, match="class 'class-1', column 'b': the cell has no value"):
        make_plan(described(path), planted(unseen=3))


def test_vectors_stand_in_the_order_of_the_classes_and_other_rows_do_no_harm(tmp_path: Path):
    path = tmp_path / "vectors.csv"
    path.write_text(CSV + "another,x,\n")
    found = class_vectors(described(path), ["class-3", "class-1"])
    assert found is not None and torch.equal(found, torch.tensor([[3.0, -1000.0], [1.5, 0.0]]))
    assert class_vectors(config(), ["class-3"]) is None


def test_they_are_told_of_beside_the_mistakes_of_the_parties(tmp_path: Path):
    frames = planted(unseen=3)
    bank = frames["bank"][0].drop(columns="id")
    with pytest.raises(TableError) as error:
        load_parties(described(tmp_path / "none.csv"), frames | {"bank": (bank, frames["bank"][1])})
    first, second = str(error.value).splitlines()
    assert (
        "there is no id column 'id'" in first and second == f"label.vectors: There is no file {tmp_path / 'none.csv'}."
    )


def test_over_a_network_too(tmp_path: Path):
    changes = {"method": {"unseen": "described"}, "label": {"vectors": str(tmp_path / "none.csv")}}
    scenario = Scenario(tmp_path, **changes)
    with pytest.raises(TableError, match=r"label\.vectors: There is no file"):
        scenario.serve(start=False)
    assert not (tmp_path / "server" / "run").exists()
