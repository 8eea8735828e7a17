"""CSV files whose numbers are read as numbers: the same rows, values and mistakes as if all cells were read as text."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from vertical.tables import config

from h2tune.vertical import table as tables
from h2tune.vertical.parties import load_party
from h2tune.vertical.table import MISSING, Columns, TableError, read_table

WHOLE = ["0", "7", "-12", " 3", "4 ", "007", "+5", "123456789012"]
BROKEN = ["0.5", "1e3", "-.25", "2.", "1e300", "inf", " 1.5 ", "1e-320", "0.1234567890123456789"]
OTHER = ["True", "x", "1,5 €", "NAN", "1_000", "0x1f", "3\xa0", "½", "-inf", "nan"]


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch):
    """A few rows are looked at first, and read at a time."""
    monkeypatch.setattr(tables, "SNIFFED", 3)
    monkeypatch.setattr(tables, "CELLS", 20)
    monkeypatch.setattr(tables, "BLOCK", 64)


def column(chance: random.Random, rows: int) -> list[str]:
    kinds = [WHOLE, BROKEN, [*WHOLE, *BROKEN], MISSING, ["inf", "1e300"], ["True", "False"], OTHER]
    cells = chance.choices(chance.choice(kinds), k=rows)
    for row in range(rows):
        if chance.random() < chance.choice([0, 0, 0.3]):
            cells[row] = chance.choice(MISSING)
    if chance.random() < 0.3:
        cells[-1] = chance.choice(OTHER)
    return cells


@pytest.mark.parametrize("seed", range(30))
def test_columns_are_what_they_are_if_all_cells_are_read_as_text(seed: int, tmp_path: Path):
    chance = random.Random(seed)
    frame = pd.DataFrame({f"c{i}": column(chance, 25) for i in range(6)})
    frame.to_csv(tmp_path / "a.tsv", sep="\t", index=False)
    text, found = read_table(tmp_path / "a.tsv"), read_table(tmp_path / "a.tsv", {"c0"})
    assert list(found.columns) == list(text.columns) and found["c0"].equals(text["c0"])
    expected, columns = (Columns.fit(t, list(frame.columns)) for t in (text, found))
    assert columns == expected
    assert torch.equal(columns.apply(found, "a"), expected.apply(text, "a"))
    assert {name for name in columns.numeric if name != "c0"} >= set(found.select_dtypes("number").columns)


def test_numbers_are_no_text(tmp_path: Path):
    path = tmp_path / "a.csv"
    path.write_text("id,a,b,c\n" + "".join(f"{i:03},{i},{i / 4},{i or 'x'}\n" for i in range(40)))
    found = read_table(path, {"id"})
    assert [kind.kind for kind in found.dtypes] == ["O", "f", "f", "O"] and found["id"][7] == "007"
    assert read_table(path)["a"][7] == "7"
    path.write_text("id,a\n")
    assert len(read_table(path, {"id"})) == 0 and list(read_table(path, {"id"}).columns) == ["id", "a"]


def test_categories_of_test_rows_count_as_they_are_written(tmp_path: Path):
    settings = config(label={"party": "bank", "column": "kind"})
    (tmp_path / "a.csv").write_text("id,code,n\n" + "".join(f"{i},{c},{i}\n" for i, c in enumerate(["007", "x", "7"])))
    (tmp_path / "b.csv").write_text("id,code,n\n8,007,1\n9,7,2\n")
    party = settings.parties[1].model_copy(
        update={"train": str(tmp_path / "a.csv"), "test": str(tmp_path / "b.csv"), "id": "id", "labels": None}
    )
    data = load_party(settings, party, "salt")
    assert data.columns.categorical["code"] == ["007", "7", "x"] and data.test is not None
    rows = dict(zip(data.test.ids, data.test.x.tolist(), strict=True))
    assert rows["8"][-3:] == [1, 0, 0] and rows["9"][-3:] == [0, 1, 0]


def outcome(path: Path, as_text: set[str] | None = None) -> str:
    try:
        return read_table(path, as_text).to_json()
    except TableError as error:
        return str(error)


@pytest.mark.parametrize(
    "text",
    [
        "", "\n", "\n\n1,2\n", "a,b", "a,b\n1,2", "a,b\r\n1,2\r\n\r\n3,4", "a,b\r1,2\r", "a,b\n1,2\n\n3\n", "a,b\n1,2,3\n",
        'a,b\n1,"x,y"\n', 'a,b\n1,"x\ny"\n2,3,4\n', 'a,b\n1,5" pipe\n', "\ufeffa,b\n1,2\n", "a\n1\n\n2\n", "a\n1\n \n2\n",
        "a,a\n1,2\n", "a,ü\n1,ß\n", "a,b\n" + "1,2\n" * 50 + "3\n", "a,b\n" + "1,2\n" * 50 + '"3\n', "a,b\n1," + "x" * 140_000 + "\n",
        "a,b\n1,\udcff\n", "a,b\n1,\udcff\n2\n", "a,b\n2\n1,\udcff\n",
    ],
)  # fmt: skip
def test_mistakes_are_those_that_a_reader_of_csv_finds(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "a.csv"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    found = outcome(path)
    monkeypatch.setattr(tables, "_plainly_even", lambda *_: False)
    assert found == outcome(path)
    if not found.startswith("{"):
        assert found == outcome(path, {"a"}) == outcome(path, set())


def test_even_lines_are_told_without_a_reader_of_csv(tmp_path: Path):
    path = tmp_path / "a.csv"
    for text, told in (("a,b\n" + "1,2\n" * 50, True), ("a,b\n1,2\r\n\r\n3,4", True), ("a,b\n1\n", False)):
        path.write_text(text, newline="")
        assert tables._plainly_even(path, ",", 2) is told


@pytest.mark.parametrize(
    ("cells", "texts"),
    [
        ([["a", "b"], ["c"], [], None, ["a", "b"]], ["['a', 'b']", "['c']", "[]", "", "['a', 'b']"]),
        ([[1, 2], [3], None, [1, 2]], ["[1, 2]", "[3]", "", "[1, 2]"]),
        ([[[1], [2, 3]], [[4]], None], ["[[1], [2, 3]]", "[[4]]", ""]),
        ([{"a": 1, "b": ["x"]}, {"a": 2, "b": []}], ["{'a': 1, 'b': ['x']}", "{'a': 2, 'b': []}"]),
    ],
)
def test_cells_of_several_values_are_categories_by_their_text(cells: list[Any], texts: list[str], tmp_path: Path):
    frame = pd.DataFrame({"id": range(len(cells)), "tags": cells})
    frame.to_parquet(tmp_path / "a.parquet")
    frame.to_json(tmp_path / "a.jsonl", orient="records", lines=True)
    found = [Columns.fit(read_table(tmp_path / name), ["tags"]) for name in ("a.parquet", "a.jsonl")]
    assert found[0] == found[1] and found[0].categorical == {"tags": sorted(set(texts))}
    shown = [found[0].apply(table, "a") for table in (frame, frame.map(_array))]
    assert torch.equal(*shown) and shown[0].sum(1).tolist() == [1.0] * len(cells)


@pytest.mark.parametrize("gap", [False, True])
@pytest.mark.parametrize("yes", ["True", "true", "TRUE"])
def test_true_and_false_are_read_whatever_the_file_of_the_training_rows(yes: str, gap: bool, tmp_path: Path):
    cells = [True, False, True, True, None if gap else False]
    typed = pd.DataFrame({"id": range(5), "b": pd.array(cells, dtype="boolean")})
    written = {True: yes, False: yes.replace("True", "False").replace("true", "false").replace("TRUE", "FALSE")}
    typed.to_parquet(tmp_path / "a.parquet")
    pd.DataFrame({"id": range(5), "b": cells}).to_json(tmp_path / "a.jsonl", orient="records", lines=True)
    typed.assign(b=[written.get(cell, "") for cell in cells]).to_csv(tmp_path / "a.csv", index=False)
    tables = {kind: read_table(tmp_path / f"a.{kind}", {"id"}) for kind in ("parquet", "jsonl", "csv")}
    for fitted in [Columns.fit(table, ["b"]) for table in tables.values()]:
        kept = Columns.from_plain(fitted.plain())
        shown = [kept.apply(table, "a") for table in tables.values()]
        assert (
            torch.equal(shown[0], shown[1])
            and torch.equal(shown[0], shown[2])
            and len(shown[0].unique(dim=0)) == 2 + gap
        )


def test_other_text_is_no_truth(tmp_path: Path):
    fitted = Columns.fit(pd.DataFrame({"b": [True, False]}), ["b"])
    for cells in (["True", "yes"], ["True", "2"]):
        with pytest.raises(TableError, match="column 'b' holds text, but held numbers"):
            fitted.apply(pd.DataFrame({"b": cells}), "a")
    with pytest.raises(TableError, match="column 'b' holds text"):  # numbers were learnt, not True and False
        Columns.fit(pd.DataFrame({"b": [1, 0]}), ["b"]).apply(pd.DataFrame({"b": ["True"]}), "a")


def _array(cell: Any) -> Any:
    return np.array(cell, dtype=object) if isinstance(cell, list) else cell
