"""What leaves a run for other programs, and what cannot."""

from __future__ import annotations

from pathlib import Path

import pytest
from federations import small

from h2tune.exporting import export
from h2tune.federation import run
from h2tune.utils.files import StoreError


def test_an_adapter_that_no_weight_can_hold_is_not_merged(tmp_path: Path) -> None:
    run(small(2, same_model=True, rounds=1, method="colora"), tmp_path / "run")
    with pytest.raises(StoreError, match="The adapter of c0 cannot be merged: .* --to peft"):
        export(tmp_path / "run", "c0", tmp_path / "merged", "merged")
    assert not (tmp_path / "merged").exists()
    said = str(export(tmp_path / "run", "c0", tmp_path / "lora"))
    assert "load the base from where it lies there" in said and "merged" not in said
