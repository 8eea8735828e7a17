"""How people are matched, openly and by private intersection, and what is said where nobody is."""

from __future__ import annotations

import pandas as pd
import pytest
import torch
from vertical.tables import PARTIES, changed, config, planted

from h2tune.errors import ProtocolError
from h2tune.protocol.codec import Payload
from h2tune.vertical.align import (
    FORMS,
    AlignmentError,
    check_ids,
    digests,
    match,
    normalise,
    nothing_in_common,
    positions,
)
from h2tune.vertical.federation import fit, load_parties
from h2tune.vertical.passive import Passive


def test_ids_match_in_all_spellings():
    assert normalise(" Müller 7 ") == normalise("mu\u0308LLER7")
    mine, theirs = digests(["A 1", "b2", "c3"], "salt"), digests(["B2", "x", "a1"], "salt")
    found = match(mine, {"lab": theirs})
    assert len(found.order) == 2 and bool(found.present.all())
    own, other = positions(mine, found.order), positions(theirs, found.order)
    assert sorted(zip(own.tolist(), other.tolist(), strict=True)) == [(0, 2), (1, 0)]
    assert len(match(mine, {"lab": digests(["A 1"], "pepper")}).order) == 0


def test_private_intersection_finds_the_same_people():
    pytest.importorskip("private_set_intersection", reason="the extra package openmined-psi is not installed")
    settings, frames = config(rounds=2), planted()
    frames["shop"] = (frames["shop"][0].iloc[5:], frames["shop"][1])
    hashed, private = settings, config(rounds=2, align={"how": "psi"})
    one, other = (fit(c, load_parties(c, frames)) for c in (hashed, private))
    assert torch.equal(one.meeting.rows, other.meeting.rows)
    assert torch.equal(one.meeting.present, other.meeting.present)
    assert torch.equal(one.top.nu, other.top.nu)


def test_a_private_intersection_is_not_circumvented_by_asking_for_looser_forms():
    settings = config(align={"how": "psi"})
    data = load_parties(settings, planted())
    party = Passive(settings, data["shop"], "salt")
    for form in FORMS:
        with pytest.raises(ProtocolError, match="shop matches ids by `psi` and sends no hashes"):
            party.answer("join", 0, Payload(meta={"form": form}))
    assert "`psi` does not tell" in str(nothing_in_common("shop", 3, "bank", 4, {}))


def test_nobody_in_common_by_private_intersection():
    pytest.importorskip("private_set_intersection", reason="the extra package openmined-psi is not installed")
    settings = config(align={"how": "psi"})
    strangers = changed("shop", lambda t: t.assign(id=[f"s{i}" for i in range(len(t))]))
    with pytest.raises(AlignmentError, match="shop and bank have no id in common"):
        fit(settings, load_parties(settings, strangers))


def test_ids_must_be_unique_and_present():
    with pytest.raises(
        AlignmentError, match="shop: ids are not unique: 1 rows repeat an id; rows 1 and 3 have ids that differ only"
    ):
        check_ids(["a1", "b", "A 1"], "shop")
    with pytest.raises(AlignmentError, match="shop: 1 rows have no id, the first is row 2"):
        check_ids(["a", None], "shop")
    double = changed("shop", lambda t: pd.concat([t, t.iloc[:1]]))
    with pytest.raises(AlignmentError, match="rows 1 and 201 have the same id"):
        load_parties(config(), double)


def test_nobody_in_common_names_the_salt_first_and_counts_near_ids():
    dashed = changed("shop", lambda t: t.assign(id=[f"{i[:1]}-{i[1:]}" for i in t["id"]]))
    with pytest.raises(AlignmentError) as error:
        fit(config(), load_parties(config(), dashed))
    lines = str(error.value).splitlines()
    assert "shop and bank have no id in common (200 and 200 rows)" in lines[0]
    assert "salt may differ" in lines[1]
    assert "80 without punctuation" in lines[2]
    parties = [{"name": n, "train": "-", "test": "-"} | ({"salt": "other"} if n == "shop" else {}) for n in PARTIES]
    settings = config(parties=parties)
    with pytest.raises(AlignmentError, match="0 without punctuation"):
        fit(settings, load_parties(settings, planted()))


def test_ids_that_one_party_took_for_numbers_are_told_as_such():
    numbers = {n: tuple(t.assign(id=[str(700 + k) for k in range(len(t))]) for t in pair)
               for n, pair in planted().items() if n != "clinic"}  # fmt: skip
    shop = tuple(table.assign(id=table["id"] + ".0") for table in numbers["shop"])
    parties = [{"name": n, "train": "-", "test": "-"} for n in numbers]
    settings = config(parties=parties)
    with pytest.raises(AlignmentError, match=r"200 without the \.0 of numbers"):
        fit(settings, load_parties(settings, {"bank": numbers["bank"], "shop": shop}))
