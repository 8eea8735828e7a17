"""Names that differ by case or spaces only: ids that are one person, and classes that would be merged."""

from __future__ import annotations

import pytest
import torch
from vertical.tables import PARTIES, changed, config

from h2tune.config import ConfigError
from h2tune.errors import ProtocolError
from h2tune.protocol.codec import Payload
from h2tune.vertical.config import VerticalConfig
from h2tune.vertical.federation import load_parties
from h2tune.vertical.passive import Passive
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
    parties = [{"name": name, "train": "-"} for name in PARTIES]
    assert config(
        label={"classes": ["class-0", "class-1", twin]}, parties=parties
    ).label.classes  # nobody else names one
    parties[1]["labels"] = "code"
    with pytest.raises(ConfigError, match=r"label\.classes: 'class-0' and .* differ by case, spaces or forms"):
        config(label={"classes": ["class-0", "class-1", twin]}, parties=parties)
    parties[2]["prior"] = {"class-0": 0.5, twin: 0.5}
    with pytest.raises(ConfigError, match=r"shop: 'class-0' and .* in `prior` differ by case, spaces or forms"):
        config(parties=parties)


def without_classes(labels: dict[str, str]) -> VerticalConfig:
    """The planted federation, whose classes are those of the active party's rows."""
    parties = [{"name": n, "train": "-"} | ({"labels": labels[n]} if n in labels else {}) for n in PARTIES]
    return config(label={"party": "bank", "column": "kind", "classes": None}, parties=parties)


def test_labels_of_rows_that_would_be_merged_are_refused_at_the_party_that_has_them():
    frames = changed("bank", lambda t: t.assign(kind=[k.upper() if i % 2 else k for i, k in enumerate(t.kind)]))
    untested = {name: (train, None) for name, (train, _) in frames.items()}
    with pytest.raises(TableError, match=r"bank: labels in 'kind' differ by case.*'CLASS-0' and 'class-0'"):
        load_parties(without_classes({"clinic": "code"}), untested)
    alone = without_classes({})
    assert {"CLASS-0", "class-0"} <= set(load_parties(alone, untested)["bank"].train.labels)
    assert any("'CLASS-0' and 'class-0' are two classes" in text for text in make_plan(alone, untested).warnings)
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


def test_a_party_that_names_classes_refuses_two_that_are_one_to_it():
    """Over a network the active party does not know whether the others name classes: they say so when they are told them."""
    frames = changed("clinic", lambda t: t.assign(code="CLASS-1"))
    data = load_parties(without_classes({"clinic": "code"}), frames)
    one = torch.zeros(2, 16, dtype=torch.uint8)
    for name, refused in (("clinic", True), ("shop", False)):
        party = Passive(without_classes({"clinic": "code"}), data[name], "salt")
        nobody = {key: torch.zeros(0, dtype=torch.int64) for key in ("places", "test_places")}
        keys = {key: torch.zeros(0, 16, dtype=torch.uint8) for key in ("keys", "test_keys")}
        told = Payload(nobody | keys | {"classes": one}, {"rows": 0, "test_rows": 0})
        if refused:
            with pytest.raises(ProtocolError, match="clinic: two classes differ by case"):
                party._align(told)
        else:
            party._align(told)
