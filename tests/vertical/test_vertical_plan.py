"""What `plan` says of the set-up: bytes of either alignment, and what a run would refuse."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from vertical.tables import config, planted

from h2tune.config import ConfigError
from h2tune.vertical.align import AlignmentError
from h2tune.vertical.config import VerticalConfig
from h2tune.vertical.federation import run
from h2tune.vertical.plan import make_plan

WIDE = 0.05  # most that a plan is off


def short(**changes: Any) -> VerticalConfig:
    return config(rounds=1, unseen=2, baseline="none", **changes)


@pytest.mark.parametrize("tested", [("bank", "clinic", "shop"), ("bank", "shop"), ("clinic",)])
@pytest.mark.parametrize("how", ["hmac", "psi"])
def test_bytes_before_the_first_round_are_those_of_a_run(how: str, tested: tuple[str, ...], tmp_path: Path):
    if how == "psi":
        pytest.importorskip("private_set_intersection.python", reason="pip install openmined-psi")
    frames = {n: (train, test if n in tested else None) for n, (train, test) in planted(unseen=2, aligned=400).items()}
    given = short(align={"how": how})
    sent = run(given, tmp_path / "run", frames=frames)["bytes"]
    for party in make_plan(given, frames).parties[1:]:
        for way, planned in (("up", party.once_up), ("down", party.once_down)):
            assert planned == pytest.approx(sum(sent[party.name][k][way] for k in ("join", "align")), rel=WIDE)


def test_what_a_run_refuses_is_refused_by_plan_and_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(sys.modules, "private_set_intersection", None)
    frames = planted(unseen=2)
    for given, kind, text in (
        (short(align={"how": "psi"}), AlignmentError, "needs a package: pip install openmined-psi"),
        (short(method={"name": "fedhssl"}), ConfigError, "takes part in `h2tune compare`, and cannot be run"),
    ):
        with pytest.raises(kind, match=text):
            make_plan(given, frames)
        with pytest.raises(kind, match=text):
            run(given, tmp_path / "run", frames=frames)
        assert not (tmp_path / "run" / "run.json").exists()
    alone = make_plan(short(align={"how": "psi"}, method={"name": "local"}), frames)
    assert [party.name for party in alone.parties] == ["bank"]
