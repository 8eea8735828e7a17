"""Cells, labels and keys that people write, and what they read of those that cannot be used."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from vertical.tables import PARTIES, config, planted

from h2tune.config import ConfigError
from h2tune.vertical.compare import interval
from h2tune.vertical.config import load_vertical, parse_vertical
from h2tune.vertical.federation import load_parties
from h2tune.vertical.plan import make_plan
from h2tune.vertical.table import Columns, TableError, numbers_of, read_table, text_of


def with_test(edit, **changes):
    frames, settings = planted(tests=12), config(**changes)
    train, test = frames["bank"]
    assert test is not None
    return settings, frames | {"bank": (train, edit(test))}


def test_test_people_need_the_label_column():
    with pytest.raises(TableError, match=r"bank \(test table\): there is no label column 'kind'; there are: id, x0"):
        load_parties(*with_test(lambda t: t.drop(columns="kind")))


@pytest.mark.parametrize("label", [{}, {"party": "bank", "column": "kind", "classes": None}])
def test_labels_of_test_people_are_classes(label: dict):
    def edit(table: pd.DataFrame) -> pd.DataFrame:
        return table.assign(kind=[*table["kind"][:3], "Class- 1", *table["kind"][4:10], "other", None])

    with pytest.raises(TableError) as error:
        load_parties(*with_test(edit, label=label))
    assert str(error.value) == (
        "bank (test table): 2 of 12 rows have a label in 'kind' that is no class, the first is 'Class- 1' in row 4; the"
        " class 'class-1' differs by case or spaces only. Classes are 'class-0', 'class-1', 'class-2', 'class-3'. Correct"
        " the labels, empty the cells, or name all classes in label.classes."
    )


def test_unseen_classes_and_rows_without_a_label_stay():
    frames = planted(unseen=2)
    train, test = frames["bank"]
    assert test is not None and "class-2" in set(test["kind"]) - set(train["kind"])
    test = test.assign(kind=[None, *test["kind"][1:]])
    found = load_parties(config(unseen=2), frames | {"bank": (train, test)})["bank"].test
    assert found is not None and found.labels.count(None) == 1 and "class-2" in found.labels


@pytest.mark.parametrize(
    ("cells", "told"),
    [
        ([f"{i}044 €" for i in range(40)], "0044 €"),
        ([f"{i},3" for i in range(40)], "0,3"),
        ([f"€ {i}" for i in range(300)], "€ 0"),
        (["1 kg", "2 kg"] * 20, None),
        ([f"town {chr(97 + i % 26)}{chr(97 + i // 26)}" for i in range(40)], None),
        ([str(i) for i in range(40)], None),
    ],
)
def test_numbers_with_a_unit_or_a_comma_are_told(cells: list[str], told: str | None):
    columns = Columns.fit(pd.DataFrame({"income": cells}), ["income"])
    assert columns.coded == ({"income": told} if told else {}) and "coded" not in columns.plain()


def test_plan_says_what_to_do_about_them():
    frames = planted()
    train, test = frames["shop"]
    assert test is not None
    frames["shop"] = train.assign(pay=[f"{i} €" for i in range(len(train))]), test.assign(pay="3 €")
    (text,) = [t for t in make_plan(config(), frames).warnings if "'pay'" in t]
    assert (
        text.startswith("shop: column 'pay' holds many different values such as '0 €'") and "write them bare" in text
    )


def test_cells_that_are_missing_in_columns_of_pandas_own_types():
    assert text_of(pd.Series(["a", pd.NA, "b"], dtype="string")) == ["a", None, "b"]
    assert text_of(pd.Series([1, pd.NA, 3], dtype="Int64")) == ["1", None, "3"]
    assert text_of(pd.Series([pd.Timestamp("2026-01-02"), pd.NaT])) == ["2026-01-02 00:00:00", None]
    assert text_of(pd.Series(["x", pd.NA], dtype="category")) == ["x", None]


@pytest.mark.parametrize("zone", [None, "Europe/Berlin"])
def test_dates_are_days_and_a_missing_one_is_a_gap(zone: str | None):
    dates = pd.Series([pd.Timestamp("2026-01-01"), pd.NaT, pd.Timestamp("2026-01-03")]).dt.tz_localize(zone)
    found = numbers_of(dates)
    assert found is not None and np.isnan(found[1]) and found[2] - found[0] == 2
    durations = numbers_of(pd.Series([pd.Timedelta(hours=12), pd.NaT]))
    assert durations is not None and durations[0] == 0.5 and np.isnan(durations[1])
    columns = Columns.fit(pd.DataFrame({"seen": dates}), ["seen"])
    assert columns.numeric["seen"]["gaps"] == 1.0 and columns.numeric["seen"]["scale"] < 2


def test_numbers_too_large_for_the_arithmetic_are_missing():
    gaps, huge = (pd.DataFrame({"a": [1.0, 2.0, 5.0, value]}) for value in (np.nan, 1e300))
    columns = Columns.fit(huge, ["a"])
    assert columns == Columns.fit(gaps, ["a"]) and columns.numeric["a"]["gaps"]
    far = columns.apply(pd.DataFrame({"a": ["1e39", "1e12", "-1e12", "1e6"]}), "bank")
    assert torch.isfinite(far).all() and far[:, 1].tolist() == [1, 1, 1, 0]
    assert torch.equal(far[0], columns.apply(gaps, "bank")[3])


def test_shares_of_a_prior_are_shares():
    parties = [*({"name": n, "train": "-"} for n in PARTIES[:2])]
    with pytest.raises(ConfigError, match=r"shop: the share of 'a' in `prior` is 1.5; shares are between 0 and 1"):
        config(parties=[*parties, {"name": "shop", "train": "-", "prior": {"a": 1.5, "b": -0.5}}])


def test_a_broken_line_is_named_by_its_number(tmp_path: Path):
    path = tmp_path / "shop.jsonl"
    path.write_text(json.dumps({"id": 1}) + "\n\n{'id': 2}\n")
    with pytest.raises(TableError, match=r"shop\.jsonl: line 3 is no JSON: .* at character 2"):
        read_table(path)
    path.write_text(json.dumps({"id": 1}) + "\n[1, 2]\n")
    with pytest.raises(TableError, match=r"shop\.jsonl: line 2 is no object"):
        read_table(path)


def test_paths_may_begin_at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    encoder = {"kind": "text", "model": "~/encoder", "column": "note"}
    plain = {
        "label": {"party": "a", "column": "y"},
        "parties": [{"name": "a", "train": "~/a.csv", "encoder": encoder}],
    }
    (party,) = parse_vertical(plain, Path("/elsewhere")).parties
    assert party.train == str(tmp_path / "a.csv") and party.encoder.model == str(tmp_path / "encoder")
    (tmp_path / "v.yaml").write_text(json.dumps(plain))
    assert load_vertical(tmp_path / "v.yaml").parties[0] == party


def test_intervals_of_shares_end_where_shares_end():
    assert interval([0.5, 0.99], 0, 1)[1:] == [0, 1] and interval([0.5, 0.99])[2] > 1


def test_a_table_in_another_form_than_its_name_says(tmp_path: Path):
    path = tmp_path / "shop.jsonl"
    for text in (json.dumps([{"id": 1}], indent=1), '[{"id": 1}]'):
        path.write_text(text)
        with pytest.raises(TableError, match=r"holds one JSON list; name it .json, or write one object a line"):
            read_table(path)
    semicolons = tmp_path / "shop.csv"
    semicolons.write_text("id;pay\na;1\nb;2\n")
    settings, frames = config(), planted(tests=12)
    with pytest.raises(TableError, match=r"there are: id;pay; separated by semicolons\? save it with commas"):
        load_parties(settings, frames | {"shop": (read_table(semicolons), None)})
    semicolons.write_text("id;pay\na;1,5\n")
    with pytest.raises(TableError, match=r"there are 1 columns; separated by semicolons"):
        read_table(semicolons)
