"""Data as people have it, and every mistake in it, with the message that the user reads."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.compose import ColumnTransformer
from sklearn.impute import SimpleImputer
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler
from vertical.recorder import recorded, reply
from vertical.tables import PARTIES, changed, config, planted

from h2tune.config import ConfigError
from h2tune.protocol.codec import Message, encode
from h2tune.store import ClientStore
from h2tune.vertical.align import (
    AlignmentError,
)
from h2tune.vertical.config import load_vertical, parse_vertical
from h2tune.vertical.federation import fit, load_parties
from h2tune.vertical.methods import METHODS
from h2tune.vertical.methods.base import configure
from h2tune.vertical.plan import make_plan
from h2tune.vertical.table import NO_LABEL, Columns, TableError, read_table, text_of


@pytest.fixture
def people() -> pd.DataFrame:
    return pd.DataFrame({
        "id": ["1", "2", "3", "4"], "age": ["30", "?", "41", "55"], "town": ["Bonn", "Köln", "", "Bonn"],
        "score": ["0.5", "1.5", "2.5", "0.5"],
    })  # fmt: skip


def test_columns_become_what_scikit_learn_makes_of_them(people: pd.DataFrame):
    columns = Columns.fit(people, ["age", "town", "score"])
    found = columns.apply(people, "bank")
    typed = people.assign(age=pd.to_numeric(people["age"], errors="coerce"), score=people["score"].astype(float))
    expected = ColumnTransformer([
        ("age", make_pipeline(SimpleImputer(strategy="median"), StandardScaler()), ["age"]),
        ("gap", make_pipeline(SimpleImputer(strategy="median", add_indicator=True)), ["age"]),
        ("score", StandardScaler(), ["score"]),
        ("town", OneHotEncoder(sparse_output=False), ["town"]),
    ]).fit_transform(typed)  # fmt: skip
    expected = np.delete(expected, 1, 1)  # the imputed age that comes with the indicator
    assert torch.allclose(found, torch.from_numpy(expected).float(), atol=1e-6)
    again = Columns.from_plain(json.loads(json.dumps(columns.plain())))
    assert torch.equal(again.apply(people, "bank"), found)
    other = people.assign(town="Ulm", age=None)
    assert columns.apply(other, "bank")[:, -3:].sum() == 0
    with pytest.raises(TableError, match="bank: column 'age' holds text"):
        columns.apply(people.assign(age="old"), "bank")


@pytest.mark.parametrize("values", [3, 49, 50, 51, 90])
@pytest.mark.parametrize("kind", ["str", "object", "category"])
def test_values_that_are_told_apart_are_those_of_scikit_learn(values: int, kind: str):
    generator = np.random.default_rng(values)
    numbers = generator.integers(0, values, 4 * values)
    cells = ["" if i == 0 else f"{('town', ' Bonn', 'Köln ')[i % 3]}{i}" for i in numbers]
    table = pd.DataFrame({"town": pd.Series(cells, dtype=kind)})
    columns = Columns.fit(table, ["town"])
    plain = np.array([text or "" for text in text_of(table["town"])], dtype=object)[:, None]
    encoder = OneHotEncoder(max_categories=50, handle_unknown="ignore", sparse_output=False).fit(plain)
    rare = encoder.infrequent_categories_[0]
    kept = [v for v in encoder.categories_[0] if rare is None or v not in rare]
    assert columns.categorical["town"] == kept
    found = columns.apply(table, "bank")
    assert torch.equal(found, torch.from_numpy(encoder.transform(plain)[:, : len(kept)]).float())
    order = generator.permutation(len(table))
    assert torch.equal(columns.apply(table, "bank", order), found[torch.from_numpy(order)])


def test_values_that_are_equal_but_written_otherwise_are_told_apart():
    table = pd.DataFrame({"a": pd.Series([1, True, "x", 1.0, "1 ", None, 2.5], dtype=object)})
    assert Columns.fit(table, ["a"]).categorical["a"] == ["", "1", "2.5", "True", "x"]


def test_infinite_numbers_are_missing_cells(people: pd.DataFrame):
    gaps, endless = people.assign(age=[30, None, 41, 55]), people.assign(age=["30", "inf", "41", "55"])
    for table in (endless, people.assign(age=[30.0, float("-inf"), 41.0, 55.0])):
        columns = Columns.fit(table, ["age"])
        assert torch.equal(columns.apply(table, "bank"), Columns.fit(gaps, ["age"]).apply(gaps, "bank"))


@pytest.mark.parametrize("ending", ["csv", "tsv", "parquet", "jsonl"])
def test_all_kinds_of_file_hold_the_same_rows(people: pd.DataFrame, tmp_path, ending: str):
    path = tmp_path / f"people.{ending}"
    if ending in ("csv", "tsv"):
        people.to_csv(path, sep="," if ending == "csv" else "\t", index=False)
    elif ending == "parquet":
        people.assign(age=pd.to_numeric(people["age"], errors="coerce")).to_parquet(path)
    else:
        path.write_text(people.to_json(orient="records", lines=True))
    table = read_table(path)
    columns = Columns.fit(table, ["age", "town", "score"])
    assert torch.equal(columns.apply(table, "x"), Columns.fit(people, ["age", "town", "score"]).apply(people, "x"))


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(TableError, match="There is no file"):
        read_table(tmp_path / "none.csv")
    (tmp_path / "a.xls").write_text("x")
    with pytest.raises(TableError, match=r"not \.xls"):
        read_table(tmp_path / "a.xls")


def test_a_party_without_rows():
    with pytest.raises(TableError, match="shop: the table has no rows"):
        load_parties(config(), changed("shop", lambda t: t.iloc[:0]))


def test_a_party_without_columns():
    with pytest.raises(TableError, match="shop: no column is left to learn from"):
        load_parties(config(), changed("shop", lambda t: t[["id"]]))


def test_a_label_column_that_a_passive_party_does_not_declare():
    with pytest.raises(TableError, match="shop: the table has a column 'kind', the name of the label"):
        load_parties(config(), changed("shop", lambda t: t.assign(kind="class-1")))


def test_a_class_that_nobody_can_know():
    settings = config(label={"classes": ["class-0", "class-1", "class-2", "class-3", "class-9"]})
    with pytest.raises(AlignmentError, match="Nobody can know the class 'class-9'"):
        fit(settings, load_parties(settings, planted()))


def test_one_class_in_the_aligned_rows():
    def one(table: pd.DataFrame) -> pd.DataFrame:
        return table.assign(
            kind=["class-0" if i.startswith("a") else k for i, k in zip(table["id"], table["kind"], strict=True)]
        )

    with pytest.raises(AlignmentError, match="All 80 aligned rows have the same label"):
        fit(config(), load_parties(config(), changed("bank", one)))


def test_an_aligned_row_without_a_label():
    frames = changed("bank", lambda t: t.assign(kind=[None, *t["kind"][1:]]))
    with pytest.raises(AlignmentError, match="bank: 1 aligned rows have no label in 'kind'"):
        fit(config(), load_parties(config(), frames))


@pytest.mark.parametrize("prefix", ["bank-", "a"])
def test_alone_the_active_party_learns_from_its_labelled_rows(prefix: str):
    """Nobody is aligned with it then; a row without a label is no mistake."""
    table = planted()["bank"][0]
    place = next(i for i, name in enumerate(table["id"]) if name.startswith(prefix))
    frames = changed("bank", lambda t: t.assign(kind=[None if i == place else k for i, k in enumerate(t["kind"])]))
    settings = configure(config(), METHODS["local"])
    data = load_parties(config(), frames)["bank"]
    active = fit(settings, {"bank": data})
    assert len(active.labels.y) == len(table) - 1
    assert None not in [data.train.labels[row] for row in active.meeting.rows.tolist()]
    assert active.history[-1]["test"]["balanced"] > 0.5


def test_a_class_of_which_only_aligned_rows_are_left_is_a_class_that_nobody_can_know():
    """A party trains on unaligned rows; at the join it does not know yet which those are."""
    frames = planted(unseen=3)
    table, probe = frames["clinic"]
    settings = config(unseen=3)
    rows = [i for i, code in enumerate(table["code"]) if code == "class-3"][: settings.exposure.min_count]
    # One of the people who carry the class becomes one whom the bank knows.
    ids, codes = list(table["id"]), [c if i in rows else None for i, c in enumerate(table["code"])]
    ids[0], ids[rows[0]] = ids[rows[0]], ids[0]
    frames["clinic"] = (table.assign(id=ids, code=codes), probe)
    with pytest.raises(AlignmentError, match=r"Nobody can know the class 'class-3'.*beside the people whom it shares"):
        fit(settings, load_parties(settings, frames))


def test_labels_of_a_passive_party_that_the_federation_does_not_know():
    settings = config(
        parties=[{"name": n, "train": "-", "test": "-"} | ({"labels": "code"} if n == "shop" else {}) for n in PARTIES]
    )
    frames = changed("shop", lambda t: t.assign(code="wrong"))
    with pytest.raises(AlignmentError, match=r"shop labels rows with a class that is not among label\.classes"):
        fit(settings, load_parties(settings, frames))


@pytest.mark.parametrize(("spoil", "reason"), [
    (lambda m: reply(m, z=torch.zeros(31, 8)), "'z' in step has shape"),
    (lambda m: reply(m, z=torch.full((32, 8), float("nan"))), "not finite"),
    (lambda m: reply(m, z=torch.zeros(32, 8, dtype=torch.float64)), "type torch.float64"),
    (lambda m: reply(m, extra=torch.zeros(1)), "may not hold 'extra'"),
    (lambda m: encode(Message("local", m.run, m.round, m.client, m.method)), "it was asked for 'step' of round 3"),
])  # fmt: skip
def test_a_party_that_answers_with_nonsense_is_excluded_and_the_others_go_on(tmp_path, spoil, reason: str):
    def from_round_three(message: Message) -> bytes | None:
        return spoil(message) if message.kind == "step" and message.round == 3 else None

    stores = {name: ClientStore(tmp_path / name) for name in PARTIES}
    federation, _ = recorded(config(), planted(), {"shop": from_round_three}, stores)
    federation.exchange.session.log = federation.log = events = Events()
    active = federation.run()
    assert federation.exchange.here == ["clinic"]
    assert reason in federation.exchange.excluded["shop"]
    assert active.round == config().rounds
    assert any("shop" in text for text in events.texts)
    again, _ = recorded(config(), planted())  # who is out stays out when the active party is started again
    again.exchange.load(json.loads(json.dumps(federation.exchange.plain())))
    assert again.exchange.here == ["clinic"] and again.exchange.excluded == federation.exchange.excluded


@pytest.mark.parametrize("rows", [0, 1, 99, 101])
def test_a_party_that_predicts_for_more_or_fewer_people_than_asked_is_excluded(tmp_path, rows: int):
    def spoilt(message: Message) -> bytes | None:
        return reply(message, z=torch.zeros(rows, 8)) if message.kind == "predict" else None

    stores = {party: ClientStore(tmp_path / party) for party in PARTIES}
    federation, _ = recorded(config(), planted(), {"shop": spoilt}, stores)
    federation.run()
    assert federation.exchange.here == ["clinic"]
    assert f"predict was asked for 100 rows and has {rows}" in federation.exchange.excluded["shop"]


@pytest.mark.parametrize("name", ["counts", "prior"])
def test_a_party_whose_counts_or_shares_are_negative_is_excluded(tmp_path, name: str):
    def spoilt(message: Message) -> bytes | None:
        return reply(message, **{name: torch.tensor([5.0, -1.0, 3.0, 0.0])}) if message.kind == "local" else None

    stores = {party: ClientStore(tmp_path / party) for party in PARTIES}
    federation, _ = recorded(config(rounds=1), planted(), {"shop": spoilt}, stores)
    federation.run()
    assert federation.exchange.here == ["clinic"]
    assert f"{name!r} in local holds values below 0" in federation.exchange.excluded["shop"]


def test_a_party_that_says_another_number_of_rows_takes_no_part():
    def spoilt(message: Message) -> bytes | None:
        if message.kind != "join":
            return None
        message.payload.meta["rows"] = 10**12
        return encode(message)

    federation, _ = recorded(config(), planted(), {"shop": spoilt})
    with pytest.raises(AlignmentError, match=r"shop cannot take part: it says that it has 1,000,000,000,000 rows"):
        federation.open()


def test_a_round_that_is_begun_again_is_another_attempt():
    federation, recorders = recorded(config(rounds=1), planted())
    active = federation.open()
    active.one_round()
    active.round = 0
    active.one_round()
    found = {message.attempt for message in recorders["shop"].messages("step")}
    assert found == {0, 1}


class Events:
    def __init__(self) -> None:
        self.texts: list[str] = []

    def event(self, event: str, text: str, **fields: object) -> None:
        self.texts.append(text)


def test_the_config_says_what_is_wrong(tmp_path):
    with pytest.raises(ConfigError, match=r"training.local_step: unknown key. Did you mean `local_steps`"):
        config(training={"local_step": 3})
    with pytest.raises(ConfigError, match=r"label\.party is 'bnk', but the parties are bank, clinic, shop"):
        config(label={"party": "bnk", "column": "kind"})
    with pytest.raises(ConfigError, match="two parties have the name 'a'"):
        parse_vertical({"label": {"party": "a", "column": "y"}, "parties": [{"name": "a", "train": "-"}] * 2})
    with pytest.raises(ConfigError, match="shop: the shares in `prior` must sum to 1"):
        config(
            parties=[
                *({"name": n, "train": "-"} for n in PARTIES[:2]),
                {"name": "shop", "train": "-", "prior": {"class-0": 0.5}},
            ]
        )
    (tmp_path / "v.yaml").write_text("parties: [\n")
    with pytest.raises(ConfigError, match="not valid YAML"):
        load_vertical(tmp_path / "v.yaml")


def test_a_lost_party_is_waited_for_a_minute_whatever_else_the_file_says_of_the_network():
    assert config().network.patience == 60
    named = config(network={"host": "bank.example"}).network
    assert (named.host, named.patience) == ("bank.example", 60)
    assert config(network={"patience": 5}).network.patience == 5


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("id,a,a\n1,2,3\n", "two columns are called 'a'"),
        ("id,a\n1,2,\n2,3,\n", "line 2 has 3 cells, and there are 2 columns"),
        ("id,a\n1,2\n2\n", "line 3 has 1 cells"),
    ],
)
def test_rows_that_do_not_fit_the_columns(text: str, said: str, tmp_path):
    path = tmp_path / "table.csv"
    path.write_text(text)
    with pytest.raises(TableError, match=said):
        read_table(path)


def test_cells_with_line_breaks_and_empty_lines_are_even(tmp_path):
    path = tmp_path / "table.csv"
    path.write_text('id,a\n1,"x\ny"\n\n2,"a,b"\n')
    assert read_table(path)["a"].tolist() == ["x\ny", "a,b"]


@pytest.mark.parametrize(
    ("cell", "odd"), [("unknown", True), ("41,000", True), ("n.a.", False), ("", False), ("7", False)]
)
def test_one_cell_that_is_no_number_is_named(cell: str, odd: bool):
    frame = pd.DataFrame({"income": [str(i) for i in range(30)] + [cell], "town": ["a", "b", "c"] * 10 + ["d"]})
    columns = Columns.fit(frame, ["income", "town"])
    assert columns.odd == ({"income": cell} if odd else {}) and ("income" in columns.numeric) is not odd


def test_a_plan_names_odd_cells_people_in_both_tables_and_a_warm_up_that_never_ends():
    frames = planted(0)
    active = config().label.party
    train, _ = frames[active]
    odd = train.copy()
    column = next(name for name in odd.columns if name not in ("id", config().label.column))
    odd[column] = odd[column].astype(object)
    odd.loc[odd.index[3], column] = "unknown"
    changed = config(rounds=4, method={"warmup": 15})
    said = " | ".join(make_plan(changed, frames | {active: (odd, odd)}).warnings)
    assert f"{active}: column {column!r} mostly holds numbers, but also 'unknown'" in said
    assert f"{active}: {len(odd):,} of {len(odd):,} test people are also in its training table" in said
    assert "never used: that begins with round 15" in said
    assert "never used" not in " ".join(make_plan(config(rounds=40), frames).warnings)


def test_a_class_may_be_called_none():
    labels = pd.Series(["None", "-", "", "NA", "x"])
    assert text_of(labels, NO_LABEL) == ["None", "-", None, None, "x"]
