"""Names that differ by case or spaces only: ids that are one person, and classes that would be merged."""

from __future__ import annotations

import pytest
from vertical.tables import PARTIES, changed, config

from h2tune.config import ConfigError
from h2tune.vertical.config import VerticalConfig
from h2tune.vertical.federation import load_parties
from h2tune.vertical.plan import make_plan
from h2tune.vertical.spelling import alike
from h2tune.vertical.table import TableError


def test_spellings_of_one_name():
    assert alike(["low", "high", None, "low"]) is None
    assert alike(["low", "high", " Low"]) == ("low", " Low")
    assert alike(["a b", "AB"]) == ("a b", "AB")
    assert alike(["x²", "x2"]) == ("x²", "x2")


@pytest.mark.parametrize("twin", ["CLASS-0", "class -0", "ｃlass-0"])
def test_classes_that_every_passive_party_would_merge_are_refused(twin: str):
    with pytest.raises(ConfigError, match=r"label\.classes: 'class-0' and .* differ by case, spaces or forms"):
        config(label={"classes": ["class-0", "class-1", twin]})
    parties = [{"name": name, "train": "-"} for name in PARTIES]
    parties[2]["prior"] = {"class-0": 0.5, twin: 0.5}
    with pytest.raises(ConfigError, match=r"shop: 'class-0' and .* in `prior` differ by case, spaces or forms"):
        config(parties=parties)


def without_classes(labels: dict[str, str]) -> VerticalConfig:
    """The planted federation, whose classes are those of the active party's rows."""
    parties = [{"name": n, "train": "-"} | ({"labels": labels[n]} if n in labels else {}) for n in PARTIES]
    return config(label={"party": "bank", "column": "kind", "classes": None}, parties=parties)


def test_labels_of_rows_that_would_be_merged_are_refused_at_the_party_that_has_them():
    frames = changed("bank", lambda t: t.assign(kind=[k.upper() if i % 2 else k for i, k in enumerate(t.kind)]))
    with pytest.raises(TableError, match=r"bank: labels in 'kind' differ by case.*'CLASS-0' and 'class-0'"):
        load_parties(without_classes({}), {name: (train, None) for name, (train, _) in frames.items()})
    frames = changed("clinic", lambda t: t.assign(code=["class-1" if i % 2 else "class- 1" for i in range(len(t))]))
    with pytest.raises(TableError, match=r"clinic: labels in 'code' differ by case.*'class- 1' and 'class-1'"):
        load_parties(without_classes({"clinic": "code"}), frames)


def test_one_spelling_may_be_another_than_the_other_partys():
    frames = changed("clinic", lambda t: t.assign(code="CLASS-1"))
    assert load_parties(without_classes({"clinic": "code"}), frames)["clinic"].train.labels[0] == "CLASS-1"


def test_test_people_who_are_trained_on_under_another_spelling_are_named():
    frames = changed("shop", lambda t: t)
    train, test = frames["shop"]
    frames["shop"] = (train, test.assign(id=[f" {i.upper()}" for i in train["id"][:7]] + list(test["id"][7:])))
    assert "shop: 7 of 100 test people are also in its training table" in make_plan(config(), frames).warnings
